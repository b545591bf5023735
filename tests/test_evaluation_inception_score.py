"""Inception Score: closed forms, the formula as printed, torchmetrics, and order that does not matter."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from torch import Tensor

from pilotage.errors import UsageError
from pilotage.evaluation.metrics.inception_score import inception_score


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def by_divergence(logits: np.ndarray) -> float:
    """exp mean KL(p(y|x) | p(y)), as printed."""
    logs = log_softmax(logits, axis=1)
    marginal = np.exp(logs).mean(0)
    return math.exp((np.exp(logs) * (logs - np.log(marginal))).sum(1).mean())


def test_is_the_divergence_from_the_marginal() -> None:
    logits = normal(50, 7) * 3
    assert inception_score(logits=logits, splits=1).value == pytest.approx(by_divergence(logits.numpy()), rel=1e-12)


def test_splits_are_those_of_the_stated_shuffle() -> None:
    logits = normal(53, 7) * 3
    found = inception_score(logits=logits, splits=4, seed=5)
    order = np.random.default_rng(5).permutation(53)
    expected = [by_divergence(logits.numpy()[part]) for part in np.array_split(order, 4)]
    assert found.scores == pytest.approx(expected, rel=1e-12)
    assert found.value == pytest.approx(np.mean(expected)) and found.std == pytest.approx(np.std(expected))


def test_sure_and_varied_pictures_give_the_number_of_classes() -> None:
    sure = torch.eye(6).repeat(20, 1) * 1e4
    assert inception_score(logits=sure, splits=1).value == pytest.approx(6, rel=1e-12)
    assert inception_score(logits=sure[::6], splits=2).value == pytest.approx(1, rel=1e-12)  # one class only
    assert inception_score(logits=torch.full((40, 6), 1e5), splits=2).value == pytest.approx(1, rel=1e-12)


def test_classes_that_never_occur_do_not_make_a_nan() -> None:
    logits = torch.tensor([[0.0, -5000.0, 1.0]]).repeat(20, 1)
    assert inception_score(logits=logits, splits=2).value == pytest.approx(1, rel=1e-12)


def test_files_sorted_by_class_give_the_score_of_shuffled_ones() -> None:
    logits = (torch.eye(5) * 20).repeat_interleave(200, 0)
    assert inception_score(logits=logits).value > 4.7
    assert by_divergence(logits[:100].numpy()) == pytest.approx(1)  # what a first split in file order would say


def test_a_constant_added_to_a_row_changes_nothing() -> None:
    logits = normal(40, 7)
    moved = logits + normal(40, 1, seed=1) * 100
    assert inception_score(logits=moved).scores == pytest.approx(inception_score(logits=logits).scores, rel=1e-12)


def test_agrees_with_torchmetrics() -> None:
    image = pytest.importorskip("torchmetrics.image.inception")

    class Flat(torch.nn.Module):
        def forward(self, pictures: Tensor) -> Tensor:
            return pictures.double().flatten(1) / 60

    theirs = image.InceptionScore(feature=Flat(), splits=1)
    pictures = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (60, 3, 2, 2), dtype=np.uint8))
    theirs.update(pictures)
    ours = inception_score(logits=Flat()(pictures), splits=1)
    assert ours.value == pytest.approx(float(theirs.compute()[0]), rel=1e-6)


def test_the_interval_is_of_the_mean_over_splits() -> None:
    found = inception_score(logits=normal(400, 5), splits=10)
    half = 1.959964 * np.std(found.scores, ddof=1) / 10**0.5
    assert found.interval == pytest.approx((found.value - half, found.value + half), rel=1e-6)
    assert all(math.isnan(end) for end in inception_score(logits=normal(40, 5), splits=1).interval)


def test_low_precision_logits_are_taken_to_float64() -> None:
    logits = normal(60, 9).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        assert inception_score(logits=logits).value == inception_score(logits=logits.double()).value


@pytest.mark.parametrize(
    ("logits", "splits", "says"),
    [
        (torch.ones(5, 3), 10, "at least 10 pictures"),
        (torch.ones(5, 3), 0, "splits=10"),
        (torch.ones(5), 1, "shape"),
        (torch.full((5, 3), float("-inf")), 1, "not finite"),
    ],
)
def test_bad_input_is_refused_in_one_line(logits: Tensor, splits: int, says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        inception_score(logits=logits, splits=splits)
    assert "\n" not in str(caught.value)
