"""S2-Guidance: Chen et al. 2025, arXiv 2508.12880. Away from sub-networks drawn at random. Experimental."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from ...errors import UsageError
from ...samplers.noise import derived_seed
from ..rule import Ask, Context, Guide, Rule
from ..scale import Scale, guided_rows, is_off, selected
from .layers import Site, blocks, groups
from .patch import Change, Patch, Scene, joint_block
from .perturbed import no_weight
from .slg import skipping


@dataclass(frozen=True)
class S2(Rule):
    """uncond + scale (cond - uncond) + weight (cond - dropped), where the dropped network leaves out some of its
    transformer blocks, others at each step.

    scale: of the CFG; 1 leaves it out, for a sum with another rule. weight: 0 is off. drop: share of the blocks that is
    left out, at least one, never the first. layers: what is drawn from; "" is every block but the first. It acts while
    low < t <= high, t = rho / (1 + rho). seed: of the draws, which depend on it and the step alone: one a step, shared
    by all rows. Experimental: the paper's weight was not seen (larger ones over-correct), and that its central 80 % of
    noise levels are those of t is our reading.
    """

    scale: Scale = 5.0
    weight: float = 0.25
    drop: float = 0.1
    low: float = 0.1
    high: float = 0.9
    layers: str = ""
    seed: int = 0

    passes: ClassVar[int] = 6

    def __post_init__(self) -> None:
        if not 0 <= self.drop < 1:
            raise UsageError(f"s2:drop={self.drop} lies outside [0, 1); the paper has about 0.1")

    @property
    def needs(self) -> tuple[str, ...]:  # type: ignore[override]
        return ("cond",) if is_off(self.scale) else ("cond", "uncond")

    def guide(self, ctx: Context) -> Guide:
        ctx.log(scale=self.scale)
        t = ctx.start.sigma / (ctx.start.alpha + ctx.start.sigma)
        acts = self.drop > 0 and not no_weight(self.weight) and self.low < t <= self.high
        on = guided_rows(self.scale, ctx.x)
        asks = () if is_off(self.scale) else (Ask("uncond", rows=on),)
        patch = DroppedBlocks(self.layers, self.drop, derived_seed(self.seed, "s2", ctx.step, ctx.stage))
        cond, *others = yield Ask(), *asks, *((Ask(patch=patch),) if acts else ())
        guided = cond
        if asks:
            uncond = others[0].native
            guided = selected(cond.like(uncond + ctx.column(self.scale) * (cond.native - uncond)), on, cond)
        if acts:
            guided = cond.like(guided.native + self.weight * (cond.native - others[-1].native))
        return guided


@dataclass(frozen=True)
class DroppedBlocks(Patch):
    """Some blocks, drawn from the chosen ones, hand on what they were given."""

    drop: float = 0.1
    seed: int = 0

    def default(self, sites: Sequence[Site]) -> Sequence[Site]:
        if len(groups(sites)) < 2:
            raise UsageError("s2 never drops the first transformer block, and this network has no other; use pag")
        return sites[len(groups(sites)[0]) :]

    def changes(self, root: nn.Module, scene: Scene) -> list[Change]:
        every = blocks(root)
        drawn_from = self.chosen(every, root)
        count = min(max(1, round(self.drop * len(every))), len(drawn_from))
        drawn = torch.randperm(len(drawn_from), generator=torch.Generator().manual_seed(self.seed))[:count]
        return [(drawn_from[i][1], skipping(joint_block(drawn_from[i][1]))) for i in sorted(drawn.tolist())]
