"""The files of a tar in one pass, plain or gzipped. Every header is checked before it is believed.

`tarfile` itself ends quietly at a damaged header and can be sent round in circles by a negative size, so only its
reading of one header is used.
"""

from __future__ import annotations

import gzip
import posixpath
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from ...errors import UsageError
from .limits import MEMBER_BYTES, RATIO, SIDECAR_BYTES, TOTAL_BYTES
from .names import check_member, member, shown, why

BLOCK = tarfile.BLOCKSIZE
COMPRESSED = {b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_FILES = (tarfile.REGTYPE, tarfile.AREGTYPE)
_LONG_NAME, _LONG_LINK = tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK
_PAX = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)


class TarFileMember(NamedTuple):
    """A file of a tar and its content."""

    name: str
    content: bytes


def read_tar(file: Path) -> Iterator[TarFileMember]:
    """The files in their order; folders are passed over.

    Errors: cut off or damaged, links and devices, sparse files, names that lead outside or come twice, sizes that are
    not honest.
    """
    try:
        with file.open("rb") as raw:
            start = raw.read(6)
            raw.seek(0)
            for magic, method in COMPRESSED.items():
                if start.startswith(magic):
                    raise UsageError(f"{shown(file)} is packed with {method}; unpack it to a plain .tar")
            if start.startswith(b"\x1f\x8b"):
                most = max(TOTAL_BYTES, RATIO * file.stat().st_size)
                with gzip.open(raw) as unpacked:
                    yield from _members(file, unpacked, most)  # type: ignore[arg-type]
            else:
                yield from _members(file, raw, file.stat().st_size)
    except UsageError:
        raise
    except Exception as error:  # what is damaged raises nearly anything
        raise _damaged(file, why(error)) from None


def _members(file: Path, stream: BinaryIO, most: int) -> Iterator[TarFileMember]:
    reader = _Reader(file, stream, most)
    seen: set[str] = set()
    extended: dict[str, str] = {}
    while (info := reader.header()) is not None:
        if info.type in (_LONG_NAME, _LONG_LINK):
            text = reader.content(info, SIDECAR_BYTES).split(b"\0")[0].decode("utf-8", "replace")
            extended["path" if info.type == _LONG_NAME else "linkpath"] = text
            continue
        if info.type in _PAX:
            records = _pax(reader.content(info, SIDECAR_BYTES))
            extended |= records if info.type != tarfile.XGLTYPE else {}  # global ones name no file
            continue
        _apply(info, extended)
        extended = {}
        check_member(file, info.name)
        if info.type == tarfile.DIRTYPE or info.name.endswith("/"):
            reader.content(info, 0)
            continue
        name = posixpath.normpath(info.name)  # "./a.png" is "a.png"
        if info.type not in _FILES:
            raise UsageError(
                f"{member(file, info.name)}, is a link, a device or a sparse file; pack the picture itself"
            )
        if name in seen:
            raise UsageError(f"{member(file, info.name)}, is there twice; pack the pictures again")
        seen.add(name)
        yield TarFileMember(name, reader.content(info, MEMBER_BYTES))


class _Reader:
    """Blocks of a tar, forwards only, never more than `most` bytes in all."""

    def __init__(self, file: Path, stream: BinaryIO, most: int):
        self.file, self.stream, self.left = file, stream, most

    def header(self) -> tarfile.TarInfo | None:
        """The next header; None at the mark of the end."""
        block = self._exactly(BLOCK)
        if block == bytes(BLOCK):
            return None
        try:
            return tarfile.TarInfo.frombuf(block, "utf-8", "replace")
        except (tarfile.HeaderError, ValueError) as error:
            raise _damaged(self.file, why(error)) from None

    def content(self, info: tarfile.TarInfo, most: int) -> bytes:
        """What belongs to a header."""
        if not 0 <= info.size <= most:
            raise UsageError(f"{member(self.file, info.name)}, has {info.size} bytes, which cannot be; remove it")
        return self._exactly(-(-info.size // BLOCK) * BLOCK)[: info.size]

    def _exactly(self, size: int) -> bytes:
        self.left -= size
        if self.left < 0:
            raise _damaged(self.file, "it claims more than it has")
        found = self.stream.read(size)
        if len(found) < size:
            raise _damaged(self.file, "it ends too early")
        return found


def _apply(info: tarfile.TarInfo, extended: dict[str, str]) -> None:
    """What long headers say goes before what the short one says."""
    info.name = extended.get("path", info.name).rstrip("/") or info.name
    if "size" in extended:
        info.size = int(extended["size"])
    if any(key.startswith("GNU.sparse") for key in extended):
        info.type = tarfile.GNUTYPE_SPARSE


def _pax(content: bytes) -> dict[str, str]:
    """Records "length key=value newline", the length counting itself."""
    found: dict[str, str] = {}
    while content.strip(b"\0"):
        digits, _, _ = content.partition(b" ")
        length = int(digits[:20])
        if not len(digits) + 1 < length <= len(content):
            raise ValueError("a long header is not readable")
        key, equals, value = content[len(digits) + 1 : length - 1].partition(b"=")
        if not equals:
            raise ValueError("a long header is not readable")
        found[key.decode("utf-8", "replace")] = value.decode("utf-8", "replace")
        content = content[length:]
    return found


def _damaged(file: Path, reason: str) -> UsageError:
    return UsageError(f"{shown(file)} cannot be read as a tar ({reason}); it is cut off or damaged, copy it again")
