"""Pictures in a zip, read where they lie: nothing is unpacked to the disk. Also how any zip is opened and checked."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile, ZipInfo

from ...errors import UsageError
from .decode import RGB, read_picture
from .limits import MEMBER_BYTES, RATIO, SIDECAR_BYTES, SMALL_BYTES, TOTAL_BYTES
from .listing import MISSING, Listing
from .names import NESTED, check_member, is_archive, member, shown, why
from .picture import Picture
from .source import IndexedSource, Read

ENCRYPTED = 0x1


class CheckedZip:
    """A zip whose members have harmless names, sizes and kinds. It is opened once in each process.

    Errors: no zip, cut off, encrypted, other packing than stored or deflate, links, names that lead outside or that
    two members share, members that unpack to far more than they are.
    """

    def __init__(self, file: Path, largest: int = MEMBER_BYTES):
        self.file, self.largest = file, largest
        self._opened: tuple[int, ZipFile] | None = None
        self.members: dict[str, ZipInfo] = {}
        infos = self._archive().infolist()
        for info in infos:
            self._check(info)
            if info.filename in self.members:
                raise UsageError(f"{member(file, info.filename)}, is there twice; pack the pictures again")
            if not info.is_dir():
                self.members[info.filename] = info
        self._check_whole(infos)

    def read(self, name: str, most: int | None = None) -> bytes:
        """A member as bytes. Threads may call this at once: zipfile locks what they share."""
        info = self.members[name]
        if info.file_size > (most or self.largest):
            raise UsageError(f"{member(self.file, name)}, unpacks to {info.file_size} bytes, too many; remove it")
        try:
            with self.open(info) as opened:
                content = opened.read(info.file_size)
                if len(content) != info.file_size or opened.read(1):
                    raise ValueError("its size is not what it says")
                return content
        except Exception as error:
            raise _unreadable(member(self.file, name), error) from None

    def open(self, info: ZipInfo) -> Any:
        """A member as a stream of bytes; may raise nearly anything if the zip is damaged."""
        return self._archive().open(info)

    def _archive(self) -> ZipFile:
        if self._opened is None or self._opened[0] != os.getpid():  # forks share a place in the file
            try:
                self._opened = (os.getpid(), ZipFile(self.file))
            except Exception as error:
                raise _unreadable(shown(self.file), error) from None
        return self._opened[1]

    def _check(self, info: ZipInfo) -> None:
        check_member(self.file, info.filename)
        named = member(self.file, info.filename)
        kind = stat.S_IFMT(info.external_attr >> 16)
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise UsageError(f"{named}, is a link or a device; pack the picture itself")
        if info.flag_bits & ENCRYPTED:
            raise UsageError(f"{named}, is encrypted; pack it without a password")
        if info.compress_type not in (ZIP_STORED, ZIP_DEFLATED):
            raise UsageError(f"{named}, is packed by method {info.compress_type}; pack it stored or with deflate")
        if info.file_size > max(SMALL_BYTES, RATIO * info.compress_size):
            raise UsageError(f"{named}, unpacks {info.compress_size} bytes to {info.file_size}: a bomb; remove it")

    def _check_whole(self, infos: list[ZipInfo]) -> None:
        """Members that share bytes of the archive can unpack to anything."""
        packed, unpacked = sum(i.compress_size for i in infos), sum(i.file_size for i in infos)
        size = self.file.stat().st_size
        if packed > size or unpacked > max(TOTAL_BYTES, RATIO * size):
            raise UsageError(f"{shown(self.file)} of {size} bytes unpacks to {unpacked}: a bomb; pack it again")

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_opened": None}


class ZipSource(IndexedSource):
    """All pictures of a zip, sorted by name; of packed run folders of ours, those in their manifests only.

    Captions and labels as in a folder: `captions.csv`, `prompts.txt` and `dataset.json` at the top, or in the one
    folder that holds everything. Archives inside are left out, with a note. Errors name the member.
    """

    def __init__(self, file: Path, background: RGB | None = None, workers: int = 1):
        super().__init__(str(file))
        self.background, self.workers = background, workers
        self.archive = CheckedZip(file)
        names = sorted(self.archive.members)
        listing = Listing(
            shown(file), names, lambda name: self.archive.read(name, SIDECAR_BYTES), lambda name: member(file, name)
        )
        self.keys, missing = listing.pictures()
        self.captions, self.labels = listing.captions(self.keys), listing.labels(self.keys)
        if missing:
            self.opening_notes[MISSING] = missing
        if nested := sum(map(is_archive, names)):
            self.opening_notes[NESTED] = nested

    def __len__(self) -> int:
        return len(self.keys)

    def key(self, index: int) -> str:
        return self.keys[index]

    def read_one(self, index: int) -> Read:
        key = self.keys[index]
        named = member(self.archive.file, key)
        pixels, text, notes = read_picture(self.archive.read(key), named, self.background)
        return Picture(pixels, key, self.captions.get(key, text), self.labels.get(key)), notes


def _unreadable(named: str, error: Exception) -> UsageError:
    if isinstance(error, UsageError):
        return error
    return UsageError(f"{named} cannot be unpacked ({why(error)}); it is cut off or damaged, copy it again")
