"""What lies beside pictures in a folder or an archive: which of them count, their captions and their labels."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from ...errors import UsageError
from .names import EXTENSIONS, is_picture, shown, why

MANIFEST, CAPTIONS, PROMPTS, LABELS = "manifest.jsonl", "captions.csv", "prompts.txt", "dataset.json"
MANIFESTS = re.compile(r"manifest(-\d+)?\.jsonl")  # of one process, or of several that are still at work
MISSING = "pictures of the manifest are missing"


@dataclass(frozen=True)
class Listing:
    """All files of a place: POSIX names from its top on, sorted.

    read(name): the bytes of a small file. called(name): what errors call a file. appeared(name): is it there by now,
    in a folder that grows?
    """

    place: str
    names: Sequence[str]
    read: Callable[[str], bytes]
    called: Callable[[str], str]
    appeared: Callable[[str], bool] = lambda name: False

    def pictures(self) -> tuple[list[str], int]:
        """The pictures, and how many have gone; of run folders of ours, those in their manifests only.

        Previews and sheets are no results. Errors: there are none.
        """
        manifested, missing = self._manifested()
        found = manifested or [name for name in self.names if is_picture(name)]
        if not found:
            known = " ".join(sorted(extension[1:] for extension in EXTENSIONS))
            raise UsageError(f"{self.place} holds no pictures; known are {known}")
        return found, missing

    def captions(self, keys: Sequence[str]) -> dict[str, str]:
        """Of captions.csv (columns file, caption), or else of prompts.txt (a line a picture, in order)."""
        if (table := self._beside(CAPTIONS)) is not None:
            return self._captions_table(table, set(keys))
        if (prompts := self._beside(PROMPTS)) is not None:
            lines = self._lines(prompts)
            if len(lines) != len(keys):
                raise UsageError(
                    f"{self.called(prompts)} has {len(lines)} lines for {len(keys)} pictures; give one line a picture"
                )
            return dict(zip(keys, lines, strict=True))
        return {}

    def labels(self, keys: Iterable[str]) -> dict[str, int]:
        """Of dataset.json, {"labels": [[file, class], ...]}, as StyleGAN and EDM pack it; {} where there are none.

        A class is a number or a one-hot row.
        """
        if (table := self._beside(LABELS)) is None:
            return {}
        fix = "write it as {'labels': [[file, class], ...]} or delete it"
        try:
            found: Any = json.loads(self._text(table))
            rows = found["labels"] or []
            top, known = _folder_of(table), set(keys)
            labels = {top + str(file): _class(label) for file, label in rows}
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise UsageError(f"{self.called(table)} is not understood ({why(error)}); {fix}") from None
        if labels and not known & labels.keys():
            raise UsageError(f"{self.called(table)} names none of the pictures, such as {min(known)!r}; {fix}")
        return labels

    def _manifested(self) -> tuple[list[str], int]:
        there = set(self.names)
        found: set[str] = set()
        missing = 0
        for manifest in (name for name in self.names if MANIFESTS.fullmatch(PurePosixPath(name).name)):
            for number, line in enumerate(self._whole_lines(manifest), 1):
                file = _folder_of(manifest) + self._named(manifest, number, line)
                if file in there or self.appeared(file):
                    found.add(file)
                else:
                    missing += 1
        return sorted(found), missing

    def _named(self, manifest: str, number: int, line: str) -> str:
        where = f"{self.called(manifest)}, line {number}"
        try:
            name = str(json.loads(line)["file"])
        except (ValueError, KeyError, TypeError, RecursionError):
            raise UsageError(f"{where}, names no file; delete that line") from None
        if PurePosixPath(name).name != name:
            raise UsageError(f"{where}: {shown(name)!r} is not in its folder; delete that line")
        return name

    def _captions_table(self, table: str, keys: set[str]) -> dict[str, str]:
        called = self.called(table)
        rows = csv.DictReader(self._lines(table))
        try:
            columns = [c for c in ("caption", "prompt", "text") if c in (rows.fieldnames or ())]
            if "file" not in (rows.fieldnames or ()) or not columns:
                raise UsageError(f"{called} needs the columns file,caption in its first line")
            captions = {_folder_of(table) + str(row["file"]): row[columns[0]] for row in rows}
        except csv.Error as error:
            raise UsageError(f"{called}, line {rows.line_num}: {why(error)}; write it as plain CSV") from None
        if not keys & set(captions):
            fix = "write paths from the folder on"
            raise UsageError(f"{called} names none of the pictures, such as {min(keys)!r}; {fix}")
        return {file: caption for file, caption in captions.items() if caption}

    def _beside(self, name: str) -> str | None:
        """A file at the top, or in the one folder at the top that holds everything."""
        tops = {file.partition("/")[0] for file in self.names}
        places = [name, f"{min(tops)}/{name}"] if len(tops) == 1 else [name]
        return next((place for place in places if place in self.names), None)

    def _lines(self, name: str) -> list[str]:
        return [line for line in self._text(name).splitlines() if line.strip()]

    def _whole_lines(self, manifest: str) -> list[str]:
        """Without half a line at the end: one that is being written, or that a kill cut off."""
        lines = self._lines(manifest)
        return lines[:-1] if len(lines) > 1 and not _is_json(lines[-1]) else lines

    def _text(self, name: str) -> str:
        try:
            return self.read(name).decode("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{self.called(name)} cannot be read ({why(error)}); it must be UTF-8 text") from None


def _folder_of(name: str) -> str:
    """ "a/b.csv" -> "a/", "b.csv" -> "" """
    return name[: name.rfind("/") + 1]


def _is_json(line: str) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _class(label: Any) -> int:
    if isinstance(label, list) and sorted(label)[-2:] in ([0, 1], [1]) and sum(label) == 1:
        return label.index(1)
    if isinstance(label, bool) or not isinstance(label, int):
        raise ValueError(f"{str(label)[:40]} is no class")
    return label
