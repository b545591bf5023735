"""Strangers by score norms: the area under the curve is scikit-learn's, and the model knows its own world."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.covariance import LedoitWolf
from sklearn.metrics import average_precision_score, roc_auc_score

from pilotage.errors import UsageError
from pilotage.evaluation.metrics.strangers import _average_precision, _Density, auroc, strangers


def test_area_and_its_error_are_those_of_others() -> None:
    rng = np.random.default_rng(0)
    positive, negative = rng.normal(0.7, 1, 60).round(1), rng.normal(0, 1, 90).round(1)  # with ties
    labels, scores = np.repeat([1, 0], [60, 90]), np.concatenate([positive, negative])
    value, error = auroc(positive=positive, negative=negative)
    assert value == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    assert value == pytest.approx(stats.mannwhitneyu(positive, negative).statistic / (60 * 90), abs=1e-12)
    assert _average_precision(positive, negative) == pytest.approx(average_precision_score(labels, scores), abs=1e-12)
    draws = [auroc(positive=rng.normal(0.7, 1, 60), negative=rng.normal(0, 1, 90))[0] for _ in range(800)]
    assert error == pytest.approx(np.std(draws), rel=0.15)


def test_the_density_is_shrunk_as_ledoit_and_wolf_have_it() -> None:
    rng = np.random.default_rng(1)
    rows = rng.standard_normal((40, 12)) @ rng.standard_normal((12, 12))
    z = (rows - rows.mean(0)) / rows.std(0, ddof=1)
    reference = LedoitWolf(assume_centered=True).fit(z)
    density = _Density(torch.from_numpy(rows))
    assert density.shrinkage == pytest.approx(reference.shrinkage_, rel=1e-9)
    expected = reference.mahalanobis(z) / 2
    assert np.allclose(density.score(torch.from_numpy(rows)).numpy(), expected, rtol=1e-9)


def test_equal_strange_and_too_clean() -> None:
    rng = np.random.default_rng(2)

    def norms(count: int, spread: float, shift: float = 0.0) -> np.ndarray:
        return np.exp(shift + spread * rng.standard_normal((count, 6)))

    values = [strangers(real=norms(300, 1), generated=norms(200, 1)).value for _ in range(30)]
    assert abs(np.mean(values) - 0.5) < 3 * np.std(values) / 30**0.5
    covered = [(f := strangers(real=norms(600, 1), generated=norms(200, 1))).interval for _ in range(60)]
    assert sum(low <= 0.5 <= high for low, high in covered) >= 52 and f.null == 0.5
    far = strangers(real=norms(300, 1), generated=norms(200, 1, 3))
    assert far.value > 0.99 and far.fpr95 < 0.05 and far.average_precision > 0.99
    assert strangers(real=norms(300, 1), generated=norms(200, 0.3)).value < 0.05


def test_too_few_are_refused() -> None:
    with pytest.raises(UsageError, match="give 28 or more"):
        strangers(real=np.ones((20, 6)), generated=np.ones((20, 6)))


def test_the_embedded_model_tells_noisy_pictures_from_its_own_world() -> None:
    from pilotage.evaluation import open_features
    from pilotage.zoo import world

    extractor = open_features("score-norms:levels=4")
    real = torch.from_numpy(world.pictures(range(128), "test", 32)).permute(0, 3, 1, 2)
    other = torch.from_numpy(world.pictures(range(900, 964), "test", 32)).permute(0, 3, 1, 2)
    noise = torch.from_numpy(np.random.default_rng(0).integers(-40, 41, tuple(other.shape)))
    grainy = (other + noise).clamp(0, 255).to(torch.uint8)
    known = extractor(real)
    assert known.shape == (128, 4) and extractor.dim == 4 and bool((known > 0).all())
    assert strangers(real=known, generated=extractor(grainy)).value > 0.95
    low, high = strangers(real=known, generated=extractor(other)).interval
    assert low < 0.62 and high > 0.4
