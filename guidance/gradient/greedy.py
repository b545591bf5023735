"""Greedy guidance: Blasingame & Liu 2025, arXiv 2502.08006. Between posterior and end-to-end gradients.

The clean estimate D(x) is one Euler step of the flow from x to data. With k steps of a solver instead, the gradient of
a loss of where they arrive comes nearer to that of the loss of the sample itself, at k times the cost.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from ...samplers.adjoint.predict import level_of_flow_time
from ...samplers.flow_ancestral import flow_time
from ...samplers.prediction import Prediction
from ...samplers.schedule import Level
from ..rule import Asks, Context, Guide, Modifier, Point, Rule
from ..scale import Scale
from .autograd import NORMALISATIONS, at_rest, check_word, graph, is_zero, normalised, pulled, seen_from, traced
from .losses import loss_of
from .posterior import refuse_few

SOLVERS = ("euler", "midpoint")


@dataclass(frozen=True)
class Greedy(Modifier):
    """`rounds` times: x -= weight grad_x loss(end of k solver steps from x to data); then the ordinary step from there.

    loss, target: as in dps; "" is off. weight: 0 is off. k: solver steps, at most as many as the run has left. solver:
    "euler", or "midpoint" (two evaluations a step; recommended by the paper). k=1 with euler has the gradient of DPS;
    k = all steps, at the run's first step only (+ interval:unit=step,high=1), is D-Flow. normalise: as in dps; "x" is
    the paper's G / |G| |x|. Steps are even in flow time sigma / (alpha + sigma), where one Euler step ends at D.
    """

    loss: Any = ""
    target: str = ""
    weight: Scale = 1.0
    k: int = 1
    solver: str = "euler"
    rounds: int = 1
    normalise: str = "none"

    order: ClassVar[int] = 35
    passes: ClassVar[int] = 20

    def __post_init__(self) -> None:
        loss_of(self.loss, self.target)
        refuse_few("greedy", "k", self.k)
        refuse_few("greedy", "rounds", self.rounds, 0)
        check_word("greedy", "solver", self.solver, SOLVERS)
        check_word("greedy", "normalise", self.normalise, NORMALISATIONS)

    @property
    def off(self) -> bool:
        return is_zero(self.weight) or self.rounds == 0 or loss_of(self.loss, self.target) is None

    @property
    def shifts(self) -> bool:  # type: ignore[override]
        return self.rule.shifts or not self.off

    def guide(self, ctx: Context) -> Guide:
        loss = loss_of(self.loss, self.target)
        if self.off or loss is None:
            return (yield from self.rule.guide(ctx))
        x, k = ctx.x, max(1, min(int(self.k), ctx.steps - ctx.step))
        nested = x.requires_grad  # another rule traces this one
        for _ in range(int(self.rounds)):
            with graph():
                leaf = x if nested else x.detach().clone().requires_grad_()
            end, _ = yield from solved(self.rule, ctx, leaf, k, self.solver)
            with graph():
                values = loss.of(end, ctx)
            pull = pulled(values, leaf, keep=nested)
            ctx.log(loss=values)
            x = x - ctx.column(self.weight) * normalised(self.normalise, pull, values.detach(), x.detach(), ctx)
        return seen_from(ctx, (yield from at_rest(self.rule, ctx, Point(x, ctx.level))))


def solved(
    rule: Rule, ctx: Context, x: Tensor, k: int, solver: str = "euler"
) -> Generator[Asks, Any, tuple[Tensor, Prediction]]:
    """Where k solver steps of the rule's flow lead from x at the context's level to data, with the graph; and the first
    prediction.

    In z = x / (alpha + sigma) over flow time t the flow is dz/dt = noise - denoised on any schedule; z = x_0 at 0.
    """
    level, first = ctx.level, None
    start = flow_time(level)
    for i in range(k):
        time, ends = start * (1 - i / k), start * (1 - (i + 1) / k)
        goal, middle = (level_of_flow_time(t, ctx.schedule) for t in (ends, (time + ends) / 2))
        p = yield from traced(rule, ctx, Point(x, level), keep=False)
        first = first or p
        with graph():
            halfway, end = _along(p, middle), _along(p, goal)
        if solver == "midpoint":
            p = yield from traced(rule, ctx, Point(halfway, middle), keep=False)
            with graph():
                z = x / (level.alpha + level.sigma) + (ends - time) * (p.step_on.noise - p.denoised)
                end = z * (goal.alpha + goal.sigma)
        x, level = end, goal
    assert first is not None
    return x, first


def _along(p: Prediction, goal: Level) -> Tensor:
    """One Euler step to the goal."""
    return goal.alpha * p.denoised + goal.sigma * p.step_on.noise if goal.sigma else p.denoised
