"""Accuracy, macro precision and recall, calibration, against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, log_loss, precision_score, recall_score, top_k_accuracy_score

from pilotage.errors import UsageError
from pilotage.evaluation.metrics.classifier_precision import classifier_precision

RNG = np.random.default_rng(0)
LOGITS = 2 * RNG.standard_normal((300, 8))
ASKED = np.where(RNG.random(300) < 0.5, LOGITS.argmax(1), RNG.integers(0, 8, 300))


def test_against_scikit_learn() -> None:
    found, seen = classifier_precision(requested=ASKED, logits=LOGITS), LOGITS.argmax(1)
    assert found.accuracy == pytest.approx(accuracy_score(ASKED, seen))
    assert found.macro_precision == pytest.approx(precision_score(ASKED, seen, average="macro"))
    assert found.macro_recall == pytest.approx(recall_score(ASKED, seen, average="macro"))
    assert found.top5 == pytest.approx(top_k_accuracy_score(ASKED, LOGITS, k=5, labels=range(8)))
    probabilities = np.exp(LOGITS) / np.exp(LOGITS).sum(1, keepdims=True)
    assert found.mean_log_probability == pytest.approx(-log_loss(ASKED, probabilities, labels=range(8)))
    low, high = found.interval
    assert low < found.accuracy < high


def test_classes_never_seen_are_left_out_and_counted() -> None:
    found = classifier_precision(requested=["a", "a", "b", "c"], predicted=["a", "b", "b", "b"])
    assert found.precision_of == {"a": 1.0, "b": 1 / 3} and found.macro_precision == pytest.approx(2 / 3)
    assert found.never_predicted == 1 and found.macro_recall == pytest.approx(0.5) and found.top5 is None


def test_calibration_of_a_classifier_that_is_right_as_often_as_it_says() -> None:
    rng = np.random.default_rng(3)
    logits = rng.standard_normal((40_000, 4))
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    asked = (p.cumsum(1) > rng.random((40_000, 1))).argmax(1)
    assert classifier_precision(requested=asked, logits=logits).calibration_error < 0.01
    assert classifier_precision(requested=asked, logits=5 * logits).calibration_error > 0.2


def test_what_does_not_fit_is_refused() -> None:
    for arguments, says in [
        ({"requested": [0, 1]}, "give one of them"),
        ({"requested": [0, 1], "predicted": [0]}, "2 requested classes and 1"),
        ({"requested": [], "predicted": []}, "0 requested"),
        ({"requested": [0, 9], "logits": np.zeros((2, 3))}, "must lie in 0 .. 2"),
        ({"requested": [0], "logits": np.zeros((2, 3))}, "1 requested classes and 2"),
    ]:
        with pytest.raises(UsageError, match=says):
            classifier_precision(**arguments)
