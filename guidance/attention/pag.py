"""Perturbed-attention guidance: Ahn et al. 2024, arXiv 2403.17377, eq. 13 and 16."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..rule import Context, Guide
from .patch import Attend, AttentionPatch, Scene
from .perturbed import Perturbed


@dataclass(frozen=True)
class PAG(Perturbed):
    """cond + weight (cond - perturbed), where the perturbed network has identity maps in chosen self-attentions.

    weight: 0 is off and evaluates one branch; alone it is branch guidance with scale 1 + weight. A tuple gives one a
    row. layers: "" is the middle block of a UNet and the middle layer of a transformer (the authors': "mid_block"; for
    SD3 diffusers has "1", its example "13"). In joint attention only picture to picture becomes the identity.
    adaptive: the weight falls with time t (of 1000), max(0, weight - adaptive (1000 - t)); 0 keeps it.
    """

    adaptive: float = 0.0

    def guide(self, ctx: Context) -> Guide:
        if self.adaptive == 0:
            return (yield from super().guide(ctx))
        several = self.weight if isinstance(self.weight, tuple) else (self.weight,)
        fallen = tuple(max(0.0, weight - self.adaptive * (1000 - ctx.start.time)) for weight in several)
        now = replace(self, weight=fallen if isinstance(self.weight, tuple) else fallen[0], adaptive=0.0)
        return (yield from now.guide(ctx))

    def patch(self, ctx: Context) -> IdentityAttention:
        return IdentityAttention(self.layers)


@dataclass(frozen=True)
class IdentityAttention(AttentionPatch):
    """Each picture token attends to itself alone, and to the text where text stands in the same sequence."""

    def attended(self, call: Attend, pictures: slice, name: str, scene: Scene) -> Tensor:
        tokens = call.query.shape[2]
        start, stop, _ = pictures.indices(tokens)
        if stop - start == tokens:
            return call.values
        mask = torch.ones(tokens, tokens, dtype=torch.bool, device=call.query.device)
        mask[start:stop, start:stop] = torch.eye(stop - start, dtype=torch.bool, device=mask.device)
        return call.run(attn_mask=mask)
