"""Tangential damping: Kwon et al. 2025, arXiv 2503.18137. Home space: the noise, or a flow's velocity."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .reduce import dot
from .rule import Context, Guide, Rule
from .scale import Scale, both, selected
from .velocity import velocity, with_velocity


@dataclass(frozen=True)
class TCFG(Rule):
    """CFG with the unconditional prediction replaced by its part along the first singular direction of the pair.

    scale: 1 is off. Where the two predictions are parallel it is CFG. It works on what moves x: the
    velocity of a flow model, else the noise.
    """

    scale: Scale = 7.5

    passes: ClassVar[int] = 12
    needs: ClassVar[tuple[str, ...]] = ("cond", "uncond")

    def guide(self, ctx: Context) -> Guide:
        ctx.log(scale=self.scale)
        cond, uncond, on = yield from both(ctx, self.scale)
        if uncond is None:
            return cond
        c, n = velocity(cond, ctx), velocity(uncond, ctx)
        damped = along_first_direction(n, c, ctx)
        return selected(with_velocity(cond, damped + ctx.column(self.scale) * (c - damped), ctx), on, cond)


def along_first_direction(n: Tensor, c: Tensor, ctx: Context) -> Tensor:
    """<n, v> v with v the first right-singular vector of the rows [c; n] of each sample.

    (cos t, sin t), the first eigenvector of their 2 x 2 Gram matrix, has tan 2t = 2 <c, n> / (|c|^2 - |n|^2), and the
    projection is sin t (cos t c + sin t n): no SVD of a long matrix.
    """
    cc, cn, nn = dot(c, c), dot(c, n), dot(n, n)
    length = torch.hypot(cc - nn, 2 * cn)
    known = length > 0  # else every direction is a first one, and n stays
    size = torch.where(known, length, 1.0)
    of_c, of_n = torch.where(known, cn / size, 0.0), torch.where(known, (1 - (cc - nn) / size) / 2, 1.0)
    return ctx.column(of_c.to(c.dtype)) * c + ctx.column(of_n.to(c.dtype)) * n
