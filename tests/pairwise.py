"""Pairwise cover: a few of many combinations, such that every pair of values of two axes occurs in one of them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import pytest


def pairwise(axes: Sequence[Iterable[Any]]) -> list[tuple[Any, ...]]:
    """Greedy: of all combinations, always one that covers most of the pairs that are still missing."""
    values = [list(axis) for axis in axes]
    sizes = [range(len(axis)) for axis in values]
    missing = {
        (a, i, b, j) for a, b in itertools.combinations(range(len(sizes)), 2) for i in sizes[a] for j in sizes[b]
    }
    chosen = []
    while missing:
        a, i, b, j = min(missing)
        fixed = [[i] if axis == a else [j] if axis == b else sizes[axis] for axis in range(len(sizes))]
        best = max(itertools.product(*fixed), key=lambda place: len(missing & _pairs(place)))
        missing -= _pairs(best)
        chosen.append(tuple(axis[k] for axis, k in zip(values, best, strict=True)))
    return chosen


def _pairs(place: Sequence[int]) -> set[tuple[int, int, int, int]]:
    return {(a, place[a], b, place[b]) for a, b in itertools.combinations(range(len(place)), 2)}


def cover(*axes: Iterable[Any]) -> list[Any]:
    """For parametrize: the pairwise cover, and marked `full` the rest of the product."""
    axes = tuple(list(axis) for axis in axes)
    few = pairwise(axes)
    rest = [place for place in itertools.product(*axes) if place not in few]
    return [*few, *(pytest.param(*place, marks=pytest.mark.full) for place in rest)]
