"""Do pictures show what their captions state? Attribute by attribute, as a classifier sees them.

After GenEval (Ghosh et al. 2023, 2310.11513): a caption is fulfilled when everything that it states is right.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...errors import UsageError, nearest
from .intervals import Difference, paired_difference, wilson

ALL = "all"


@dataclass(frozen=True)
class Rate:
    """Right answers among the captions that state the attribute, and the Wilson interval of 95 %."""

    right: int
    stated: int
    low: float
    high: float

    @property
    def value(self) -> float:
        """In 0..1; nan when no caption states it."""
        return self.right / self.stated if self.stated else float("nan")


@dataclass(frozen=True)
class Adherence:
    """Rates by attribute, and "all": every stated attribute of a caption is right."""

    rates: Mapping[str, Rate]
    right: Mapping[str, np.ndarray] = field(repr=False)  # float64 (N,): 1 right, 0 wrong, nan not stated

    @property
    def value(self) -> float:
        """The rate of "all", in 0..1."""
        return self.rates[ALL].value

    def less(self, other: Adherence, attribute: str = ALL) -> Difference:
        """This rate less the other's, paired by position: both must have the same captions and seeds."""
        for side in (self, other):
            if attribute not in side.right:
                raise UsageError(f"no attribute {attribute!r}: {nearest(attribute, side.right)}")
        return paired_difference(self.right[attribute], other.right[attribute])


def adherence(*, predicted: Mapping[str, Sequence[Any]], stated: Sequence[Mapping[str, Any]]) -> Adherence:
    """Compare what is seen with what was asked for.

    predicted: attribute -> what the classifier sees in each of N pictures. stated: for each picture, attribute -> what
    its caption states; a caption leaves open what it does not name. Errors: unequal lengths, an unknown attribute.
    """
    for name, seen in predicted.items():
        if len(seen) != len(stated):
            raise UsageError(f"{len(seen)} pictures ({name}) but {len(stated)} captions; give one caption a picture")
    for strange in {name for caption in stated for name in caption} - set(predicted):
        raise UsageError(f"captions state {strange!r}, which is not predicted: {nearest(strange, predicted)}")
    right = {name: np.full(len(stated), np.nan) for name in predicted}
    for i, caption in enumerate(stated):
        for name, wanted in caption.items():
            right[name][i] = float(predicted[name][i] == wanted)
    table = np.stack([*right.values()]) if right else np.zeros((0, len(stated)))
    named = ~np.isnan(table)
    right[ALL] = np.where(named.any(0), ((table == 1) | ~named).all(0), np.nan)
    return Adherence({name: _rate(values) for name, values in right.items()}, right)


def _rate(values: np.ndarray) -> Rate:
    right, stated = int(np.nansum(values)), int((~np.isnan(values)).sum())
    return Rate(right, stated, *wilson(right, stated))
