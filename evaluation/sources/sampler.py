"""A running generator as a source: pictures are made as they are asked for and never written."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from ...errors import UsageError
from .decode import RGB
from .items import pictures_of
from .pool import batched
from .source import IndexedSource, Read

Sampler = Callable[[list[int]], Any]


class SamplerSource(IndexedSource):
    """Pictures of the seeds first .. first + count - 1 of a callable, each called by its seed.

    sampler(seeds) -> as many pictures: uint8 (n, H, W, 3) or (n, 3, H, W), floats with `value_range`, a list of PIL
    images or arrays, an object with such `.images`, or a tuple (pictures, captions). batch: seeds a call. A picture
    must depend on its seed alone; then parts, picks and other batches give the same pictures. captions: one a seed.

    Errors: not as many pictures as seeds, or no pictures at all.
    """

    def __init__(
        self,
        sampler: Sampler,
        count: int,
        batch: int = 16,
        *,
        first: int = 0,
        captions: Sequence[str] | None = None,
        value_range: tuple[float, float] | None = None,
        background: RGB | None = None,
        name: str = "",
    ):
        if count < 1 or batch < 1:
            raise UsageError(f"count and batch must be 1 or more, got {count} and {batch}")
        if captions is not None and len(captions) != count:
            raise UsageError(f"{count} pictures but {len(captions)} captions; give one caption a picture")
        super().__init__(name or f"{count} pictures of {getattr(sampler, '__name__', type(sampler).__name__)}")
        self.sampler, self.count, self.batch, self.first = sampler, count, batch, first
        self.captions, self.value_range, self.background = captions, value_range, background

    def __len__(self) -> int:
        return self.count

    def key(self, index: int) -> str:
        return str(self.first + index)

    def read(self, indices: Iterable[int]) -> Iterator[Read]:
        for numbers in batched(self.within(indices), self.batch):
            for index, (picture, notes) in zip(numbers, self._made(numbers), strict=True):
                text = picture.text if self.captions is None else self.captions[index]
                yield picture._replace(key=self.key(index), text=text), notes

    def _made(self, numbers: list[int]) -> list[Read]:
        seeds = [self.first + index for index in numbers]
        made = self.sampler(seeds)
        made = getattr(made, "images", made)
        pictures: Any = made
        texts = None
        if isinstance(made, tuple) and len(made) == 2:
            pictures, texts = made
        found = list(pictures_of((pictures, texts), seeds[0], self.value_range, self.background))
        if len(found) != len(seeds):
            raise UsageError(f"{self.name}: {len(found)} pictures for {len(seeds)} seeds; return one for each seed")
        return found
