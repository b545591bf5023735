"""The torchmetrics adapters give the numbers of the pure functions: alone, in a collection, over processes."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from pilotage.errors import UsageError
from pilotage.evaluation import (
    METRICS,
    Moments,
    colour_statistics,
    frechet_distance,
    open_features,
    prdc,
    score,
    wasserstein,
)

torchmetrics = pytest.importorskip("torchmetrics")

from pilotage.evaluation import ContrastMetric, FrechetDistanceMetric, PRDCMetric, SaturationMetric, ScoreMetric  # noqa: E402


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def pictures(n: int, seed: int = 0, low: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(low, 256, (n, 3, 8, 8), dtype=np.uint8))


REAL, MADE = pictures(90, 1), pictures(80, 2, 30)
FEATURES = open_features("random")


@pytest.fixture(autouse=True)
def _no_warnings() -> None:
    warnings.simplefilter("error", UserWarning)


def fed(metric: torchmetrics.Metric, batch: int = 32) -> torchmetrics.Metric:
    for real, batches in ((True, REAL.split(batch)), (False, MADE.split(batch))):
        for images in batches:
            metric.update(images, real=real)
    return metric


def test_frechet() -> None:
    metric = fed(FrechetDistanceMetric("random"))
    expected = frechet_distance(real=FEATURES(REAL), generated=FEATURES(MADE))
    assert float(metric.compute()) == pytest.approx(expected, rel=1e-10) and metric.compute().dtype == torch.float64
    by_features = FrechetDistanceMetric(None, dimension=64)
    by_features.update_features(FEATURES(REAL), real=True)
    by_features.update_features(FEATURES(MADE), real=False)
    assert float(by_features.compute()) == pytest.approx(expected, rel=1e-10)
    metric.reset()
    with pytest.raises(UsageError, match="0 real pictures"), pytest.warns(UserWarning, match="before the"):
        metric.compute()


def test_a_later_update_is_seen() -> None:
    metric = fed(FrechetDistanceMetric("random"))
    before = float(metric.compute())
    metric.update_features(FEATURES(MADE) + 1, real=False)
    assert float(metric.compute()) != before


def test_moments_merge_over_processes() -> None:
    """What the reduction sees when three ranks meet."""
    rows = FEATURES(REAL)
    metric = FrechetDistanceMetric(None, dimension=64)
    stacked = torch.stack([Moments.of(part).packed() for part in rows.split(40)])
    merged = Moments.unpacked(metric._reductions["real"](stacked))
    assert merged.n == 90 and torch.allclose(merged.M2, Moments.of(rows).M2, rtol=1e-12)


def test_prdc() -> None:
    found = fed(PRDCMetric("random", k=3)).compute()
    expected = prdc(real=FEATURES(REAL), generated=FEATURES(MADE), k=3)
    assert {name: float(value) for name, value in found.items()} == {name: getattr(expected, name) for name in found}


@pytest.mark.parametrize(("metric", "name"), [(SaturationMetric, "saturation"), (ContrastMetric, "contrast")])
def test_colour(metric: type[torchmetrics.Metric], name: str) -> None:
    found = fed(metric()).compute()
    real, made = (getattr(colour_statistics(p), name) for p in (REAL, MADE))
    assert float(found["generated"]) == pytest.approx(made.mean()) and float(found["real"]) == pytest.approx(
        real.mean()
    )
    assert float(found["wasserstein"]) == pytest.approx(wasserstein(real=real, generated=made))
    alone = metric()
    alone.update(MADE, real=False)
    assert set(alone.compute()) == {"generated"}


def test_a_collection_of_them() -> None:
    both = torchmetrics.MetricCollection({"frechet": FrechetDistanceMetric(FEATURES), "prdc": PRDCMetric(FEATURES)})
    both.update(REAL, real=True)
    both.update(MADE, real=False)
    found = both.compute()
    assert float(found["frechet"]) > 0 and 0 <= float(found["coverage"]) <= 1


def test_what_is_missing_is_said() -> None:
    with pytest.raises(UsageError, match="pass dimension="):
        FrechetDistanceMetric(None)
    with pytest.raises(UsageError, match="no extractor"):
        PRDCMetric(None).update(MADE, real=False)


OF_PICTURES = [name for name, spec in METRICS.items() if not {"captions", "texts"} & set(spec.needs)]
SETS = {"generated": pictures(80, 2, 30), "real": pictures(270, 1), "train": pictures(90, 3), "test": pictures(70, 4)}


def with_logits(batch: Tensor) -> dict[str, Tensor]:
    found = FEATURES.network(batch)
    return {"features": found, "logits": found[:, :9]}


@pytest.mark.parametrize("name", OF_PICTURES)
def test_every_metric_of_the_registry_as_a_torch_metric(name: str) -> None:
    """Fed in batches, by two processes whose states are merged, it is what `score` says."""
    extractor = replace(FEATURES, name=METRICS[name].features or "random", network=with_logits)
    line = f"{name}:steps=20" if name == "network-divergence" else name
    parts = [ScoreMetric(line, extractor) for _ in range(2)]
    for side, images in SETS.items():
        for i, batch in enumerate(images.split(25)):
            parts[i > 1].update(batch, side=side)
    other, whole = parts[0], parts[1]  # merge_state puts the incoming first
    whole.merge_state(other)
    report = score(**SETS, metrics=[line], features=extractor)
    assert {n: float(v) for n, v in whole.compute().items()} == pytest.approx(
        {r.name: r.value for r in report}, rel=1e-6, nan_ok=True
    )
    assert whole.higher_is_better == METRICS[name].higher_is_better


def test_a_score_metric_takes_settings_and_says_what_is_missing() -> None:
    metric = ScoreMetric("kernel-distance:estimator=subsets,subsets=4,subset_size=20", None)
    for side in ("real", "generated"):
        metric.update(features=FEATURES(SETS[side]), side=side)
    assert float(metric.compute()["kernel-distance"]) > 0
    with pytest.raises(UsageError, match="this metric needs train pictures"):
        fed_by_rows("authenticity")
    with pytest.raises(UsageError, match="adherence needs captions"):
        ScoreMetric("adherence")
    with pytest.raises(UsageError, match="did you mean"):
        ScoreMetric("kernl-distance")
    with pytest.raises(UsageError, match="no generated pictures"), pytest.warns(UserWarning, match="before the"):
        ScoreMetric("vendi", None).compute()


def fed_by_rows(name: str) -> None:
    metric = ScoreMetric(name, None)
    metric.update(features=FEATURES(SETS["generated"]))
    metric.compute()
