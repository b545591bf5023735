"""Skip-layer guidance (Stability AI, SD3.5) and STG: Hyung et al. 2024, arXiv 2411.18664, eq. 8."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ...errors import UsageError
from ..rule import Context
from ..scale import Scale
from .layers import Site, attentions, blocks, middle, on_path, share
from .patch import Change, Forward, Patch, Scene, argument, joint_block
from .perturbed import Perturbed


@dataclass(frozen=True)
class SLG(Perturbed):
    """cond + weight (cond - skipped), where the skipped network leaves out some of its transformer blocks.

    weight: 0 is off; alone it is branch guidance with scale 1 + weight. A tuple gives one a row. skip: "block", or
    "attention" (STG: the residual around the block's self-attention is kept, its output is zero). layers: "" is the
    blocks at 7/24 to 9/24 of a transformer (7-9 in SD3.5-Medium) and the middle block of a UNet. SD3.5 guides only
    early: `+ interval:low=0.01,high=0.2,unit=fraction`. Add `rescale` where it overexposes.
    """

    weight: Scale = 2.8
    skip: str = "block"

    def __post_init__(self) -> None:
        if self.skip not in ("block", "attention"):
            raise UsageError(f"slg:skip={self.skip!r} is unknown; use block or attention")

    def patch(self, ctx: Context) -> Patch:
        return SkippedBlocks(self.layers) if self.skip == "block" else SkippedAttention(self.layers)


def _usual(sites: Sequence[Site]) -> Sequence[Site]:
    return middle(sites) if on_path(sites, "m") else share(7 / 24, 9 / 24)(sites)


@dataclass(frozen=True)
class SkippedBlocks(Patch):
    """Blocks hand on what they were given, text and picture."""

    def default(self, sites: Sequence[Site]) -> Sequence[Site]:
        return _usual(sites)

    def changes(self, root: nn.Module, scene: Scene) -> list[Change]:
        return [(block, skipping(joint_block(block))) for _, block in self.chosen(blocks(root), root)]


def skipping(joint: bool) -> Callable[[Forward], Forward]:
    def change(forward: Forward) -> Forward:
        def passing(*args: Any, **kwargs: Any) -> Any:
            picture, text = _given(args, kwargs)
            return (text, picture) if joint else picture

        return passing

    return change


def _given(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
    """Picture and text tokens of a call."""
    return argument("hidden_states", 0, args, kwargs), argument("encoder_hidden_states", 1, args, kwargs)


@dataclass(frozen=True)
class SkippedAttention(Patch):
    """Self-attentions add nothing to their residual."""

    def default(self, sites: Sequence[Site]) -> Sequence[Site]:
        return _usual(sites)

    def changes(self, root: nn.Module, scene: Scene) -> list[Change]:
        return [(layer, _silent(layer)) for _, layer in self.chosen(attentions(root), root)]


def _silent(layer: Any) -> Callable[[Forward], Forward]:
    def change(forward: Forward) -> Forward:
        def silent(*args: Any, **kwargs: Any) -> Any:
            picture, text = _given(args, kwargs)
            if getattr(layer, "residual_connection", False):
                return picture / layer.rescale_output_factor
            if text is None:
                return torch.zeros_like(picture)
            return torch.zeros_like(picture), torch.zeros_like(text)

        return silent

    return change
