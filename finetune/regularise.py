"""What holds a model near the one it was, whatever the reward says: a divergence to the base, and a denoising loss.

    noise    kl mean_t |eps_theta(x_t) - eps_base(x_t)|^2               for every sampler
    step     kl sum_t |mu_theta(x_t) - mu_base(x_t)|^2 / (2 sd_t^2)     the KL of the run in nats, for eta > 0
    anchor   anchor |V_theta(x_t) - V|^2 / numel                        with x_t = alpha_t x_0 + sigma_t eps and x_0 the
                                                                        base model's own pictures

x_t are the states of the learner's own run, taken as they are: the gradient is that of the steps at these states, as
in the policy-gradient methods, and not of where the run goes because of them. V is what the network predicts, so the
anchor is the loss that diffusion models are trained with. On the preferred part of the pictures it is supervised
fine-tuning, the term that keeps preference optimisation from running away.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import UsageError, nearest
from ..samplers.first_order import FirstOrder
from ..samplers.loop import Step, sample
from ..samplers.noise import SeededNoise, derived_seed
from ..samplers.prediction import Prediction
from ..samplers.registry import make_sampler
from ..samplers.sampler import State
from ..samplers.schedule import Level
from ..training.learner import Learner
from .gaussian_steps import reduced, step_kl
from .method import UpdateContext
from .methods.batch import Batch, batches

DIVERGENCES = ("noise", "step")
POOL = "anchor"  # the key in `ctx.state`: {"latents": (n, *shape), "prompts": n texts}
POOL_SIZE = 256
STEPS = 4  # at which a run's divergence is looked at in one update


# -- a divergence to the base -----------------------------------------------------------------------------------------


def noise_distance(learned: Prediction, base: Prediction) -> Tensor:
    """|eps_theta - eps_base|^2, (B,), summed over the latent. The gradient is of `learned` alone."""
    return reduced((learned.noise - base.noise.detach()) ** 2, "sum")


def kl_of_step(learned: Step, base: Step) -> Tensor:
    """KL(N(mu_theta, sd^2) | N(mu_base, sd^2)) in nats, (B,), of one step of first order; both from one state and with
    one noise, which cancels. A step without noise, the last one, counts with the least noise of the run: its own KL is
    infinite, and a step that cost nothing would be where a reward is hacked."""
    legs = learned.state.legs
    sd = legs[learned.index].weights[2] or min(leg.weights[2] for leg in legs if leg.fresh)
    return step_kl(learned.x, base.x.detach(), sd, 1.0)


def check_divergence(form: str, sampler: Any) -> None:
    """UsageError for an unknown form, and for "step" with a sampler whose steps are no Gaussians of known width."""
    if form not in DIVERGENCES:
        raise UsageError(f"unknown divergence {form!r}: {nearest(form, DIVERGENCES)}")
    if form == "step":
        made = make_sampler(sampler)
        if not isinstance(made, FirstOrder) or not made.stochastic:
            raise UsageError(f"divergence=step needs noise in each step, and {sampler} has none: use ddim:eta=1")


def divergence(batch: Batch, states: Sequence[State], form: str, seed: int, count: int = STEPS) -> Iterator[Tensor]:
    """Terms (B,) whose sum estimates the divergence of the run without bias, one a step, so that one step's graph is
    held at a time. 2F + B each.

    states: of the run, before each step. count: of steps that are looked at, drawn by `seed`; 0 is all of them.
    form: "noise" is a mean over steps, "step" a sum.
    """
    order = torch.randperm(len(states), generator=torch.Generator().manual_seed(seed)).tolist()
    chosen = order[: count or len(states)]
    share = (1 if form == "noise" else len(states)) / len(chosen)
    for index in chosen:
        base, learned = batch.base_step(states[index]), batch.step(states[index])
        found = noise_distance(learned.prediction, base.prediction) if form == "noise" else kl_of_step(learned, base)
        yield found * share


# -- an anchor --------------------------------------------------------------------------------------------------------


def denoising_loss(
    learner: Learner, latents: Tensor, prompts: Sequence[str], level: Level, seeds: Sequence[str]
) -> Tensor:
    """|V_theta(x_t) - V|^2 / numel, (B,), with x_t = alpha x_0 + sigma eps at `level` (sigma > 0).

    latents: x_0, (B, *shape). seeds: one a row, of eps. V is the native output that says x_0 exactly.
    """
    eps = SeededNoise(list(seeds)).draw("denoising", 0, latents)
    x = torch.add(latents * level.alpha, eps, alpha=level.sigma)
    found = learner.denoiser(prompts)(x, level)
    aim = found.with_denoised(latents.to(found.native.dtype)).native
    return reduced((found.native - aim.detach()) ** 2, "mean")


def base_latents(ctx: UpdateContext) -> tuple[Tensor, list[str]]:
    """Clean latents (B, *shape) of the base model for the update's prompts, and these. Without guidance: so they are
    what the base model itself is best at denoising, and the anchor does not teach it the guidance a second time."""
    ends = []
    with ctx.learner.base(), torch.no_grad():
        for batch in batches(ctx, "none"):
            noise = SeededNoise([str(derived_seed(seed, "anchor")) for seed in batch.seeds])
            x = ctx.learner.start([str(seed) for seed in noise.seeds], batch.levels)
            ends.append(sample(batch.denoiser, x, sampler=ctx.sampling.sampler, grid=batch.levels, noise=noise))
    return torch.cat(ends), list(ctx.prompts)


def preferred_part(ctx: UpdateContext, latents: Tensor, prompts: list[str], share: float) -> tuple[Tensor, list[str]]:
    """The share of these with the highest rewards, at least one."""
    rewards = []
    with torch.no_grad():
        for i in range(0, len(latents), ctx.rows):
            rewards.append(ctx.reward(ctx.learner.decode(latents[i : i + ctx.rows]), prompts[i : i + ctx.rows]))
    best = torch.cat(rewards).argsort(descending=True, stable=True)[: max(1, round(share * len(latents)))].tolist()
    return latents[best], [prompts[i] for i in best]


def give_pictures(state: dict[str, Any], latents: Tensor, prompts: Sequence[str]) -> None:
    """Anchor a run to these clean latents (n, *shape) and their prompts, in the place of the base model's samples.

    state: that of the run, `ctx.state`, before the first update.
    """
    if len(latents) != len(prompts) or not len(prompts):
        raise UsageError(f"{len(latents)} latents for {len(prompts)} prompts; give one prompt a picture")
    state[POOL] = {"latents": latents.detach().cpu(), "prompts": list(prompts), "given": True}


@dataclass(frozen=True)
class Regulariser:
    """kl: weight of the divergence, of the form "noise" or "step". anchor: weight of the denoising loss. preferred:
    the share of the base's samples, best rewards first, that the anchor is made of; 1 is all."""

    kl: float = 0.0
    form: str = "noise"
    anchor: float = 0.0
    preferred: float = 1.0

    def __post_init__(self) -> None:
        if self.kl < 0 or self.anchor < 0:
            raise UsageError(f"kl={self.kl:g} and anchor={self.anchor:g} are weights: 0 or more")
        if not 0 < self.preferred <= 1:
            raise UsageError(f"preferred={self.preferred:g} is a share of the pictures: above 0, up to 1")
        if self.form not in DIVERGENCES:
            check_divergence(self.form, None)

    def of_run(self, ctx: UpdateContext, batch: Batch, states: Sequence[State]) -> Iterator[Tensor]:
        """Scalars to be lowered, one a step that is looked at: this batch's share of the update's mean."""
        if self.kl:
            check_divergence(self.form, ctx.sampling.sampler)
            for term in divergence(batch, states, self.form, ctx.seed("divergence")):
                yield self.kl * term.sum() / len(ctx.prompts)

    def of_anchor(self, ctx: UpdateContext) -> Iterator[Tensor]:
        """Scalars to be lowered: as many pictures of the pool as the update has, each batch of them at its own time."""
        if not self.anchor:
            return
        latents, prompts = self._pool(ctx)
        count, schedule = len(ctx.prompts), ctx.learner.denoiser([""]).schedule
        draws = torch.Generator().manual_seed(ctx.seed("anchor", *ctx.seeds[:1]))
        rows = torch.randint(len(prompts), (count,), generator=draws).tolist()
        parts = range(0, count, ctx.rows)
        for number, i in enumerate(parts):
            share = (number + float(torch.rand((), generator=draws))) / len(parts)  # one time in each stratum
            level = schedule.level(schedule.t_min + share * (schedule.T - schedule.t_min))
            chosen = rows[i : i + ctx.rows]
            seeds = [str(ctx.seed("anchor noise", seed)) for seed in ctx.seeds[i : i + ctx.rows]]
            x_0 = latents[chosen].to(ctx.learner.device)
            losses = denoising_loss(ctx.learner, x_0, [prompts[row] for row in chosen], level, seeds)
            yield self.anchor * losses.sum() / count

    def _pool(self, ctx: UpdateContext) -> tuple[Tensor, list[str]]:
        """It grows by one update's pictures until it is full; what was given stays."""
        pool = ctx.state.get(POOL)
        if pool is None or not (pool.get("given") or len(pool["prompts"]) >= POOL_SIZE):
            latents, prompts = base_latents(ctx)
            if self.preferred < 1:
                latents, prompts = preferred_part(ctx, latents, prompts, self.preferred)
            if pool is not None:
                latents, prompts = torch.cat([pool["latents"], latents.cpu()]), [*pool["prompts"], *prompts]
            pool = {"latents": latents.cpu(), "prompts": prompts}
            ctx.state[POOL] = pool
        return pool["latents"], pool["prompts"]
