"""The values that vision transformers are fed: resized, less a mean, over a deviation."""

from __future__ import annotations

import torch
from torch import Tensor

from .resize import Resize


def standardised(
    pictures: Tensor,
    resize: Resize,
    side: int,
    mean: tuple[float, ...],
    deviation: tuple[float, ...],
    dtype: torch.dtype,
) -> Tensor:
    """uint8 (N, 3, H, W) -> (N, 3, side, side), each channel less its mean, over its deviation."""
    values = resize(pictures, side).div_(255)
    shift, scale = (torch.tensor(of, device=values.device)[:, None, None] for of in (mean, deviation))
    return values.sub_(shift).div_(scale).to(dtype)
