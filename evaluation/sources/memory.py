"""Pictures that are in memory already, or come one by one: arrays, tensors, iterators, datasets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from ...errors import UsageError
from ..arrays import as_pictures
from .decode import RGB
from .items import pictures_of
from .picture import Picture
from .source import IndexedSource, Read


class ArraySource(IndexedSource):
    """Pictures in memory; see `arrays.as_pictures` for shapes and ranges."""

    def __init__(self, pictures: Any, value_range: tuple[float, float] | None = None):
        self.pixels = as_pictures(pictures, value_range).permute(0, 2, 3, 1).cpu().numpy()
        super().__init__(f"{len(self.pixels)} pictures in memory")
        if not len(self.pixels):
            raise UsageError("there are no pictures: the array is empty")

    def __len__(self) -> int:
        return len(self.pixels)

    def key(self, index: int) -> str:
        return str(index)

    def read_one(self, index: int) -> Read:
        return Picture(np.ascontiguousarray(self.pixels[index]), str(index)), []


class DatasetSource(IndexedSource):
    """A dataset of rows by number, such as `datasets.Dataset`: mappings with "image", "caption" or "text", "label"."""

    def __init__(self, rows: Any, value_range: tuple[float, float] | None = None, background: RGB | None = None):
        super().__init__(f"{len(rows)} rows of {type(rows).__name__}")
        self.rows, self.value_range, self.background = rows, value_range, background
        if not len(rows):
            raise UsageError("there are no pictures: the dataset is empty")

    def __len__(self) -> int:
        return len(self.rows)

    def key(self, index: int) -> str:
        return str(index)

    def read_one(self, index: int) -> Read:
        found = list(pictures_of(self.rows[index], index, self.value_range, self.background))
        if len(found) != 1:
            raise UsageError(f"row {index} has {len(found)} pictures; give one picture a row")
        return found[0]


class IteratorSource:
    """Pictures as they come, in the forms of `pictures_of`. What was iterated is gone, unless `items` is a list."""

    def __init__(
        self, items: Iterable[Any], value_range: tuple[float, float] | None = None, background: RGB | None = None
    ):
        self.pictures, self.value_range, self.background = items, value_range, background
        self.name, self.notes = "an iterator", Counter[str]()

    def __iter__(self) -> Iterator[Picture]:
        self.notes = Counter()
        number = 0
        for item in self.pictures:
            for picture, notes in pictures_of(item, number, self.value_range, self.background):
                self.notes.update(notes)
                yield picture
                number += 1
        if not number:
            raise UsageError("there are no pictures: the iterator gave none (one that was read before is empty)")


def is_dataset(source: Any) -> bool:
    """Rows by number with names of columns, but no list: that is iterated."""
    return hasattr(source, "__len__") and hasattr(source, "__getitem__") and not isinstance(source, (list, tuple))
