"""Nearest neighbours and balls in a feature space: exact, in blocks, in O(block^2 + N) memory.

A float32 product of centred rows bounds every squared distance from below and above; what the bound leaves open is
computed again in float64 from the rows as given. So the answers are those of a float64 loop, at the price of one
float32 matrix product. The bound: with u = 2^-24, centred rows a and b, and any order of summation,

    |computed - true| <= (D + 32) u (|a|^2 + |b|^2)        (Higham 2002, Accuracy and Stability, eq. 3.5)
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import torch
from torch import Tensor

from ...errors import UsageError
from ..arrays import LARGEST_FEATURE_NORM, mean_of_rows
from .duplicates import representatives

BLOCK = 1024
_SPARE = 4  # neighbours kept beyond the k-th, to decide ties without a second look
_INFINITY = float("inf")


class Cloud:
    """Rows of a feature matrix (N, D) of any float dtype, centred block by block."""

    def __init__(self, rows: Tensor, centre: Tensor | None = None):
        self.rows = rows
        self.centre = mean_of_rows(rows) if centre is None else centre
        dimension = rows.shape[1]
        self.slack = (dimension + 32) * 2.0**-24
        self.floor = dimension * 2.0**-120  # what underflow can hide
        parts = [self.centred(start, 256).double().square_().sum(1) for start in range(0, len(rows), 256)]
        self.norms = torch.cat(parts)  # squared, float64
        if float(self.norms.max()) > LARGEST_FEATURE_NORM**2:
            raise UsageError(f"features lie more than {LARGEST_FEATURE_NORM:g} apart; divide them by a constant")

    def __len__(self) -> int:
        return len(self.rows)

    def centred(self, start: int, size: int = BLOCK) -> Tensor:
        """float32 rows start .. start + size, less the centre."""
        part = self.rows[start : start + size]
        if part.dtype == torch.float64:
            return (part - self.centre).float()
        return part.float() - self.centre.float()

    def margin(self, norms: Tensor) -> Tensor:
        """Each row's share of the error bound, float64; the bound of a pair is the sum of two shares."""
        return self.slack * norms + self.floor

    @cached_property
    def groups(self) -> Tensor:
        """int64 (N,): the number of the first row equal to this one."""
        return representatives(self.rows)


def squared_distances(a: Cloud, b: Cloud, i: Tensor, j: Tensor) -> Tensor:
    """float64 squared distances of the pairs (i, j) of int64 row numbers, from the rows as given."""
    if len(i) > 4096:  # many ties come from many duplicates: do each different pair once
        pairs, inverse = torch.unique(a.groups[i] * len(b) + b.groups[j], return_inverse=True)
        i, j = pairs // len(b), pairs % len(b)
    else:
        inverse = None
    size = max(1, 2**19 // a.rows.shape[1])
    parts = [
        (a.rows[p].double() - b.rows[q]).square_().sum(1) for p, q in zip(i.split(size), j.split(size), strict=True)
    ]
    values = torch.cat(parts) if parts else a.norms.new_zeros(0)
    return values if inverse is None else values[inverse]


def lower_bounds(a: Cloud, b: Cloud, block: int = BLOCK, upper_triangle: bool = False) -> Iterator[tuple]:
    """(first row, first column, float32 block of lower bounds of squared distances).

    The block is overwritten by the next one. `upper_triangle` skips the blocks below the diagonal.
    """
    buffer = torch.empty(block * block, dtype=torch.float32, device=a.rows.device)
    low_a, low_b = ((c.norms - c.margin(c.norms)).float() for c in (a, b))
    for i in range(0, len(a), block):
        left = a.centred(i, block)
        for j in range(i if upper_triangle else 0, len(b), block):
            right = b.centred(j, block)
            out = buffer[: len(left) * len(right)].view(len(left), len(right))
            torch.addmm(low_b[None, j : j + block], left, right.T, alpha=-2, out=out)
            yield i, j, out.add_(low_a[i : i + block, None])


def _smallest(matrix: Tensor, k: int, groups: int = 64) -> tuple[Tensor, Tensor]:
    """The k smallest entries of each row, unsorted, and where they are.

    They lie within the k groups of columns whose minima are smallest, so most of a wide row is never sorted.
    """
    columns = matrix.shape[1]
    if columns % groups or columns < 8 * groups or k > groups // 4:
        return matrix.topk(min(k, columns), dim=1, largest=False, sorted=False)
    minima = matrix.unflatten(1, (-1, groups)).amin(1)
    chosen = minima.contiguous().topk(k, dim=1, largest=False, sorted=False).indices
    candidates = (chosen[:, :, None] + torch.arange(0, columns, groups, device=matrix.device)).flatten(1)
    values, places = matrix.gather(1, candidates).topk(k, dim=1, largest=False, sorted=False)
    return values, candidates.gather(1, places)


class _Nearest:
    """Running lists of the nearest rows by lower bound: values float32 (N, kept), numbers int64 (N, kept)."""

    def __init__(self, count: int, kept: int, device: torch.device):
        self.low = torch.full((count, kept), _INFINITY, device=device)
        self.number = torch.zeros(count, kept, dtype=torch.int64, device=device)

    def merge(self, start: int, block: Tensor, first: int) -> None:
        """Rows start .. of the list have met the rows first .. at the bounds `block`."""
        rows = slice(start, start + len(block))
        kept = self.low.shape[1]
        values, places = _smallest(block, kept)
        both = torch.cat([self.low[rows], values], 1)
        numbers = torch.cat([self.number[rows], places + first], 1)
        self.low[rows], order = both.topk(kept, dim=1, largest=False)
        self.number[rows] = numbers.gather(1, order)


def squared_radii(cloud: Cloud, k: int, block: int = BLOCK) -> Tensor:
    """float64 (N,): squared distance of each row to its k-th nearest *other* row. Needs 1 <= k < N."""
    count = len(cloud)
    nearest = _Nearest(count, min(k + _SPARE, count - 1), cloud.rows.device)
    for i, j, low in lower_bounds(cloud, cloud, block, upper_triangle=True):
        if i == j:
            low.fill_diagonal_(_INFINITY)
        nearest.merge(i, low, j)
        if i != j:
            nearest.merge(j, low.T, i)
    radii = _kth_of_kept(cloud, nearest, k)
    if nearest.low.shape[1] < count - 1:  # a row that was not kept may still be nearer than the k-th
        open_rows = (nearest.low[:, -1].double() < radii).nonzero()[:, 0]
        for rows in open_rows.split(max(1, 2**22 // count)) if len(open_rows) else ():
            radii[rows] = _kth_of_all(cloud, rows, radii[rows], k)
    return radii


def _kth_of_kept(cloud: Cloud, nearest: _Nearest, k: int) -> Tensor:
    """The k-th smallest exact squared distance among the rows kept."""
    low = nearest.low.double()
    high = low + 2 * (cloud.margin(cloud.norms)[:, None] + cloud.margin(cloud.norms[nearest.number]))
    at_least, at_most = low[:, k - 1, None], high.kthvalue(k, dim=1, keepdim=True).values
    surely_nearer = high < at_least
    values = torch.where(surely_nearer, -_INFINITY, _INFINITY)
    undecided = (low <= at_most) & ~surely_nearer
    i, place = undecided.nonzero(as_tuple=True)
    values = values.double().index_put((i, place), squared_distances(cloud, cloud, i, nearest.number[i, place]))
    return values.kthvalue(k, dim=1).values


def _kth_of_all(cloud: Cloud, rows: Tensor, at_most: Tensor, k: int) -> Tensor:
    """The same for a few rows, against every other row; `at_most` are upper bounds of the answers."""
    some = Cloud(cloud.rows[rows], cloud.centre)
    values = cloud.norms.new_full((len(rows), len(cloud)), _INFINITY)
    for first, j, low in lower_bounds(some, cloud):
        part = rows[first : first + len(low)]
        others = torch.arange(j, j + low.shape[1], device=rows.device)
        i, place = ((low.double() <= at_most[first : first + len(low), None]) & (part[:, None] != others)).nonzero(
            as_tuple=True
        )
        values[first + i, j + place] = squared_distances(cloud, cloud, part[i], j + place)
    return values.kthvalue(k, dim=1).values


def pairs_inside(
    a: Cloud, b: Cloud, first: tuple[int, int], low: Tensor, limits: Tensor, closed: bool, wanted: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The pairs of a block of `lower_bounds` whose squared distance is below its limit, as int64 row numbers.

    limits: float64 (rows, 1) or (1, columns). closed: at the limit counts as inside. wanted: bool rows to look at.
    """
    reach = torch.nextafter(limits.float(), limits.new_tensor(_INFINITY, dtype=torch.float32))
    possible = low <= reach
    if wanted is not None:
        possible &= wanted[:, None]
    i, j = possible.nonzero(as_tuple=True)
    limit = limits[i, 0] if limits.shape[1] == 1 else limits[0, j]
    bound = low[i, j].double()
    i, j = i + first[0], j + first[1]
    bound += 2 * (a.margin(a.norms[i]) + b.margin(b.norms[j]))
    inside = bound < limit
    near = (~inside).nonzero()[:, 0]
    distance = squared_distances(a, b, i[near], j[near])
    inside[near] = distance <= limit[near] if closed else distance < limit[near]
    return i[inside], j[inside]
