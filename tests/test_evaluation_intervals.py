"""Intervals cover what they should, and adherence counts what captions state."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pilotage.errors import UsageError
from pilotage.evaluation import adherence, mean_interval, paired_difference, unpaired_difference, wilson


def test_wilson_by_hand_and_at_the_ends() -> None:
    stats = pytest.importorskip("scipy.stats")
    for right, n in [(0, 10), (3, 10), (10, 10), (940, 1000)]:
        theirs = stats.binomtest(right, n).proportion_ci(0.95, method="wilson")
        assert wilson(right, n) == pytest.approx((theirs.low, theirs.high), abs=1e-12)
    assert wilson(0, 0) == (0.0, 1.0)
    with pytest.raises(UsageError, match="between 0 and the trials"):
        wilson(5, 4)


def test_paired_difference_of_numbers() -> None:
    a = np.array([1.0, 2.0, 4.0, 3.0])
    found = paired_difference(a, a - np.array([0.5, 1.5, 0.5, 1.5]))
    assert found.mean == 1.0
    assert found.high - found.low == pytest.approx(2 * 1.959964 * np.std([0.5, 1.5, 0.5, 1.5], ddof=1) / 2)


def test_paired_difference_of_yes_and_no() -> None:
    """Bonett & Price 2012: no disagreement among n pairs still leaves room."""
    a = np.ones(200)
    mean, low, high = paired_difference(a, a)
    assert mean == 0 and low == pytest.approx(-high) and 0 < high < 0.02
    b = a.copy()
    b[:20] = 0
    mean, low, high = paired_difference(a, b)
    assert mean == pytest.approx(0.1) and 0.05 < low < 0.1 < high < 0.16


def test_intervals_cover_at_their_confidence() -> None:
    rng = np.random.default_rng(0)
    hits: dict[str, list[bool]] = {"wilson": [], "binary": [], "mean": [], "welch": []}
    for _ in range(1500):
        a = rng.random(150) < 0.8
        b = np.where(rng.random(150) < 0.15, ~a, a)  # true difference: 0.8 - (0.8 * 0.85 + 0.2 * 0.15)
        low, high = wilson(int(a.sum()), 150)
        hits["wilson"].append(low <= 0.8 <= high)
        _, low, high = paired_difference(a.astype(float), b.astype(float))
        hits["binary"].append(low <= 0.09 <= high)
        x, y = rng.normal(1, 2, 150), rng.normal(0.5, 1, 80)
        low, high = mean_interval(x)
        hits["mean"].append(low <= 1 <= high)
        _, low, high = unpaired_difference(x, y)
        hits["welch"].append(low <= 0.5 <= high)
    for name, found in hits.items():
        assert 0.925 < np.mean(found) < 0.975, name


def test_pairs_must_belong_together() -> None:
    with pytest.raises(UsageError, match="same captions and seeds"):
        paired_difference([1.0, 0.0], [1.0])
    with pytest.raises(UsageError, match="what their captions state"):
        paired_difference([1.0, math.nan], [1.0, 0.0])
    with pytest.raises(UsageError, match="no pairs"):
        paired_difference([math.nan], [math.nan])


STATED = [{"colour": "red", "shape": "disc"}, {"colour": "red"}, {"shape": "star"}, {}]
SEEN = {"colour": ["red", "blue", "red", "red"], "shape": ["disc", "disc", "star", "star"]}


def test_adherence_counts_what_is_stated() -> None:
    found = adherence(predicted=SEEN, stated=STATED)
    assert {name: (rate.right, rate.stated) for name, rate in found.rates.items()} == {
        "colour": (1, 2),
        "shape": (2, 2),
        "all": (2, 3),
    }
    assert found.value == pytest.approx(2 / 3)
    assert (found.rates["all"].low, found.rates["all"].high) == wilson(2, 3)
    assert found.right["all"].tolist()[:3] == [1.0, 0.0, 1.0] and math.isnan(found.right["all"][3])


def test_adherence_is_compared_in_pairs() -> None:
    better = adherence(predicted={**SEEN, "colour": ["red"] * 4}, stated=STATED)
    assert better.less(adherence(predicted=SEEN, stated=STATED)).mean == pytest.approx(1 / 3)
    with pytest.raises(UsageError, match="did you mean colour"):
        better.less(better, "color")


def test_adherence_refuses_what_does_not_fit() -> None:
    with pytest.raises(UsageError, match="one caption a picture"):
        adherence(predicted=SEEN, stated=STATED[:2])
    with pytest.raises(UsageError, match="did you mean shape"):
        adherence(predicted=SEEN, stated=[{"shapes": "disc"}] * 4)
