"""What a source is, and what one that can be read again can do: given numbers, given keys, a part for each process."""

from __future__ import annotations

import itertools
import operator
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, Protocol, TypeVar, runtime_checkable

from ...errors import UsageError
from .names import shown
from .picture import Picture
from .pool import in_order

T = TypeVar("T")
Read = tuple[Picture, list[str]]  # a picture and what was done to it


@runtime_checkable
class ImageSource(Protocol):
    """Anything that yields pictures and knows its name. A source may be one that can be read only once.

    `len` is there where the number of pictures is known before they are read; `size_of` asks.
    """

    name: str

    @property
    def notes(self) -> Counter[str]:
        """Conversions and the like, counted while it is read."""
        ...

    def __iter__(self) -> Iterator[Picture]: ...


class RereadableSource(ABC):
    """A source that gives the same pictures each time. `notes` are those of the last `items` or iteration."""

    def __init__(self, name: str):
        self.name = name
        self.opening_notes = Counter[str]()  # known before a picture is read
        self._notes = Counter[str]()

    @property
    def notes(self) -> Counter[str]:
        return self._notes

    @abstractmethod
    def read(self, indices: Iterable[int]) -> Iterator[Read]:
        """Pictures of ascending numbers with their notes, until the numbers or the pictures end."""

    @abstractmethod
    def numbers(self, keys: Iterable[str]) -> list[int]:
        """Which numbers pictures of these keys have. Errors: no picture is called so."""

    def items(self, indices: Iterable[int]) -> Iterator[Picture]:
        """The pictures of ascending numbers, counted from 0; no other is decoded. Numbers beyond the end end it."""
        notes = self._notes = Counter(self.opening_notes)
        for picture, what in self.read(indices):
            notes.update(what)
            yield picture

    def __iter__(self) -> Iterator[Picture]:
        return self.items(itertools.count())

    def pick(self, keys: Iterable[str]) -> dict[str, Picture]:
        """key -> picture, of these only, in the order of the source; `notes` stay as they are."""
        numbers = sorted(set(self.numbers(keys)))
        return {picture.key: picture for picture, _ in self.read(numbers)}


class IndexedSource(RereadableSource):
    """Pictures that can be had one by one in any order, decoded by `workers` threads."""

    workers = 1

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def key(self, index: int) -> str:
        """What a picture is called."""

    def read_one(self, index: int) -> Read:
        """One picture; called from several threads at once."""
        raise NotImplementedError

    def read(self, indices: Iterable[int]) -> Iterator[Read]:
        return in_order(self.within(indices), self.read_one, self.workers)

    def within(self, indices: Iterable[int]) -> Iterator[int]:
        """The numbers up to the end of the source."""
        return itertools.takewhile(lambda index: index < len(self), ascending(indices))

    def numbers(self, keys: Iterable[str]) -> list[int]:
        known = {self.key(index): index for index in range(len(self))}
        return looked_up(keys, known, self.name)


class Part:
    """Every world-th picture from number `rank` on: what one of several processes reads. See `part`."""

    def __init__(self, source: ImageSource, rank: int, world: int):
        if not 0 <= rank < world:
            raise UsageError(f"rank must be 0 to {world - 1} of {world} processes, got {rank}")
        self.source, self.rank, self.world, self.name = source, rank, world, source.name

    @property
    def notes(self) -> Counter[str]:
        return self.source.notes

    def __length_hint__(self) -> Any:
        count = size_of(self.source)
        return NotImplemented if count is None else len(range(self.rank, count, self.world))

    def __iter__(self) -> Iterator[Picture]:
        return items(self.source, itertools.count(self.rank, self.world))


def part(source: ImageSource, rank: int, world: int) -> ImageSource:
    """The pictures that process `rank` of `world` reads: rank, rank + world, ... Together they read each once.

    Folders, zips and arrays read only these; what can only be streamed is skipped over without decoding.
    """
    return Part(source, rank, world)


def items(source: ImageSource, indices: Iterable[int]) -> Iterator[Picture]:
    """Pictures of ascending numbers from any source; one without `items` is iterated and skipped."""
    own = getattr(source, "items", None)
    return own(indices) if callable(own) else (picture for _, picture in select(source, indices))


def size_of(source: ImageSource) -> int | None:
    """How many pictures a source has, where it knows."""
    count = operator.length_hint(source, -1)
    return None if count < 0 else count


def select(things: Iterable[T], indices: Iterable[int]) -> Iterator[tuple[int, T]]:
    """(number, thing) of ascending numbers; nothing is taken beyond the last of them."""
    wanted = ascending(indices)
    target = next(wanted, None)
    if target is None:
        return
    for number, thing in enumerate(things):
        if number == target:
            yield number, thing
            target = next(wanted, None)
            if target is None:
                return


def ascending(indices: Iterable[int]) -> Iterator[int]:
    """The numbers themselves. Errors: one that is not above the one before."""
    last = -1
    for index in indices:
        if index <= last:
            raise UsageError(f"numbers of pictures must ascend from 0, got {index} after {last}; sort them")
        last = index
        yield index


def looked_up(keys: Iterable[str], known: dict[str, int], name: str) -> list[int]:
    """known[key] for each key. Errors: the first that is not known."""
    found = []
    for key in keys:
        if key not in known:
            raise UsageError(f"{name} has no picture {shown(key)}; keys are those of the pictures it gives")
        found.append(known[key])
    return found
