"""Which metric sees what, from the lines that `benchmarks/metric_sensitivity.py` measured.

    z = (value - mean of the null sets) / deviation of the null sets

The null sets are real pictures in the place of generated ones: what moves a metric less than they do is not seen.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

NULLS = 16  # sets of real pictures
SHARES = ("precision", "recall", "coverage", "realism", "adherence", "classifier-precision")  # of pictures
SEEN, PLAIN = 4.0, 16.0  # null deviations from which a condition is seen, and seen plainly
RESULTS = Path(__file__).resolve().parent.parent / "docs" / "results" / "metric-sensitivity.jsonl"


def read(path: Path = RESULTS) -> list[dict[str, Any]]:
    """The lines of the file, oldest first; none where there is no file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


@dataclass(frozen=True)
class Sensitivity:
    """values: metric -> condition -> value, the null sets ("null 0", ...) among the conditions.

    kinds: metric -> (kind of its null value, kind of its interval), as a report says them.
    """

    values: Mapping[str, Mapping[str, float]]
    kinds: Mapping[str, tuple[str, str]]
    count: int
    weights: str

    @classmethod
    def of(cls, lines: Iterable[Mapping[str, Any]], count: int) -> Sensitivity:
        """Of the lines with this number of pictures and the weights of the last of them; a later line wins."""
        fitting = [line for line in lines if line["count"] == count]
        weights = fitting[-1]["weights"] if fitting else ""
        values: dict[str, dict[str, float]] = {}
        kinds: dict[str, tuple[str, str]] = {}
        for line in fitting:
            if line["weights"] != weights:
                continue
            kinds |= {metric: (null, interval) for metric, (null, interval) in line["kinds"].items()}
            for metric, value in line["values"].items():
                values.setdefault(metric, {})[line["condition"]] = value
        return cls(values, kinds, count, weights)

    def null(self, metric: str) -> tuple[float, float]:
        """Mean and deviation (of a sample) over the null sets; that of a share is no less than one picture."""
        found = [value for condition, value in self.values[metric].items() if condition.startswith("null ")]
        least = 1 / self.count if metric.split(":")[0] in SHARES else 0.0
        return float(np.mean(found)), max(float(np.std(found, ddof=1)), least)

    def z(self, metric: str, condition: str) -> float:
        """Null deviations from the null mean."""
        mean, deviation = self.null(metric)
        away = self.values[metric][condition] - mean
        return away / deviation if deviation else math.copysign(math.inf, away) if away else 0.0

    def sees(self, metric: str, condition: str) -> bool:
        """Is it moved by more than the null sets move it?"""
        return abs(self.z(metric, condition)) > SEEN

    def mark(self, metric: str, condition: str, higher_is_better: bool | None) -> str:
        """ "" unseen; + seen and ++ plainly, as worse; - and -- as better than real; arrows where neither is meant."""
        z = self.z(metric, condition)
        if not abs(z) > SEEN:
            return ""
        sign = ("↑" if z > 0 else "↓") if higher_is_better is None else "−" if (z > 0) == higher_is_better else "+"
        return sign * (2 if abs(z) > PLAIN else 1)
