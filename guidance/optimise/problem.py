"""A sampling run as one differentiable function: the loss of where it ends, and its gradient in what it began with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ...errors import UsageError
from ...samplers.adjoint.chain import Chain, SamplerChain
from ...samplers.adjoint.checkpoint import remembered
from ...samplers.adjoint.reversible import Reversible
from ...samplers.adjoint.sample import chain_of
from ...samplers.denoiser import Denoiser
from ...samplers.grids import Levels, make_grid
from ...samplers.inversion.reversible import ReversibleStep
from ...samplers.noise import SeededNoise
from ...samplers.sampler import Sampler
from ..gradient.autograd import graph, pulled
from ..gradient.losses import Loss, loss_of
from ..rule import Context


@dataclass(frozen=True, eq=False)
class Look:
    """One run. loss: of its end, (B,). value: the loss and the penalty, (B,). sample: its end, (B, ...). gradient: of
    the value, in the shape of what was looked at; None where it was not asked for."""

    loss: Tensor
    value: Tensor
    sample: Tensor
    gradient: Tensor | None

    def where(self, rows: Tensor, other: Look) -> Look:
        """These rows of this look, the others of another one that has its gradient, too."""
        pairs = ((self.loss, other.loss), (self.value, other.value), (self.sample, other.sample))
        loss, value, sample = (torch.where(column(rows, a), a, b) for a, b in pairs)
        gradient = self.gradient
        if gradient is not None and other.gradient is not None:
            gradient = torch.where(column(rows, gradient), gradient, other.gradient)
        return Look(loss, value, sample, gradient)


def column(values: Tensor, like: Tensor) -> Tensor:
    """(B,) shaped to broadcast against (B, ...)."""
    return values.reshape(-1, *[1] * (like.dim() - 1))


REMEMBER = ("steps", "all", "nothing")


@dataclass(frozen=True, eq=False)
class Problem:
    """denoiser: any, also a `Guided`. loss: a Loss, a callable on clean latents (B, ...) -> (B,), or a name with its
    target, to be lowered; each row from its own row. condition, grid, steps, noise: as `samplers.sample` takes them.
    sampler: too, or a step that can be undone ("edict", "bdia", ...). decode: clean latents -> pictures (B, 3, H, W).
    remember: "steps" keeps x of each step and computes the rest once more on the way back; "all" keeps every graph,
    which costs a network's activations a step and saves a third of the time; "nothing" undoes the steps, in the memory
    of one, for samplers that can be undone and runs without controls.
    """

    denoiser: Denoiser
    loss: Any
    target: str = ""
    condition: Any = None
    sampler: str | Sampler | ReversibleStep = "ddim"
    grid: Any = "karras"
    steps: int = 10
    noise: SeededNoise | None = None
    decode: Callable[[Tensor], Tensor] | None = None
    remember: str = "steps"

    def __post_init__(self) -> None:
        if self.remember not in REMEMBER:
            raise UsageError(f"remember={self.remember!r} is unknown: {', '.join(REMEMBER[:-1])} or {REMEMBER[-1]}")
        if loss_of(self.loss, self.target) is None:
            raise UsageError('a problem needs a loss: a callable on latents, or a name such as loss="colour"')

    @cached_property
    def levels(self) -> Levels:
        return make_grid(self.grid, self.denoiser.schedule, self.steps)

    @cached_property
    def _loss(self) -> Loss:
        found = loss_of(self.loss, self.target)
        assert found is not None
        return found

    @cached_property
    def _chain(self) -> Chain:
        return chain_of(self.denoiser, self.sampler, self.levels, self.condition, self.noise, parameters=())

    def run(self, x: Tensor, between: Callable[[int, Tensor], Tensor] | None = None) -> Tensor:
        """x (B, ...) at the first level to the end of the run. between(i, x): x after step i, moved."""
        chain = self._chain
        if self.remember == "nothing" and between is None and torch.is_grad_enabled():
            return Reversible().sample(chain, x)
        if between is not None and (self.remember == "nothing" or not isinstance(chain, SamplerChain)):
            raise UsageError('controls between the steps need a sampler of samplers.SAMPLERS and remember="steps"')
        state, i = chain.begin(x), 0
        while not chain.done(state):
            state = remembered(chain, chain.step, state) if self.remember == "steps" else chain.step(state)
            if between is not None:
                state = replace(state, x=between(i, state.x))
            i += 1
        return chain.end(state)

    def losses(self, sample: Tensor) -> Tensor:
        """The loss of each row of a run's end, (B,)."""
        schedule, clean = self.denoiser.schedule, self.levels[-1]
        steps = len(self.levels) - 1
        return self._loss.of(
            sample, Context(sample, clean, clean, clean, steps - 1, steps, 0, schedule, {}, decode=self.decode)
        )

    def look(
        self,
        at: Tensor,
        run: Callable[[Tensor], Tensor],
        penalty: Callable[[Tensor], Tensor] | None = None,
        grad: bool = True,
    ) -> Look:
        """run(at) (B, ...), its loss, and the gradient of loss + penalty in `at` (B, ...). Nothing carries a graph."""
        if not grad:
            with torch.no_grad():
                return self._looked(at, run, penalty)[0]
        with graph():
            leaf = at.detach().clone().requires_grad_()
            look, value = self._looked(leaf, run, penalty)
            return replace(look, gradient=pulled(value, leaf))

    def _looked(
        self, at: Tensor, run: Callable[[Tensor], Tensor], penalty: Callable[[Tensor], Tensor] | None
    ) -> tuple[Look, Tensor]:
        sample = run(at)
        loss = self.losses(sample)
        value = loss if penalty is None else loss + penalty(at)
        return Look(loss.detach(), value.detach(), sample.detach(), None), value
