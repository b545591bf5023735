"""The last K steps of a run in our own backward pass: the exact discrete adjoint, begun anywhere in the run.

    forth   all steps without a graph; the states before the last K are stored
    back    for each of them, last first: the step once more, and the vector-Jacobian product with the adjoint

What per-step checkpoints do, without the price that `torch.utils.checkpoint` has for every tensor that a network saves.
T F + K (F + B) of the network, one step's activations, K states. Some steps at the end may keep their graph instead:
each costs one step's activations and saves its F.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...samplers.adjoint.chain import Chain
from ...samplers.adjoint.sweep import Grads, Sweep, attach
from ...samplers.adjoint.tensors import mapped, put_together, taken_apart, tensors_of


class Stretch(NamedTuple):
    """Steps that go back together. size: how many tensors the state before them has, form: what else. inner: are there
    differentiated steps before them?"""

    steps: int
    size: int
    form: Any
    inner: bool


class LastSteps(Sweep):
    """last: K, from 1 to the steps of the run. keep: of these, how many at the end keep their graph until the way back.
    most: the longest gradient in x of a row that goes back over a step's end; 0 is no bound. visited: the states before
    all steps, where `watched`."""

    def __init__(self, chain: Chain, last: int, keep: int = 0, most: float = 0.0, watched: bool = False):
        super().__init__(chain)
        self.last, self.keep, self.most, self.watched = last, min(keep, last), most, watched
        self.visited: list[Any] = []
        self.stretches: list[Stretch] = []
        self.kept: tuple[list[Tensor], Tensor] | None = None

    def run(self, x: Tensor) -> Tensor:
        """The end of the run from x (B, ...), in the graph of the chain's parameters. UsageError for dropout in
        training mode."""
        return attach(self, x.detach())

    def forth(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        state, stored = self.chain.begin(x), []
        state = self._along(state, self.chain.steps(state) - self.last)
        for steps in [1] * (self.last - self.keep) + [self.keep] * bool(self.keep):
            tensors, form = taken_apart(state)
            stored += tensors
            stretch = Stretch(steps, len(tensors), form, inner=bool(self.stretches))
            self.stretches.append(stretch)
            if self.keep and self.chain.steps(state) == self.keep:
                held = leaves_of(tensors, stretch.inner)
                with torch.enable_grad():
                    end = self.chain.end(self._along(put_together(form, held), steps))
                self.kept = held, end
                return end.detach(), stored
            state = self._along(state, steps)
        return self.chain.end(state), stored

    def back(self, stored: Sequence[Tensor], gradient: Tensor) -> tuple[Tensor | None, Grads]:
        self.watched, rest = False, list(stored)
        total: Grads = [None] * len(self.chain.parameters)
        adjoint: Grads | None = None
        for stretch in reversed(self.stretches):
            tensors = rest[len(rest) - stretch.size :]
            del rest[len(rest) - stretch.size :]
            held, ends = self._graph_of(stretch, tensors, last=adjoint is None)
            adjoint, more = self.pulled(ends, [gradient] if adjoint is None else adjoint, held)
            if self.most and adjoint[0] is not None:  # x is the first tensor of a state
                adjoint[0] = shortened(adjoint[0], self.most)
            add(total, more)
        return None, total

    def _along(self, state: Any, steps: int) -> Any:
        for _ in range(steps):
            if self.watched:
                self.visited.append(mapped(state, Tensor.detach))
            state = self.chain.step(state)
        return state

    def _graph_of(self, stretch: Stretch, tensors: list[Tensor], last: bool) -> tuple[list[Tensor], list[Tensor]]:
        """Leaves before and tensors after a stretch; after the last one only the end of the run counts."""
        if last and self.kept is not None:
            (held, end), self.kept = self.kept, None
            return held, [end]
        held = leaves_of(tensors, stretch.inner)
        with torch.enable_grad(), self.chain.again():
            after = self._along(put_together(stretch.form, held), stretch.steps)
            return held, [self.chain.end(after)] if last else tensors_of(after)


def leaves_of(tensors: Sequence[Tensor], wanted: bool) -> list[Tensor]:
    """The tensors as leaves of a new graph; wanted: is their gradient?"""
    return [t.detach().requires_grad_(wanted and t.is_floating_point()) for t in tensors]


def add(total: Grads, more: Grads) -> None:
    """total += more, in place; None is zero. A gradient may be a view of what is still needed, so it is copied once."""
    for i, gradient in enumerate(more):
        kept = total[i]
        if kept is None:
            total[i] = None if gradient is None else gradient.clone()
        elif gradient is not None:
            kept += gradient


def shortened(gradient: Tensor, most: float) -> Tensor:
    """Rows (B, ...) that are longer than `most`, made that long."""
    length = gradient.flatten(1).norm(dim=1).clamp(min=torch.finfo(gradient.dtype).tiny)
    return gradient * (most / length).clamp(max=1).reshape(-1, *[1] * (gradient.dim() - 1))
