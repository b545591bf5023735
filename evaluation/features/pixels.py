"""The picture itself at 8x8, as a baseline."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .extractor import Extractor

SIDE = 8


def pixels(device: torch.device | str = "cpu") -> Extractor:
    """192 features: the picture itself at 8x8. A baseline that any other space must beat; slight blur improves it."""
    preprocessing = {"resize": "area", "size": SIDE, "mapping": "x / 127.5 - 1"}
    return Extractor(
        "pixels", _flat, "none", preprocessing, device=torch.device(device), prepare=_thumbnail, dim=3 * SIDE**2
    )


def _thumbnail(pictures: Tensor) -> Tensor:
    return nn.functional.interpolate(pictures.float().div(127.5).sub(1), (SIDE, SIDE), mode="area")


def _flat(thumbnails: Tensor) -> Tensor:
    return thumbnails.flatten(1)
