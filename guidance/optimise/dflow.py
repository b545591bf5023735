"""D-Flow: Ben-Hamu et al. 2024, arXiv 2402.14017. The initial noise, by L-BFGS through the whole solve."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ...errors import UsageError
from .driver import Best, Optimised, Optimiser, Told, lengths, norm_penalty, refuse_negative
from .lbfgs import minimise
from .problem import Look, Problem


@dataclass(frozen=True)
class DFlow(Optimiser):
    """argmin over x_T of loss(end of the run from x_T) + regulariser (|z|^2 / 2 - (d - 1) ln |z|), z the unit noise.

    memory: pairs that L-BFGS keeps. trials: halvings of a step at most. first: the length of the very first step, as a
    share of |x_T|. regulariser: 0 is off; the paper uses it for linear inverse problems. A step costs one run and its
    backward pass, each further trial another.
    """

    iterations: int = 20
    memory: int = 10
    trials: int = 10
    first: float = 0.1
    regulariser: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_negative("d-flow", regulariser=self.regulariser)
        if self.memory < 1 or self.trials < 1 or not self.first > 0:
            raise UsageError("d-flow needs memory and trials of at least 1, and first above 0")

    def optimise(self, problem: Problem, x: Tensor, told: Told | None = None) -> Optimised:
        best, penalty, runs = Best("value"), norm_penalty(self.regulariser, problem), 0

        def look_of(at: Tensor) -> Look:
            nonlocal runs
            runs += 1
            return problem.look(at, problem.run, penalty, grad=self.iterations > 0)

        steps = minimise(
            look_of,
            x.detach(),
            iterations=self.iterations,
            memory=self.memory,
            trials=self.trials,
            first=self.first * lengths(x).flatten(),
        )
        for i, (at, look) in enumerate(steps):
            best.take(at, look)
            if told is not None:
                told(i, look.loss)
        return best.result(problem, None, runs)
