"""Composable guidance: Liu et al. 2022, arXiv 2206.01714. Several prompts with weights, AND and NOT."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .areas import check_areas, confined, within
from .cfg import CFG
from .prompts import weighted
from .rule import Ask, Context, Guide, Rule
from .scale import Scale


@dataclass(frozen=True)
class Composable(Rule):
    """uncond + scale (cond - uncond) + sum_k weight_k (prompt_k - uncond), in any space.

    scale: of the main prompt; 1 with no further prompts is off. prompts: "hat:5 rain:-2" are the conditions
    "prompt:hat" and "prompt:rain"; a weight is 7.5 unless given, below 0 means not, 0 is off. The positive weights act
    together like one large scale. Without further prompts it is CFG. areas: "hat:top rain:0-1/0.5-1" confines a prompt
    to a part of the picture: left, right, top, bottom, centre, or shares of its width / height.
    """

    scale: Scale = 7.5
    prompts: str = ""
    areas: str = ""

    passes: ClassVar[int] = 6  # with one further prompt; 3 for each

    def __post_init__(self) -> None:
        check_areas(self.areas, [branch for branch, _ in weighted(self.prompts, 7.5)], "prompts")

    @property
    def spatial(self) -> bool:  # type: ignore[override]
        return bool(self.areas)

    @property
    def needs(self) -> tuple[str, ...]:  # type: ignore[override]
        return ("cond", "uncond", *(branch for branch, _ in weighted(self.prompts, 7.5)))

    def guide(self, ctx: Context) -> Guide:
        ctx.log(scale=self.scale)
        prompts = weighted(self.prompts, 7.5)
        if not prompts:
            return (yield from CFG(self.scale).guide(ctx))
        cond, uncond, *others = yield Ask(), Ask("uncond"), *(Ask(branch) for branch, _ in prompts)
        guided = uncond.native + ctx.column(self.scale) * (cond.native - uncond.native)
        areas = confined(self.areas)
        for (branch, weight), other in zip(prompts, others, strict=True):
            term = weight * (other.native - uncond.native)
            guided = guided + within(areas.get(branch), term, ctx)
        return cond.like(guided)
