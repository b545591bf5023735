"""What the methods that go back through the sampler have in common: pictures in the graph, rewards, losses, parts.

    minimise  E_{c, x_T, noise}[ scale * loss(R(decode(x_0), c)) ] + regularisers         over the learner's parameters

An update goes `ctx.rows` pictures at a time, and each loss is its pictures' share of the update's mean, so the gradient
does not depend on how many go together.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ...errors import UsageError
from ...samplers.sampler import State
from ...training.learner import Learner
from ..method import Method, Part, Sampling, UpdateContext
from ..regularise import Regulariser, check_divergence
from .batch import Batch, batches
from .reward_loss import make_loss

Losses = Callable[[Tensor], Tensor]  # clean latents (B, *shape) -> (B,)


@dataclass(frozen=True, eq=False)
class Visit:
    """A run of a batch. states: without graph, before each step, as far as they are known. x: where it stands, in the
    graph where the run is differentiated."""

    batch: Batch
    states: list[State]
    x: Tensor


@dataclass(frozen=True)
class Seen:
    """What an update has seen so far, a number a picture. clamped: the share of a picture's values outside [0, 1]."""

    rewards: list[Tensor] = field(default_factory=list)
    clamped: list[Tensor] = field(default_factory=list)
    kl: list[Tensor] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Backprop(Method):
    """loss: "negative", "absolute:target=10" or "hinge:target=2", times `scale`. kl, divergence, anchor, preferred: see
    `finetune.regularise.Regulariser`."""

    loss: str = "negative"
    scale: float = 1.0
    kl: float = 0.0
    divergence: str = "noise"
    anchor: float = 0.0
    preferred: float = 1.0

    def __post_init__(self) -> None:
        make_loss(self.loss)
        self.regulariser  # noqa: B018, it refuses bad settings

    @property
    def regulariser(self) -> Regulariser:
        return Regulariser(self.kl, self.divergence, self.anchor, self.preferred)

    def check(self, learner: Learner, sampling: Sampling) -> None:
        if self.kl:
            check_divergence(self.divergence, sampling.sampler)

    @abstractmethod
    def visit(self, ctx: UpdateContext, batch: Batch) -> Visit:
        """Go along the run as far as the method does before it looks at pictures."""

    @abstractmethod
    def losses(self, visit: Visit, judge: Losses) -> Tensor:
        """(B,) `judge` of the clean latents that the method makes of the visit, in the graph."""

    def guidance(self) -> str | None:
        """Another guidance than the run's."""
        return None

    def told(self, ctx: UpdateContext) -> dict[str, float]:
        """Numbers of this update for the log."""
        return {}

    def update(self, ctx: UpdateContext) -> Iterator[Part]:
        if not ctx.reward.differentiable:
            raise UsageError(f"the reward {ctx.reward.name} has no gradient; use ddpo, or a reward that has one")
        seen, hold = Seen(), self.regulariser
        for loss in hold.of_anchor(ctx):
            yield Part(loss, steps=False)
        parts = batches(ctx, self.guidance())
        for number, batch in enumerate(parts, 1):
            visit = self.visit(ctx, batch)
            for loss in hold.of_run(ctx, batch, visit.states):
                seen.kl.append(loss.detach())
                yield Part(loss, steps=False)
            loss = self.losses(visit, self._judge(ctx, batch, seen)).sum() * (self.scale / len(ctx.prompts))
            del visit
            if number == len(parts):
                self._report(ctx, seen)
            yield Part(loss, steps=number == len(parts))

    def _judge(self, ctx: UpdateContext, batch: Batch, seen: Seen) -> Losses:
        of_reward = make_loss(self.loss)

        def losses(latents: Tensor) -> Tensor:
            pictures = ctx.learner.decode(latents)
            rewards = ctx.reward(pictures, batch.prompts)
            outside = (pictures.detach() < 0) | (pictures.detach() > 1)
            seen.rewards.append(rewards.detach())
            seen.clamped.append(outside.flatten(1).float().mean(1))
            return of_reward(rewards)

        return losses

    def _report(self, ctx: UpdateContext, seen: Seen) -> None:
        rewards, clamped = (ctx.gather(torch.cat(values)) for values in (seen.rewards, seen.clamped))
        numbers: dict[str, Any] = {"reward": float(rewards.mean()), "clamped": float(clamped.mean())}
        if self.kl:
            numbers["kl"] = float(ctx.gather(torch.stack(seen.kl).sum()[None]).mean()) / self.kl
        ctx.log(**numbers, **self.told(ctx))
