"""Pictures that a pipeline hands around as tokens."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from torch import Tensor


@dataclass(frozen=True)
class Packing:
    """Tokens (B, height width, C patch^2) that stand for pictures (B, C, height patch, width patch): a token holds a
    square of pixels, channels outermost, as Flux packs them."""

    height: int
    width: int
    patch: int = 2

    def unpacked(self, tokens: Tensor) -> Tensor:
        """The pictures."""
        p = self.patch
        grid = tokens.reshape(len(tokens), self.height, self.width, -1, p, p)
        return grid.permute(0, 3, 1, 4, 2, 5).reshape(len(tokens), -1, self.height * p, self.width * p)

    def packed(self, pictures: Tensor) -> Tensor:
        """The tokens."""
        p = self.patch
        grid = pictures.reshape(len(pictures), -1, self.height, p, self.width, p)
        return grid.permute(0, 2, 4, 1, 3, 5).reshape(len(pictures), self.height * self.width, -1)


@lru_cache(maxsize=2)
def packing_of_ids(ids: Tensor, tokens: int) -> Packing | None:
    """From the positions (n, 3) of tokens, those of x first, rows in [:, 1] and columns in [:, 2]; read from the device
    once a run, for every step brings the same tensor. None where they are no whole grid."""
    places = (ids if ids.dim() == 2 else ids[0])[:tokens]
    if places.shape[-1] != 3:
        return None
    height, width = (int(side) + 1 for side in places[:, 1:].amax(0).tolist())
    return Packing(height, width) if tokens == height * width else None
