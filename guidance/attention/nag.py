"""Normalized attention guidance: Chen et al. 2025, arXiv 2505.21179, eq. 7 to 9."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...errors import UsageError
from ...samplers.prediction import working_precision
from .negative import NegativeAttention, NegativePatch, Text


@dataclass(frozen=True)
class NAG(NegativeAttention):
    """In each attention to the text Z~ = scale Z+ - (scale - 1) Z-, no longer than tau times Z+, token by token; then
    Z = alpha Z~ + (1 - alpha) Z+.

    scale: 1 is off. alpha: 0 is off. tau: the cap, 2.5 for FLUX. norm: "l1" (the paper's) or "l2" (the authors' code).
    """

    scale: float = 5.0
    tau: float = 2.5
    alpha: float = 0.25
    norm: str = "l1"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.norm not in ("l1", "l2"):
            raise UsageError(f"nag:norm={self.norm!r} is unknown; use l1 or l2")
        if not self.tau > 0:
            raise UsageError(f"nag:tau={self.tau} leaves nothing; use a positive cap, inf for none")

    @property
    def off(self) -> bool:
        return self.scale == 1 or self.alpha == 0

    def patch(self, text: Text | None) -> NormalizedAway:
        return NormalizedAway(self.layers, text, self.scale, self.tau, self.alpha, self.norm)


@dataclass(frozen=True)
class NormalizedAway(NegativePatch):
    """Extrapolate, cap the length of each token, and mix."""

    scale: float = 5.0
    tau: float = 2.5
    alpha: float = 0.25
    norm: str = "l1"

    def combined(self, towards: Tensor, away: Tensor) -> Tensor:
        z, negative = working_precision(towards), working_precision(away)
        guided = z + (self.scale - 1) * (z - negative)
        p = 1 if self.norm == "l1" else 2
        cap = self.tau * torch.linalg.vector_norm(z, p, dim=(1, 3), keepdim=True)  # heads are parts of one token
        length = torch.linalg.vector_norm(guided, p, dim=(1, 3), keepdim=True)
        guided = guided * torch.where(length > cap, cap / length, torch.ones_like(cap))
        return torch.lerp(z, guided, self.alpha).to(towards.dtype)
