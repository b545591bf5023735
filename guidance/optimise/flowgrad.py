"""FlowGrad: Liu et al. 2023 (CVPR), Controlling the output of generative ODEs with gradients. Additive controls."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .driver import Best, Optimised, Optimiser, Told, refuse_negative
from .problem import Problem, column


@dataclass(frozen=True)
class FlowGrad(Optimiser):
    """dx = (v(x, t) + u_t) dt, with u lowered along the gradient of loss(x_1) + weight / 2 int |u_t|^2 dt, from u = 0.

    The noise stays. Time is the flow time sigma / (alpha + sigma), in which any schedule is a flow of z = x / (alpha +
    sigma); a control is held over a step of the sampler. u -= rate (a_t + weight u_t), a_t the adjoint at the step's
    end: the gradient in the space of paths, which does not depend on the number of steps. rate: of that step.
    momentum: 0 is plain descent. Only secondary accounts of the paper were read; its skipping of straight steps is
    not here.
    """

    iterations: int = 20
    rate: float = 1.0
    momentum: float = 0.0
    weight: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_negative("flowgrad", rate=self.rate, momentum=self.momentum, weight=self.weight)

    def optimise(self, problem: Problem, x: Tensor, told: Told | None = None) -> Optimised:
        x = x.detach()
        spans = torch.tensor(flow_spans(problem), dtype=x.dtype, device=x.device)  # (steps,)
        controls = x.new_zeros(len(x), len(spans), *x.shape[1:])
        best, velocity = Best("value"), torch.zeros_like(controls)
        for i in range(self.iterations + 1):
            last = i == self.iterations
            look = problem.look(controls, controlled(problem, x), self._penalty(spans), grad=not last)
            best.take(controls, look)
            if told is not None:
                told(i, look.loss)
            if look.gradient is not None:
                velocity = self.momentum * velocity + look.gradient / column(spans, controls[0])
                controls = controls - self.rate * velocity
        return best.result(problem, x, self.iterations + 1)

    def _penalty(self, spans: Tensor) -> Callable[[Tensor], Tensor] | None:
        if self.weight == 0:
            return None
        return lambda controls: self.weight / 2 * (controls.flatten(2).square().sum(2) * spans).sum(1)


def controlled(problem: Problem, x: Tensor) -> Callable[[Tensor], Tensor]:
    """Controls (B, steps, ...) -> the end of the run from x under them."""
    spans, levels = flow_spans(problem), problem.levels

    def run(controls: Tensor) -> Tensor:
        def pushed(i: int, x: Tensor) -> Tensor:
            goal = levels[i + 1]
            return x + spans[i] * (goal.alpha + goal.sigma) * controls[:, i]

        return problem.run(x, pushed)

    return run


def flow_spans(problem: Problem) -> list[float]:
    """The flow time that each step takes, (steps,)."""
    times = [level.sigma / (level.alpha + level.sigma) for level in problem.levels]
    return [a - b for a, b in zip(times, times[1:], strict=False)]
