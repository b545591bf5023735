"""Saturation, contrast and clipping: what guidance at a high scale does to colour.

After Sadat et al. 2024, 2410.02416, section 5. No value is good by itself; nearness to the value of real pictures is.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...errors import UsageError
from ..arrays import as_pictures
from .intervals import Difference, unpaired_difference

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


@dataclass(frozen=True)
class Colour:
    """One number a picture, float64 (N,), of sRGB-coded values in 0..1."""

    saturation: np.ndarray  # mean over pixels of (max - min) / max of the channels: S of HSV, 0 for black
    weighted_saturation: np.ndarray  # the same weighted by max, V of HSV: S of dark pixels is mostly rounding
    contrast: np.ndarray  # standard deviation over pixels of the luma
    clipped: np.ndarray  # share of pixels with a channel at 0 or 255

    def __len__(self) -> int:
        return len(self.saturation)

    def ordered(self, order: Sequence[int]) -> Colour:
        """Of these pictures, in this order."""
        return Colour(*(getattr(self, f.name)[list(order)] for f in fields(self)))

    def stacked(self) -> np.ndarray:
        """float64 (N, statistics), for sending and saving."""
        return np.stack([getattr(self, f.name) for f in fields(self)], 1)

    @classmethod
    def unstacked(cls, table: np.ndarray) -> Colour:
        """The inverse of `stacked`."""
        return cls(*(np.ascontiguousarray(column) for column in table.T))

    @classmethod
    def joined(cls, parts: Iterable[Colour]) -> Colour:
        """Of all the pictures of several."""
        some = list(parts)
        empty = [np.zeros(0)]
        return cls(*(np.concatenate([getattr(p, f.name) for p in some] or empty) for f in fields(cls)))


def colour_statistics(pictures: Any) -> Colour:
    """pictures: uint8 (N, 3, H, W) or (N, H, W, 3)."""
    pixels = as_pictures(pictures).flatten(2)  # uint8 (N, 3, pixels)
    high, low = pixels.amax(1).double(), pixels.amin(1).double()
    weights = pixels.new_tensor(LUMA, dtype=torch.float64)
    luma = torch.einsum("ncp,c->np", pixels.double(), weights) / 255
    spread = high - low
    clipped = ((pixels == 0) | (pixels == 255)).any(1).double()
    return Colour(
        _array((spread / high.clamp(min=1)).mean(1)),
        _array(spread.sum(1) / high.sum(1).clamp(min=1)),
        _array(luma.std(1, correction=0)),
        _array(clipped.mean(1)),
    )


@dataclass(frozen=True)
class ColourDifference:
    """One statistic of generated pictures against real ones."""

    generated: float  # mean over pictures
    real: float
    difference: Difference  # generated less real, Welch interval of 95 %
    wasserstein: float  # between the two distributions over pictures


def compare_colour(*, real: Colour, generated: Colour) -> dict[str, ColourDifference]:
    """Each statistic of `Colour` by its name."""
    if not (len(real) and len(generated)):
        raise UsageError("colour needs at least one real and one generated picture")
    return {
        f.name: ColourDifference(
            generated=float(g.mean()),
            real=float(r.mean()),
            difference=unpaired_difference(g, r),
            wasserstein=wasserstein(real=r, generated=g),
        )
        for f in fields(Colour)
        for r, g in [(getattr(real, f.name), getattr(generated, f.name))]
    }


def wasserstein(*, real: Any, generated: Any) -> float:
    """1-D Wasserstein distance of real (N,) and generated (M,): the area between their distribution functions."""
    x, y = (np.sort(np.asarray(v, np.float64)) for v in (real, generated))
    if not (x.size and y.size):
        raise UsageError("a distance needs values on both sides")
    points = np.sort(np.concatenate([x, y]))
    share_x, share_y = (np.searchsorted(v, points[:-1], side="right") / v.size for v in (x, y))
    return float((np.abs(share_x - share_y) * np.diff(points)).sum())


def _array(values: Tensor) -> np.ndarray:
    return values.cpu().numpy()
