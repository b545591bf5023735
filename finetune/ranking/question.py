"""What is asked of whoever ranks, and what comes back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from .rank_sgd import SEARCH


@dataclass(frozen=True, eq=False)
class Question:
    """pictures: (n, 3, H, W) in [0, 1]. most: how many of them an answer names. round: from 0, of `rounds`.
    mode: "explore" (order them) or "search" (pick one; the first is the kept one)."""

    pictures: Tensor
    prompt: str
    mode: str
    most: int
    round: int
    rounds: int

    @property
    def picks(self) -> bool:
        """Is one picture picked, not an order given?"""
        return self.mode == SEARCH

    @property
    def text(self) -> str:
        """One line for a person."""
        where = f"round {self.round + 1} of {self.rounds}"
        if self.picks:
            return f"{where}: which is the best? 1 is the one you have"
        return f"{where}: order them, best first; at most {self.most}, one is enough"


@dataclass(frozen=True)
class Answer:
    """order: numbers of pictures from 0, best first. scores: of all of them, where a reward ranked."""

    order: tuple[int, ...]
    scores: tuple[float, ...] = ()


Ranker = Callable[[Question], Answer | None]  # None: whoever ranks wants to stop here


def labels(count: int) -> Sequence[str]:
    """What pictures are called by people: from 1."""
    return [str(i + 1) for i in range(count)]
