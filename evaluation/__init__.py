"""Evaluation: numbers about fidelity, diversity, adherence and colour, with intervals and null values.

Three layers: pure functions of features and pictures (`metrics/`), `score` over sources of pictures, and thin
torchmetrics adapters. Only the adapters import torchmetrics; everything here is loaded on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .collect import Collected
    from .features import FEATURES, Extractor, open_features
    from .judges import Judge
    from .metrics.adherence import Adherence, adherence
    from .metrics.colour import Colour, colour_statistics, compare_colour, wasserstein
    from .metrics.frechet import frechet_distance, frechet_from_features, frechet_from_moments
    from .metrics.intervals import mean_interval, paired_difference, unpaired_difference, wilson
    from .metrics.moments import Moments
    from .metrics.prdc import PRDC, expected_coverage, prdc, radii
    from .metrics.registry import METRICS, MetricSpec
    from .pairing import compare_adherence
    from .picture import Picture
    from .results import Report, Result
    from .scoring import reference, score
    from .sources import ImageSource, open_source
    from .torch_metrics import (
        ContrastMetric,
        FrechetDistanceMetric,
        PRDCMetric,
        SaturationMetric,
    )

_WHERE = {
    "Collected": "collect",
    "FEATURES": "features",
    "Extractor": "features",
    "open_features": "features",
    "Judge": "judges",
    "Adherence": "metrics.adherence",
    "adherence": "metrics.adherence",
    "Colour": "metrics.colour",
    "colour_statistics": "metrics.colour",
    "compare_colour": "metrics.colour",
    "wasserstein": "metrics.colour",
    "frechet_distance": "metrics.frechet",
    "frechet_from_features": "metrics.frechet",
    "frechet_from_moments": "metrics.frechet",
    "mean_interval": "metrics.intervals",
    "paired_difference": "metrics.intervals",
    "unpaired_difference": "metrics.intervals",
    "wilson": "metrics.intervals",
    "Moments": "metrics.moments",
    "PRDC": "metrics.prdc",
    "expected_coverage": "metrics.prdc",
    "prdc": "metrics.prdc",
    "radii": "metrics.prdc",
    "METRICS": "metrics.registry",
    "MetricSpec": "metrics.registry",
    "compare_adherence": "pairing",
    "Picture": "picture",
    "Report": "results",
    "Result": "results",
    "reference": "scoring",
    "score": "scoring",
    "ImageSource": "sources",
    "open_source": "sources",
    "ContrastMetric": "torch_metrics",
    "FrechetDistanceMetric": "torch_metrics",
    "PRDCMetric": "torch_metrics",
    "SaturationMetric": "torch_metrics",
}
__all__ = sorted(_WHERE)


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(importlib.import_module(f".{_WHERE[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
