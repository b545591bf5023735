"""Some pictures of an update that go through the network together: their prompts, seeds, and how they are sampled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from ...samplers.adjoint.chain import Chain
from ...samplers.adjoint.sample import chain_of
from ...samplers.denoiser import Denoiser
from ...samplers.loop import Step, iterate
from ...samplers.noise import SeededNoise
from ...samplers.sampler import Levels, State
from ...training.learner import Learner
from ..method import Sampling, UpdateContext


@dataclass(frozen=True, eq=False)
class Batch:
    """prompts, seeds: one each, B in all. sampling.guidance: of the learner and of its base alike.

    `denoiser` is the learner's, or its base's where it is first asked for inside `learner.base()`.
    """

    learner: Learner
    prompts: Sequence[str]
    seeds: Sequence[str]
    sampling: Sampling

    @cached_property
    def levels(self) -> Levels:
        return self.learner.levels(self.sampling.grid, self.sampling.steps)

    @cached_property
    def noise(self) -> SeededNoise:
        return SeededNoise(list(self.seeds))

    @cached_property
    def denoiser(self) -> Denoiser:
        return self.learner.denoiser(self.prompts, self.sampling.guidance)

    def start(self) -> Tensor:
        """x (B, *shape) at the first level."""
        return self.learner.start(self.seeds, self.levels)

    def chain(self) -> Chain:
        """The whole run as steps, in the learner's parameters."""
        return chain_of(
            self.denoiser, self.sampling.sampler, self.levels, noise=self.noise, parameters=self.learner.parameters
        )

    def step(self, state: State) -> Step:
        """The learner's next step from a state of its run."""
        return self._step(self.denoiser, state)

    def base_step(self, state: State) -> Step:
        """The base model's step from there, with the same noise. Without a graph: a network that checkpoints inside
        would be recomputed on the way back with the adapters on."""
        with torch.no_grad(), self.learner.base():
            return self._step(self.learner.denoiser(self.prompts, self.sampling.guidance), state)

    def _step(self, denoiser: Denoiser, state: State) -> Step:
        sampler = self.sampling.sampler
        return next(iterate(denoiser, state.x, sampler=sampler, grid=self.levels, noise=self.noise, state=state))


def batches(ctx: UpdateContext, guidance: str | None = None) -> list[Batch]:
    """The update's pictures, `ctx.rows` at a time. guidance: another one than the run's."""
    sampling = ctx.sampling if guidance is None else replace(ctx.sampling, guidance=guidance)
    starts = range(0, len(ctx.prompts), ctx.rows)
    return [Batch(ctx.learner, ctx.prompts[i : i + ctx.rows], ctx.seeds[i : i + ctx.rows], sampling) for i in starts]
