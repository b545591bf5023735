"""A network made worse at random, as a weak version of itself: dropout, and self-attention to fewer tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...samplers.noise import derived_seed
from ..trees import map_tensors
from .layers import Site, attentions
from .patch import Attend, AttentionPatch, Change, Forward, Patch, Scene


@dataclass(frozen=True)
class DroppedOut(Patch):
    """Dropout on what the chosen self-attention layers add: a share `drop` of the numbers is 0, the others are
    1 / (1 - drop) times as large. All rows share one draw a layer, which depends on the seed and the layer alone."""

    drop: float = 0.25
    seed: int = 0

    def default(self, sites: Sequence[Site]) -> Sequence[Site]:
        return sites

    def changes(self, root: nn.Module, scene: Scene) -> list[Change]:
        return [(layer, self._dropping(name)) for name, layer in self.chosen(attentions(root), root)]

    def _dropping(self, name: str) -> Callable[[Forward], Forward]:
        def dropped(output: Tensor) -> Tensor:
            kept = torch.rand(output.shape[1:], generator=drawn(self.seed, name)) >= self.drop
            return output * kept.to(output.device, output.dtype).div_(1 - self.drop)

        def change(forward: Forward) -> Forward:
            def dropping(*args: Any, **kwargs: Any) -> Any:
                return map_tensors(forward(*args, **kwargs), dropped)

            return dropping

        return change


@dataclass(frozen=True)
class FewerTokens(AttentionPatch):
    """The chosen self-attention layers see a part of the picture tokens: a share `drop` of the keys and values is left
    out. All rows share one draw a layer, which depends on the seed and the layer alone; text is seen whole."""

    drop: float = 0.25
    seed: int = 0

    def default(self, sites: Sequence[Site]) -> Sequence[Site]:
        return sites

    def attended(self, call: Attend, pictures: slice, name: str, scene: Scene) -> Tensor:
        every = torch.arange(call.key.shape[2])
        seen = every[pictures]
        count = max(1, round((1 - self.drop) * len(seen)))
        left_out = seen[torch.randperm(len(seen), generator=drawn(self.seed, name))[count:]]
        kept = every[~torch.isin(every, left_out)].to(call.key.device)
        mask = call.settings.get("attn_mask")
        changes = {} if mask is None or mask.shape[-1] == 1 else {"attn_mask": mask[..., kept]}
        return call.run(key=call.key[:, :, kept], value=call.value[:, :, kept], **changes)


def drawn(seed: int, name: str) -> torch.Generator:
    """A layer's own generator, on the CPU, so that the draw is the same on every device and for every batch."""
    return torch.Generator().manual_seed(derived_seed(seed, "weaker", name))
