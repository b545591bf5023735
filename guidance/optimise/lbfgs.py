"""L-BFGS on every row of a batch by itself: directions from each row's own pairs, and a line search for each row.

`torch.optim.LBFGS` would take the batch for one long vector, so that a row would depend on its mates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .problem import Look, column

SLOPE = 1e-4  # share of the promised decrease that a step must bring (Nocedal & Wright 2006, eq. 3.4)
BENT = 1e-10  # least cosine of the curvature condition, s y > 0, for a pair to be kept


def dot(a: Tensor, b: Tensor) -> Tensor:
    """The product of each row with its own, (B,)."""
    return (a * b).flatten(1).sum(1)


@dataclass
class Pairs:
    """The last moves s and changes of the gradient y, (B, ...), with the weight 1 / s y, (B,): 0 where it is no use."""

    memory: int
    held: list[tuple[Tensor, Tensor, Tensor]] = field(default_factory=list)
    size: Tensor | None = None  # s y / y y of each row's last pair

    def add(self, s: Tensor, y: Tensor) -> None:
        sy, yy = dot(s, y), dot(y, y)
        useful = sy > BENT * (dot(s, s) * yy).sqrt()
        weight = torch.where(useful, 1 / torch.where(useful, sy, 1.0), 0.0)
        size = torch.where(useful, sy / torch.where(useful, yy, 1.0), 1.0 if self.size is None else self.size)
        self.size = size
        self.held = [*self.held, (s, y, weight)][-self.memory :]

    def direction(self, gradient: Tensor, first: Tensor) -> Tensor:
        """- H gradient by the two loops (Nocedal & Wright 2006, algorithm 7.4). first (B,): the length of the step
        where there is no pair yet."""
        if self.size is None:
            return -gradient * column(first / dot(gradient, gradient).sqrt().clamp(min=1e-30), gradient)
        q, shares = gradient, []
        for s, y, weight in reversed(self.held):
            share = weight * dot(s, q)
            q = q - column(share, q) * y
            shares.append(share)
        r = column(self.size, q) * q
        for (s, y, weight), share in zip(self.held, reversed(shares), strict=True):
            r = r + column(share - weight * dot(y, r), r) * s
        return -r


def minimise(
    look_of: Callable[[Tensor], Look], at: Tensor, *, iterations: int, memory: int, trials: int, first: Tensor
) -> Iterator[tuple[Tensor, Look]]:
    """Lower the values of looks from at (B, ...) on: yields where it stands and the look there, at first and after each
    iteration.

    No row's value ever rises: a step is halved up to `trials` times, and not taken where that does not help. first
    (B,): the length of the very first step. Ends early when no row moves.
    """
    here, pairs = look_of(at), Pairs(memory)
    yield at, here
    for _ in range(iterations):
        assert here.gradient is not None
        new_at, there = searched(look_of, at, here, pairs.direction(here.gradient, first), trials)
        if torch.equal(new_at, at):
            return
        assert there.gradient is not None
        pairs.add(new_at - at, there.gradient - here.gradient)
        at, here = new_at, there
        yield at, here


def searched(
    look_of: Callable[[Tensor], Look], at: Tensor, here: Look, direction: Tensor, trials: int
) -> tuple[Tensor, Look]:
    """The end of the longest of the steps 1, 1/2, 1/4, ... of a direction that lowers the value enough; each row its
    own, or none."""
    assert here.gradient is not None
    direction = torch.where(column(dot(direction, here.gradient) < 0, at), direction, -here.gradient)
    slope = dot(direction, here.gradient)
    length, done = torch.ones_like(slope), slope == 0
    ends, there = at, here
    for _ in range(trials):
        tried = torch.where(column(done, at), ends, at + column(length, at) * direction)
        look = look_of(tried)
        good = ~done & (look.value <= here.value + SLOPE * length * slope)
        ends, there = torch.where(column(good, at), tried, ends), look.where(good, there)
        done = done | good
        if bool(done.all()):
            break
        length = torch.where(done, length, length / 2)
    return ends, there
