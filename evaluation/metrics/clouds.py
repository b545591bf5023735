"""The different rows of a feature matrix, and the same rows rounded to the types in which products are fast.

A rounded row x' lies within a known distance e of the row x as given, so for any two rows the triangle inequality says

    | |x - y|  -  |x' - y'| |  <=  e_x + e_y

and |x' - y'| comes from one matrix product, whose own error is bounded by (D + 40) u (2 |x'|^2 + 2 |y'|^2)
(Higham 2002, Accuracy and Stability, eq. 3.5; u is the unit of the type that sums).
"""

from __future__ import annotations

import time
from functools import cache, cached_property

import torch
from torch import Tensor

from ...errors import UsageError
from ..arrays import LARGEST_FEATURE_NORM, mean_of_rows
from .duplicates import representatives

BLOCK = 1024
_PIECE = 256  # rows handled at once where a whole block is not needed
_KEPT_BYTES = 2**25  # of rounded blocks that a cloud keeps for the next pass
_WORK = 2**17  # numbers of a row-by-row difference at once: they stay in the cache


class Cloud:
    """The different rows ("points") of a matrix (N, D) of any float dtype; how often each occurs; their centre."""

    def __init__(self, rows: Tensor, centre: Tensor | None = None):
        self.rows = rows
        self.centre = mean_of_rows(rows) if centre is None else centre
        self.groups = _groups(rows)  # int64 (N,): the number of the first row equal to this one
        own = torch.arange(len(rows), device=rows.device)
        self.first: Tensor | None = None  # int64 (points,): row numbers, where some rows are equal
        self.point_of, self.counts = own, torch.ones_like(own)
        if not torch.equal(self.groups, own):
            self.first, self.point_of, self.counts = self.groups.unique(return_inverse=True, return_counts=True)
        self._rounded: dict[torch.dtype, Rounded] = {}

    def __len__(self) -> int:
        """Points."""
        return len(self.counts)

    def centred(self, start: int, size: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Points start .. start + size, less the centre, float32 or float64."""
        stop = start + size
        part = self.rows[start:stop] if self.first is None else self.rows.index_select(0, self.first[start:stop])
        wide = torch.float64 if torch.float64 in (dtype, part.dtype) else torch.float32
        return part.to(wide).sub(self.centre.to(wide)).to(dtype)

    def points(self, numbers: Tensor) -> Tensor:
        """float64 (n, D), as given."""
        rows = numbers if self.first is None else self.first[numbers]
        return self.rows.index_select(0, rows).double()

    def per_point(self, values: Tensor) -> Tensor:
        """Of values (N,) that equal rows share, those of the points."""
        return values if self.first is None else values[self.first]

    def rounded(self, dtype: torch.dtype) -> Rounded:
        """The points rounded to bfloat16, float32 or float64; made once."""
        if dtype not in self._rounded:
            self._rounded[dtype] = Rounded(self, dtype)
        return self._rounded[dtype]

    @cached_property
    def types(self) -> tuple[torch.dtype, ...]:
        """Types for products, the cheapest first."""
        fast = (torch.bfloat16,) if bfloat16_is_fast(self.rows.device.type) else ()
        return (*fast, torch.float32, torch.float64)


class Rounded:
    """Points of a cloud in one type: `norms` squared and `errors` |x - x'|, float64 (points,), and blocks of rows."""

    def __init__(self, cloud: Cloud, dtype: torch.dtype):
        self.cloud, self.dtype = cloud, dtype
        dimension = cloud.rows.shape[1]
        unit = 2.0**-53 if dtype == torch.float64 else 2.0**-24  # bfloat16 products are summed in float32
        self.slack = (dimension + 40) * unit  # of sums
        self.floor = (dimension + 40) * 2.0**-120  # what underflow can hide
        self.split = 3 if dtype == torch.bfloat16 else 1  # parts that hold the digits of a norm
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        # written in place: small results made between large ones would keep the freed large ones from being used again
        self.norms, self.errors = cloud.centre.new_zeros(2, len(cloud))
        for start in range(0, len(cloud), _PIECE):
            rows = cloud.centred(start, _PIECE, wide)
            near = rows.to(dtype).double()
            torch.sum(near.square(), 1, out=self.norms[start : start + _PIECE])
            if dtype == torch.bfloat16:
                torch.sum(near.sub_(rows).square_(), 1, out=self.errors[start : start + _PIECE])
        if float(self.norms.max()) > LARGEST_FEATURE_NORM**2:
            raise UsageError(f"features lie more than {LARGEST_FEATURE_NORM:g} apart; divide them by a constant")
        self.errors.sqrt_().mul_(1 + 1e-9)  # of rounding; then of centring, and of what flushes to 0
        self.errors += 2 * unit * self.norms.sqrt() + dimension**0.5 * 2.0**-126
        self._kept: dict[tuple[int, int], Tensor] = {}

    def __len__(self) -> int:
        return len(self.norms)

    def block(self, start: int, size: int) -> Tensor:
        """(rows, D + 2 split) in this type: points, with room behind for `split` parts of a number and as many ones.

        It may be the one kept for the next time: the room is to be written, the rest is not.
        """
        key = (start, size)
        if key in self._kept:
            return self._kept[key]
        rows = self.cloud.centred(start, size, torch.float64 if self.dtype == torch.float64 else torch.float32)
        made = rows.new_empty(len(rows), rows.shape[1] + 2 * self.split, dtype=self.dtype)
        made[:, : rows.shape[1]] = rows
        kept = sum(b.nbytes for b in self._kept.values())
        if self.dtype == torch.bfloat16 and kept + made.nbytes <= _KEPT_BYTES:
            self._kept[key] = made
        return made

    def parts(self, numbers: Tensor) -> Tensor:
        """(n, split) in this type whose sums over columns are the float64 numbers, to 24 bits or more."""
        rest, parts = numbers, []
        for _ in range(self.split):
            parts.append(rest.to(self.dtype))
            rest = rest - parts[-1].double()
        return torch.stack(parts, 1)


def squared_distances(a: Cloud, b: Cloud, i: Tensor, j: Tensor) -> Tensor:
    """float64 squared distances of the pairs (i, j) of int64 point numbers, from the rows as given."""
    size = max(16, _WORK // a.rows.shape[1])
    found = a.centre.new_zeros(len(i))
    for start in range(0, len(i), size):
        piece = slice(start, start + size)
        torch.sum(a.points(i[piece]).sub_(b.points(j[piece])).square_(), 1, out=found[piece])
    return found


@cache
def bfloat16_is_fast(device: str) -> bool:
    """Whether bfloat16 products are at least 1.5 times as fast as float32 ones here, and are summed in float32.

    A measurement of a few milliseconds. What is computed does not depend on the answer, only how long it takes.
    """
    if device != "cpu":  # elsewhere sums may be split and rounded on the way
        return False
    ones = torch.ones(128, 1024)
    low = ones.bfloat16()
    if not bool((low @ low.T == 1024).all()):
        return False
    return 1.5 * _seconds(low) < _seconds(ones)


def _seconds(matrix: Tensor) -> float:
    best = float("inf")
    for _ in range(5):
        began = time.perf_counter()
        torch.mm(matrix, matrix.T)
        best = min(best, time.perf_counter() - began)
    return best


def _groups(rows: Tensor, columns: int = 32) -> Tensor:
    """As `representatives`, which is asked only about the rows that agree with another in a few columns."""
    own = torch.arange(len(rows), device=rows.device)
    step = -(-rows.shape[1] // columns)
    if step == 1:
        return representatives(rows)
    few = representatives(rows[:, ::step].contiguous())
    shared = torch.bincount(few, minlength=len(rows))[few] > 1
    suspects = own[shared]
    if len(suspects) > len(rows) // 8:  # a copy of so many rows would cost more than it spares
        return representatives(rows)
    if len(suspects):
        own[suspects] = suspects[representatives(rows[suspects])]
    return own
