"""Pictures in a folder: which files, in which order, with which captions and labels."""

from __future__ import annotations

import os
from pathlib import Path

from ...errors import UsageError
from .decode import RGB, read_picture
from .limits import SIDECAR_BYTES
from .listing import MISSING, Listing
from .names import NESTED, is_archive, shown
from .picture import Picture
from .source import IndexedSource, Read


class FolderSource(IndexedSource):
    """All pictures below a folder, sorted by POSIX path; of run folders of ours, those in their manifests only.

    Captions: a `captions.csv` (columns file, caption) in the folder, or a `prompts.txt` (a line a picture, in order);
    else what the PNG itself says under `pilotage`. Labels: a `dataset.json`. Errors name the file: not there, no
    pictures, not readable.
    """

    def __init__(self, folder: Path, background: RGB | None = None, workers: int = 1):
        super().__init__(str(folder))
        self.folder, self.background, self.workers = folder, background, workers
        if not folder.exists():
            raise UsageError(f"there is no folder {shown(folder)}; check the path")
        if not folder.is_dir():
            raise UsageError(
                f"{shown(folder)} is a file, not a folder of pictures nor a zip, tar, npz or npy of them; "
                "give the folder it lies in"
            )
        listing = listed(folder)
        self.keys, missing = listing.pictures()
        self.captions, self.labels = listing.captions(self.keys), listing.labels(self.keys)
        if missing:
            self.opening_notes[MISSING] = missing
        if nested := sum(map(is_archive, listing.names)):
            self.opening_notes[NESTED] = nested

    def __len__(self) -> int:
        return len(self.keys)

    def key(self, index: int) -> str:
        return self.keys[index]

    def read_one(self, index: int) -> Read:
        key = self.keys[index]
        file = self.folder / key
        pixels, text, notes = read_picture(file, shown(file), self.background)
        return Picture(pixels, key, self.captions.get(key, text), self.labels.get(key)), notes


def listed(folder: Path) -> Listing:
    """The files below a folder. Links to folders are not followed; what is no file (a pipe, a device) is not there."""
    names: list[str] = []
    waiting = [("", os.fspath(folder))]
    while waiting:
        prefix, path = waiting.pop()
        try:
            with os.scandir(path) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append((f"{prefix}{entry.name}/", entry.path))
                    elif entry.is_file():
                        names.append(prefix + entry.name)
        except OSError as error:
            raise UsageError(f"{shown(path)} cannot be read ({error.strerror}); check its permissions") from None

    def read(name: str) -> bytes:
        with (folder / name).open("rb") as file:
            content = file.read(SIDECAR_BYTES + 1)
        if len(content) > SIDECAR_BYTES:
            raise UsageError(f"{shown(folder / name)} is larger than {SIDECAR_BYTES} bytes; split the folder")
        return content

    return Listing(
        shown(folder), sorted(names), read, lambda name: shown(folder / name), lambda name: (folder / name).is_file()
    )
