"""Frequencies of pictures: a lossless Laplacian pyramid and a cosine transform, both over the last two axes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

from ..errors import UsageError
from .rule import Context

_BINOMIAL = (1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16)


def refuse_vectors(x: Tensor, who: str) -> None:
    """Frequencies need rows and columns: (B, ..., H, W); each channel and frame by itself."""
    if x.dim() < 3:
        raise UsageError(f"{who} needs pictures (B, C, H, W), not {tuple(x.shape)}; use cfg or apg")


def as_pictures(x: Tensor, ctx: Context, who: str) -> Tensor:
    """x with rows and columns, (B, ..., H, W), where a pipeline packs it into tokens."""
    if ctx.packing is not None:
        return ctx.packing.unpacked(x)
    refuse_vectors(x, who)
    return x


def as_given(pictures: Tensor, ctx: Context) -> Tensor:
    """Pictures in the shape that x has."""
    return pictures if ctx.packing is None else ctx.packing.packed(pictures)


def pyramid(x: Tensor, levels: int) -> list[Tensor]:
    """Bands of x (B, ..., H, W) from fine to coarse; the last one is the blurred rest. Any size is lossless, for every
    band is what its own upsampling left over. Stops early where a side is too short to blur."""
    bands: list[Tensor] = []
    while len(bands) < levels - 1 and min(x.shape[-2:]) > 2:
        coarse = _resized(_blurred(x), [max(1, side // 2) for side in x.shape[-2:]])
        bands.append(x - _expanded(coarse, x))
        x = coarse
    return [*bands, x]


def from_pyramid(bands: Sequence[Tensor]) -> Tensor:
    """The picture that `pyramid` took apart."""
    x = bands[-1]
    for band in reversed(bands[:-1]):
        x = _expanded(x, band) + band
    return x


def _expanded(x: Tensor, like: Tensor) -> Tensor:
    return _blurred(_resized(x, like.shape[-2:]))


def _planes(x: Tensor) -> Tensor:
    return x.reshape(-1, 1, *x.shape[-2:])


def _resized(x: Tensor, size: Sequence[int]) -> Tensor:
    small = interpolate(_planes(x), size=list(size), mode="bilinear", align_corners=False)
    return small.reshape(*x.shape[:-2], *size)


def _blurred(x: Tensor) -> Tensor:
    """The 5 x 5 binomial filter of Burt & Adelson 1983, edges reflected (repeated where a side is too short)."""
    mode = "reflect" if min(x.shape[-2:]) > 2 else "replicate"
    line = x.new_tensor(_BINOMIAL)
    padded = pad(_planes(x), (2, 2, 2, 2), mode=mode)
    blurred = torch.nn.functional.conv2d(padded, (line[:, None] * line)[None, None])
    return blurred.reshape(x.shape)


@lru_cache(maxsize=64)
def _cosines(side: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The orthonormal DCT-II matrix (side, side); its transpose is the inverse."""
    k, n = torch.arange(side, dtype=torch.float64)[:, None], torch.arange(side, dtype=torch.float64)[None]
    matrix = torch.cos(math.pi * (n + 0.5) * k / side) * math.sqrt(2 / side)
    matrix[0] /= math.sqrt(2)
    return matrix.to(device, dtype)


def high_pass(x: Tensor, cutoff: float, sharpness: float) -> Tensor:
    """Cosine components of x (..., H, W) weighted by sigmoid(sharpness (R - cutoff)), R = sqrt((i/H)^2 + (j/W)^2).

    cutoff = -inf keeps everything.
    """
    if cutoff == -math.inf:
        return x
    height, width = x.shape[-2:]
    rows, columns = _cosines(height, x.dtype, x.device), _cosines(width, x.dtype, x.device)
    i, j = (torch.arange(side, dtype=x.dtype, device=x.device) / side for side in (height, width))
    weight = torch.sigmoid(sharpness * (torch.hypot(i[:, None], j[None]) - cutoff))
    return rows.T @ (rows @ x @ columns.T * weight) @ columns
