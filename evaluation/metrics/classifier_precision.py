"""What a classifier makes of pictures of requested classes: accuracy, and precision and recall averaged over classes.

Not the precision of neighbours (`prdc`). The classifier must not be the one that guided. Liang et al. 2024, 2411.15393
report "Precision" of generated pictures; that theirs is the macro average here is our reading.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...errors import UsageError
from ..arrays import as_features
from .intervals import wilson


@dataclass(frozen=True)
class ClassifierPrecision:
    """Shares in 0..1. A class that is never predicted has no precision, and one never requested no recall."""

    accuracy: float
    interval: tuple[float, float]  # of the accuracy: Wilson, 95 %
    macro_precision: float  # mean over predicted classes of TP / (TP + FP)
    macro_recall: float  # mean over requested classes of TP / (TP + FN)
    never_predicted: int  # requested classes that are excluded from the precision
    n: int
    precision_of: dict[Any, float] = field(repr=False, default_factory=dict)
    top5: float | None = None
    mean_log_probability: float | None = None  # of the requested class, nats
    calibration_error: float | None = None  # expected, 15 bins of the confidence


def classifier_precision(
    *, requested: Sequence[Any], predicted: Sequence[Any] | None = None, logits: Any = None
) -> ClassifierPrecision:
    """requested: N classes. predicted: N classes that the classifier sees, or logits (N, classes) of classes 0, 1, ...

    With logits also top-5 accuracy, log-probability and calibration. Errors: unequal lengths, neither or both.
    """
    if (predicted is None) == (logits is None):
        raise UsageError("classifier_precision wants either predicted= or logits=; give one of them")
    more: dict[str, float] = {}
    if logits is not None:
        rows = as_features(logits, "logits").double().cpu().numpy()
        more = _of_logits(rows, np.asarray(requested, int)) if len(rows) == len(requested) else {}
        predicted = rows.argmax(1).tolist()
    asked, seen = list(requested), list(predicted or ())
    if len(asked) != len(seen) or not asked:
        raise UsageError(f"{len(asked)} requested classes and {len(seen)} predictions; give one of each a picture")
    hits: dict[Any, int] = {}
    for wanted, found in zip(asked, seen, strict=True):
        hits[wanted] = hits.get(wanted, 0) + (wanted == found)
    precision = {name: hits.get(name, 0) / seen.count(name) for name in dict.fromkeys(seen)}
    recall = {name: count / asked.count(name) for name, count in hits.items()}
    right = sum(hits.values())
    return ClassifierPrecision(
        accuracy=right / len(asked),
        interval=wilson(right, len(asked)),
        macro_precision=float(np.mean([*precision.values()])),
        macro_recall=float(np.mean([*recall.values()])),
        never_predicted=len(set(asked) - set(seen)),
        n=len(asked),
        precision_of=precision,
        **more,
    )


def _of_logits(rows: np.ndarray, requested: np.ndarray, bins: int = 15) -> dict[str, float]:
    if requested.min() < 0 or requested.max() >= rows.shape[1]:
        raise UsageError(f"requested classes must lie in 0 .. {rows.shape[1] - 1}, the columns of the logits")
    logs = rows - rows.max(1, keepdims=True)
    logs -= np.log(np.exp(logs).sum(1, keepdims=True))
    own = logs[np.arange(len(rows)), requested]
    confidence, right = np.exp(logs.max(1)), rows.argmax(1) == requested
    bin_of = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = [abs(confidence[bin_of == b].mean() - right[bin_of == b].mean()) * (bin_of == b).mean() for b in set(bin_of)]
    best = np.argsort(-rows, axis=1, kind="stable")[:, :5]
    return {
        "top5": float((best == requested[:, None]).any(1).mean()),
        "mean_log_probability": float(own.mean()),
        "calibration_error": float(sum(gaps)),
    }
