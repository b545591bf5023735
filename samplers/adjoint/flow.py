"""What the continuous adjoints share: which states they keep, and the two ends that they differentiate exactly.

The flow in u = x / alpha over rho is singular at pure noise (alpha = 0), and its slope unknown at clean data (sigma =
0). The step that starts at the one and the step that ends at the other are swept as the sampler took them.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ...errors import UsageError, nearest
from ..prediction import Prediction
from ..sampler import Leg, State, rises
from ..schedule import Level
from .chain import Chain, SamplerChain
from .sweep import Grads, Sweep, added, leaves
from .tensors import put_together, taken_apart, tensors_of

CACHED, RESOLVED = "cached", "resolved"


def check_states(who: str, states: str) -> None:
    if states not in (CACHED, RESOLVED):
        raise UsageError(f"{who} states={states!r} is unknown: {nearest(states, (CACHED, RESOLVED))}")


def flow_chain(who: str, chain: Chain) -> SamplerChain:
    """The chain, if it follows a flow. Raises UsageError otherwise."""
    instead = 'use method="discrete" or "checkpoint"'
    if not isinstance(chain, SamplerChain):
        raise UsageError(f"{who} sweeps the samplers of samplers.SAMPLERS; for reversible steps {instead}")
    rule: Any = getattr(chain.denoiser, "rule", None)
    if rule is not None and (rule.shifts or rule.moves):
        raise UsageError(f"{type(rule).__name__} moves x beside the flow, which {who} does not see: {instead}")
    return chain


class FlowSweep(Sweep):
    """nodes: steps of the adjoint grid, 0 for all. states: cached at every node, or only where the sweep begins."""

    chain: SamplerChain

    def __init__(self, chain: SamplerChain, nodes: int, states: str):
        super().__init__(chain)
        self.nodes, self.cached = nodes, states == CACHED

    @abstractmethod
    def along(self, nodes: Sequence[tuple[Level, State]], adjoint: Tensor) -> tuple[Tensor, Grads]:
        """dL/dx at the last (noisiest) node and the gradients in the parameters, from dL/dx at the first node. Without
        caching, only the state of the first node has an x of its own."""

    def forth(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        state = self.chain.begin(x)
        if any(rises(State(x, state.legs, step)) for step in range(len(state.legs))):
            raise UsageError('this sampler goes back up in noise, which is no flow: use method="discrete"')
        self.places = places(state, self.nodes)
        keep = {*self.places[:1], *(self.places if self.cached else ())}
        keep |= {len(state.legs) - 1} if self.ends_clean(state) else set()
        keep |= {0} if state.legs[0].level.alpha <= 0 else set()
        stored: list[Tensor] = [x]
        self.forms: dict[int, tuple[int, int, Any]] = {}
        with torch.no_grad():
            while True:
                self.refuse_memory(state)
                if state.step in keep:
                    tensors, form = taken_apart(state)
                    self.forms[state.step] = len(stored), len(stored) + len(tensors), form
                    stored += tensors
                if state.done:
                    break
                state = self.chain.step(state)
        return state.x, stored

    def ends_clean(self, state: State) -> bool:
        return state.legs[-1].goal.sigma <= 0

    def back(self, stored: Sequence[Tensor], gradient: Tensor) -> tuple[Tensor | None, Grads]:
        states = {i: put_together(form, stored[a:b]) for i, (a, b, form) in self.forms.items()}
        some = states[self.places[0]] if self.places else next(iter(states.values()))
        levels, steps = some.levels, len(some.legs)
        total: Grads = [None] * len(self.chain.parameters)
        adjoint: Tensor | None = gradient
        if self.ends_clean(some):
            adjoint, total = self.exactly(states[steps - 1], gradient)
        if len(self.places) > 1 and adjoint is not None:
            nodes = [(levels[i], states.get(i, some)) for i in self.places]
            adjoint, more = self.along(nodes, adjoint)
            total = added(total, more)
        if levels[0].alpha <= 0 and not (self.ends_clean(some) and steps == 1) and adjoint is not None:
            adjoint, more = self.exactly(states[0], adjoint)
            total = added(total, more)
        return adjoint, total

    def exactly(self, state: State, adjoint: Tensor) -> tuple[Tensor | None, Grads]:
        """The vector-Jacobian product of a whole step, in x alone."""
        held, form = leaves(state)
        with torch.enable_grad(), self.chain.again():
            after = self.chain.step(put_together(form, held))
        into, total = self.pulled([after.x], [adjoint], held)
        return into[0], total

    def predicted(self, state: State, x: Tensor, level: Level) -> Prediction:
        """The denoiser at another x and level, with what the rule remembered at `state`; that memory is a constant."""
        chain = self.chain
        if not hasattr(chain.denoiser, "guide"):
            return chain.denoiser(x, level, chain.condition)
        step = min(state.step, len(state.legs) - 1)
        legs = (*state.legs[:step], Leg((level,), state.legs[step].goal), *state.legs[step + 1 :])
        with chain.again():
            prediction, _ = chain.denoiser.guide(replace(state, x=x, legs=legs, step=step, stage=0), chain.condition)
        return prediction

    def refuse_memory(self, state: State) -> None:
        if not self.cached and tensors_of(state.memory):
            raise UsageError('this rule remembers earlier steps: its states cannot be solved for again; use "cached"')


def places(state: State, nodes: int) -> list[int]:
    """Indices of the levels at the nodes of the adjoint grid, from the cleanest one up."""
    levels, steps = state.levels, len(state.legs)
    first = 1 if levels[0].alpha <= 0 else 0
    last = steps - 1 if levels[-1].sigma <= 0 else steps
    if nodes > steps:
        raise UsageError(f"{nodes} nodes of the adjoint grid are more than the {steps} steps of the run")
    span = last - first
    count = min(nodes, span) if nodes else span
    if count <= 0:
        return [last] if last >= first else []
    return [last - round(i * span / count) for i in range(count + 1)]
