"""Smoothed energy guidance: Hong 2024, arXiv 2408.00760, eq. 8 and Algorithm 1."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import UsageError
from ...samplers.prediction import working_precision
from ..rule import Context
from .patch import Attend, AttentionPatch, Scene
from .perturbed import Perturbed


@dataclass(frozen=True)
class SEG(Perturbed):
    """cond + weight (cond - smoothed), where the smoothed network blurs the queries of chosen self-attentions.

    weight: 0 is off; alone it is branch guidance with scale 1 + weight. A tuple gives one a row. sigma: of the Gaussian
    over the grid of tokens; 0 leaves the queries alone, above 9999 (inf) every query is their mean. layers: "" is the
    middle block of a UNet and the middle layer of a transformer. In joint attention only picture queries are blurred,
    as they are when they meet the keys (behind norms and rotary positions).
    """

    sigma: float = 100.0

    def __post_init__(self) -> None:
        if not self.sigma >= 0:
            raise UsageError(f"seg:sigma={self.sigma} is negative; use 0 or more, inf for the mean")

    def patch(self, ctx: Context) -> BlurredQueries:
        return BlurredQueries(self.layers, self.sigma)


@dataclass(frozen=True)
class BlurredQueries(AttentionPatch):
    """Gaussian blur of the picture's queries."""

    sigma: float = 100.0

    def attended(self, call: Attend, pictures: slice, name: str, scene: Scene) -> Tensor:
        start, stop, _ = pictures.indices(call.query.shape[2])
        query = call.query[:, :, start:stop]
        if self.sigma == 0:
            return call.run()
        if self.sigma > 9999:
            smooth = working_precision(query).mean(2, keepdim=True).expand_as(query)
        else:
            height, width = scene.grid(name, stop - start)
            grid = working_precision(query).unflatten(2, (height, width))
            down, across = blur(height, self.sigma, grid), blur(width, self.sigma, grid)
            smooth = torch.einsum("ih,bnhjd->bnijd", down, torch.einsum("jw,bnhwd->bnhjd", across, grid)).flatten(2, 3)
        smooth = smooth.to(query.dtype)
        return call.run(query=torch.cat([call.query[:, :, :start], smooth, call.query[:, :, stop:]], 2))


def blur(size: int, sigma: float, like: Tensor) -> Tensor:
    """The matrix (size, size) of a Gaussian blur with reflected edges; its kernel is at most as wide as the line."""
    return blur_with(min(odd(math.ceil(6 * sigma)), size + 1 - size % 2), size, sigma, like)


def odd(width: int) -> int:
    return width + 1 - width % 2


def blur_with(width: int, size: int, sigma: float, like: Tensor) -> Tensor:
    """The same with a kernel of `width` taps."""
    lines = torch.eye(size, device=like.device, dtype=like.dtype)[:, None]
    if width == 1 or size == 1:
        return lines[:, 0]
    offsets = torch.arange(width, device=like.device, dtype=like.dtype) - (width - 1) / 2
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    return F.conv1d(F.pad(lines, (width // 2, width // 2), mode="reflect"), (kernel / kernel.sum())[None, None])[:, 0].T
