"""Saturation, contrast and clipping: what guidance at a high scale does to colour.

After Sadat et al. 2024, 2410.02416, section 5. No value is good by itself; nearness to the value of real pictures is.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from torch import Tensor

from ...errors import UsageError
from ..arrays import as_pictures
from .intervals import Difference, unpaired_difference

LUMA = (299, 587, 114)  # thousandths, ITU-R BT.601: of bytes a whole number below 2^24, exact in float32
_PIXELS = 2**16  # at once, so that they stay in the cache of the processor


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
    pixels = as_pictures(pictures).flatten(2)
    at_once = max(1, _PIXELS // max(1, pixels.shape[2]))
    return Colour.joined(_statistics_of(part) for part in pixels.split(at_once))


def _statistics_of(pixels: Tensor) -> Colour:
    """pixels: uint8 (n, 3, pixels). Sums are of whole numbers but for those of the saturation: they are exact."""
    red, green, blue = pixels.unbind(1)
    high, low = red.maximum(green).maximum(blue), red.minimum(green).minimum(blue)
    inside = low.minimum(255 - high).clamp_(max=1)  # 0 where a channel is at an end, else 1
    luma = (LUMA[0] * red.float() + LUMA[1] * green.float() + LUMA[2] * blue.float()).double()
    spread, top = (high - low).double(), high.double()
    deviation = (luma - luma.mean(1, keepdim=True)).square_().mean(1).sqrt()
    totals = spread.sum(1), top.sum(1)
    return Colour(
        _array(spread.div_(top.clamp_(min=1)).mean(1)),
        _array(totals[0] / totals[1].clamp(min=1)),
        _array(deviation / (sum(LUMA) * 255)),
        _array((pixels.shape[2] - inside.double().sum(1)) / pixels.shape[2]),
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
