"""Equal rows of a feature matrix."""

from __future__ import annotations

import torch
from torch import Tensor


def representatives(rows: Tensor) -> Tensor:
    """int64 (N,): for each row of (N, D), the number of the first row that is equal to it (often its own).

    Rows are hashed by their bits (exact integer arithmetic, any order), then compared with their representative.
    """
    _, group = torch.unique(_hashes(rows), return_inverse=True)
    own = torch.arange(len(rows), device=rows.device)
    first = own.new_full((int(group.max()) + 1,), len(rows)).scatter_reduce(0, group, own, "amin")[group]
    same = torch.cat([(rows[f] == rows[o]).all(1) for f, o in zip(first.split(256), own.split(256), strict=True)])
    return torch.where(same, first, own)


def found_among(rows: Tensor, others: Tensor) -> Tensor:
    """bool (N,): is a row of (N, D) equal to some row of (M, D)? By hashes, then compared bit by bit."""
    known, order = _hashes(others.to(rows.device)).sort()
    wanted = _hashes(rows)
    at = torch.searchsorted(known, wanted).clamp(max=len(known) - 1)
    found = known[at] == wanted
    for part in found.nonzero()[:, 0].split(256):
        found[part] = (rows[part] == others[order[at[part]]].to(rows.device)).all(1)
    return found


def _hashes(rows: Tensor) -> Tensor:
    """int64 (N,): one number for each row, equal for equal rows."""
    generator = torch.Generator().manual_seed(0)
    factors = torch.randint(-(2**62), 2**62, (2 * rows.shape[1],), generator=generator).to(rows.device)
    return torch.cat([_bits(part).mul_(factors).sum(1) for part in rows.split(256)])


def _bits(part: Tensor) -> Tensor:
    """int64 (n, 2D): the halves of each float64, with one zero."""
    return (part.double() + 0.0).contiguous().view(torch.int32).long()


def duplicated_share(groups: Tensor) -> float:
    """The share of rows that are copies of an earlier row, from `representatives`."""
    return float((groups != torch.arange(len(groups), device=groups.device)).double().mean())
