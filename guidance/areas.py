"""Parts of a picture in words: `"hat:top rain:0-1/0.5-1"` confines prompts to them."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache

from torch import Tensor

from ..errors import UsageError
from .prompts import branch_of, text_of
from .rule import Context
from .spatial import as_given, as_pictures


@dataclass(frozen=True)
class Area:
    """Shares of the width and of the height, from the left and from the top."""

    left: float = 0.0
    right: float = 1.0
    top: float = 0.0
    bottom: float = 1.0

    def mask(self, pictures: Tensor) -> Tensor:
        """(H, W) of pictures (B, ..., H, W): how much of each pixel lies inside."""
        down = _covered(pictures.shape[-2], self.top, self.bottom, pictures)
        return down[:, None] * _covered(pictures.shape[-1], self.left, self.right, pictures)

    def box(self, pictures: Tensor) -> tuple[slice, slice]:
        """The rows and columns of pictures (B, ..., H, W) that the area touches."""
        height, width = pictures.shape[-2:]
        rows = slice(math.floor(self.top * height), math.ceil(self.bottom * height))
        return rows, slice(math.floor(self.left * width), math.ceil(self.right * width))


WORDS = {
    "left": Area(right=0.5),
    "right": Area(left=0.5),
    "top": Area(bottom=0.5),
    "bottom": Area(top=0.5),
    "centre": Area(0.25, 0.75, 0.25, 0.75),
}
_BOX = re.compile(r"([0-9.]+)-([0-9.]+)/([0-9.]+)-([0-9.]+)")


@lru_cache(maxsize=64)
def confined(text: str) -> Mapping[str, Area]:
    """The area of each prompt, by branch."""
    found: dict[str, Area] = {}
    for piece in text.split():
        name, colon, where = piece.rpartition(":")
        if not colon or not name or branch_of(name) in found:
            raise UsageError(f"cannot read {piece!r}; write each prompt once, as in 'hat:top rain:0-1/0.5-1'")
        found[branch_of(name)] = _area(where)
    return found


def _area(where: str) -> Area:
    if where in WORDS:
        return WORDS[where]
    box = _BOX.fullmatch(where)
    try:
        left, right, top, bottom = map(float, box.groups()) if box else [math.nan] * 4
    except ValueError:
        left = right = top = bottom = math.nan
    if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
        raise UsageError(f"unknown area {where!r}; use {', '.join(WORDS)}, or shares of width/height such as 0-0.5/0-1")
    return Area(left, right, top, bottom)


def check_areas(text: str, branches: Collection[str], where: str) -> None:
    """Refuse an area of a prompt that is not there. where: the setting that names the prompts."""
    stray = [branch for branch in confined(text) if branch not in branches]
    if stray:
        raise UsageError(f"there is no prompt {text_of(stray[0])!r} to confine; name it in {where}=")


def within(area: Area | None, x: Tensor, ctx: Context) -> Tensor:
    """x (B, ...) where the area is, 0 elsewhere; None is everywhere."""
    if area is None:
        return x
    pictures = as_pictures(x, ctx, "an area")
    return as_given(pictures * area.mask(pictures), ctx)


def _covered(pixels: int, low: float, high: float, like: Tensor) -> Tensor:
    """The share of each of so many pixels in a row that lies between these shares of the row."""
    edges = like.new_tensor(range(pixels + 1)).clamp(low * pixels, high * pixels)
    return edges[1:] - edges[:-1]
