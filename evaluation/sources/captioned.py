"""Another source with captions of its own."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from ...errors import UsageError
from .picture import Picture
from .source import ImageSource, RereadableSource, items, size_of


class Captioned:
    """Captions by number, instead of those that the source knows. Errors: not as many as pictures."""

    def __init__(self, source: ImageSource, captions: Sequence[str]):
        self.source, self.captions, self.name = source, captions, source.name
        self._check(size_of(source))

    @property
    def notes(self) -> Counter[str]:
        return self.source.notes

    def __length_hint__(self) -> Any:
        count = size_of(self.source)
        return NotImplemented if count is None else count

    def __iter__(self) -> Iterator[Picture]:
        number = 0
        for number, picture in enumerate(self.source, 1):
            yield picture._replace(text=self.captions[min(number, len(self.captions)) - 1])
        self._check(number)

    def items(self, indices: Iterable[int]) -> Iterator[Picture]:
        """Pictures of ascending numbers."""
        numbers, wanted = itertools.tee(indices)
        for number, picture in zip(numbers, items(self.source, wanted)):
            if number >= len(self.captions):
                raise UsageError(f"more than {len(self.captions)} pictures but so many captions; give one a picture")
            yield picture._replace(text=self.captions[number])

    def pick(self, keys: Iterable[str]) -> dict[str, Picture]:
        """key -> picture, where the source can be read again."""
        if not isinstance(self.source, RereadableSource):
            raise UsageError(f"{self.name} cannot be read again; give a folder, an archive or an array")
        numbers = sorted(set(self.source.numbers(keys)))
        picked = zip(numbers, self.source.read(numbers))
        return {p.key: p._replace(text=self.captions[number]) for number, (p, _) in picked}

    def _check(self, count: int | None) -> None:
        if count is not None and count != len(self.captions):
            raise UsageError(f"{count} pictures but {len(self.captions)} captions; give one caption a picture")
