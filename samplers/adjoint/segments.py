"""Checkpoints of checkpoints: memory that grows as the root, or the logarithm, of the number of steps.

The run is cut into `width` parts, each part again, until a part is one step; on the way back the states of one part at
a time are made again. With width = sqrt(N) that is one activation, 2 sqrt(N) states and N (3F + B); with width = 2 it
is Griewank & Walther's recursion in its simplest form, with O(log N) states and O(log N) evaluations of a step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from ...errors import UsageError
from .chain import Chain
from .checkpoint import remembered
from .method import Method


@dataclass(frozen=True)
class Segments(Method):
    """width: parts of a part; 0 is the root of the number of steps, 2 the recursion."""

    width: int = 0

    def __post_init__(self) -> None:
        if self.width < 0 or self.width == 1:
            raise UsageError(f"segments width={self.width} cuts nothing; take 0 (the root of the steps) or 2 and more")

    def sample(self, chain: Chain, x: Tensor) -> Tensor:
        state = chain.begin(x)
        count = chain.steps(state)
        return chain.end(nested(chain, state, count, self.width or root(count)))


def root(count: int) -> int:
    """The least whole number whose square is at least `count`, and at least 2."""
    return max(2, math.isqrt(max(0, count - 1)) + 1)


def nested(chain: Chain, state: Any, count: int, width: int) -> Any:
    """The state after `count` steps."""
    if count == 1:
        return chain.step(state)
    for size in shares(count, width):
        state = remembered(chain, partial(nested, chain, count=size, width=width), state)
    return state


def shares(count: int, width: int) -> list[int]:
    """`count` as at most `width` whole numbers that differ by one at most."""
    least, more = divmod(count, width)
    return [size for i in range(width) if (size := least + (i < more))]
