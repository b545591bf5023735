"""Token perturbation guidance: Rajabi et al. 2025, arXiv 2506.10036, eq. 9 and 10."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ...samplers.noise import derived_seed
from ..rule import Context
from .layers import Site, blocks, on_path, share
from .patch import Change, Forward, Patch, Scene, argument, with_argument
from .perturbed import Perturbed


@dataclass(frozen=True)
class TPG(Perturbed):
    """cond + weight (cond - shuffled), where the shuffled network permutes the picture tokens that enter chosen blocks.

    weight: 0 is off; alone it is branch guidance with scale 1 + weight. A tuple gives one a row. layers: "" is the last
    three quarters of a UNet's down path (the authors': SDXL's d6-23), and the second quarter of a transformer (ours).
    seed: of the permutations. Each block call has a fresh one, shared by all rows and not undone; they depend on the
    seed and the step alone, so a picture does not depend on its batch.
    """

    seed: int = 0

    def patch(self, ctx: Context) -> ShuffledTokens:
        return ShuffledTokens(self.layers, derived_seed(self.seed, "tpg", ctx.step, ctx.stage))


@dataclass(frozen=True)
class ShuffledTokens(Patch):
    """A permutation of the picture tokens before each chosen block; token norms are kept."""

    seed: int = 0

    def default(self, sites: Sequence[Site]) -> Sequence[Site]:
        down = on_path(sites, "d")
        return share(0.25, 1.0)(down) if down else share(0.25, 0.5)(sites)

    def changes(self, root: nn.Module, scene: Scene) -> list[Change]:
        drawn = torch.Generator().manual_seed(self.seed)
        return [(block, _shuffling(drawn)) for _, block in self.chosen(blocks(root), root)]


def _shuffling(drawn: torch.Generator) -> Callable[[Forward], Forward]:
    def change(forward: Forward) -> Forward:
        def shuffling(*args: Any, **kwargs: Any) -> Any:
            tokens = argument("hidden_states", 0, args, kwargs)
            order = torch.randperm(tokens.shape[1], generator=drawn).to(tokens.device)
            args, kwargs = with_argument("hidden_states", 0, tokens[:, order], args, kwargs)
            return forward(*args, **kwargs)

        return shuffling

    return change
