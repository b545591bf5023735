"""Neural-network divergence: a copier scores worse than a generaliser; the scale, its errors, and determinism."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from pilotage.errors import UsageError
from pilotage.evaluation.metrics.network_divergence import (
    CriticSettings,
    NetworkDivergence,
    critic_gap,
    network_divergence,
)

TOY = CriticSettings(steps=100, batch=48)
RNG = np.random.default_rng(0)
TRAIN, HELD_OUT = RNG.standard_normal((24, 2)), RNG.standard_normal((1600, 2))
FRESH = RNG.standard_normal((800, 2))
COPIES = TRAIN[RNG.integers(0, 24, 800)]


def scored(generated: np.ndarray, **rest) -> NetworkDivergence:
    return network_divergence(train=TRAIN, held_out=HELD_OUT, generated=generated, settings=TOY, **rest)


def test_a_copier_scores_worse_than_a_generaliser() -> None:
    honest, copier = scored(FRESH), scored(COPIES)
    assert copier.ratio == pytest.approx(1, abs=0.25) and copier.ratio_error < 0.25
    assert abs(honest.ratio) < 0.35
    assert min(np.subtract(copier.model, honest.model)) > 0.15  # in every seed: they share real rows and batches
    assert honest.floor == copier.floor and honest.copier == copier.copier  # the scale does not know the model
    half = scored(np.concatenate([FRESH[:400], COPIES[:400]]))
    assert honest.ratio < half.ratio < copier.ratio


def test_bad_models_can_be_worse_than_copies() -> None:
    assert scored(FRESH + 1).ratio > 2


def test_pictures() -> None:
    rng = np.random.default_rng(1)

    def drawn(count: int) -> np.ndarray:
        """Tiny pictures of one colour, with grain."""
        flat = rng.integers(40, 210, (count, 1, 1, 3))
        return (flat + rng.integers(-40, 41, (count, 8, 8, 3))).astype(np.uint8)

    train, held_out, fresh = drawn(6), drawn(400), drawn(200)
    settings = CriticSettings(steps=150, width=8, batch=24, learning_rate=2e-3)
    found = network_divergence(train=train, held_out=held_out, generated=fresh, settings=settings)
    assert found.rows == 100 and abs(found.ratio) < 0.6
    assert min(np.subtract(found.copier, found.model)) > 0

    few = CriticSettings(steps=2, width=8, batch=24)
    turned = torch.from_numpy(train).permute(0, 3, 1, 2)
    a, b = (network_divergence(train=t, held_out=held_out, generated=fresh, settings=few) for t in (train, turned))
    assert a == b


def test_the_scale_is_withheld_where_a_training_set_cannot_be_told_from_fresh_rows() -> None:
    found = NetworkDivergence((0.1, 0.2, 0.15), (0.1, 0.0, 0.1), (0.12, 0.05, 0.02), 10, 10, TOY, (0, 1, 2))
    assert math.isnan(found.ratio) and math.isnan(found.ratio_error)
    clear = replace(found, copier=(1.0, 1.1, 0.9))
    above = np.mean(clear.copier) - np.mean(clear.floor)
    assert clear.ratio == pytest.approx((0.15 - np.mean(clear.floor)) / above)
    without = [
        (np.mean(np.delete(clear.model, i)) - np.mean(np.delete(clear.floor, i)))
        / (np.mean(np.delete(clear.copier, i)) - np.mean(np.delete(clear.floor, i)))
        for i in range(3)
    ]
    assert clear.ratio_error == pytest.approx(math.sqrt(2 / 3 * np.square(without - np.mean(without)).sum()))


def test_the_gap_of_two_points_is_their_distance() -> None:
    """Point masses L apart: a slope s is worth s L - penalty (s - 1)^2, best at s = 1 + L / (2 penalty)."""
    a, b = torch.zeros(64, 2), torch.tensor([[3.0, 4.0]]).expand(64, 2)
    gap = critic_gap(a, b, a, b, settings=CriticSettings(steps=250), seed=0)
    assert gap == pytest.approx(5 * (1 + 5 / 20), rel=0.02)


def test_deterministic_and_leaves_global_state_alone() -> None:
    settings = CriticSettings(steps=10)
    sets = {"train": TRAIN, "held_out": HELD_OUT[:200], "generated": FRESH[:100], "settings": settings}
    before = torch.get_rng_state()
    one, same, other = (network_divergence(**sets, seeds=s) for s in ((0, 1, 2), (0, 1, 2), (0, 1, 3)))
    assert one == same and one.rows == 50
    assert one.model[:2] == other.model[:2] and one.model[2] != other.model[2]
    assert torch.equal(before, torch.get_rng_state())
    with torch.no_grad():  # a caller may have turned gradients off
        assert network_divergence(**sets) == one


def test_a_change_of_units_changes_nothing() -> None:
    settings = CriticSettings(steps=10)
    a, b = (
        network_divergence(
            train=TRAIN * s + o, held_out=HELD_OUT[:200] * s + o, generated=FRESH[:100] * s + o, settings=settings
        )
        for s, o in ((1, 0), (1e4, 1e6))
    )
    assert np.allclose(a.model, b.model, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "fix"),
    [
        ({"seeds": (0, 1)}, "3 different"),
        ({"held_out": HELD_OUT[:7]}, "1000s"),
        ({"generated": FRESH[:3]}, "1000s"),
        ({"generated": FRESH[:, :1]}, "extractor"),
    ],
)
def test_refuses_in_one_line(change: dict, fix: str) -> None:
    sets = {"train": TRAIN, "held_out": HELD_OUT, "generated": FRESH, "settings": CriticSettings(steps=2)} | change
    with pytest.raises(UsageError, match=fix) as caught:
        network_divergence(**sets)
    assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match="CriticSettings"):
        CriticSettings(steps=0)
