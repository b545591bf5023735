"""Reversible solvers: the states are not stored but made again, by undoing the steps one by one.

The gradient is exactly that of the solver, in the memory of its end whatever the number of steps. For the methods of
`samplers.inversion` that undo themselves to rounding; o-belm and bdia with one call a step are the cheapest. They are
made again in the precision of the run, float32 at least. Two-level methods (o-belm, bdia) share the call at the middle
level between the way back and the product: N F + N (F + B); the others take as many calls again to go back.

Gate: where the states that were made again do not lead to the noise that the run began with, the run is taken again
from there with all states stored, and a warning says so.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...errors import UsageError
from ..inversion.two_level import TwoLevel
from .chain import Chain, Place, ReversibleChain
from .discrete import Stepwise
from .method import Method
from .once import once
from .sweep import Grads, added, attach, leaves
from .tensors import put_together, taken_apart, tensors_of


@dataclass(frozen=True)
class Reversible(Method):
    """tolerance: how far, relative to its norm, any row of the first state may be from the one that was made again."""

    tolerance: float = 1e-4

    def __post_init__(self) -> None:
        if not self.tolerance > 0:
            raise UsageError(f"reversible tolerance={self.tolerance} must be above 0; 1e-4 is the usual one")

    def sample(self, chain: Chain, x: Tensor) -> Tensor:
        if not isinstance(chain, ReversibleChain) or not chain.method.exact:
            raise UsageError(
                "this sampler cannot be undone exactly: reversible needs sampler= o-belm, bdia, edict, "
                "mccallum-foster or reversible-heun"
            )
        return attach(Undone(chain, self.tolerance), x)


class Undone(Stepwise):
    chain: ReversibleChain

    def __init__(self, chain: ReversibleChain, tolerance: float):
        super().__init__(chain)
        self.tolerance = tolerance

    def forth(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        state = self.chain.begin(x)
        with torch.no_grad():
            while not self.chain.done(state):
                state = self.chain.step(state)
        tensors, self.form = taken_apart(state)
        return self.chain.end(state), [x, *tensors]

    def back(self, stored: Sequence[Tensor], gradient: Tensor) -> tuple[Tensor | None, Grads]:
        x, state = stored[0], put_together(self.form, stored[1:])
        first = self.chain.method.first
        total: Grads = [None] * len(self.chain.parameters)
        adjoint: Grads | None = None
        while state.index > first:
            state, adjoint, more = self.undone(state, gradient, adjoint)
            total = added(total, more)
        begun = self.chain.begin(x)
        if self.apart(state, begun) > self.tolerance:
            warnings.warn(
                f"{type(self.chain.method).__name__} could not be undone within {self.tolerance:g} on this run, so its "
                "states are stored: a finer grid, double precision or less guidance mends it",
                stacklevel=2,
            )
            with self.chain.again():
                _, states = (again := Stepwise(self.chain)).forth(x)
            return again.back(states, gradient)
        for before in reversed(self.beginning(begun, first)):
            adjoint, more = (
                self.last_step_back(before, gradient) if adjoint is None else self.step_back(before, adjoint)
            )
            total = added(total, more)
        return (gradient if adjoint is None else self.begin_back(x, adjoint)), total

    def apart(self, state: Place, begun: Place) -> float:
        """The largest relative distance of a row of the first state, made again, from what is known of it; infinite
        where it is none."""
        worst = 0.0
        for made, known in zip(state.carried.tensors, begun.carried.tensors, strict=False):
            rows = (made - known).flatten(1).norm(dim=1) / known.flatten(1).norm(dim=1).clamp(min=1e-30)
            worst = max(worst, float(rows.nan_to_num(nan=torch.inf).max()))
        return worst

    def beginning(self, state: Place, count: int) -> list[Place]:
        """The states before the first `count` steps, known from x."""
        states = [state][:count]
        with torch.no_grad(), self.chain.again():
            while len(states) < count and not self.chain.done(states[-1]):
                states.append(self.chain.step(states[-1]))
        return [known for known in states if not self.chain.done(known)]

    def undone(self, state: Place, gradient: Tensor, adjoint: Grads | None) -> tuple[Place, Grads, Grads]:
        """The state before the step that led to `state`, and the gradients in its tensors and in the parameters."""
        if not isinstance(self.chain.method, TwoLevel):
            with torch.no_grad(), self.chain.again():
                before = self.chain.back(state)
            there = self.last_step_back(before, gradient) if adjoint is None else self.step_back(before, adjoint)
            return before, *there
        held, form = leaves(state)
        chain = replace(self.chain, denoiser=once(self.chain.denoiser))  # the middle level is asked about once
        with torch.enable_grad(), self.chain.again():
            before = chain.back(put_together(form, held))
            passed = {id(t) for t in held}
            places, shape = taken_apart(before)
            entered = [t if id(t) in passed else t.detach().requires_grad_() for t in places]
            after = chain.step(put_together(shape, entered))
        outputs = [chain.end(after)] if adjoint is None else tensors_of(after)
        into, more = self.pulled(outputs, [gradient] if adjoint is None else adjoint, entered)
        return put_together(shape, [t.detach() for t in entered]), into, more
