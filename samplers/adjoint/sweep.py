"""A run whose backward pass is our own: forward without a graph, then one vector-Jacobian product a step.

A `Sweep` says what is stored and how the gradient comes back; `attach` hangs it into autograd. Gradients of parameters
are added up step by step, never kept N times.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .chain import Chain
from .parameters import add_up_themselves, refuse_dropout, refuse_unknown
from .tensors import put_together, taken_apart, tensors_of

Grads = list[Tensor | None]


class Sweep(ABC):
    """One run. `forth` may leave numbers and forms on the sweep, but no tensor: those are stored by autograd."""

    def __init__(self, chain: Chain):
        self.chain = chain
        self.checked = chain.chosen

    @abstractmethod
    def forth(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The end of the run, and what is stored. Runs without a graph."""

    @abstractmethod
    def back(self, stored: Sequence[Tensor], gradient: Tensor) -> tuple[Tensor | None, Grads]:
        """The gradients in x and in `chain.parameters`, from that in the end."""

    def step_back(self, state: Any, adjoint: Grads) -> tuple[Grads, Grads]:
        """The vector-Jacobian product of the step from `state`: gradients in its tensors and in the parameters, from
        those in the tensors after it."""
        held, form = leaves(state)
        with torch.enable_grad(), self.chain.again():
            after = tensors_of(self.chain.step(put_together(form, held)))
        return self.pulled(after, adjoint, held)

    def begin_back(self, x: Tensor, adjoint: Grads) -> Tensor | None:
        """The gradient in x from that in the tensors of the first state, which are x or made of it."""
        leaf = x.detach().requires_grad_()
        with torch.enable_grad():
            tensors = tensors_of(self.chain.begin(leaf))
        pairs = [(t, a) for t, a in zip(tensors, adjoint, strict=True) if a is not None]
        return torch.autograd.grad([t for t, _ in pairs], leaf, [a for _, a in pairs])[0] if pairs else None

    def pulled(self, outputs: Sequence[Tensor], adjoint: Grads, held: Sequence[Tensor]) -> tuple[Grads, Grads]:
        """Gradients in `held` and in the parameters; None where there is none."""
        parameters = self.chain.parameters
        pairs = [(t, a) for t, a in zip(outputs, adjoint, strict=True) if a is not None and t.requires_grad]
        if not pairs:
            return [None] * len(held), [None] * len(parameters)
        if add_up_themselves(parameters):
            torch.autograd.backward([t for t, _ in pairs], [a for _, a in pairs])
            return [t.grad for t in held], [None] * len(parameters)
        if not self.checked:
            refuse_unknown([t for t, _ in pairs], [*held, *parameters])
            self.checked = True
        inputs = [t for t in (*held, *parameters) if t.requires_grad]
        found = iter(torch.autograd.grad([t for t, _ in pairs], inputs, [a for _, a in pairs], allow_unused=True))
        grads = [next(found) if t.requires_grad else None for t in (*held, *parameters)]
        return grads[: len(held)], grads[len(held) :]


def leaves(state: Any) -> tuple[list[Tensor], Any]:
    """The tensors of a state as leaves of a new graph, and its form."""
    tensors, form = taken_apart(state)
    return [t.detach().requires_grad_(t.is_floating_point()) for t in tensors], form


def plus(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """The sum; None is zero."""
    return b if a is None else a if b is None else a + b


def added(a: Grads, b: Grads) -> Grads:
    return [plus(x, y) for x, y in zip(a, b, strict=True)]


def scaled(weight: float, a: Grads) -> Grads:
    return [None if x is None else x * weight for x in a]


def attach(sweep: Sweep, x: Tensor) -> Tensor:
    """The end of the run, attached to x and to the parameters. Raises UsageError for dropout in training mode."""
    refuse_dropout(sweep.chain.denoiser)
    end: Tensor = _Attached.apply(sweep, x, *sweep.chain.parameters)
    return end


class _Attached(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, sweep: Sweep, x: Tensor, *parameters: Tensor) -> Tensor:
        end, stored = sweep.forth(x)
        ctx.sweep, ctx.count = sweep, len(stored)
        ctx.device, ctx.autocast = x.device.type, torch.is_autocast_enabled(x.device.type)
        ctx.precision = torch.get_autocast_dtype(x.device.type)
        ctx.save_for_backward(*stored, *parameters)  # parameters too, so that a change in between is an error
        return end

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        stored = ctx.saved_tensors[: ctx.count]
        with torch.autocast(ctx.device, dtype=ctx.precision, enabled=ctx.autocast):
            in_x, in_parameters = ctx.sweep.back(stored, gradient)
        return None, in_x, *in_parameters
