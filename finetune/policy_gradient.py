"""What the methods share that need no gradient of the reward: PPO's clipped ratio (Schulman et al. 2017, arXiv
1707.06347, eq. 7), taken over the decisions of recorded pictures.

    L = mean over decisions of max(-A ratio, -A clip(ratio, 1 - e, 1 + e)),    ratio = p_theta / p_when_sampled

Decisions go through the network in pieces, a `Part` each; the optimiser steps when all decisions of its pictures are
in, so that neither the number of rows nor that of timesteps changes the size of a step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..errors import UsageError
from ..samplers.noise import derived_seed
from .advantages import History, forget, prompt_keys, prompt_scores, remember
from .gaussian_steps import step_kl
from .method import Method, Part, UpdateContext
from .trajectory import Trajectory


@dataclass(frozen=True)
class Piece:
    """Decisions that go through the network together: one of each of these pictures, at a step of the run if any."""

    rows: list[int]
    step: int = -1


Terms = Callable[[Piece], tuple[Tensor, Tensor]]  # ratios (n,) with a gradient, and what is added to the loss (n,)


def clipped(ratio: Tensor, advantages: Tensor, clip: float) -> Tensor:
    """(n,): max(-A ratio, -A clip(ratio, 1 - clip, 1 + clip)); flat where a step has gone far enough already."""
    return torch.maximum(-advantages * ratio, -advantages * ratio.clamp(1 - clip, 1 + clip))


@dataclass(frozen=True, kw_only=True)
class PolicyGradient(Method):
    """clip: e of the ratio. clamp: of advantages, to +-clamp. inner_epochs: how often the pictures of an update are
    gone through. inner_steps: optimiser steps in each, on as many parts of the pictures."""

    differentiable: ClassVar[bool] = False

    clip: float = 1e-4
    clamp: float = 5.0
    inner_epochs: int = 1
    inner_steps: int = 2

    def __post_init__(self) -> None:
        if self.clip <= 0 or self.clamp <= 0:
            raise UsageError("clip and clamp must be above 0; clip=1e-4 goes with the mean log-density, clamp=5")
        if self.inner_epochs < 1 or self.inner_steps < 1:
            raise UsageError("inner_epochs and inner_steps must be at least 1")

    def improve(
        self,
        ctx: UpdateContext,
        kept: Sequence[int],
        advantages: Tensor,
        pieces: Callable[[list[int], int], list[Piece]],
        terms: Terms,
    ) -> Iterator[Part]:
        """The parts of an update. kept: pictures that are learnt from. advantages: (B,) of all. pieces: of some
        pictures in an inner epoch. Every process steps as often, one without pictures with a loss of 0."""
        counts = ctx.gather(torch.tensor([len(kept)], device=ctx.learner.device))
        steps = min(self.inner_steps, int(counts.max()))
        seen: list[Tensor] = []
        for epoch in range(self.inner_epochs):
            for rows in _dealt(kept, steps, ctx.seed("pictures", epoch)):
                yield from self._one_step(ctx, pieces(rows, epoch), advantages, terms, seen)
        if seen:
            off = torch.cat(seen) - 1
            ctx.log(ratio_off=float(off.abs().max()), clipped=float((off.abs() > self.clip).double().mean()))

    def _one_step(
        self, ctx: UpdateContext, pieces: list[Piece], advantages: Tensor, terms: Terms, seen: list[Tensor]
    ) -> Iterator[Part]:
        own = torch.tensor([sum(len(piece.rows) for piece in pieces)], device=ctx.learner.device)
        decisions = float(ctx.gather(own).cpu().double().mean())  # of a process: gradients are averaged over processes
        for piece in pieces:
            ratio, more = terms(piece)
            gains = advantages[piece.rows].clamp(-self.clamp, self.clamp).to(ratio)
            seen.append(ratio.detach())
            yield Part((clipped(ratio, gains, self.clip) + more).sum() / decisions, piece is pieces[-1])
        if not pieces:
            yield Part(sum((p.sum() * 0 for p in ctx.learner.parameters), torch.zeros((), device=ctx.learner.device)))


@dataclass(frozen=True, kw_only=True)
class StepPolicyGradient(PolicyGradient):
    """The decisions are the steps of a stochastic run.

    reduction: of a step's log-density over the D numbers of a latent, "mean" or "sum" = D times the mean; `clip`
    belongs to it. fraction: of the steps that took noise, how many are trained on, drawn for each picture and inner
    epoch. kl: weight of the divergence of a step from the model's before training, kl_form: see `step_kl`. Without it
    nothing holds the model but the number of updates.
    """

    reduction: str = "mean"
    fraction: float = 1.0
    kl: float = 0.0
    kl_form: str = "exact"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.fraction <= 1:
            raise UsageError(
                f"fraction is the share of steps that are trained on, above 0 up to 1, not {self.fraction}"
            )
        if self.kl < 0:
            raise UsageError(f"kl must not be negative, not {self.kl}; 0 is off")

    def improve_steps(
        self, ctx: UpdateContext, trajectory: Trajectory, kept: Sequence[int], advantages: Tensor
    ) -> Iterator[Part]:
        """The parts of an update on these pictures of the trajectory."""
        drift: list[Tensor] = []

        def pieces(rows: list[int], epoch: int) -> list[Piece]:
            return self._pieces(ctx, trajectory, rows, epoch)

        def terms(piece: Piece) -> tuple[Tensor, Tensor]:
            mean = trajectory.mean_now(piece.step, piece.rows)
            ratio = trajectory.log_ratio(piece.step, piece.rows, mean, self.reduction).exp()
            if not self.kl:
                return ratio, torch.zeros_like(ratio)
            apart = self._from_base(ctx, trajectory, piece, mean)
            drift.append(apart.detach())
            return ratio, self.kl * apart

        yield from self.improve(ctx, kept, advantages, pieces, terms)
        if drift:
            ctx.log(kl=float(torch.cat(drift).mean()))

    def _from_base(self, ctx: UpdateContext, trajectory: Trajectory, piece: Piece, mean: Tensor) -> Tensor:
        """(n,): divergence of the steps from those of the model before training."""
        with ctx.learner.base(), torch.no_grad():
            base = trajectory.mean_now(piece.step, piece.rows)
        policy = trajectory.policy
        return step_kl(mean, base, policy.std(piece.step), policy.span(piece.step), self.kl_form)

    def _pieces(self, ctx: UpdateContext, trajectory: Trajectory, rows: list[int], epoch: int) -> list[Piece]:
        """Each picture's own shuffled steps, the first `fraction` of them; then by step, since a call of the network
        has one level. In which order they come changes nothing, as the optimiser waits for all of them."""
        steps = trajectory.drawn
        count = max(1, int(self.fraction * len(steps) + 1e-9))
        members: dict[int, list[int]] = {step: [] for step in steps}
        for row in rows:
            seed = derived_seed(ctx.seed("timesteps", epoch), trajectory.seeds[row])
            for i in torch.randperm(len(steps), generator=torch.Generator().manual_seed(seed))[:count].tolist():
                members[steps[i]].append(row)
        return [Piece(part, step) for step in steps for part in chunks(members[step], ctx.rows)]


def chunks(rows: list[int], size: int) -> list[list[int]]:
    return [rows[low : low + size] for low in range(0, len(rows), size)]


def _dealt(kept: Sequence[int], parts: int, seed: int) -> list[list[int]]:
    """The pictures in a shuffled order, in so many parts whose sizes differ by one at most."""
    order = torch.randperm(len(kept), generator=torch.Generator().manual_seed(seed)).tolist()
    return [[kept[i] for i in order[part::parts]] for part in range(parts)]


@torch.no_grad()
def score(ctx: UpdateContext, latents: Tensor, prompts: Sequence[str]) -> Tensor:
    """(B,): rewards of clean latents (B, *shape), `ctx.rows` at a time; their mean is logged."""
    found = [
        ctx.reward(ctx.learner.decode(latents[low : low + ctx.rows]), prompts[low : low + ctx.rows])
        for low in range(0, len(latents), ctx.rows)
    ]
    rewards = torch.cat(found)
    ctx.log(reward=float(ctx.gather(rewards).mean()))
    return rewards


def prompt_advantages(
    ctx: UpdateContext,
    prompts: Sequence[str],
    rewards: Tensor,
    least: int,
    *,
    newest: int | None = None,
    since: float | None = None,
) -> Tensor:
    """(B,) float64: rewards standardised by those of the same prompt, of which `ctx.state["rewards"]` keeps the
    `newest`, or those of updates >= `since`; see `prompt_scores`."""
    history: History = ctx.state.setdefault("rewards", {})
    keys = prompt_keys(prompts, rewards.device)
    everyone = ctx.gather(rewards)
    remember(history, ctx.gather(keys), everyone, ctx.update)
    forget(history, newest=newest, since=since)
    return prompt_scores(history, keys, rewards, everyone, least)


def members(seed: str, count: int) -> list[str]:
    """Seeds of the pictures of one group; the first is the picture's own."""
    return [seed, *(str(derived_seed(seed, "member", i)) for i in range(1, count))]


def repeated(prompts: Sequence[str], count: int) -> list[str]:
    """Each prompt so many times, one after the other."""
    return [prompt for prompt in prompts for _ in range(count)]
