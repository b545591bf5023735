"""TSG, time-step guidance: Sadat et al. 2025, arXiv 2407.02687. Away from the network with a noisy sense of time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import UsageError
from ...samplers.noise import derived_seed
from ..rule import Context
from ..scale import Scale
from .layers import Site
from .patch import Change, Forward, Patch, Scene
from .perturbed import Perturbed

_EMBEDDERS = ("time_embedding", "timestep_embedder")


@dataclass(frozen=True)
class TSG(Perturbed):
    """cond + weight (cond - lost), where the lost network has noise t^power noise n on its time embedding, with n of
    the embedding's own deviation and t = rho / (1 + rho).

    weight: 0 is off; alone it is branch guidance with scale 1 + weight, also for unconditional models. A tuple gives
    one a row. noise: 0 leaves the embedding alone. layers: the embedders, where there are several (DiT has one a
    block); "" is all. seed: of n, which depends on it and the step alone and is shared by all rows. Experimental: the
    paper's noise, power and layers belong to a model and were not seen; its noise is not in units of the deviation.
    """

    weight: Scale = 2.0
    noise: float = 1.0
    power: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.noise >= 0:
            raise UsageError(f"tsg:noise={self.noise} is negative; 0 is off, 1 the embedding's own deviation")

    def patch(self, ctx: Context) -> NoisyTime:
        t = ctx.start.sigma / (ctx.start.alpha + ctx.start.sigma)
        return NoisyTime(self.layers, self.noise * t**self.power, derived_seed(self.seed, "tsg", ctx.step, ctx.stage))


@dataclass(frozen=True)
class NoisyTime(Patch):
    """Noise on the time embedding, in units of its deviation."""

    noise: float = 1.0
    seed: int = 0

    def default(self, sites: Sequence[Site]) -> Sequence[Site]:
        return sites

    def changes(self, root: nn.Module, scene: Scene) -> list[Change]:
        found = [(name, module) for name, module in root.named_modules() if name.rpartition(".")[2] in _EMBEDDERS]
        drawn = torch.Generator().manual_seed(self.seed)
        return [(module, self._noising(drawn)) for _, module in self.chosen(found, root)]

    def _noising(self, drawn: torch.Generator) -> Callable[[Forward], Forward]:
        def change(forward: Forward) -> Forward:
            def noising(*args: Any, **kwargs: Any) -> Tensor:
                embedding = forward(*args, **kwargs)
                fresh = torch.randn(embedding.shape[-1], generator=drawn).to(embedding.device, embedding.dtype)
                return embedding + self.noise * embedding.std(-1, correction=0, keepdim=True) * fresh

            return noising

        return change
