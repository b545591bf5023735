"""A sampling run as a chain of steps, each a function of the state before it; what all adjoint methods sweep along.

    state = chain.begin(x)
    while not chain.done(state):
        state = chain.step(state)
    x_0 = chain.end(state)

A state holds all that a step depends on: x, the sampler's history, the rule's memory. So a step that is computed again
from its stored state takes the same decisions, whoever took them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from ..denoiser import Denoiser
from ..inversion.reversible import Carried, ReversibleStep
from ..loop import iterate
from ..noise import SeededNoise
from ..sampler import Levels, Sampler, State


@dataclass(frozen=True, eq=False)
class Chain(ABC):
    """levels: of the grid. parameters: tensors beside x that gradients are wanted of. chosen: whether they were named
    by hand; otherwise another one that turns up on the way back is a mistake."""

    denoiser: Denoiser
    levels: Levels
    condition: Any = None
    parameters: tuple[Tensor, ...] = ()
    chosen: bool = False

    @abstractmethod
    def begin(self, x: Tensor) -> Any:
        """The state before the first step. x: (B, ...) at levels[0]."""

    @abstractmethod
    def step(self, state: Any) -> Any:
        """The state after the next outer step."""

    @abstractmethod
    def done(self, state: Any) -> bool: ...

    @abstractmethod
    def steps(self, state: Any) -> int:
        """Outer steps that are left."""

    @abstractmethod
    def end(self, state: Any) -> Tensor:
        """x after the last step, (B, ...)."""

    @contextmanager
    def again(self) -> Iterator[None]:
        """Inside, evaluations are repeats: a guided denoiser's record stays that of the forward pass."""
        record = getattr(self.denoiser, "record", None)
        if record is None:
            yield
            return
        self.denoiser.record = type(record)()  # type: ignore[attr-defined]
        try:
            yield
        finally:
            self.denoiser.record = record  # type: ignore[attr-defined]


@dataclass(frozen=True, eq=False, kw_only=True)
class SamplerChain(Chain):
    """The run of `samplers.iterate`, a state a `State`."""

    sampler: Sampler
    noise: SeededNoise | None = None

    def begin(self, x: Tensor) -> State:
        return self.sampler.init(x, self.levels, self.denoiser.schedule)

    def step(self, state: State) -> State:
        run = iterate(
            self.denoiser,
            state.x,
            sampler=self.sampler,
            grid=self.levels,
            condition=self.condition,
            noise=self.noise,
            state=state,
        )
        return next(run).state

    def done(self, state: State) -> bool:
        return state.done

    def steps(self, state: State) -> int:
        return len(state.legs) - state.step

    def end(self, state: State) -> Tensor:
        return state.x


@dataclass(frozen=True, eq=False)
class Place:
    """What a reversible run carries before step `index`."""

    carried: Carried
    index: int = 0


@dataclass(frozen=True, eq=False, kw_only=True)
class ReversibleChain(Chain):
    """The run of steps that can be undone."""

    method: ReversibleStep

    def begin(self, x: Tensor) -> Place:
        return Place(self.method.begin(x, self.levels, self.denoiser.schedule))

    def step(self, state: Place) -> Place:
        after = self.method.step(self.denoiser, state.carried, state.index, self.condition)
        return Place(after, state.index + 1)

    def back(self, state: Place) -> Place:
        """The state before the step that led here."""
        index = state.index - 1
        before = self.method.back(self.denoiser, state.carried, index, self.condition)
        return Place(replace(before, changes=()), index)

    def done(self, state: Place) -> bool:
        return state.index >= state.carried.steps

    def steps(self, state: Place) -> int:
        return state.carried.steps - state.index

    def end(self, state: Place) -> Tensor:
        return self.method.end(state.carried)
