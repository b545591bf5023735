"""Pictures of the embedded world, drawn as they are asked for."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator

from ...errors import UsageError, nearest
from .picture import Picture
from .pool import batched
from .source import IndexedSource, Read, looked_up


class EmbeddedSource(IndexedSource):
    """Pictures 0 .. count of a split of the embedded world, with their captions: real data of any size."""

    DEFAULT = 2000
    ROWS = 256  # drawn at once

    def __init__(self, split: str = "test", count: int = DEFAULT, size: int = 32):
        super().__init__(f"embedded:{split}:{count}")
        self.split, self.count, self.size = split, count, size

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

    def key(self, index: int) -> str:
        return f"{self.split}/{index}"

    def read(self, indices: Iterable[int]) -> Iterator[Read]:
        world = importlib.import_module("pilotage.zoo.world")
        for numbers in batched(self.within(indices), self.ROWS):
            drawn, texts = world.pictures(numbers, self.split, self.size), world.captions(numbers, self.split)
            for index, pixels, text in zip(numbers, drawn, texts, strict=True):
                yield Picture(pixels, self.key(index), text), []

    def numbers(self, keys: Iterable[str]) -> list[int]:
        return looked_up(keys, {self.key(index): index for index in range(self.count)}, self.name)
