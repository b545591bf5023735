"""Self-attention guidance: Hong et al. 2022, arXiv 2210.00939, eq. 16-18 and 25."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import UsageError
from ...samplers.prediction import Prediction, working_precision
from ..packing import Packing
from ..rule import Ask, Context, Guide, Modifier, Point, changed
from ..scale import Scale, guided_rows
from .layers import Site, attentions, middle
from .patch import Attend, AttentionPatch, Change, Scene
from .perturbed import no_weight, plus_one
from .seg import blur_with


@dataclass(frozen=True)
class SAG(Modifier):
    """rule + weight (null - degraded) on the noise: the second look is at x with the parts that draw attention blurred.

    The null branch is "uncond" where the rule asks for it, else "cond" (then this is cond + weight (cond - degraded)).
    Its clean estimate is blurred (Gaussian, 9 taps, `sigma`) where the attention that a token receives, averaged over
    heads and summed over queries, exceeds `threshold`; then it is re-noised with the same predicted noise. weight: 0 is
    off. A tuple gives one a row. layers: one self-attention; "" is the first one in the middle of the network. A
    modifier because it listens to an evaluation that the rule makes anyway: CFG with it costs three evaluations.
    """

    weight: Scale = 0.75
    sigma: float = 1.0
    threshold: float = 1.0
    layers: str = ""

    order: ClassVar[int] = 15
    passes: ClassVar[int] = 11  # of an epsilon network

    def __post_init__(self) -> None:
        if not self.sigma > 0:
            raise UsageError(f"sag:sigma={self.sigma} does not blur; use a positive one, or sag:weight=0 for off")

    def guide(self, ctx: Context) -> Guide:
        if no_weight(self.weight):
            return (yield from self.rule.guide(ctx))
        if ctx.x.dim() != 4 and ctx.packing is None:
            raise UsageError(f"sag needs latents (B, C, H, W), not {tuple(ctx.x.shape)}; use pag or seg")
        null = "uncond" if "uncond" in self.rule.needs else "cond"
        heard, rows = Heard(), guided_rows(plus_one(self.weight), ctx.x)
        patch = ListenedAttention(self.layers, heard)
        wanted: list[Tensor | None] = []

        def listening(ask: Ask) -> Ask:
            if ask != Ask(null):
                return ask
            wanted.append(ask.rows)
            return Listening(null, patch=patch, rows=ask.rows)

        guided = yield from changed(self.rule.guide(ctx), listening)
        if not wanted:  # the rule rests, without its null branch
            (answer,) = yield (Ask(patch=patch, rows=rows),)
            null, wanted = "cond", [rows]
        else:
            (answer,) = yield (Ask(null, rows=_union(wanted)),)  # known already
        mask = self._mask(ctx, heard, _both(_union(wanted), ctx.rows))
        rows = _both(_both(rows, _union(wanted)), ctx.rows)
        point = Point(self.degraded(answer, mask, ctx.packing), ctx.level)
        (worse,) = yield (Ask(null, at=point, rows=rows),)
        _, slope = guided.kind.noise(guided.level)
        if slope == 0:  # pure noise, where the noise is x itself
            return guided
        change = (answer.noise - worse.noise) * ctx.column(self.weight)  # at two places, so only the noise compares
        change = change if rows is None else change.where(ctx.column(rows), 0.0)
        return guided.like(torch.add(guided.native, change, alpha=1 / slope))

    def degraded(self, answer: Prediction, mask: Tensor, packing: Packing | None = None) -> Tensor:
        """x whose clean part is blurred where the mask (B, h, w) is 1, with the predicted noise that it had."""
        clean = answer.denoised if packing is None else packing.unpacked(answer.denoised)
        height, width = clean.shape[-2:]
        down, across = (blur_with(min(9, side + 1 - side % 2), side, self.sigma, clean) for side in (height, width))
        where = F.interpolate(mask[:, None].to(clean.dtype), (height, width), mode="nearest")
        change = down @ clean @ across.T - clean
        if packing is not None:
            where, change = packing.packed(where.expand_as(clean)), packing.packed(change)
        return torch.addcmul(answer.x, where, change, value=answer.level.alpha)  # x = alpha clean + sigma noise

    def _mask(self, ctx: Context, heard: Heard, rows: Tensor | None) -> Tensor:
        """(B, h, w): 1 where a token receives much attention; 0 in rows that were not evaluated."""
        total = len(ctx.x) if rows is None else int(rows.sum())
        received = torch.cat(heard.parts)[:total]  # what is more was padding (rows_per_call)
        if len(received) < total:
            raise UsageError("sag heard fewer rows than were evaluated; use it outside a modifier that splits rows")
        high = (received > self.threshold).to(ctx.x.dtype)
        if rows is None:
            return high
        return high.new_zeros(len(ctx.x), *high.shape[1:]).masked_scatter(ctx.column(rows, high), high)


@dataclass(frozen=True, eq=False)
class Listening(Ask):
    """An ask whose patch only looks on: it answers for the plain ask, and compares equal to it."""

    @property
    def _plain(self) -> Ask:
        return Ask(self.branch, self.edit, None, self.at, self.grad)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Listening):
            return self._plain == other._plain
        return isinstance(other, Ask) and self._plain == other

    def __hash__(self) -> int:
        return hash(self._plain)


class Heard:
    """Where a listening patch leaves what it heard: the attention received (rows, h, w), call by call."""

    def __init__(self) -> None:
        self.parts: list[Tensor] = []


@dataclass(frozen=True)
class ListenedAttention(AttentionPatch):
    """Leaves a self-attention as it is, and notes how much attention each picture token receives."""

    heard: Heard = field(default_factory=Heard)

    def default(self, sites: Sequence[Site]) -> Sequence[Site]:
        return middle(sites)

    def changes(self, root: nn.Module, scene: Scene) -> list[Change]:
        name, layer = self.chosen(attentions(root), root)[0]
        return [(layer, self._changing(name, layer, scene))]

    def attended(self, call: Attend, pictures: slice, name: str, scene: Scene) -> Tensor:
        query, key = working_precision(call.query.detach()), working_precision(call.key.detach())
        factor = call.settings.get("scale") or query.shape[-1] ** -0.5
        received = 0.0
        for head in range(query.shape[1]):  # one map at a time: they are large
            chances = (query[:, head, pictures] @ key[:, head].transpose(1, 2) * factor).softmax(-1)
            received = received + chances[..., pictures].sum(1) / query.shape[1]
        assert isinstance(received, Tensor)
        self.heard.parts.append(received.unflatten(1, scene.grid(name, received.shape[1])))
        return call.run()


def _union(several: Sequence[Tensor | None]) -> Tensor | None:
    joined: Tensor | None = several[0]
    for rows in several[1:]:
        joined = None if joined is None or rows is None else joined | rows
    return joined


def _both(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return b if a is None else a if b is None else a & b
