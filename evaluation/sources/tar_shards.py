"""Pictures in tars as webdataset lays them out: shards in order, the files of a picture side by side, in one pass."""

from __future__ import annotations

import glob
import itertools
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ...errors import UsageError
from .decode import RGB, read_picture
from .limits import SHARDS, SIDECAR_BYTES
from .names import NESTED, is_archive, is_picture, member, shown, stem_and_suffix, why
from .picture import Picture
from .pool import in_order
from .source import Read, RereadableSource, looked_up, select
from .tar_reader import read_tar

SIDECARS = frozenset((".cls", ".txt", ".json"))
SUFFIXES = (".tar", ".tar.gz", ".tgz")
FURTHER = "further pictures of a sample left out"
OTHER = "files that are no pictures left out"


@dataclass
class Sample:
    """One picture and what lies beside it. name: of the picture, in its shard."""

    shard: Path
    name: str
    content: bytes
    sidecars: dict[str, _File]
    notes: list[str]


class TarSource(RereadableSource):
    """The pictures of one tar or of many, in the order in which they lie there; how many is known afterwards.

    A sample is a picture and what follows or precedes it under the same name: `.txt` (caption), `.cls` (class), `.json`
    (caption or prompt or text, label or cls or class). `a.mask.png` beside `a.png` belongs to `a` and is left out, with
    a note. Keys are names in the tar, of many tars after the tar's path from their common folder. Each process that
    reads a part still passes over all bytes, and decodes its own pictures only. Errors name the tar and the member.
    """

    def __init__(self, shards: Sequence[Path], name: str, background: RGB | None = None, workers: int = 1):
        super().__init__(name)
        self.shards, self.background, self.workers = list(shards), background, workers
        if missing := next((shard for shard in self.shards if not shard.is_file()), None):
            raise UsageError(f"there is no file {shown(missing)}; check the path and the numbers of the pattern")
        self._top = Path(os.path.commonpath([shard.parent for shard in self.shards]))

    def read(self, indices: Iterable[int]) -> Iterator[Read]:
        return in_order((sample for _, sample in select(self._samples(), indices)), self._decoded, self.workers)

    def numbers(self, keys: Iterable[str]) -> list[int]:
        return looked_up(keys, {self._key(sample): i for i, sample in enumerate(self._samples())}, self.name)

    def _samples(self) -> Iterator[Sample]:
        empty = True
        for shard in self.shards:
            for sample in samples(shard):
                empty = False
                yield sample
        if empty:
            raise UsageError(f"{shown(self.name)} holds no pictures; pack png, jpg, webp or npy files")

    def _key(self, sample: Sample) -> str:
        if len(self.shards) == 1:
            return sample.name
        return f"{sample.shard.relative_to(self._top).as_posix()}/{sample.name}"

    def _decoded(self, sample: Sample) -> Read:
        named = member(sample.shard, sample.name)
        pixels, text, notes = read_picture(sample.content, named, self.background)
        stated, label = _sidecars(sample)
        picture = Picture(pixels, self._key(sample), text if stated is None else stated, label)
        return picture, notes + sample.notes


class _File(NamedTuple):
    """A file of a sample. stem, suffix: its name without and with what tells its kind."""

    name: str
    content: bytes
    stem: str
    suffix: str

    @property
    def is_picture(self) -> bool:
        return self.suffix not in SIDECARS


def samples(shard: Path) -> Iterator[Sample]:
    """The samples of one tar that have a picture. Errors: two pictures of one name."""
    pending: list[_File] = []
    notes: list[str] = []
    sample: Sample | None = None  # waits until it is known what else was left out after it
    for file in read_tar(shard):
        if (note := _useless(file.name)) is not None:
            notes.append(note)
            continue
        found = _File(file.name, file.content, *stem_and_suffix(file.name))
        if pending and not _together(min((f.stem for f in pending), key=len), found.stem):
            complete, notes = _sample(shard, pending, notes)
            pending = []
            if complete and sample:
                yield sample
            sample = complete or sample
        pending.append(found)
    complete, notes = _sample(shard, pending, notes)
    if complete and sample:
        yield sample
    if sample := complete or sample:
        sample.notes += notes
        yield sample


def _useless(name: str) -> str | None:
    """Why a file is passed over."""
    if is_picture(name) or stem_and_suffix(name)[1] in SIDECARS:
        return None
    return NESTED if is_archive(name) else OTHER


def _together(one: str, other: str) -> bool:
    """Names of one sample: the same, or one with more after a dot (`a` and `a.mask`)."""
    return one == other or one.startswith(other + ".") or other.startswith(one + ".")


def _sample(shard: Path, files: list[_File], notes: list[str]) -> tuple[Sample | None, list[str]]:
    """(the sample of files of one name: the picture of the shortest, what was left out and is not yet said)."""
    pictures = [file for file in files if file.is_picture]
    if not pictures:
        return None, notes + [OTHER] * len(files)
    shortest = min((file.stem for file in pictures), key=len)
    first, *others = [file for file in pictures if file.stem == shortest]
    if others:
        named = member(shard, others[0].name)
        raise UsageError(f"{named}, is a second picture of {shown(shortest)}; give each its own name")
    sidecars = {file.suffix: file for file in files if not file.is_picture and file.stem == shortest}
    further, strange = len(pictures) - 1, len(files) - len(pictures) - len(sidecars)
    return Sample(shard, first.name, first.content, sidecars, notes + [FURTHER] * further + [OTHER] * strange), []


def _sidecars(sample: Sample) -> tuple[str | None, str | int | None]:
    """(caption, label) of the files beside a picture."""
    text: str | None = None
    label: str | int | None = None
    for suffix in sorted(sample.sidecars, key=(".json", ".txt", ".cls").index):  # the plainer file has the last word
        file = sample.sidecars[suffix]
        try:
            content = file.content[:SIDECAR_BYTES].decode("utf-8").strip()
            if suffix == ".json":
                text, label = _stated(json.loads(content))
            elif suffix == ".txt":
                text = content
            else:
                label = int(content) if content.isdecimal() else content
        except (ValueError, RecursionError) as error:
            named = member(sample.shard, file.name)
            raise UsageError(f"{named}, is not understood ({why(error)}); mend or remove it") from None
    return text, label


def _stated(found: Any) -> tuple[str | None, str | int | None]:
    if not isinstance(found, dict):
        return None, None
    texts = [found[name] for name in ("caption", "prompt", "text") if isinstance(found.get(name), str)]
    labels = [found[name] for name in ("label", "cls", "class") if type(found.get(name)) in (int, str)]
    return next(iter(texts), None), next(iter(labels), None)


def shards_of(pattern: str) -> list[Path]:
    """Tars of a pattern: `data-{000..012}.tar`, or a glob such as `data-*.tar`, sorted. Errors: none, or too many."""
    expanded = _braces(pattern)
    if expanded == [pattern]:
        expanded = sorted(glob.glob(pattern))  # noqa: PTH207 - a pattern may be absolute
    if not expanded:
        raise UsageError(f"no file is called {shown(pattern)}; check the pattern")
    if other := next((name for name in expanded if not name.lower().endswith(SUFFIXES)), None):
        raise UsageError(f"{shown(pattern)} names {shown(other)}, which is no tar; give a folder of pictures as it is")
    return [Path(name) for name in expanded]


def is_pattern(text: str) -> bool:
    """Has it braces or wildcards?"""
    return _RANGE.search(text) is not None or glob.has_magic(text)


_RANGE = re.compile(r"\{(\d{1,18})\.\.(\d{1,18})\}")


def _braces(pattern: str) -> list[str]:
    """Each {first..last} replaced by its numbers, as wide as the first is written."""
    parts = _RANGE.split(pattern)  # text, first, last, text, ...
    ranges = [range(int(first), int(last) + 1) for first, last in zip(parts[1::3], parts[2::3])]
    count = 1
    for numbers in ranges:
        count *= len(numbers)
    if not 0 < count <= SHARDS:
        raise UsageError(f"{shown(pattern)} stands for {count} files; between 1 and {SHARDS} can be")
    written = [[f"{n:0{len(first)}d}" for n in numbers] for first, numbers in zip(parts[1::3], ranges)]
    texts = parts[::3]
    return ["".join(itertools.chain(*zip(texts, (*chosen, "")))) for chosen in itertools.product(*written)]
