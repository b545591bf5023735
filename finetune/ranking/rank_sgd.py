"""Zeroth-order descent from rankings alone: ZO-RankSGD ("Zeroth-Order Optimization Meets Human Feedback", 2303.03751).

    state = method.begin(x, seed)
    while wanted:
        pictures = draw(state.candidates)          # whoever ranks looks at pictures, or at f, never at numbers' size
        state = method.tell(state, best_first)

No gradient, no network weights: only which of a few candidates are better than which. Pure: a state in, a state out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from ...errors import UsageError
from ...samplers.noise import derived_seed

EXPLORE: Literal["explore"] = "explore"  # rank perturbations of x
SEARCH: Literal["search"] = "search"  # pick where to go: x itself is candidate 0


@dataclass(frozen=True, eq=False)
class RankState:
    """x: the latent that is kept, any shape. G: the averaged direction of improvement, in the shape of x. tau: how many
    rankings were averaged into G before this round. candidates: (n, *x.shape), what has to be ranked next. round: from
    0; each is an "explore" and a "search". seed: of all perturbations."""

    x: Tensor
    G: Tensor
    tau: int
    mode: Literal["explore", "search"]
    candidates: Tensor
    round: int
    seed: int


@dataclass(frozen=True)
class RankSGD:
    """The settings, and the two moves of a round (arXiv 2303.03751; the round as in its public code).

        explore: y_i = x + mu xi_i, xi_i ~ N(0, I), i = 1..m; the best k are named in order
                 g = (1/|E|) sum over known pairs i better than j of (xi_i - xi_j),  |E| = k(k-1)/2 + k(m-k)
                 G <- (tau G + g) / (tau + 1)
        search:  pick one of x, x + eta gamma^i G (i = 0 .. scales-1), the best y_i
                 x picked: G is kept and tau grows by one; else x moves there and G, tau start anew

    normalise: bring every candidate to the norm sqrt(dim) of a typical Gaussian latent (not in the paper's code). What
    is ranked is what may be kept, so the kept point is never worse than before where rankings do not err.
    m, mu and eta of the paper's picture demo could not be checked; these are defaults that work here.
    """

    m: int = 6
    k: int = 6
    mu: float = 0.1
    eta: float = 1.0
    gamma: float = 0.5
    scales: int = 5
    normalise: bool = True

    def __post_init__(self) -> None:
        if self.m < 2:
            raise UsageError(f"m={self.m} candidates cannot be ranked; give at least 2")
        if not 1 <= self.k <= self.m:
            raise UsageError(f"k={self.k} of m={self.m} candidates cannot be named; give 1 to {self.m}")
        if self.scales < 1:
            raise UsageError(f"scales={self.scales} leaves no step to try; give at least 1")
        for name in ("mu", "eta"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise UsageError(f"{name}={value} does not move anything; give a number above 0")
        if not 0 < self.gamma < 1:
            raise UsageError(f"gamma={self.gamma} must shrink the step; give a number between 0 and 1")

    @property
    def searched(self) -> int:
        """How many candidates a line search shows: x, the scales, the best perturbation."""
        return self.scales + 2

    def begin(self, x: Tensor, seed: int = 0) -> RankState:
        """The first state, about to explore around x."""
        if not bool(torch.isfinite(x).all()):
            raise UsageError("the latent to start from has values that are not finite; draw another")
        return self._explore(RankState(x, torch.zeros_like(x), 0, EXPLORE, x[None], 0, seed))

    def ask(self, state: RankState) -> Tensor:
        """The candidates (n, *shape) that have to be ranked."""
        return state.candidates

    def most(self, state: RankState) -> int:
        """How many of the candidates a ranking may name: k to explore, the picked one in a search."""
        return self.k if state.mode == EXPLORE else 1

    def tell(self, state: RankState, order: Sequence[int]) -> RankState:
        """The next state. order: numbers from 0 of the best candidates, best first; one is enough, and at most `most`
        are used. Raises UsageError for an order that is none."""
        check_order(order, len(state.candidates))
        best = list(order)[: self.most(state)]
        return self._ranked(state, best) if state.mode == EXPLORE else self._picked(state, best[0])

    def _explore(self, state: RankState) -> RankState:
        shown = [self._shown(state.x + self.mu * xi) for xi in self._perturbations(state)]
        return replace(state, mode=EXPLORE, candidates=torch.stack(shown))

    def _ranked(self, state: RankState, best: list[int]) -> RankState:
        pairs = zip(rank_weights(self.m, best), self._perturbations(state), strict=True)
        g = torch.stack([weight * xi for weight, xi in pairs]).sum(0)
        G = (state.tau * state.G + g) / (state.tau + 1)
        steps = [self._shown(state.x + self.eta * self.gamma**i * G) for i in range(self.scales)]
        candidates = torch.stack([state.x, *steps, state.candidates[best[0]]])
        return replace(state, G=G, mode=SEARCH, candidates=candidates)

    def _picked(self, state: RankState, pick: int) -> RankState:
        after = replace(state, round=state.round + 1)
        if pick == 0:
            return self._explore(replace(after, tau=state.tau + 1))
        return self._explore(replace(after, x=state.candidates[pick], G=torch.zeros_like(state.G), tau=0))

    def _perturbations(self, state: RankState) -> Iterator[Tensor]:
        """xi_i of this round, each from a seed of its own."""
        for i in range(self.m):
            generator = torch.Generator("cpu").manual_seed(derived_seed(state.seed, "perturbation", state.round, i))
            yield torch.randn(state.x.shape, generator=generator, dtype=state.x.dtype).to(state.x.device)

    def _shown(self, y: Tensor) -> Tensor:
        return y * (math.sqrt(y.numel()) / y.norm()) if self.normalise else y


def rank_weights(m: int, best: Sequence[int]) -> list[float]:
    """The weight of each of m perturbations in g, where `best` names the k best of them, best first.

    Over |E|: rank q (0 is best) is better than m - 1 - q and worse than q others, so m - 1 - 2q; who is not named is
    worse than k, so -k. They sum to zero. (The public code takes m - 2q, which does not.)
    """
    k = len(best)
    edges = k * (k - 1) / 2 + k * (m - k)
    weights = [-k / edges] * m
    for rank, i in enumerate(best):
        weights[i] = (m - 1 - 2 * rank) / edges
    return weights


def check_order(order: Sequence[int], candidates: int) -> None:
    """Raises UsageError unless `order` names some of the candidates, from 0, each once."""
    if not order:
        raise UsageError("the order names no candidate; name at least the best one")
    for i in order:
        if not 0 <= i < candidates:
            raise UsageError(f"there is no candidate {i + 1}; name those of 1 to {candidates}")
    if len(set(order)) < len(order):
        twice = next(i for i in order if list(order).count(i) > 1)
        raise UsageError(f"candidate {twice + 1} is named twice; name each once")
