"""Reductions over everything but the batch: no sample sees its batch mates.

Sums are accumulated in float64 while the tensors stay float32 (squared norms of latents overflow half precision, and a
cosine within 1e-3 of 1 loses its digits in float32). Devices without float64 accumulate in float32.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Axes = tuple[int, ...]


def _rows(x: Tensor) -> Tensor:
    return x.reshape(x.shape[0], -1)


def _wide(x: Tensor) -> torch.dtype:
    return torch.float32 if x.device.type == "mps" else torch.float64


def dot(a: Tensor, b: Tensor) -> Tensor:
    """<a, b> of each row: (B,)."""
    return _rows(a).to(_wide(a), copy=True).mul_(_rows(b)).sum(dim=1)  # in place: wide tensors are dear


def coarse_dot(a: Tensor, b: Tensor) -> Tensor:
    """<a, b> of each row with the products in the precision of the tensors: (B,). As good as the tensors are, and half
    the time; for projections, not for cosines close to 1."""
    return (_rows(a) * _rows(b)).sum(dim=1, dtype=_wide(a))


def norm(a: Tensor) -> Tensor:
    """||a|| of each row: (B,)."""
    return torch.linalg.vector_norm(_rows(a), dim=1, dtype=_wide(a))


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine of the angle between the rows of a and b: (B,); 1 where either is zero (nothing to tell apart)."""
    length = norm(a) * norm(b)
    return torch.where(length > 0, dot(a, b) / length.clamp(min=torch.finfo(length.dtype).tiny), 1.0)


def along(axes: Axes, reduction: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """A reduction of this module, of tensors of one shape, over these axes alone: each line of them counts as a row.
    Shaped to broadcast against the tensors; no axes are all but the first."""
    first = tensors[0]
    if not axes:
        return reduction(*tensors).reshape(-1, *[1] * (first.dim() - 1))
    kept = [axis for axis in range(first.dim()) if axis not in axes]
    lines = [t.permute(*kept, *axes).flatten(0, len(kept) - 1) for t in tensors]
    return reduction(*lines).reshape([1 if axis in axes else size for axis, size in enumerate(first.shape)])


def safe_ratio(a: Tensor, b: Tensor) -> Tensor:
    """a / b, and 0 where b is 0."""
    return torch.where(b == 0, torch.zeros_like(a), a / torch.where(b == 0, torch.ones_like(b), b))
