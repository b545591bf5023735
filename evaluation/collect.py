"""One pass over a source: features, colours, captions and what a judge sees. No picture is kept."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import UsageError
from .features import ROWS, Extractor, FullCalls
from .joining import joined
from .judges import Judge
from .judging import Judgement, Judging
from .metrics.colour import Colour, colour_statistics
from .metrics.prdc import Radii
from .processes import Processes
from .sources import ImageSource, Picture, items, size_of
from .space import Space, identity_of
from .store import FeatureStore

Progress = Callable[[str, int, int | None], None]  # (name of the source, pictures done, of how many if known)


@dataclass
class Collected:
    """What is known of a set of pictures. Give it as `real=` to score many runs against one reference.

    spaces: the set as each extractor sees it, by the extractor's name, the first one being the default.
    source: where the pictures can be seen again, if they can.
    """

    name: str
    keys: list[str]
    texts: list[str | None]
    labels: list[str | int | None]
    spaces: dict[str, Space]
    colour: Colour
    judgement: Judgement | None = None
    unjudged: str = ""  # why there is none
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)  # (height, width)
    notes: Counter[str] = field(default_factory=Counter)
    count: int = 0  # pictures, known also where their names are not
    source: ImageSource | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.keys) or self.count

    def space(self, name: str = "") -> Space:
        """As the extractor of that name sees it; the first one without a name. Errors: nobody looked."""
        if not self.spaces:
            raise UsageError(
                f"{self.name} was collected without features; ask for a metric that needs them, "
                "or collect it with features='embedded'"
            )
        if name and name not in self.spaces:
            seen = ", ".join(self.spaces)
            fix = f"score with features {next(iter(self.spaces))}, or collect it with {name}"
            raise UsageError(f"{self.name} was collected with features {seen}, not {name}; {fix}")
        return self.spaces[name or next(iter(self.spaces))]

    def radii(self, k: int, device: torch.device | str = "cpu") -> Radii:
        """Distances to the k-th neighbours in the first space, computed once."""
        return self.space().radii(k, device)


def collect(
    source: ImageSource,
    *,
    extractors: Sequence[Extractor] = (),
    judge: Judge | None = None,
    strict: bool = True,
    progress: Progress | None = None,
    processes: Processes | None = None,
) -> Collected:
    """Read a source once; every picture passes every network once.

    With a judge, captions must be known and understood. strict: a UsageError names the first that is not; otherwise
    the set stays unjudged, and says why. processes: each reads its part, and the first of them gets the whole; the
    others get its `count`, sizes, notes and the identities of its spaces, without rows.
    """
    processes = processes or Processes()

    def read() -> dict[str, Any]:
        part = _Part(source, extractors, Judging(judge, strict, source.name))
        for first, batch in _batches(_mine(source, processes)):
            part.take(first, batch)
            if progress:
                progress(source.name, min(part.count * processes.world, size_of(source) or 2**62), size_of(source))
        return part.found()

    whole = joined(processes.after_each(read), processes)
    told = processes.by_first(lambda: _outline(whole, source.name))
    return _collected(source, extractors, judge, (whole or _ELSEWHERE | {"colour": Colour.joined([])}) | told)


class _Part:
    """What one process found so far."""

    def __init__(self, source: ImageSource, extractors: Sequence[Extractor], judging: Judging):
        self.source, self.judging = source, judging
        self.calls = [FullCalls(extractor) for extractor in extractors]
        self.positions: list[int] = []
        self.keys: list[str] = []
        self.texts: list[str | None] = []
        self.labels: list[str | int | None] = []
        self.stores: dict[tuple[str, str], FeatureStore] = {}
        self.colours: list[Colour] = []
        self.sizes: Counter[tuple[int, int]] = Counter()

    @property
    def count(self) -> int:
        return len(self.keys)

    def take(self, first: int, batch: Sequence[Picture]) -> None:
        self.positions += range(first, first + len(batch))
        self.keys += [picture.key for picture in batch]
        self.texts += [picture.text for picture in batch]
        self.labels += [picture.label for picture in batch]
        pixels = torch.from_numpy(np.stack([picture.pixels for picture in batch])).permute(0, 3, 1, 2).contiguous()
        self.sizes[pixels.shape[2], pixels.shape[3]] += len(batch)
        self.judging.take(batch, pixels)
        self.colours.append(colour_statistics(pixels))
        for calls in self.calls:
            self._keep(calls.extractor.name, calls.take(pixels))

    def _keep(self, name: str, found: Iterable[Mapping[str, Tensor]]) -> None:
        for outputs in found:
            for output, rows in outputs.items():
                self.stores.setdefault((name, output), FeatureStore()).append(rows)

    def found(self) -> dict[str, Any]:
        """Everything by name; what there is one of for each picture is in the order of `positions`."""
        for calls in self.calls:
            self._keep(calls.extractor.name, calls.rest())
        judgement = self.judging.judgement()
        return {
            "positions": self.positions,
            "keys": self.keys,
            "texts": self.texts,
            "labels": self.labels,
            "rows": {name: store.rows() for name, store in self.stores.items()},
            "colour": Colour.joined(self.colours),
            "stated": judgement.stated if judgement else None,
            "seen": judgement.seen if judgement else None,
            "unjudged": self.judging.failure,
            "sizes": self.sizes,
            "notes": Counter(self.source.notes),
            "opening": Counter(getattr(self.source, "opening_notes", {})),  # in the notes of every process
        }


def _outline(whole: Mapping[str, Any], name: str) -> dict[str, Any]:
    """What the other processes need to know of a set whose pictures are with the first. Errors: there are none."""
    if not whole["keys"]:
        raise UsageError(f"{name} gave no pictures")
    return {"count": len(whole["keys"]), "sizes": whole["sizes"], "notes": whole["notes"]}


_ELSEWHERE: dict[str, Any] = {
    "keys": [], "texts": [], "labels": [], "rows": {}, "stated": None, "seen": {}, "unjudged": "the first process does",
}  # fmt: skip


def _collected(
    source: ImageSource, extractors: Sequence[Extractor], judge: Judge | None, found: Mapping[str, Any]
) -> Collected:
    spaces = {
        e.name: Space(
            e.name,
            identity_of(e),
            {output: rows for (name, output), rows in found["rows"].items() if name == e.name},
            source=source.name,
            side=e.side,
            distance=e.distance,
        )
        for e in extractors
    }
    judged = judge is not None and found["stated"] is not None and not found["unjudged"]
    return Collected(
        source.name,
        found["keys"],
        found["texts"],
        found["labels"],
        spaces,
        found["colour"],
        Judgement(judge, found["stated"], found["seen"]) if judged and judge else None,
        found["unjudged"],
        found["sizes"],
        found["notes"],
        found["count"],
        source=source,
    )


def _mine(source: ImageSource, processes: Processes) -> Iterator[tuple[int, Picture]]:
    """The pictures that this process reads, with their places in the source."""
    if processes.world == 1:
        return enumerate(source)

    def places() -> Iterator[int]:
        return (place for place in itertools.count() if processes.mine(place, ROWS))

    return zip(places(), items(source, places()))


def _batches(pictures: Iterable[tuple[int, Picture]]) -> Iterator[tuple[int, list[Picture]]]:
    """(place of the first, at most ROWS pictures in a row that have one size)."""
    first, batch = 0, list[Picture]()
    for place, picture in pictures:
        full = len(batch) == ROWS or place != first + len(batch)
        if batch and (full or picture.pixels.shape != batch[0].pixels.shape):
            yield first, batch
            batch = []
        first = first if batch else place
        batch.append(picture)
    if batch:
        yield first, batch
