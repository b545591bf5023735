"""What a user hands over, checked: features as a matrix, pictures as bytes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import UsageError

LARGEST_FEATURE_NORM = 1e18  # its square still fits float32 with room for sums


def as_tensor(values: Any) -> Tensor:
    """A tensor that shares memory where it can; a read-only array is copied."""
    if isinstance(values, Tensor):
        return values.detach()
    array = np.asarray(values)
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def as_features(features: Any, name: str, at_least: int = 1) -> Tensor:
    """A float matrix (N, D) from a tensor or an array; nothing is copied when it already is one.

    Errors: not two-dimensional, fewer than `at_least` rows, or not finite.
    """
    matrix = as_tensor(features)
    if matrix.ndim != 2 or matrix.shape[1] == 0:
        raise UsageError(f"{name} must be features of shape (N, D), got {tuple(matrix.shape)}; flatten each row")
    if len(matrix) < at_least:
        raise UsageError(f"{name} has {len(matrix)} rows and at least {at_least} are needed; give more pictures")
    if not matrix.is_floating_point():
        matrix = matrix.double()
    if matrix.device.type == "mps":  # no float64 there
        matrix = matrix.cpu()
    if not all(bool(part.isfinite().all()) for part in matrix.split(256)):
        raise UsageError(f"{name} has features that are not finite; look for nan or inf in the pictures or the network")
    return matrix


def same_width(real: Tensor, generated: Tensor) -> None:
    """Refuse two matrices from different feature spaces."""
    if real.shape[1] != generated.shape[1]:
        raise UsageError(
            f"real has {real.shape[1]} features a row and generated {generated.shape[1]}; use one extractor for both"
        )


def mean_of_rows(matrix: Tensor, block: int = 256) -> Tensor:
    """float64 mean (D,) without a float64 copy of the matrix; relative to the first row, so an offset costs nothing."""
    origin = matrix[0].double()
    total = torch.zeros_like(origin)
    for part in matrix.split(block):
        total += (part.double() - origin).sum(0)
    return origin + total / len(matrix)


def to_uint8(pixels: Tensor, value_range: tuple[float, float] | None) -> Tensor:
    """Pictures as bytes: clamp, then round half to even. Floats need `value_range`, (0, 1) or (-1, 1)."""
    if pixels.dtype == torch.uint8:
        return pixels
    if not pixels.is_floating_point():
        raise UsageError(f"pictures must be uint8 or float, got {pixels.dtype}; convert with .to(torch.uint8)")
    if value_range is None:
        raise UsageError("float pictures need their range; pass value_range=(0, 1) or value_range=(-1, 1)")
    if not bool(pixels.isfinite().all()):
        raise UsageError("pictures have values that are not finite; look for nan in the generator")
    low, high = value_range
    return ((pixels.double() - low) / (high - low)).clamp_(0, 1).mul_(255).round_().to(torch.uint8)


def as_pictures(pictures: Any, value_range: tuple[float, float] | None = None) -> Tensor:
    """uint8 tensor (N, 3, H, W) from pictures (N, 3, H, W) or (N, H, W, 3), bytes or floats (see `to_uint8`)."""
    batch = as_tensor(pictures)
    if batch.ndim != 4 or 3 not in (batch.shape[1], batch.shape[-1]):
        raise UsageError(f"pictures must be (N, 3, H, W) or (N, H, W, 3), got {tuple(batch.shape)}")
    return to_uint8(batch if batch.shape[1] == 3 else batch.permute(0, 3, 1, 2), value_range)


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """No gradients, no autocast, and no TF32 or bfloat16 inside float32 products; restored afterwards."""
    products, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(products)
        torch.backends.cudnn.allow_tf32 = convolutions
