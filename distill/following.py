"""A target that follows the student: the moving average of its weights that consistency and self-boosting learn from.

    target <- decay target + (1 - decay) student,        after every step of the student

The average lives in the target's own parameters and, as the same memory, in `ctx.state`, so that a checkpoint keeps it.
The first update copies the student. Gradients never reach it.
"""

from __future__ import annotations

import torch

from ..errors import UsageError
from ..training.learner import Learner
from ..training.stepping import fill
from .method import DistillContext
from .roles import TARGET

KEY = "target"  # of the state: {"weights": [tensor, ...], "steps": how many it has followed}


def target_of(ctx: DistillContext) -> Learner:
    """The target as it was left by the update before. UsageError where it is not built as the student is."""
    target: Learner = ctx.roles.need(TARGET)
    learnt = [parameter.detach() for parameter in ctx.roles.student.parameters]
    held = [parameter.detach() for parameter in target.parameters]
    if [p.shape for p in held] != [p.shape for p in learnt]:
        raise UsageError("the target has other parameters than the student; open both with the same settings")
    before = ctx.state.get(KEY)
    fill(held, learnt if before is None else before["weights"])
    ctx.state[KEY] = {"weights": held, "steps": 0 if before is None else before["steps"]}
    return target


def follow(ctx: DistillContext, decay: float, ramp: bool = False) -> None:
    """To be called once the student has stepped. ramp: at its k-th step, from 0, the decay is at most k / (k + 10), so
    that the first weights are soon forgotten."""
    state = ctx.state[KEY]
    steps = state["steps"]
    share = min(decay, steps / (steps + 10)) if ramp else decay
    with torch.no_grad():
        for mean, parameter in zip(state["weights"], ctx.roles.student.parameters, strict=True):
            mean.lerp_(parameter, 1 - share)
    state["steps"] = steps + 1
