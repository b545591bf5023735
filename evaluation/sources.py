"""Where pictures come from: a folder, arrays, any iterator, or the embedded world. All give the same items.

`open_source` is the door. A source can say how many pictures it has before it reads them, and afterwards what it had to
do to them (`notes`), so that a report can repeat it.
"""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sized
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch

from ..errors import UsageError, nearest
from .arrays import as_pictures, as_tensor
from .folder import FolderSource
from .picture import Picture


@runtime_checkable
class ImageSource(Protocol):
    """Anything that yields pictures and knows its name. A source may be one that can be read only once."""

    name: str
    notes: Counter[str]  # conversions and the like, counted while it is read

    def __iter__(self) -> Iterator[Picture]: ...


def open_source(
    source: Any,
    *,
    value_range: tuple[float, float] | None = None,
    background: tuple[int, int, int] | None = None,
    captions: Iterable[str] | None = None,
) -> ImageSource:
    """A source from what a user gives.

    source: a folder ("./embedded" if it is called so); "embedded:test:2000" (also train, heldout); uint8 pictures
    (N, H, W, 3) or (N, 3, H, W), or floats with `value_range`; an iterable of pictures, batches or PIL images, alone or
    with captions.
    background: what transparent pictures are laid on; without it they are refused. captions: one for each picture, in
    order, instead of those that the source knows. Errors: nothing there, no pictures, not the shape of a picture.
    """
    opened = _open(source, value_range, background)
    return opened if captions is None else _Captioned(opened, list(captions))


def _open(source: Any, value_range: Any, background: Any) -> ImageSource:
    if isinstance(source, str) and source.split(":")[0] == "embedded":
        return EmbeddedSource.parse(source)
    if isinstance(source, (str, Path)):
        return FolderSource(Path(source), background)
    if isinstance(source, (torch.Tensor, np.ndarray)):
        return ArraySource(source, value_range)
    if isinstance(source, ImageSource):
        return source
    if isinstance(source, Iterable) and not isinstance(source, (bytes, dict)):
        return IteratorSource(source, value_range)
    raise UsageError(f"{type(source).__name__} is no source of pictures; give a folder, an array, or an iterable")


class ArraySource:
    """Pictures in memory; see `arrays.as_pictures` for shapes and ranges."""

    def __init__(self, pictures: Any, value_range: tuple[float, float] | None = None):
        self.pixels = as_pictures(pictures, value_range).permute(0, 2, 3, 1).cpu().numpy()
        self.name, self.notes = f"{len(self.pixels)} pictures in memory", Counter[str]()
        if not len(self.pixels):
            raise UsageError("there are no pictures: the array is empty")

    def __len__(self) -> int:
        return len(self.pixels)

    def __iter__(self) -> Iterator[Picture]:
        for i, pixels in enumerate(self.pixels):
            yield Picture(np.ascontiguousarray(pixels), str(i))


class IteratorSource:
    """Pictures as they come: (H, W, 3), (3, H, W), batches of them, PIL images, each alone or with its caption(s)."""

    def __init__(self, items: Iterable[Any], value_range: tuple[float, float] | None = None):
        self.items, self.value_range = items, value_range
        self.name, self.notes = "an iterator", Counter[str]()

    def __iter__(self) -> Iterator[Picture]:
        number = 0
        for item in self.items:
            for picture in self._pictures(item, number):
                yield picture
                number += 1
        if not number:
            raise UsageError("there are no pictures: the iterator gave none (one that was read before is empty)")

    def _pictures(self, item: Any, number: int) -> Iterator[Picture]:
        if isinstance(item, Picture):
            yield item
            return
        texts: Any = None
        if isinstance(item, (tuple, list)) and len(item) == 2:
            item, texts = item
        if hasattr(item, "convert") and item.mode != "RGB":  # PIL
            raise UsageError(f"picture {number} has mode {item.mode}; convert it with .convert('RGB')")
        array = as_tensor(item)
        if array.ndim not in (3, 4):
            raise UsageError(f"picture {number} must be (H, W, 3), (3, H, W) or a batch, got {tuple(array.shape)}")
        batch = as_pictures(array if array.ndim == 4 else array[None], self.value_range).permute(0, 2, 3, 1)
        texts = [texts] * len(batch) if texts is None or isinstance(texts, str) else list(texts)
        if len(texts) != len(batch):
            raise UsageError(f"{len(batch)} pictures but {len(texts)} captions; give one caption a picture")
        for i, (pixels, text) in enumerate(zip(batch.cpu().numpy(), texts, strict=True)):
            yield Picture(np.ascontiguousarray(pixels), str(number + i), text)


class EmbeddedSource:
    """Pictures 0 .. count of a split of the embedded world, with their captions: real data of any size."""

    DEFAULT = 2000

    def __init__(self, split: str = "test", count: int = DEFAULT, size: int = 32):
        self.split, self.count, self.size = split, count, size
        self.name, self.notes = f"embedded:{split}:{count}", Counter[str]()

    @classmethod
    def parse(cls, text: str) -> EmbeddedSource:
        """From "embedded", "embedded:test" or "embedded:test:2000"."""
        _, split, count, *rest = [*text.split(":"), "", ""][: max(3, text.count(":") + 1)]
        splits = importlib.import_module("pilotage.zoo.world").SPLITS
        if split and split not in splits:
            raise UsageError(f"{text!r}: no split {split!r}; {nearest(split, splits)}")
        if rest or (count and not (count.isdecimal() and int(count) > 0)):
            raise UsageError(f"{text!r} is no part of the embedded world; write for example embedded:test:2000")
        return cls(split or "test", int(count or cls.DEFAULT))

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Picture]:
        world = importlib.import_module("pilotage.zoo.world")
        for start in range(0, self.count, 256):
            indices = range(start, min(start + 256, self.count))
            drawn, texts = world.pictures(indices, self.split, self.size), world.captions(indices, self.split)
            for i, pixels, text in zip(indices, drawn, texts, strict=True):
                yield Picture(pixels, f"{self.split}/{i}", text)


class _Captioned:
    """Another source with captions of its own."""

    def __init__(self, source: ImageSource, captions: list[str]):
        self.source, self.captions = source, captions
        self.name, self.notes = source.name, source.notes
        self._check(size_of(source))

    def _check(self, count: int | None) -> None:
        if count is not None and count != len(self.captions):
            raise UsageError(f"{count} pictures but {len(self.captions)} captions; give one caption a picture")

    def __iter__(self) -> Iterator[Picture]:
        number = 0
        for number, picture in enumerate(self.source, 1):
            yield Picture(picture.pixels, picture.key, self.captions[min(number, len(self.captions)) - 1])
        self._check(number)


def size_of(source: ImageSource) -> int | None:
    """How many pictures a source has, where it knows."""
    if isinstance(source, _Captioned):
        return size_of(source.source)
    return len(source) if isinstance(source, Sized) else None
