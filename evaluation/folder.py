"""Pictures in a folder: which files, in which order, with which captions."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from ..errors import UsageError
from .decode import read_picture
from .picture import Picture

EXTENSIONS = frozenset((".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".npy"))
MANIFEST, CAPTIONS, PROMPTS = "manifest.jsonl", "captions.csv", "prompts.txt"


class FolderSource:
    """All pictures below a folder, sorted by POSIX path; of run folders of ours, those in their manifests only.

    Captions: a `captions.csv` (columns file, caption) in the folder, or a `prompts.txt` (a line a picture, in order);
    else what the PNG itself says under `pilotage`. Errors name the file: not there, no pictures, not readable.
    """

    def __init__(self, folder: Path, background: tuple[int, int, int] | None = None):
        self.folder, self.background = folder, background
        self.name, self.notes = str(folder), Counter[str]()
        if not folder.exists():
            raise UsageError(f"there is no folder {folder}; check the path")
        if not folder.is_dir():
            raise UsageError(f"{folder} is a file, not a folder of pictures; unpack it, or give the folder it lies in")
        self.files, self._missing = _manifested(folder)
        self.files = self.files or _pictures_below(folder)
        if not self.files:
            raise UsageError(f"{folder} holds no pictures; known are {' '.join(sorted(e[1:] for e in EXTENSIONS))}")
        self.keys = [file.relative_to(folder).as_posix() for file in self.files]
        self.captions = _captions_beside(folder, self.keys)

    def __len__(self) -> int:
        return len(self.files)

    def __iter__(self) -> Iterator[Picture]:
        self.notes = Counter({"pictures of the manifest are missing": self._missing} if self._missing else {})
        for file, key in zip(self.files, self.keys, strict=True):
            pixels, text, notes = read_picture(file, self.background)
            self.notes.update(notes)
            yield Picture(pixels, key, self.captions.get(key, text))


def _pictures_below(folder: Path) -> list[Path]:
    found = (p for p in folder.rglob("*") if p.suffix.lower() in EXTENSIONS and not p.name.startswith("."))
    return sorted((p for p in found if p.is_file()), key=lambda p: p.relative_to(folder).as_posix())


def _manifested(folder: Path) -> tuple[list[Path], int]:
    """The finished pictures of the run folders here (previews and sheets are no results), and how many have gone."""
    files: set[Path] = set()
    missing = 0
    for manifest in sorted(folder.rglob(MANIFEST)):
        for number, line in enumerate(_lines(manifest), 1):
            try:
                name = str(json.loads(line)["file"])
            except (ValueError, KeyError, TypeError, RecursionError):
                raise UsageError(f"{manifest}, line {number}, names no file; delete that line") from None
            if PurePosixPath(name).name != name:
                raise UsageError(f"{manifest}, line {number}: {name!r} is not in its folder; delete that line")
            if (manifest.parent / name).is_file():
                files.add(manifest.parent / name)
            else:
                missing += 1
    return sorted(files, key=lambda p: p.relative_to(folder).as_posix()), missing


def _captions_beside(folder: Path, keys: list[str]) -> dict[str, str]:
    if (table := folder / CAPTIONS).is_file():
        return _captions_table(table, set(keys))
    if (prompts := folder / PROMPTS).is_file():
        lines = _lines(prompts)
        if len(lines) != len(keys):
            raise UsageError(f"{prompts} has {len(lines)} lines for {len(keys)} pictures; give one line a picture")
        return dict(zip(keys, lines, strict=True))
    return {}


def _captions_table(table: Path, keys: set[str]) -> dict[str, str]:
    rows = csv.DictReader(_lines(table))
    columns = [c for c in ("caption", "prompt", "text") if c in (rows.fieldnames or ())]
    if "file" not in (rows.fieldnames or ()) or not columns:
        raise UsageError(f"{table} needs the columns file,caption in its first line")
    try:
        captions = {row["file"]: row[columns[0]] for row in rows}
    except csv.Error as error:
        raise UsageError(f"{table}, line {rows.line_num}: {error}; write it as plain CSV") from None
    if not keys & set(captions):
        raise UsageError(f"{table} names none of the pictures, such as {min(keys)!r}; write paths from the folder on")
    return {file: caption for file, caption in captions.items() if caption}


def _lines(file: Path) -> list[str]:
    try:
        return [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{file} cannot be read ({error}); it must be UTF-8 text") from None
