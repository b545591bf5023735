"""Our own sampling loop: any denoiser, any sampler, any grid; differentiable; yields every step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from ..errors import UsageError
from .denoiser import Denoiser
from .grids import Levels, make_grid
from .noise import SeededNoise, purpose_of
from .prediction import Prediction
from .registry import make_sampler
from .sampler import Sampler, State


@dataclass(frozen=True, eq=False)
class Step:
    """One outer step that was taken. index: 0 .. steps - 1. prediction: the step's first evaluation."""

    index: int
    prediction: Prediction
    state: State

    @property
    def x(self) -> Tensor:
        """x after the step, at `state.levels[index + 1]`."""
        return self.state.x


def iterate(
    denoiser: Denoiser,
    x: Tensor,
    *,
    sampler: str | Sampler = "dpmpp-2m",
    grid: Any = "karras",
    steps: int = 20,
    condition: Any = None,
    noise: SeededNoise | None = None,
    state: State | None = None,
) -> Iterator[Step]:
    """Integrate from noise to data, yielding each outer step.

    x: (B, ...) at the grid's first level. noise: needed by stochastic samplers; one seed a row.
    state: continue from here (a `Step.state`) instead of starting at x.
    """
    method = make_sampler(sampler)
    levels: Levels = make_grid(grid, denoiser.schedule, steps)
    if method.stochastic and noise is None:
        raise UsageError(f"{type(method).__name__} is stochastic: pass noise=SeededNoise([seed, ...]), one seed a row")
    state = state or method.init(x, levels, denoiser.schedule)
    while not state.done:
        index, first = state.step, None
        while state.step == index:
            prediction, state = _evaluate(denoiser, state, condition)
            first = first or prediction
            fresh = None
            if noise and method.wants_noise(state):
                fresh = noise.draw(purpose_of(state.stage, state.stage + 1 == len(state.leg.points)), index, state.x)
            state = method.tell(state, prediction, fresh)
        if hasattr(denoiser, "after"):
            state = replace(state, x=denoiser.after(state))
        assert first is not None
        yield Step(index, first, state)


def _evaluate(denoiser: Any, state: State, condition: Any) -> tuple[Prediction, State]:
    """A guided denoiser also reads and writes its rule's memory, which travels with the state."""
    if hasattr(denoiser, "guide"):
        prediction, memory = denoiser.guide(state, condition)
        return prediction, replace(state, memory=memory)
    return denoiser(state.x, state.level, condition), state


def sample(denoiser: Denoiser, x: Tensor, **settings: Any) -> Tensor:
    """x at the end of `iterate` with the same settings: (B, ...) at the grid's last level."""
    for step in iterate(denoiser, x, **settings):
        x = step.x
    return x
