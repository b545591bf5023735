"""The k nearest rows of a set for each row of another, with exact distances."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...errors import UsageError
from ..arrays import as_features, full_precision
from .clouds import BLOCK, Cloud
from .neighbours import Pairs, near_lists


class Nearest(NamedTuple):
    """distances: float64 (Q, k), ascending. indices: int64 (Q, k), rows of `among`.

    Of equal distances the row comes first that occurs first; copies of a row follow it.
    """

    distances: Tensor
    indices: Tensor


def nearest(*, queries: Any, among: Any, k: int = 1, exclude_self: bool = False, block: int = BLOCK) -> Nearest:
    """The k nearest rows of among (N, D) for each row of queries (Q, D), exact to float64, in blocks.

    exclude_self: queries and among are the same rows, and none is its own neighbour (an equal row still is one).
    Errors: different widths, fewer than k rows to choose from, exclude_self with different numbers of rows.
    """
    q, rows = as_features(queries, "queries"), as_features(among, "among")
    same_features(queries=q, among=rows)
    if exclude_self and len(q) != len(rows):
        raise UsageError(
            f"exclude_self needs the same rows twice, got {len(q)} and {len(rows)}; pass queries=x, among=x"
        )
    if not 1 <= k <= len(rows) - exclude_self:
        raise UsageError(f"k={k} of {len(rows) - exclude_self} rows to choose from; use a smaller k or more pictures")
    q = q.to(rows.device)
    with full_precision(rows.device):
        b = Cloud(rows)
        return nearest_rows(b if exclude_self else Cloud(q, b.centre), b, k, block)


def same_features(**sets: Tensor) -> None:
    """Refuse matrices (by name) from different feature spaces."""
    (first, a), *others = sets.items()
    for name, b in others:
        if a.shape[1] != b.shape[1]:
            raise UsageError(
                f"{first} has {a.shape[1]} features a row and {name} {b.shape[1]}; use one extractor for both"
            )


def nearest_rows(a: Cloud, b: Cloud, k: int, block: int = BLOCK) -> Nearest:
    """`nearest` of two clouds with one centre; a is b leaves each row itself out."""
    pairs, taken = near_lists(a, b, k, block).exact(all_of_them=True)
    pairs = pairs.where(taken)
    if b.first is None:  # every list has k points, and each of them is one row
        found = Nearest(pairs.low.sqrt().view(-1, k), pairs.j.view(-1, k))
        return found if a.first is None else Nearest(found.distances[a.point_of], found.indices[a.point_of])
    own = torch.arange(len(a.rows), device=a.rows.device)
    parts = [_rows_of_points(a, b, pairs, rows, k) for rows in own.split(max(1, 2**20 // (k * (k + 1))))]
    return Nearest(torch.cat([p.distances for p in parts]), torch.cat([p.indices for p in parts]))


def _rows_of_points(a: Cloud, b: Cloud, pairs: Pairs, rows: Tensor, k: int) -> Nearest:
    """The first k rows that the near points of some rows stand for."""
    by_point = b.point_of.argsort(stable=True)  # members of a point lie one after the other
    members = b.counts.cumsum(0) - b.counts
    point = a.point_of[rows]
    slot, copy = torch.arange(k, device=rows.device), torch.arange(k + 1, device=rows.device)
    entry = torch.searchsorted(pairs.i, point)[:, None] + slot
    there = entry < torch.searchsorted(pairs.i, point, right=True)[:, None]
    entry = entry.clamp_(max=len(pairs.i) - 1)
    near = pairs.j[entry]
    there = there[:, :, None] & (copy < b.counts[near][:, :, None])
    numbers = by_point[(members[near][:, :, None] + copy).clamp_(max=len(by_point) - 1)]
    if a is b:
        there &= numbers != rows[:, None, None]
    order = (~there).flatten(1).to(torch.uint8).argsort(dim=1, stable=True)[:, :k]
    distances = pairs.low[entry].sqrt_()[:, :, None].expand(there.shape).flatten(1)
    return Nearest(distances.gather(1, order), numbers.flatten(1).gather(1, order))
