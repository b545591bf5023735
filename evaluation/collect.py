"""One pass over a source: features, colours, captions and what a judge sees. No picture is kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import UsageError
from .features import ROWS, Extractor
from .judges import Judge
from .metrics.colour import Colour, colour_statistics
from .metrics.duplicates import duplicated_share, representatives
from .metrics.prdc import Radii, radii
from .picture import Picture
from .sources import ImageSource, size_of

Progress = Callable[[str, int, int | None], None]  # (name of the source, pictures done, of how many if known)


@dataclass(frozen=True)
class Judgement:
    """What the captions of N pictures state, and what a judge sees in them: attribute -> N class names."""

    judge: Judge
    stated: list[Mapping[str, Any]]
    seen: dict[str, list[Any]]


@dataclass
class Collected:
    """What is known of a set of pictures. Give it as `real=` to score many runs against one reference.

    features: float32 (N, D), or None when none were asked for.
    """

    name: str
    keys: list[str]
    texts: list[str | None]
    features: Tensor | None
    extractor: Extractor | None
    colour: Colour
    judgement: Judgement | None = None
    unjudged: str = ""  # why there is none
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)  # (height, width)
    notes: Counter[str] = field(default_factory=Counter)
    _radii: dict[int, Radii] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.keys)

    def needed_features(self) -> Tensor:
        """The features, which must have been asked for."""
        if self.features is None:
            raise UsageError(f"{self.name} was collected without features; collect it with features='embedded'")
        return self.features

    def radii(self, k: int, device: torch.device | str = "cpu") -> Radii:
        """Distances to the k-th neighbours, computed once."""
        if k not in self._radii:
            self._radii[k] = radii(self.needed_features().to(device), k)
        return self._radii[k]

    @cached_property
    def duplicates(self) -> float:
        """The share of pictures whose features equal those of an earlier one."""
        return duplicated_share(representatives(self.needed_features()))


def collect(
    source: ImageSource,
    *,
    extractor: Extractor | None,
    judge: Judge | None = None,
    strict: bool = True,
    progress: Progress | None = None,
) -> Collected:
    """Read a source once.

    With a judge, captions must be known and understood. strict: a UsageError names the first that is not; otherwise
    the set stays unjudged, and says why.
    """
    keys: list[str] = []
    texts: list[str | None] = []
    features: list[Tensor] = []
    colours: list[Colour] = []
    sizes: Counter[tuple[int, int]] = Counter()
    judging = _Judging(judge, strict, source.name)
    for batch in _batches(source):
        keys += [picture.key for picture in batch]
        texts += [picture.text for picture in batch]
        pixels = torch.from_numpy(np.stack([picture.pixels for picture in batch])).permute(0, 3, 1, 2).contiguous()
        sizes[pixels.shape[2], pixels.shape[3]] += len(batch)
        judging.take(batch, pixels)
        colours.append(colour_statistics(pixels))
        if extractor:
            features.append(extractor(pixels))
        if progress:
            progress(source.name, len(keys), size_of(source))
    if not keys:
        raise UsageError(f"{source.name} gave no pictures")
    return Collected(
        source.name,
        keys,
        texts,
        torch.cat(features) if extractor else None,
        extractor,
        Colour.joined(colours),
        judging.judgement(),
        judging.failure,
        sizes,
        Counter(source.notes),
    )


class _Judging:
    """What captions state and what the judge sees, batch by batch, until a caption fails."""

    def __init__(self, judge: Judge | None, strict: bool, source: str):
        self.judge, self.strict, self.source = judge, strict, source
        self.failure = "" if judge else "no judge was asked"
        self.stated: list[Mapping[str, Any]] = []
        self.seen: dict[str, list[Any]] = {}

    def take(self, batch: Sequence[Picture], pixels: Tensor) -> None:
        if not self.judge or self.failure:
            return
        try:
            self.stated += [self._stated(self.judge, picture) for picture in batch]
        except UsageError as error:
            if self.strict:
                raise
            self.failure = str(error)
            return
        for name, found in self.judge.predict(pixels).items():
            self.seen.setdefault(name, []).extend(found)

    def judgement(self) -> Judgement | None:
        return Judgement(self.judge, self.stated, self.seen) if self.judge and not self.failure else None

    def _stated(self, judge: Judge, picture: Picture) -> Mapping[str, Any]:
        if picture.text is None:
            fix = "put a captions.csv (file,caption) beside the pictures, or pass captions="
            raise UsageError(f"{self.source}: picture {picture.key} has no caption; {fix}")
        return judge.parse(picture.text)


def _batches(pictures: Iterable[Picture]) -> Iterator[Sequence[Picture]]:
    """At most ROWS pictures in a row that have one size."""
    batch: list[Picture] = []
    for picture in pictures:
        if batch and (len(batch) == ROWS or picture.pixels.shape != batch[0].pixels.shape):
            yield batch
            batch = []
        batch.append(picture)
    if batch:
        yield batch
