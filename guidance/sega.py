"""SEGA, semantic guidance: Brack et al. 2023, arXiv 2301.12247. Concepts move the sparse part that they are about."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..errors import UsageError
from .areas import Area, check_areas, confined, within
from .cfg import CFG
from .modifiers.threshold import quantile
from .prompts import weighted
from .rule import Ask, Context, Guide, Rule
from .scale import Scale
from .spatial import as_given, as_pictures


@dataclass(frozen=True)
class SEGA(Rule):
    """CFG on the noise, plus E = sum_k s_k (noise_k - uncond) where that is large, with momentum.

    scale: of the CFG; 1 without concepts is off. concepts: "smile:5 glasses:-5" are the conditions "prompt:smile" and
    "prompt:glasses"; a weight is 5 unless given, below 0 takes away, 0 is off. share: of the entries of each channel
    (by size) that are dropped; 0 keeps all. warmup: first steps without E, while the momentum gathers.
    momentum: weight of the momentum v in E, 0 for none; inertia: v <- inertia v + (1 - inertia) E. areas: "glasses:top"
    confines a concept to a part of the picture, as in composable (ours); the share is then of what lies inside.
    Home space: the noise.
    """

    scale: Scale = 7.5
    concepts: str = ""
    share: float = 0.9
    warmup: int = 10
    momentum: float = 0.1
    inertia: float = 0.4
    areas: str = ""

    passes: ClassVar[int] = 13  # with one concept

    def __post_init__(self) -> None:
        check_areas(self.areas, [branch for branch, _ in weighted(self.concepts, 5.0)], "concepts")
        if not 0 <= self.share <= 1:
            raise UsageError(f"sega share={self.share} lies outside [0, 1]; the paper's is 0.9")

    @property
    def needs(self) -> tuple[str, ...]:  # type: ignore[override]
        return ("cond", "uncond", *(branch for branch, _ in weighted(self.concepts, 5.0)))

    @property
    def spatial(self) -> bool:  # type: ignore[override]
        return bool(weighted(self.concepts, 5.0)) and (self.share > 0 or bool(self.areas))

    def guide(self, ctx: Context) -> Guide:
        ctx.log(scale=self.scale)
        concepts = weighted(self.concepts, 5.0)
        if not concepts:
            return (yield from CFG(self.scale).guide(ctx))
        cond, uncond, *others = yield Ask(), Ask("uncond"), *(Ask(branch) for branch, _ in concepts)
        guided = cond.like(uncond.native + ctx.column(self.scale) * (cond.native - uncond.native))
        areas = confined(self.areas)
        parts = [
            self._sparse(weight * (other.noise - uncond.noise), areas.get(branch), ctx)
            for (branch, weight), other in zip(concepts, others, strict=True)
        ]
        edit = torch.stack(parts).sum(0) if len(parts) > 1 else parts[0]
        if self.momentum:
            gathered = ctx.recall(self, torch.zeros_like(edit))
            edit = torch.add(edit, gathered, alpha=self.momentum)
            ctx.keep(self, torch.lerp(edit, gathered, self.inertia))
        return guided if ctx.step < self.warmup else guided.with_noise(guided.noise + edit)

    def _sparse(self, x: Tensor, area: Area | None, ctx: Context) -> Tensor:
        if area is None and ctx.packing is None:  # a picture, or on a toy one channel of numbers
            return largest(x, self.share)
        pictures = as_pictures(within(area, x, ctx), ctx, "sega")
        rows, columns = (area or Area()).box(pictures)
        kept = torch.zeros_like(pictures)
        kept[..., rows, columns] = largest(pictures[..., rows, columns], self.share)
        return as_given(kept, ctx)


def largest(x: Tensor, share: float) -> Tensor:
    """x where |x| reaches the share's quantile of its channel, else 0; x (B, C, ...), or (B, n) as one channel."""
    if share == 0:
        return x
    flat = x.abs().reshape(*x.shape[: max(1, min(2, x.dim() - 1))], -1)
    edge = quantile(flat, share)
    edge = edge.reshape(*edge.shape, *[1] * (x.dim() - edge.dim()))
    return torch.where(x.abs() >= edge, x, 0.0)
