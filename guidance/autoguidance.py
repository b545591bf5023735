"""Autoguidance: Karras et al. 2024, arXiv 2406.02507, eq. 5. Guide a model with a bad version of itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from ..errors import UsageError, nearest
from ..samplers.noise import derived_seed
from .rule import Ask, Context, Guide, Rule
from .scale import Scale, guided_rows, is_off, selected

KINDS = ("network", "skip", "lora", "dropout", "tokens")


@dataclass(frozen=True)
class Autoguidance(Rule):
    """cond + (scale - 1) (mix (cond - weak) + (1 - mix) (cond - uncond)), the same condition for both networks.

    scale: 1 is off. mix: 1 is autoguidance, weak + scale (cond - weak); 0 is CFG; between, the paper's appendix B.2
    shares the same scale out. weak: "network", a second one called "weak", smaller, less trained or with other averaged
    weights (EMA), of the same latents; its failures must point in the same direction (`quantised` makes one of the
    network itself). Or the network itself, made worse: "skip" leaves out `layers` (as in slg), "lora" switches its LoRA
    off, "dropout" sets a share `drop` of what the self-attentions of `layers` add to 0, "tokens" lets them see only the
    others of the picture's tokens. seed: of those draws, which change from step to step and are shared by all rows.
    Works between networks that predict different quantities.
    """

    scale: Scale = 2.0
    mix: float = 1.0
    weak: str = "network"
    layers: str = ""
    drop: float = 0.25
    seed: int = 0

    passes: ClassVar[int] = 3  # 4 with both

    def __post_init__(self) -> None:
        if self.weak not in KINDS:
            raise UsageError(f"unknown autoguidance:weak={self.weak!r}: {nearest(self.weak, KINDS)}")
        if not 0 <= self.mix <= 1:
            raise UsageError(f"autoguidance:mix={self.mix} lies outside [0, 1]; 1 is autoguidance, 0 is CFG")
        if not 0 <= self.drop < 1:
            raise UsageError(f"autoguidance:drop={self.drop} lies outside [0, 1); 0 drops nothing")

    @property
    def needs(self) -> tuple[str, ...]:  # type: ignore[override]
        weak = ("weak",) if self.weak == "network" and self.mix > 0 else ()
        return ("cond", *weak, *(("uncond",) if self.mix < 1 else ()))

    def guide(self, ctx: Context) -> Guide:
        ctx.log(scale=self.scale)
        if is_off(self.scale):
            (cond,) = yield (Ask(),)
            return cond
        on = guided_rows(self.scale, ctx.x)
        shares = [(self.mix, self._worse(on, ctx)), (1 - self.mix, Ask("uncond", rows=on))]
        asks = [ask for share, ask in shares if share > 0]
        cond, *others = yield Ask(), *asks
        first, *rest = (p if p.kind is cond.kind else cond.with_denoised(p.denoised) for p in others)
        rival = torch.lerp(rest[0].native, first.native, self.mix) if rest else first.native
        return selected(cond.like(rival + ctx.column(self.scale) * (cond.native - rival)), on, cond)

    def _worse(self, rows: Any, ctx: Context) -> Ask:
        """The ask for the weak version."""
        return Ask("weak", rows=rows) if self.weak == "network" else Ask(patch=self._patch(ctx), rows=rows)

    def _patch(self, ctx: Context) -> Any:
        from .attention.lora import WithoutLora
        from .attention.slg import SkippedBlocks
        from .attention.weaker import DroppedOut, FewerTokens

        if self.weak in ("skip", "lora"):
            return SkippedBlocks(self.layers) if self.weak == "skip" else WithoutLora()
        seed = derived_seed(self.seed, "autoguidance", ctx.step, ctx.stage)
        return (DroppedOut if self.weak == "dropout" else FewerTokens)(self.layers, self.drop, seed)
