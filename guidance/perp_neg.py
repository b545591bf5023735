"""Perp-Neg: Armandpour et al. 2023, arXiv 2304.04968. Negative prompts that leave the positive one alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .areas import check_areas, confined, within
from .cfg import CFG
from .prompts import weighted
from .reduce import dot, safe_ratio
from .rule import Ask, Context, Guide, Rule
from .scale import Scale


@dataclass(frozen=True)
class PerpNeg(Rule):
    """uncond + scale (a - sum_k weight_k b_k), with a = cond - uncond and b_k the part of (negative_k - uncond) that is
    perpendicular to a, row by row. In any space: only directions are used.

    scale: 1 with no negatives is off. negatives: "blur:1.5 hands" are the conditions "prompt:blur" and "prompt:hands";
    a weight is 1 unless given, 0 is off; none by default. "uncond" must be the true empty prompt. Without negatives it
    is CFG. areas: "blur:top" confines a negative to a part of the picture, as in composable (ours): b_k is then
    m (negative_k - uncond) - c m a, m being 1 inside and 0 outside, with the c that makes it perpendicular to a.
    """

    scale: Scale = 7.5
    negatives: str = ""
    areas: str = ""

    passes: ClassVar[int] = 12  # with one negative

    def __post_init__(self) -> None:
        check_areas(self.areas, [branch for branch, _ in weighted(self.negatives, 1.0)], "negatives")

    @property
    def spatial(self) -> bool:  # type: ignore[override]
        return bool(self.areas)

    @property
    def needs(self) -> tuple[str, ...]:  # type: ignore[override]
        return ("cond", "uncond", *(branch for branch, _ in weighted(self.negatives, 1.0)))

    def guide(self, ctx: Context) -> Guide:
        ctx.log(scale=self.scale)
        negatives = weighted(self.negatives, 1.0)
        if not negatives:
            return (yield from CFG(self.scale).guide(ctx))
        cond, uncond, *others = yield Ask(), Ask("uncond"), *(Ask(branch) for branch, _ in negatives)
        towards = direction = cond.native - uncond.native
        areas = confined(self.areas)
        for (branch, weight), other in zip(negatives, others, strict=True):
            area = areas.get(branch)
            away, here = within(area, other.native - uncond.native, ctx), within(area, towards, ctx)
            along = safe_ratio(dot(away, towards), dot(here, towards)).to(away.dtype)
            direction = direction - weight * (away - ctx.column(along) * here)
        return cond.like(uncond.native + ctx.column(self.scale) * direction)
