"""The manifest of a run folder: a line for each finished picture, appended after the picture is safely on the disk.

manifest.jsonl      of the first process, and of all of them once the run has been gathered
manifest-3.jsonl    of process 3, while several work at once: no file has two writers, on any file system

A line holds the picture's size, time of change and SHA-256. A file of that size and time is taken as it is; one that
was copied or touched is read and compared. Nothing else looks at a clock.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..storage import append_line, disk_errors, write_text

MANIFEST = "manifest.jsonl"
_MOST = 1e15  # evaluations or seconds that a picture may say it took


def manifest_of(rank: int) -> str:
    """The file that a process appends to."""
    return MANIFEST if rank == 0 else f"manifest-{rank}.jsonl"


def manifests(folder: Path) -> list[Path]:
    """Those that are there, that of all first."""
    return [*folder.glob(MANIFEST), *sorted(folder.glob("manifest-*.jsonl"))]


def finished_items(folder: Path, count: int) -> dict[int, dict[str, Any]]:
    """Entries by number, below `count`, whose picture is really there, unchanged. What is no line of a manifest, such
    as one that a kill cut off, is passed over; nothing is written."""
    items, place = {}, f"{folder}{os.sep}"
    for item in _lines(folder):
        try:
            index = item["index"]
            if isinstance(index, int) and 0 <= index < count and _told(item) and _unchanged(place, item):
                items[index] = item
        except (KeyError, TypeError, ValueError, AttributeError, OSError):
            continue
    return items


def count_items(folder: Path) -> int:
    """How many pictures the manifests name; their files are not looked at."""
    return len({item["index"] for item in _lines(folder) if type(item.get("index")) is int})


def recent_seconds(folder: Path, most: int = 200) -> float | None:
    """Seconds that one of the last pictures of a manifest took, on average; None without pictures."""
    found = [item["seconds"] for item in _lines(folder) if _is_amount(item.get("seconds"))][-most:]
    return sum(found) / len(found) if found else None


def _lines(folder: Path) -> Iterator[dict[str, Any]]:
    for manifest in manifests(folder):
        for line in manifest.read_text(encoding="utf-8", errors="replace").split("\n"):
            try:
                item = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(item, dict):
                yield item


def _told(item: Mapping[str, Any]) -> bool:
    """Are its cost and time there, as the pages read them?"""
    return _is_amount(item["seconds"]) and all(map(_is_amount, item["evaluations"].values()))


def _is_amount(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value <= _MOST


def _unchanged(place: str, item: Mapping[str, Any]) -> bool:
    """Strings and not Paths: fifty thousand times."""
    name = item["file"]
    if os.path.basename(name) != name or name in (".", ".."):  # noqa: PTH119
        return False
    found = os.stat(place + name)  # noqa: PTH116
    if found.st_size != item["bytes"]:
        return False
    return found.st_mtime_ns == item.get("changed") or hash_of(place + name) == item["sha256"]


def stamp(folder: Path) -> list[tuple[str, int, int]]:
    """Name, size and time of the manifests: the same while nobody adds to them."""
    return [(path.name, (found := path.stat()).st_size, found.st_mtime_ns) for path in manifests(folder)]


def gather(folder: Path, items: Mapping[int, Mapping[str, Any]]) -> None:
    """One manifest of these entries in place of all files. A kill in between loses nothing: the parts go last."""
    found = manifests(folder)
    if len(found) > 1 or (found and not _ends_well(found[0])):
        write_text(folder / MANIFEST, "".join(f"{json.dumps(items[index])}\n" for index in sorted(items)))
        with disk_errors(folder):
            for part in folder.glob("manifest-*.jsonl"):
                part.unlink()


def _ends_well(manifest: Path) -> bool:
    """Is its last line whole? A kill may leave half of one."""
    with manifest.open("rb") as file:
        if not file.seek(0, os.SEEK_END):
            return True
        file.seek(-1, os.SEEK_END)
        return file.read() == b"\n"


def add(folder: Path, rank: int, items: Sequence[Mapping[str, Any]]) -> None:
    """A line each, on the disk when this returns: all of them, or, when the disk is full, none."""
    with disk_errors(folder):
        append_line(folder / manifest_of(rank), "\n".join(map(json.dumps, items)))


def hash_of(path: Path | str) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()
