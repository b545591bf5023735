"""The generic continuous adjoint: Chen et al. 2018, arXiv 1806.07366, algorithm 1, in the schedule-free variables.

    noise form    y = x / alpha, b = alpha a    over r = rho        dy/dr = noise,      db/dr = -alpha b^T d noise/dx
    data form     y = x / sigma, b = sigma a    over r = 1 / rho    dy/dr = denoised,   db/dr = -sigma b^T d denoised/dx

with a = dL/dx, and -b^T d(.)/dz for parameters and conditions z. State and adjoint go together from the clean end to
the noisy one by a Runge-Kutta method. The gradient is that of the flow, not of the sampler's steps: it comes near when
both are fine. s stages cost N s (F + B). States that are solved for again drift, and a guided flow that contracts
forward is unstable backward; every step starts from its cached state (the default) unless memory forbids.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from ...errors import UsageError, nearest
from ..sampler import State
from ..schedule import Level
from .chain import Chain, SamplerChain
from .flow import CACHED, FlowSweep, check_states, flow_chain
from .method import Method
from .sweep import Grads, added, attach, scaled

FORMS = ("noise", "data")


class Tableau(NamedTuple):
    """An explicit Runge-Kutta method: its nodes, the weights of each stage, and those of the step."""

    nodes: tuple[float, ...]
    stages: tuple[tuple[float, ...], ...]
    step: tuple[float, ...]


SOLVERS = {
    "euler": Tableau((0,), ((),), (1,)),
    "midpoint": Tableau((0, 1 / 2), ((), (1 / 2,)), (0, 1)),
    "heun": Tableau((0, 1), ((), (1,)), (1 / 2, 1 / 2)),
    "rk4": Tableau((0, 1 / 2, 1 / 2, 1), ((), (1 / 2,), (0, 1 / 2), (0, 0, 1)), (1 / 6, 1 / 3, 1 / 3, 1 / 6)),
}


@dataclass(frozen=True)
class Continuous(Method):
    """form, solver: as above. nodes: steps of the adjoint grid, 0 for those of the sampler. states: "cached", or
    "resolved" (two states of memory, and drift). Deterministic samplers only."""

    form: str = "noise"
    solver: str = "heun"
    nodes: int = 0
    states: str = CACHED

    def __post_init__(self) -> None:
        for name, value, known in (("form", self.form, FORMS), ("solver", self.solver, tuple(SOLVERS))):
            if value not in known:
                raise UsageError(f"continuous {name}={value!r} is unknown: {nearest(value, known)}")
        if self.nodes < 0:
            raise UsageError(f"continuous nodes={self.nodes} must not be negative; 0 takes those of the sampler")
        check_states("continuous", self.states)

    def sample(self, chain: Chain, x: Tensor) -> Tensor:
        flow = flow_chain("continuous", chain)
        if flow.sampler.stochastic:
            raise UsageError(
                f'{type(flow.sampler).__name__} adds noise, the continuous adjoint is of the flow: use "adjoint-deis" '
                'or "discrete"'
            )
        return attach(ContinuousSweep(flow, self), x)


class ContinuousSweep(FlowSweep):
    def __init__(self, chain: SamplerChain, settings: Continuous):
        super().__init__(chain, settings.nodes, settings.states)
        self.data, self.tableau = settings.form == "data", SOLVERS[settings.solver]

    def along(self, nodes: Sequence[tuple[Level, State]], adjoint: Tensor) -> tuple[Tensor, Grads]:
        total: Grads = [None] * len(self.chain.parameters)
        x = nodes[0][1].x
        for (level, state), (goal, known) in pairwise(nodes):
            size = self.size(level)
            y, a, *more = self.stepped(level, goal, state, [x / size, adjoint * size, *[None] * len(total)])
            assert y is not None and a is not None
            total = added(total, more)
            x = known.x if self.cached else y * self.size(goal)
            adjoint = a / self.size(goal)
        return adjoint, total

    def stepped(self, level: Level, goal: Level, state: State, start: Grads) -> Grads:
        """One Runge-Kutta step of (y, scaled adjoint, gradients of the parameters)."""
        r, span = self.variable(level), self.variable(goal) - self.variable(level)
        slopes: list[Grads] = []
        for node, weights in zip(self.tableau.nodes, self.tableau.stages, strict=True):
            here = start
            for weight, slope in zip(weights, slopes, strict=True):
                here = added(here, scaled(weight * span, slope)) if weight else here
            at = level if node == 0 else goal if node == 1 else self.level_of(r + node * span)
            slopes.append(self.slope(at, state, here))
        for weight, slope in zip(self.tableau.step, slopes, strict=True):
            start = added(start, scaled(weight * span, slope))
        return start

    def slope(self, level: Level, state: State, here: Grads) -> Grads:
        y, a = here[0], here[1]
        assert y is not None and a is not None
        size = self.size(level)
        leaf = (y * size).detach().requires_grad_()
        with torch.enable_grad():
            prediction = self.predicted(state, leaf, level)
            flow = prediction.denoised if self.data else prediction.noise
        (into_x,), into_z = self.pulled([flow], [a.to(flow.dtype)], [leaf])
        return [flow.detach(), None if into_x is None else -size * into_x, *scaled(-1, into_z)]

    def size(self, level: Level) -> float:
        return level.sigma if self.data else level.alpha

    def variable(self, level: Level) -> float:
        return 1 / level.rho if self.data else level.rho

    def level_of(self, r: float) -> Level:
        return self.chain.denoiser.schedule.level_of_rho(1 / r if self.data else r)
