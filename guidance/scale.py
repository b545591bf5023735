"""A guidance scale: one number, or one a row. 1 is off."""

from __future__ import annotations

from collections.abc import Generator

import torch
from torch import Tensor

from ..samplers.prediction import Prediction
from .rule import Ask, Asks, Context

Scale = float | tuple[float, ...]


def is_off(scale: Scale) -> bool:
    """Is it 1 for every row, so that no second branch is needed?"""
    return all(s == 1 for s in scale) if isinstance(scale, tuple) else scale == 1


def guided_rows(scale: Scale, x: Tensor) -> Tensor | None:
    """bool (B,): the rows whose scale is not 1; None when that is every row."""
    if not isinstance(scale, tuple) or 1 not in scale:
        return None
    return torch.tensor([s != 1 for s in scale], device=x.device)


def selected(guided: Prediction, rows: Tensor | None, cond: Prediction) -> Prediction:
    """The guided prediction in these rows (None: in all), the conditional one in the others."""
    return guided if rows is None else guided.where(rows, cond)


def minus_one(scale: Scale) -> Scale:
    """The weight of an additive direction."""
    return tuple(s - 1 for s in scale) if isinstance(scale, tuple) else scale - 1


def both(
    ctx: Context, scale: Scale
) -> Generator[Asks, tuple[Prediction, ...], tuple[Prediction, Prediction | None, Tensor | None]]:
    """What a guided difference is taken of: `cond, uncond, rows = yield from both(ctx, scale)`, for `selected`.

    Where the scale is off everywhere, one branch is evaluated and uncond is None.
    """
    if is_off(scale):
        (cond,) = yield (Ask(),)
        return cond, None, None
    rows = guided_rows(scale, ctx.x)
    cond, uncond = yield Ask(), Ask("uncond", rows=rows)
    return cond, uncond, rows
