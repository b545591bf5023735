"""Divergences from neighbour ratios: against a loop over sorted distances, known divergences and their null."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from pilotage.errors import UsageError
from pilotage.evaluation.metrics.ratio_divergence import (
    KINDS,
    principal_axes,
    ratio_divergence,
    ratio_estimate,
    real_neighbours,
)

GENERATORS = {
    "kl": lambda t: t * math.log(t) if t else 0.0,
    "tv": lambda t: abs(t - 1) / 2,
    "hellinger": lambda t: (math.sqrt(t) - 1) ** 2,
}


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def counted(x: Tensor, y: Tensor, k: int) -> list[int]:
    """Real rows among the k nearest, by sorting; no ties."""
    found = []
    for i, row in enumerate(y):
        others = [(float((row - p).norm()), 1) for p in x]
        others += [(float((row - q).norm()), 0) for j, q in enumerate(y) if j != i]
        found.append(sum(is_real for _, is_real in sorted(others)[:k]))
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_loop(kind: str) -> None:
    x, y, k, alpha = normal(40, 3), normal(25, 3, seed=1) + 0.5, 7, 0.4
    ratios = [25 / 40 * n / (k - n + 1) for n in counted(x, y, k)]
    if kind == "renyi":
        expected = math.log(np.mean([t**alpha for t in ratios])) / (alpha - 1)
    else:
        expected = np.mean([GENERATORS[kind](t) for t in ratios])
    found = ratio_estimate(real=x, generated=y, kind=kind, k=k, alpha=alpha)
    assert found == pytest.approx(max(expected, 0), abs=1e-12)


def test_blocks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = normal(40, 3), normal(25, 3, seed=1)
    whole = real_neighbours(real=x, generated=y, k=6)
    monkeypatch.setattr("pilotage.evaluation.metrics.ratio_divergence._ENTRIES", 130)
    assert torch.equal(whole, real_neighbours(real=x, generated=y, k=6))
    assert whole.tolist() == counted(x, y, 6)


def test_ties_favour_nobody() -> None:
    """All points at one place: of k = 6 places among 4 real and 7 other generated rows, 4/11 are real."""
    found = real_neighbours(real=torch.zeros(4, 2), generated=torch.zeros(8, 2), k=6)
    assert torch.allclose(found, found.new_full((8,), 6 * 4 / 11))


def test_known_divergence_and_the_stated_bias() -> None:
    """Unit Gaussians a unit apart (by 1/2 in each of 4 dimensions): KL 0.5, of which about 0.36 is found at 4,000."""
    found = ratio_estimate(real=normal(4000, 4), generated=normal(4000, 4, seed=1) + 0.5)
    assert 0.28 < found < 0.45
    assert ratio_estimate(real=normal(4000, 4), generated=normal(4000, 4, seed=2)) < 0.05


@pytest.mark.parametrize("kind", KINDS)
def test_null_and_excess(kind: str) -> None:
    real = normal(1200, 40) @ torch.diag(torch.linspace(2, 0.1, 40).double())
    other = normal(900, 40, seed=1) @ torch.diag(torch.linspace(2, 0.1, 40).double())
    same, shifted = (ratio_divergence(real=real, generated=g, kind=kind, pca=6) for g in (other, other + 0.8))
    assert same.n == 600 and same.k == 24 and same.dimension == 6 and 0 < same.kept_variance < 1
    assert same.null == shifted.null
    if kind == "kl":  # the noisiest: it does no more than tell them apart here
        assert same.excess < 0 < shifted.excess
    else:
        assert shifted.excess > 0.1 and shifted.excess > 5 * abs(same.excess)


def test_pca_is_fitted_on_the_real_set_alone() -> None:
    """Generated rows that spread along another axis must not turn the projection."""
    real, generated = normal(300, 5), normal(300, 5, seed=1)
    real[:, 0] *= 10
    generated[:, 4] *= 100
    axes, share = principal_axes(real, 1)
    assert abs(float(axes[0, 0])) > 0.99 and share > 0.9
    moved = generated.clone()
    moved[:, 4] *= 50  # almost at right angles to what is kept
    a, b = (ratio_divergence(real=real, generated=g, pca=1, kind="tv") for g in (generated, moved))
    assert a.kept_variance == b.kept_variance == pytest.approx(share) and a.null == b.null


def test_a_translation_and_a_rotation_change_nothing() -> None:
    real, generated = normal(200, 4), normal(150, 4, seed=1) + 0.4
    turn = torch.linalg.qr(normal(4, 4, seed=2)).Q
    a = ratio_divergence(real=real, generated=generated, kind="hellinger")
    b = ratio_divergence(real=real @ turn + 7, generated=generated @ turn + 7, kind="hellinger")
    assert a.value == pytest.approx(b.value, abs=1e-9) and a.null == pytest.approx(b.null, abs=1e-9)


def test_separate_sets() -> None:
    x, y = normal(100, 2), normal(100, 2, seed=1) + 100
    assert ratio_estimate(real=x, generated=y, kind="tv", k=5) == pytest.approx(0.5)  # the estimate's own limit
    assert ratio_estimate(real=x, generated=y, kind="renyi", k=5) == math.inf
    assert ratio_estimate(real=x, generated=y, kind="hellinger", k=5) == pytest.approx(1)


@pytest.mark.parametrize(
    ("settings", "fix"),
    [
        ({"kind": "js"}, "kl, tv"),
        ({"k": 0}, "sqrt"),
        ({"k": 1000}, "sqrt"),
        ({"pca": 0}, "16"),
        ({"kind": "renyi", "alpha": 1.0}, "0.5"),
    ],
)
def test_refuses_in_one_line(settings: dict, fix: str) -> None:
    with pytest.raises(UsageError, match=fix) as caught:
        ratio_divergence(real=normal(20, 3), generated=normal(20, 3, seed=1), **settings)
    assert "\n" not in str(caught.value)
