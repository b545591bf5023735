"""Pictures in a .npy or .npz of arrays, such as the sample batches of guided-diffusion (`arr_0`, labels in `arr_1`)."""

from __future__ import annotations

import os
import struct
import threading
from pathlib import Path
from typing import Any, BinaryIO, Protocol
from zipfile import ZIP_STORED, ZipInfo

import numpy as np

from ...errors import UsageError
from ..arrays import as_pictures
from .limits import PIXELS, SIDECAR_BYTES
from .names import shown, why
from .npy import Header, read_header
from .picture import Picture
from .source import IndexedSource, Read
from .zip_archive import CheckedZip

PICTURES, LABELS = ("arr_0", "images"), ("arr_1", "labels")
STATISTICS = {  # keys -> what such a file is
    ("mu", "sigma"): "the mean and covariance of features",
    ("feats",): "features",
    ("features",): "features",
}


class Rows(Protocol):
    """An array that gives one row at a time."""

    header: Header

    def row(self, index: int) -> np.ndarray: ...


class ArrayFileSource(IndexedSource):
    """Pictures (N, H, W, 3) or (N, 3, H, W) of a file, uint8, or floats with `value_range`. Keys are their numbers.

    A .npy and an array that numpy.savez packed are memory-mapped; one of numpy.savez_compressed is unpacked row by row.
    Errors: statistics or features instead of pictures, pickled objects, a shape that the file cannot hold.
    """

    def __init__(self, file: Path, value_range: tuple[float, float] | None = None):
        super().__init__(str(file))
        self.value_range = value_range
        with file.open("rb") as opened:
            packed = opened.read(2) == b"PK"
        self.rows: Rows
        self.labels: list[Any] | None = None
        if packed:
            archive = CheckedZip(file)
            self.rows = _rows_of(archive, _named(archive, PICTURES) or _no_pictures(archive))
            self.labels = _labels(archive, self.rows.header.shape[0] if self.rows.header.shape else 0)
        else:
            with file.open("rb") as opened:
                self.rows = MappedRows(file, read_header(opened, shown(file), file.stat().st_size))
        _check(shown(file), self.rows.header, value_range)

    def __len__(self) -> int:
        return self.rows.header.shape[0]

    def key(self, index: int) -> str:
        return str(index)

    def read_one(self, index: int) -> Read:
        row = self.rows.row(index)
        label = None if self.labels is None else self.labels[index]
        if row.dtype != np.uint8 or row.shape[-1] != 3:
            row = as_pictures(row[None], self.value_range)[0].permute(1, 2, 0).numpy()
        return Picture(np.array(row, order="C"), str(index), None, label), []


class MappedRows:
    """Rows of an array that lies in a file as it is. start: where its header begins."""

    def __init__(self, file: Path, header: Header, start: int = 0):
        self.file, self.header, self.start = file, header, start
        self._mapped: np.ndarray | None = None

    def row(self, index: int) -> np.ndarray:
        if self._mapped is None:
            offset, order = self.start + self.header.start, "F" if self.header.fortran else "C"
            self._mapped = np.memmap(self.file, self.header.dtype, "r", offset, self.header.shape, order)  # type: ignore
        row = np.asarray(self._mapped[index])
        return row.astype(row.dtype.newbyteorder("="), copy=False)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_mapped": None}  # a memmap would be sent whole


class UnpackedRows:
    """Rows of an array in a compressed archive, read forwards; going back begins anew."""

    def __init__(self, archive: CheckedZip, info: ZipInfo, header: Header):
        self.archive, self.info, self.header = archive, info, header
        self.named = f"{shown(archive.file)}, array {shown(info.filename)}"
        if header.fortran:
            raise UsageError(f"{self.named}, is compressed and in Fortran order; save it with numpy.savez")
        self._stream: BinaryIO | None = None
        self._next, self._process = 0, 0
        self._lock = threading.Lock()

    def row(self, index: int) -> np.ndarray:
        with self._lock:
            if self._stream is None or index < self._next or self._process != os.getpid():
                self._stream, self._next, self._process = self.archive.open(self.info), 0, os.getpid()
                self._bytes(self.header.start)
            while self._next <= index:
                row = self._bytes(self.header.row_bytes)
                self._next += 1
        array = np.frombuffer(row, self.header.dtype).reshape(self.header.shape[1:])
        return array.astype(array.dtype.newbyteorder("="), copy=False)

    def _bytes(self, size: int) -> bytes:
        try:
            found = self._stream.read(size)  # type: ignore[union-attr]
        except Exception as error:
            raise UsageError(f"{self.named}, cannot be unpacked ({why(error)}); copy or save it again") from None
        if len(found) < size:
            raise UsageError(f"{self.named}, is cut off; copy or save it again")
        return found

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_stream": None, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state | {"_lock": threading.Lock()}


def holds_arrays(file: Path) -> bool:
    """Is a zip one of numpy's, whatever it is called?"""
    known = {f"{key}.npy" for keys in (PICTURES, LABELS, *STATISTICS) for key in keys}
    return not known.isdisjoint(CheckedZip(file).members)


def _rows_of(archive: CheckedZip, info: ZipInfo) -> Rows:
    named = f"{shown(archive.file)}, array {shown(info.filename)}"
    try:
        with archive.open(info) as opened:
            header = read_header(opened, named, info.file_size)
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(f"{named}, cannot be unpacked ({why(error)}); copy or save it again") from None
    if info.compress_type != ZIP_STORED:
        return UnpackedRows(archive, info, header)
    with archive.file.open("rb") as opened:
        opened.seek(info.header_offset + 26)  # of the local header, whose name and extra field have their own lengths
        name, extra = struct.unpack("<HH", opened.read(4))
    start = info.header_offset + 30 + name + extra
    if start + header.start + header.bytes > archive.file.stat().st_size:
        raise UsageError(f"{named}, is cut off; copy or save it again")
    return MappedRows(archive.file, header, start)


def _named(archive: CheckedZip, keys: tuple[str, ...]) -> ZipInfo | None:
    return next((archive.members[f"{key}.npy"] for key in keys if f"{key}.npy" in archive.members), None)


def _labels(archive: CheckedZip, count: int) -> list[Any] | None:
    """Class numbers or names, one a picture; what has another form is none."""
    if (info := _named(archive, LABELS)) is None:
        return None
    rows = _rows_of(archive, info)
    header = rows.header
    if len(header.shape) != 1 or header.dtype.kind not in "iuU":
        return None
    if header.shape[0] != count or header.bytes > SIDECAR_BYTES:
        raise UsageError(f"{shown(archive.file)} has {count} pictures but {header.shape[0]} labels; give one a picture")
    return [rows.row(index).item() for index in range(count)]


def _check(named: str, header: Header, value_range: tuple[float, float] | None) -> None:
    shape, kind = header.shape, header.dtype
    if len(shape) != 4 or 3 not in (shape[1], shape[3]):
        what = f"{named} holds {header}"
        if len(shape) in (1, 2) and kind.kind == "f":
            what += ", which are features or statistics"
        raise UsageError(f"{what}, no pictures; pictures are uint8 (N, H, W, 3)")
    if not header.bytes:
        raise UsageError(f"{named} has no pictures: its shape is {shape}; save some")
    if shape[1] * shape[2] * shape[3] > 3 * PIXELS:
        raise UsageError(f"{named} has pictures of more than {PIXELS} pixels; scale them down")
    if kind != np.uint8 and kind.kind != "f":
        raise UsageError(f"{named} holds {kind}; pictures are uint8, or floats with value_range=(0, 1) or (-1, 1)")
    if kind.kind == "f" and value_range is None:
        raise UsageError(f"{named} holds floats; pass value_range=(0, 1) or value_range=(-1, 1)")


def _no_pictures(archive: CheckedZip) -> Any:
    """Says what the file is instead."""
    keys = {name.removesuffix(".npy") for name in archive.members}
    for known, what in STATISTICS.items():
        if keys.issuperset(known):
            raise UsageError(
                f"{shown(archive.file)} holds {what} ({', '.join(known)}), no pictures; "
                "give the pictures they were made from"
            )
    raise UsageError(
        f"{shown(archive.file)} holds {shown(', '.join(sorted(keys)) or 'nothing')}, no pictures; "
        f"call the array {' or '.join(PICTURES)}"
    )
