"""The header of a .npy array, checked before anything is allocated. Pickled objects are never loaded."""

from __future__ import annotations

import math
from typing import BinaryIO, NamedTuple

import numpy as np

from ...errors import UsageError
from .names import why


class Header(NamedTuple):
    """What a .npy says of itself. start: where its data begin, counted from where reading began."""

    shape: tuple[int, ...]
    dtype: np.dtype
    fortran: bool
    start: int

    @property
    def bytes(self) -> int:
        """Of the data, in Python's integers: nothing overflows."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def row_bytes(self) -> int:
        """Of one row of the first axis."""
        return math.prod(self.shape[1:]) * self.dtype.itemsize

    def __str__(self) -> str:
        return f"{self.dtype} {self.shape}"


def read_header(file: BinaryIO, name: str, size: int) -> Header:
    """The header at the start of `file`, which has `size` bytes.

    Errors: no .npy, pickled objects, or a shape that claims more than the file has.
    """
    try:
        version = np.lib.format.read_magic(file)
        readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        if version not in readers:
            raise ValueError(f"version {version[0]}.{version[1]}")
        shape, fortran, dtype = readers[version](file)
    except Exception as error:  # the header is a Python literal, and hostile ones raise nearly anything
        raise UsageError(f"{name} cannot be read as an array ({why(error)}); save it again with numpy.save") from None
    if dtype.hasobject:
        raise UsageError(f"{name} cannot be read: it holds pickled objects, which are never loaded; save plain uint8")
    header = Header(shape, dtype, fortran, file.tell())
    if min(shape, default=0) < 0 or header.start + header.bytes > size:
        raise UsageError(f"{name} is cut off: {header} does not fit into its {size} bytes; copy or save it again")
    return header
