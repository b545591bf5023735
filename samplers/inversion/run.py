"""Whole runs of steps that can be undone: to data, back to noise, and on to another picture."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...errors import UsageError
from ..denoiser import Denoiser
from ..sampler import Levels
from .registry import make_inversion
from .reversible import Carried, ReversibleStep


def forward(
    denoiser: Denoiser,
    start: Tensor | Carried,
    levels: Levels,
    *,
    method: str | ReversibleStep = "fixed-point",
    condition: Any = None,
) -> Carried:
    """From noise to data; `method.end` of it is x at levels[-1].

    start: x (B, ...) at levels[0], or what `invert` found over the same levels, which goes back to the same picture.
    """
    how = make_inversion(method)
    if isinstance(start, Tensor):
        state, first = how.begin(start, levels, denoiser.schedule), 0
    else:
        state, first = _fitting(start, levels), how.first
    for i in range(first, state.steps):
        state = how.step(denoiser, state, i, condition)
    return state


def invert(
    denoiser: Denoiser,
    end: Tensor | Carried,
    levels: Levels,
    *,
    method: str | ReversibleStep = "fixed-point",
    condition: Any = None,
) -> Carried:
    """From data to noise; `method.noise` of it is x at levels[0]. Without gradients.

    end: a picture x (B, ...) at levels[-1], or what `forward` found, which goes back to the same noise. Of a picture
    only one x is known: methods that carry two begin with two of it, or with one step of DDIM inversion. What is
    returned is carried whole; from it `forward` gives the picture back, to rounding if the method is exact. From the
    noise alone it is only as near as the method's order lets it.
    """
    how = make_inversion(method)
    with torch.no_grad():
        if isinstance(end, Tensor):
            state = how.begin_at_data(denoiser, end, levels, denoiser.schedule, condition)
        else:
            state = _fitting(end, levels)
        for i in reversed(range(how.first, state.steps)):
            state = how.back(denoiser, state, i, condition)
    return state


def _fitting(state: Carried, levels: Levels) -> Carried:
    if (*(leg.level for leg in state.legs), state.legs[-1].goal) != tuple(levels):
        raise UsageError("this state belongs to a run along other levels; pass those that it was made with")
    return state
