"""Nearest neighbours and balls in a feature space: exact, in blocks, in O(block^2 + N) memory.

A product of rounded rows bounds every distance from below and above (`clouds`). What the bounds leave open is computed
again in float64 from the rows as given; a block that leaves too much open is bounded again in a finer type. So the
answers are those of a float64 loop, at the price of one product in the cheapest type.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .clouds import BLOCK, Cloud, Rounded, squared_distances

_SAMPLE = 512  # points that give every other point a first bound of its radius
_INFINITY = float("inf")


class Pairs(NamedTuple):
    """Pairs of points with bounds of their squared distance: int64, int64, float64, float64, all (pairs,)."""

    i: Tensor
    j: Tensor
    low: Tensor
    high: Tensor

    def where(self, chosen: Tensor) -> Pairs:
        """Those at the places that a bool (pairs,) or int64 tensor chooses."""
        return Pairs(*(part[chosen] for part in self))


def close_pairs(
    a: Cloud, b: Cloud, place: tuple[int, int], limits: tuple[Tensor, Tensor], expected: float, block: int = BLOCK
) -> Pairs:
    """The pairs of a block that may be as near as the larger of two limits; every other pair is surely farther.

    limits: float64 squared distances, of all points of a and of all of b. place: first points of the block.
    expected: the number of pairs without rounding; several times as many call for the next finer type.
    """
    size = min(block, len(a) - place[0]) * min(block, len(b) - place[1])
    for dtype in a.types:
        most = _INFINITY if dtype == a.types[-1] else 6 * expected + size / 256
        found = _near(a.rounded(dtype), b.rounded(dtype), place, limits, block, most)
        if found is not None:
            break
    assert found is not None  # the finest type has no limit
    return found


def _near(
    a: Rounded,
    b: Rounded,
    place: tuple[int, int],
    limits: tuple[Tensor, Tensor],
    block: int,
    most: float,
) -> Pairs | None:
    """`close_pairs` in one type; None where there are more than `most`.

    With limits r_i, r_j and h = r/2, a pair counts when d^2 - h_i - h_j <= |h_i - h_j|. The left side is what the
    product makes, so that its last rounding is relative to the difference that counts.
    """
    rows, columns = slice(place[0], place[0] + block), slice(place[1], place[1] + block)
    half_a, half_b = _halves(a, rows, limits[0], b.errors[columns]), _halves(b, columns, limits[1], a.errors[rows])
    out = _product(a, b, place, block, (half_a, half_b))  # the left side, times -1/2
    step = 2.0**-7 if a.dtype == torch.bfloat16 else 2.0**-20  # more than the last rounding
    wide = torch.promote_types(out.dtype, torch.float32)
    scale = -(1 + step) / 2
    reach = torch.sub((half_a * scale).to(wide)[:, None], (half_b * scale).to(wide)).abs_().neg_()
    i, j = _true_places(out.to(wide) >= reach)
    if len(i) > most:
        return None
    difference = out[i, j].double().mul_(-2)
    halves = half_a[i] + half_b[j]
    i, j = i + place[0], j + place[1]
    middle, unsure = difference + halves, difference.abs_().mul_(step).add_(a.slack * halves)
    margin = 4 * (a.slack * (a.norms[i] + b.norms[j]) + a.floor) + unsure
    error = a.errors[i] + b.errors[j]
    low = (middle - unsure).clamp_(min=0).sqrt_().sub_(error).clamp_(min=0).square_()
    high = (middle + margin).clamp_(min=0).sqrt_().add_(error).square_()
    return Pairs(i, j, low, high)


def _halves(a: Rounded, rows: slice, limits: Tensor, errors: Tensor) -> Tensor:
    """Half the squared distance of rounded points within which points may be as near as their limit, float64 (rows,).

    It is a float32 number where the type is no finer.
    """
    half = (limits[rows].sqrt() + a.errors[rows] + errors.max()).square_() * ((1 + 4 * a.slack) / 2)
    return half if a.dtype == torch.float64 else half.float().double()


def _product(a: Rounded, b: Rounded, place: tuple[int, int], block: int, halves: tuple[Tensor, Tensor]) -> Tensor:
    """(rows, columns) in the type: -1/2 times a lower bound of |x' - y'|^2 - h_x - h_y."""
    left, right = a.block(place[0], block), b.block(place[1], block)
    if left is right:
        left = left.clone()
    own, other = slice(-2 * a.split, -a.split), slice(-a.split, None)
    for cloud, half, matrix, first in ((a, halves[0], left, place[0]), (b, halves[1], right, place[1])):
        norms = cloud.norms[first : first + len(matrix)]
        matrix[:, own] = cloud.parts((half + cloud.floor - norms * (1 - 2 * cloud.slack)) / 2)
        matrix[:, other] = 1
        own, other = other, own
    return left @ right.T


def inside(a: Cloud, b: Cloud, pairs: Pairs, limits: Tensor, closed: bool) -> Pairs:
    """The pairs whose squared distance is below their limit, float64 (pairs,). closed: at the limit counts as well."""
    surely = pairs.high < limits
    unsure = ((pairs.low <= limits) & ~surely).nonzero()[:, 0]
    distance = squared_distances(a, b, pairs.i[unsure], pairs.j[unsure])
    surely[unsure] = distance <= limits[unsure] if closed else distance < limits[unsure]
    return pairs.where(surely)


def _true_places(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Row and column numbers of what is true, int64; quick where little is."""
    flat = mask.view(-1)
    if flat.numel() % 8:
        places = flat.nonzero()[:, 0]
    else:
        eights = flat.view(torch.int64).nonzero()[:, 0]
        within, offset = flat.view(-1, 8)[eights].nonzero(as_tuple=True)
        places = eights[within] * 8 + offset
    return places // mask.shape[1], places % mask.shape[1]


class Lists:
    """Growing lists of near points, one for each point of a, cut to those of b that may be among its k nearest.

    A point counts as often as it occurs among the rows; in a list of its own (a is b), once less. reach: float64
    (points,), squared; whoever is farther from a point than that is none of its k nearest.
    """

    def __init__(self, a: Cloud, b: Cloud, k: int, block: int = BLOCK):
        self.a, self.b, self.k = a, b, k
        self.reach = _first_reach(a, b, k, block)
        self.parts: list[Pairs] = []
        self.waiting = 0
        if a is b:
            own = (a.counts > 1).nonzero()[:, 0]
            self.add(Pairs(own, own, *a.centre.new_zeros(2, len(own))))

    def add(self, pairs: Pairs) -> None:
        """Take those that are within reach; i is the owner of the list."""
        pairs = pairs.where(pairs.low <= self.reach[pairs.i])
        self.parts.append(pairs)
        self.waiting += len(pairs.i)
        room = 2**16 + (2 * self.k + 8) * len(self.a)
        if self.waiting > room:
            self.settle()
            if self.waiting > 0.75 * room:  # ties, or nearly: no bound will part them
                pairs, taken = self.exact(all_of_them=True)
                self.parts, self.waiting = [pairs.where(taken)], int(taken.sum())

    def settle(self) -> Pairs:
        """Shorten every reach to the k-th smallest upper bound and drop what is beyond; what is left."""
        pairs = Pairs(*(torch.cat(parts) for parts in zip(*self.parts, strict=True)))
        kth = self._kth(pairs, pairs.high)
        self.reach = torch.minimum(self.reach, kth)
        pairs = pairs.where(pairs.low <= self.reach[pairs.i])
        self.parts, self.waiting = [pairs], len(pairs.i)
        return pairs

    def exact(self, all_of_them: bool = False) -> tuple[Pairs, Tensor]:
        """What is left, sorted by i, then by exact squared distance, then by j; and whether it is among the k nearest.

        Without all_of_them, what is surely nearer than the k-th has distance 0, which spares the work.
        """
        pairs = self.settle()
        unsure = pairs.low < pairs.high
        distance = torch.where(unsure, 0, pairs.low)
        if not all_of_them:
            unsure &= pairs.high >= self._kth(pairs, pairs.low)[pairs.i] * (1 - 2.0**-18)
        distance[unsure] = squared_distances(self.a, self.b, pairs.i[unsure], pairs.j[unsure])
        order = pairs.j.argsort()
        order = order[distance[order].argsort(stable=True)]
        order = order[pairs.i[order].argsort(stable=True)]
        pairs = Pairs(pairs.i, pairs.j, distance, distance).where(order)
        return pairs, self._counted(pairs.i, pairs.j)[0] < self.k

    def kth(self, k: int | None = None) -> Tensor:
        """float64 (points,): exact squared distance to the k-th nearest row, or to another one before it."""
        pairs, taken = self.exact(all_of_them=k is not None)
        if k is not None:
            taken = self._counted(pairs.i, pairs.j)[0] < k
        return self.reach.new_zeros(len(self.a)).scatter_reduce_(0, pairs.i[taken], pairs.low[taken], "amax")

    def _kth(self, pairs: Pairs, values: Tensor) -> Tensor:
        """float64 (points,): an upper bound, within 2^-19, of the k-th smallest value of each list."""
        order = ((pairs.i << 32) | (values.view(torch.int64) >> 31)).argsort()  # the bits of floats have their order
        i = pairs.i[order]
        before, weight = self._counted(i, pairs.j[order])
        is_kth = ((before < self.k) & (before + weight >= self.k)).nonzero()[:, 0]
        kth = values[order[is_kth]] * (1 + 2.0**-20)
        return torch.full_like(self.reach, _INFINITY).index_put_((i[is_kth],), kth)

    def _counted(self, i: Tensor, j: Tensor) -> tuple[Tensor, Tensor]:
        """Rows before each pair in its list, and rows that it stands for; lists lie one after the other."""
        weight = self.b.counts[j]
        if self.a is self.b:
            weight -= (i == j).long()
        before = weight.cumsum(0) - weight
        first = torch.searchsorted(i, torch.arange(len(self.a) + 1, device=i.device))[:-1].clamp_(max=len(i) - 1)
        return before - before[first][i], weight


def near_lists(a: Cloud, b: Cloud, k: int, block: int = BLOCK) -> Lists:
    """For each point of a, the points of b that may be among its k nearest rows; of the other rows where a is b."""
    lists = Lists(a, b, k, block)
    nothing = torch.zeros_like(lists.reach) if a is b else lists.reach.new_zeros(len(b))
    for i in range(0, len(a), block):
        for j in range(i if a is b else 0, len(b), block):
            seen = max(_SAMPLE, i if a is b else j)
            expected = 2 * k * block**2 / seen
            limits = (lists.reach, lists.reach if a is b else nothing)
            pairs = close_pairs(a, b, (i, j), limits, expected, block)
            if a is b:
                pairs = pairs.where(pairs.i < pairs.j) if i == j else pairs
                lists.add(Pairs(pairs.j, pairs.i, pairs.low, pairs.high))
            lists.add(pairs)
    return lists


def squared_radii(cloud: Cloud, k: int, block: int = BLOCK) -> Tensor:
    """float64 (N,): squared distance of each row to its k-th nearest *other* row. Needs 1 <= k < N."""
    return near_lists(cloud, cloud, k, block).kth()[cloud.point_of]


def _first_reach(a: Cloud, b: Cloud, k: int, block: int) -> Tensor:
    """float64 (points,): upper bounds of the k-th smallest squared distances, from a sample of b.

    The sample may hold the point itself, so the bound is that of the (k + 1)-th.
    """
    sample = min(len(b), block, max(_SAMPLE, 16 * (k + 1)))
    chosen = torch.arange(sample, device=b.rows.device) * len(b) // sample
    some = Cloud(b.points(chosen).to(b.rows.dtype), b.centre).rounded(b.types[0])
    rounded = a.rounded(a.types[0])
    far = 8 * (rounded.norms.max() + some.norms.max()) + 1e-30
    reach = far.repeat(len(a))
    if len(some) <= k:
        return reach
    none = torch.zeros_like(some.norms)
    for i in range(0, len(a), block):
        rows = slice(i, i + block)
        out = _product(rounded, some, (i, 0), block, (none.new_zeros(len(reach[rows])), none))
        if out.shape[1] % 8 == 0 and out.shape[1] > 16 * k:
            out = out.unflatten(1, (8, -1)).amax(1)
        middle = -2 * out.topk(k + 1, dim=1, sorted=False).values.amin(1).double()
        margin = 4 * (rounded.slack * (rounded.norms[rows] + some.norms.max()) + rounded.floor)
        high = (middle * (1 + 2.0**-7) + margin).clamp_(min=0).sqrt_() + rounded.errors[rows] + some.errors.max()
        reach[rows] = torch.minimum(reach[rows], high.square_())
    return reach
