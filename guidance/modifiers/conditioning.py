"""Edits of a branch's conditioning that draw noise for each row; they compare by value, so equal asks stay equal.

A conditioning is a tensor, or a tree of tensors with a leading size of B or 1. Lists hold one tensor a row. Sizes and
crops ("time_ids"), masks and other whole numbers are left as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...errors import UsageError
from ..identity import row_noise

_NOT_NOISED = ("time_ids", "text_ids", "img_ids")


@dataclass(frozen=True)
class NoisyEdit:
    """The base of such edits. who: one identity a row. purpose: what else the noise depends on."""

    who: tuple[int, ...]
    purpose: tuple[Any, ...]
    called: ClassVar[str] = "this rule"

    def changed(self, y: Tensor, noise: Tensor, name: str) -> Tensor:
        """What becomes of y (B, ...), given unit noise of its shape."""
        raise NotImplementedError

    def labels(self, y: Tensor, name: str) -> Tensor | None:
        """What becomes of whole numbers (B,); None: they stay."""
        return None

    def __call__(self, conditioning: Any) -> Any:
        edited, count = self._walk(conditioning, "y")
        if count == 0:
            raise UsageError(
                f"{self.called}: this conditioning holds no embedding to add noise to (class numbers?); "
                "use a model that is conditioned by embeddings, or icg:classes=..."
            )
        return edited

    def _walk(self, tree: Any, name: str) -> tuple[Any, int]:
        """The edited tree, and how many tensors were changed."""
        if isinstance(tree, Tensor):
            return self._leaf(tree, name)
        if isinstance(tree, Mapping):
            parts = {k: self._walk(v, f"{name}/{k}") if k not in _NOT_NOISED else (v, 0) for k, v in tree.items()}
            return {k: part for k, (part, _) in parts.items()}, sum(count for _, count in parts.values())
        if isinstance(tree, list):  # one tensor a row
            self._check(len(tree))
            rows = [self._alone(b)._leaf(row[None], name)[0][0] for b, row in enumerate(tree)]
            return rows, len(rows)
        if isinstance(tree, tuple):
            several = [self._walk(part, f"{name}/{i}") for i, part in enumerate(tree)]
            return tuple(part for part, _ in several), sum(count for _, count in several)
        return tree, 0

    def _leaf(self, y: Tensor, name: str) -> tuple[Tensor, int]:
        if y.dim() == 0:
            return y, 0
        if not y.is_floating_point():
            made = self.labels(y, name) if y.dtype is not torch.bool and y.dim() == 1 else None
            return (y, 0) if made is None else (made, 1)
        if y.shape[0] == 1 and len(self.who) > 1:
            y = y.expand(len(self.who), *y.shape[1:])
        self._check(y.shape[0])
        return self.changed(y, row_noise(self.who, y, *self.purpose, name), name), 1

    def _alone(self, row: int) -> NoisyEdit:
        from dataclasses import replace

        return replace(self, who=self.who[row : row + 1])

    def _check(self, rows: int) -> None:
        if rows != len(self.who):
            raise UsageError(
                f"{self.called} was given {rows} rows of a batch of {len(self.who)}; it knows its noise by row, "
                "so what calls it must edit the conditioning of all rows before it picks some"
            )


def moments(y: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each row, shaped to broadcast against y."""
    flat, dims = y.flatten(1).float() if y.dtype != torch.float64 else y.flatten(1), [1] * (y.dim() - 1)
    mean, std = flat.mean(1).reshape(-1, *dims), flat.std(1, correction=0).reshape(-1, *dims)
    return mean.to(y.dtype), std.to(y.dtype)
