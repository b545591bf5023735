"""What the network says at a point of a run that can be undone.

Every answer must be the same on the way forth and on the way back, so it may depend on nothing but x and the place in
the run: a level of the grid belongs to the step that starts there (the last one to the last step), a middle to its own
step. Windows and CFG++ weights are those of that step.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...errors import UsageError
from ..denoiser import Denoiser
from ..prediction import Prediction
from ..sampler import Leg, State


def slope_at(
    denoiser: Denoiser, x: Tensor, legs: tuple[Leg, ...], node: int, which: str = "noise", condition: Any = None
) -> Tensor:
    """The `noise` or `denoised` (`which`) that is predicted for x (B, ...) at level `node` of the grid, 0 .. steps."""
    if node < len(legs):
        return _slope(denoiser, State(x, legs, node), which, condition)
    return _slope(denoiser, State(x, legs, node - 1, len(legs[-1].points) - 1), which, condition)


def slope_in_the_middle(
    denoiser: Denoiser, x: Tensor, legs: tuple[Leg, ...], step: int, which: str, condition: Any
) -> Tensor:
    """The same between the levels of a step."""
    return _slope(denoiser, State(x, legs, step, 1), which, condition)


def _slope(denoiser: Denoiser, state: State, which: str, condition: Any) -> Tensor:
    prediction = _asked(denoiser, state, condition)
    value: Tensor = getattr(prediction, which)
    if prediction.base is None:
        return value
    base: Tensor = getattr(prediction.base, which)
    return torch.add(base, value - base, alpha=1 / _share(state))


def _share(state: State) -> float:
    """1 - rho'/rho of the step. A rule that re-noises with its base (CFG++) steps as base + (guided - base) / share
    would without: Chung et al. 2024, arXiv 2406.08070. So any method can carry it."""
    level, goal = state.leg.level, state.goal
    return 1 - goal.sigma * level.alpha / (goal.alpha * level.sigma)


def _asked(denoiser: Any, state: State, condition: Any) -> Prediction:
    if not hasattr(denoiser, "guide"):
        prediction: Prediction = denoiser(state.x, state.level, condition)
        return prediction
    rule = denoiser.rule
    if rule.moves:
        raise UsageError(f"{type(rule).__name__} moves x after each step, which cannot be undone; choose another rule")
    prediction, memory = denoiser.guide(state, condition)
    if memory.later:
        raise UsageError(
            f"{type(rule).__name__} remembers earlier steps, so that a step cannot be undone alone; choose a rule "
            "without memory, such as cfg (apg: momentum=0)"
        )
    return prediction
