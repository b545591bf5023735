"""Scores of run folders, from the evaluation package; what cannot be scored is said, not guessed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import UsageError
from .folder import Finished

if TYPE_CHECKING:
    from ..evaluation import Collected, Result

# What a page shows of the embedded model: what guidance trades against one another.
DEFAULT = ("adherence", "frechet", "density", "coverage", "saturation", "contrast")
WITHOUT_REAL = ("saturation", "contrast")
REAL = "embedded:test:1000"


@dataclass(frozen=True)
class Score:
    """One number. low, high: its 95 % interval, if any. real: that of real pictures. better: higher, lower or ""."""

    value: float
    low: float | None = None
    high: float | None = None
    real: float | None = None
    better: str = ""
    what: str = ""

    @property
    def text(self) -> str:
        return "–" if math.isnan(self.value) else f"{self.value:.3g}"

    def reaches(self, value: float) -> bool:
        """Is it that value, or does its interval hold it?"""
        return self.value == value or (
            self.low is not None and self.high is not None and self.low <= value <= self.high
        )

    @property
    def interval(self) -> str:
        return "" if self.low is None or self.high is None else f"{self.low:.2g} … {self.high:.2g}"

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "value": None if math.isnan(self.value) else self.value,
            "low": self.low,
            "high": self.high,
            "real": self.real,
        }


class Scorer:
    """Scores many runs against one reference, which is read once.

    metrics: None for those that suit the model, [] for none. real: None for the embedded world, for its model.
    """

    def __init__(self, model: str, metrics: Sequence[str] | None, features: str | None, real: str | None):
        self.named, self.features = metrics, features or "embedded"
        self.real = real or (REAL if model == "embedded" else None)
        self.metrics = tuple(metrics) if metrics is not None else DEFAULT if self.real else WITHOUT_REAL
        self.notes: list[str] = []
        self._check()
        self._reference: Collected | None = None

    def _check(self) -> None:
        """Unknown names are refused before any picture is made."""
        if not self.metrics:
            return
        from ..evaluation.metrics.registry import chosen

        needs = {need for metric in chosen(self.metrics) for need in metric.needs}
        if "real" in needs and self.real is None:
            raise UsageError("these metrics need real pictures to compare with; give real, such as a folder")

    def scores(self, run: Finished) -> dict[str, Score]:
        """The scores of a run folder by name."""
        if not self.metrics:
            return {}
        from ..evaluation import score

        report = score(
            generated=run.folder,
            real=self._real(),
            metrics=self.metrics if self.named is not None else None,  # of the default, what cannot be is left out
            features=self.features,
        )
        said = [f"no {name}: {reason}" for name, reason in report.skipped.items() if name in self.metrics]
        self.notes += [note for note in (*report.warnings, *said) if note not in self.notes]
        return {name: _score(report[name]) for name in self._names() if name in report}

    def _names(self) -> list[str]:
        from ..evaluation.metrics.registry import chosen

        return [metric.name for metric in chosen(self.metrics)]

    def _real(self) -> Collected | None:
        if self._reference is None and self.real is not None:
            from ..evaluation import reference

            judge = "embedded" if self.real.startswith("embedded") and "adherence" in self.metrics else None
            self._reference = reference(self.real, features=self.features, judge=judge)
        return self._reference


def _score(result: Result) -> Score:
    from ..evaluation import METRICS

    better = {True: "higher", False: "lower", None: ""}[result.higher_is_better]
    low, high = result.interval or (None, None)
    real = result.real if result.real is not None else result.null
    return Score(result.value, low, high, real, better, METRICS[result.name].summary if result.name in METRICS else "")
