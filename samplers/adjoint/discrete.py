"""The discrete adjoint: the exact gradient of the sampler's own steps, by one vector-Jacobian product a step.

For a first-order step x' = A denoised + B noise + C xi (DDIM, any eta) with denoised = dx x + dv V, noise = nx x + nv V
in terms of the network's output V, the adjoint a = dL/dx goes back in closed form, finite at both ends,

    a = (A dx + B nx) a' + (A dv + B nv) a'^T dV/dx
      = (alpha'/alpha) a' + (sigma' - sigma alpha'/alpha) a'^T d noise/dx                where V = noise and C = 0

Multistep methods, several stages and rules with a memory take the product of the whole step, with an adjoint for every
tensor of the state. N F + N (F + B), one activation, N states.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..first_order import FirstOrder
from ..sampler import Leg, State, rises
from .chain import Chain, SamplerChain
from .method import Method
from .sweep import Grads, Sweep, added, attach, leaves
from .tensors import put_together, taken_apart


@dataclass(frozen=True)
class Discrete(Method):
    """Exact for every sampler; in closed form for those of first order on a denoiser without rules."""

    def sample(self, chain: Chain, x: Tensor) -> Tensor:
        closed = isinstance(chain, SamplerChain) and is_closed(chain, chain.begin(x))
        return attach(ClosedForm(chain) if closed else Stepwise(chain), x)


def is_closed(chain: SamplerChain, state: State) -> bool:
    if not isinstance(chain.sampler, FirstOrder) or hasattr(chain.denoiser, "guide"):
        return False
    return all(rises(State(state.x, state.legs, step)) is None for step in range(len(state.legs)))


class Stepwise(Sweep):
    """Stores every state; sweeps an adjoint of all its tensors."""

    def forth(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        state, stored = self.chain.begin(x), [x]
        self.forms: list[tuple[int, Any]] = []
        with torch.no_grad():
            while not self.chain.done(state):
                tensors, form = taken_apart(state)
                stored += tensors
                self.forms.append((len(tensors), form))
                state = self.chain.step(state)
        return self.chain.end(state), stored

    def back(self, stored: Sequence[Tensor], gradient: Tensor) -> tuple[Tensor | None, Grads]:
        rest = list(stored)
        total: Grads = [None] * len(self.chain.parameters)
        adjoint: Grads | None = None
        for count, form in reversed(self.forms):
            state = put_together(form, rest[len(rest) - count :])
            del rest[len(rest) - count :]
            if adjoint is None:
                adjoint, more = self.last_step_back(state, gradient)
            else:
                adjoint, more = self.step_back(state, adjoint)
            total = added(total, more)
        x = rest[0]
        return (gradient if adjoint is None else self.begin_back(x, adjoint)), total

    def last_step_back(self, state: Any, gradient: Tensor) -> tuple[Grads, Grads]:
        """The same for the last step, of which only the end of the run counts."""
        held, form = leaves(state)
        with torch.enable_grad(), self.chain.again():
            end = self.chain.end(self.chain.step(put_together(form, held)))
        return self.pulled([end], [gradient], held)


class ClosedForm(Sweep):
    """Stores every x; one product with the network's Jacobian a step."""

    def forth(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        state, stored = self.chain.begin(x), []
        self.legs: tuple[Leg, ...] = state.legs
        with torch.no_grad():
            while not state.done:
                stored.append(state.x)
                state = self.chain.step(state)
        return state.x, stored

    def back(self, stored: Sequence[Tensor], gradient: Tensor) -> tuple[Tensor | None, Grads]:
        total: Grads = [None] * len(self.chain.parameters)
        adjoint = gradient
        for x, leg in zip(reversed(stored), reversed(self.legs)):
            leaf = x.detach().requires_grad_()
            with torch.enable_grad():
                p = self.chain.denoiser(leaf, leg.level, self.chain.condition)
            assert p.base is None, "only rules re-noise, and those are guided"
            a, b = leg.weights[:2]
            (dx, dv), (nx, nv) = p.kind.denoised(p.level), p.kind.noise(p.level) if b else (0.0, 0.0)
            (through,), more = self.pulled([p.native], [adjoint.to(p.native.dtype) * (a * dv + b * nv)], [leaf])
            total = added(total, more)
            straight = (adjoint * (a * dx + b * nx)).to(x.dtype)
            adjoint = straight if through is None else straight + through
        return adjoint, total
