"""Dynamic thresholding: Saharia et al. 2022 (Imagen), arXiv 2205.11487, section 2.3. Home space: denoised."""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...errors import UsageError
from ...samplers.prediction import Prediction
from ..rule import Ask, Asks, Context, Guide, Modifier, as_round


@dataclass(frozen=True)
class DynamicThreshold(Modifier):
    """Clip the guided clean estimate of each row to its own quantile q of |D| and divide by it: clip(D, -q, q) / q.

    percentile: where q is taken; 0 is off, 0.995 is Imagen's. ceiling: q is held in [1, ceiling], so that estimates
    within [-1, 1] stay as they are (ceiling=1 is plain clipping to [-1, 1]). For pixel models.
    mimic_scale: above 0 the form for latents, whose range is not [-1, 1]: each channel is taken about its mean, and its
    range becomes that of CFG with this lower scale; q is the quantile or that range, whichever is larger.
    """

    percentile: float = 0.995
    ceiling: float = math.inf
    mimic_scale: float = 0.0

    order: ClassVar[int] = 22
    passes: ClassVar[int] = 19

    def __post_init__(self) -> None:
        if not 0 <= self.percentile <= 1:
            raise UsageError(f"threshold percentile={self.percentile} lies outside [0, 1]; Imagen's is 0.995")
        if self.ceiling < 1:
            raise UsageError(f"threshold ceiling={self.ceiling} is below 1; 1 is plain clipping")

    @property
    def spatial(self) -> bool:  # type: ignore[override]
        return self.rule.spatial or (self.percentile > 0 and self.mimic_scale > 0)

    def guide(self, ctx: Context) -> Guide:
        if self.percentile == 0:
            return (yield from self.rule.guide(ctx))
        if not self.mimic_scale:
            guided = yield from self.rule.guide(ctx)
            return guided.with_denoised(clipped(guided.denoised, self.percentile, self.ceiling, ctx))
        guided, asked = yield from observed(self.rule.guide(ctx))
        if Ask("uncond") not in asked or Ask() not in asked:  # nothing was guided
            return guided
        rows = asked[Ask("uncond")]
        cond, uncond = yield Ask(), Ask("uncond", rows=rows)  # both are known
        mimic = uncond.denoised + self.mimic_scale * (cond.denoised - uncond.denoised)
        made = guided.with_denoised(self._mimicked(guided.denoised, mimic, ctx))
        return made if rows is None else made.where(rows, guided)

    def _mimicked(self, x: Tensor, mimic: Tensor, ctx: Context) -> Tensor:
        if ctx.packing is None:
            return mimicked(x, mimic, self.percentile)
        return ctx.packing.packed(mimicked(ctx.packing.unpacked(x), ctx.packing.unpacked(mimic), self.percentile))


def clipped(x: Tensor, percentile: float, ceiling: float, ctx: Context) -> Tensor:
    """clip(x, -q, q) / q, q the percentile of |x| of each row, held in [1, ceiling]."""
    q = ctx.column(quantile(x.abs().flatten(1), percentile).clamp(1.0, ceiling).to(x.dtype))
    return torch.minimum(torch.maximum(x, -q), q) / q


def mimicked(x: Tensor, mimic: Tensor, percentile: float) -> Tensor:
    """x with each channel's range about its mean brought to that of mimic; both (B, C, ...)."""
    flat, aim = (t.flatten(2) if t.dim() > 2 else t.flatten(1)[:, None] for t in (x, mimic))
    middle = flat.mean(2, keepdim=True)
    flat = flat - middle
    reach = (aim - aim.mean(2, keepdim=True)).abs().amax(2, keepdim=True)
    q = torch.maximum(quantile(flat.abs(), percentile)[..., None], reach)
    scale = torch.where(q > 0, reach / torch.where(q > 0, q, 1.0), 1.0)
    return (torch.minimum(torch.maximum(flat, -q), q) * scale + middle).reshape(x.shape)


def quantile(x: Tensor, share: float) -> Tensor:
    """The quantile over the last axis, with linear interpolation, for rows of any length (torch's stops at 16M)."""
    place = share * (x.shape[-1] - 1)
    low = math.floor(place)
    below = x.kthvalue(low + 1, dim=-1).values
    above = x.kthvalue(min(low + 1, x.shape[-1] - 1) + 1, dim=-1).values
    return torch.lerp(below, above, place - low)


def observed(guide: Guide) -> Generator[Asks, tuple[Prediction, ...], tuple[Prediction, dict[Ask, Any]]]:
    """Run a rule's generator; its result, and its asks with the rows of each (None: every row)."""
    asked: dict[Ask, Any] = {}
    answers: Any = None
    try:
        while True:
            wanted = as_round(guide.send(answers))
            for ask in wanted:
                rows = asked.get(ask, ask.rows)
                asked[ask] = None if rows is None or ask.rows is None else rows | ask.rows
            answers = yield wanted
    except StopIteration as stop:
        return stop.value, asked
    finally:
        guide.close()
