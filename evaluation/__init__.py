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
    from .metrics.authenticity import authenticity
    from .metrics.classifier_precision import classifier_precision
    from .metrics.clip_score import ClipScore, clip_score
    from .metrics.cmmd import cmmd
    from .metrics.colour import Colour, colour_statistics, compare_colour, wasserstein
    from .metrics.copying_test import copying_test
    from .metrics.frechet import frechet_distance, frechet_from_features, frechet_from_moments
    from .metrics.frechet_infinity import frechet_infinity
    from .metrics.halves_test import disjoint_halves_report
    from .metrics.inception_score import inception_score
    from .metrics.intervals import mean_interval, paired_difference, unpaired_difference, wilson
    from .metrics.kernel_distance import kernel_distance
    from .metrics.memorisation_fid import memorisation_fid
    from .metrics.moments import Moments
    from .metrics.nearest import nearest
    from .metrics.prdc import PRDC, expected_coverage, prdc, radii
    from .metrics.ratio_divergence import ratio_divergence
    from .metrics.realism import realism
    from .metrics.registry import METRICS, MetricSpec
    from .metrics.riesz import energy_distance
    from .metrics.sid import sid
    from .metrics.sliced_energy import sliced_energy_distance
    from .metrics.strangers import strangers
    from .metrics.suspects import suspects
    from .metrics.vendi import vendi, vendi_by_class
    from .pairing import compare_adherence
    from .results import Report, Result
    from .scoring import reference, score
    from .sources import ImageSource, Picture, SamplerSource, open_source
    from .statistics import read_statistics, write_statistics
    from .store import FeatureStore
    from .torch_metrics import ContrastMetric, FrechetDistanceMetric, PRDCMetric, SaturationMetric, ScoreMetric

_NAMES = {
    "collect": ("Collected",),
    "features": ("FEATURES", "Extractor", "open_features"),
    "judges": ("Judge",),
    "metrics.adherence": ("Adherence", "adherence"),
    "metrics.authenticity": ("authenticity",),
    "metrics.classifier_precision": ("classifier_precision",),
    "metrics.clip_score": ("ClipScore", "clip_score"),
    "metrics.cmmd": ("cmmd",),
    "metrics.colour": ("Colour", "colour_statistics", "compare_colour", "wasserstein"),
    "metrics.copying_test": ("copying_test",),
    "metrics.frechet": ("frechet_distance", "frechet_from_features", "frechet_from_moments"),
    "metrics.frechet_infinity": ("frechet_infinity",),
    "metrics.halves_test": ("disjoint_halves_report",),
    "metrics.inception_score": ("inception_score",),
    "metrics.intervals": ("mean_interval", "paired_difference", "unpaired_difference", "wilson"),
    "metrics.kernel_distance": ("kernel_distance",),
    "metrics.memorisation_fid": ("memorisation_fid",),
    "metrics.moments": ("Moments",),
    "metrics.nearest": ("nearest",),
    "metrics.prdc": ("PRDC", "expected_coverage", "prdc", "radii"),
    "metrics.ratio_divergence": ("ratio_divergence",),
    "metrics.realism": ("realism",),
    "metrics.registry": ("METRICS", "MetricSpec"),
    "metrics.riesz": ("energy_distance",),
    "metrics.sid": ("sid",),
    "metrics.sliced_energy": ("sliced_energy_distance",),
    "metrics.strangers": ("strangers",),
    "metrics.suspects": ("suspects",),
    "metrics.vendi": ("vendi", "vendi_by_class"),
    "pairing": ("compare_adherence",),
    "results": ("Report", "Result"),
    "scoring": ("reference", "score"),
    "sources": ("ImageSource", "Picture", "SamplerSource", "open_source"),
    "statistics": ("read_statistics", "write_statistics"),
    "store": ("FeatureStore",),
    "torch_metrics": ("ContrastMetric", "FrechetDistanceMetric", "PRDCMetric", "SaturationMetric", "ScoreMetric"),
}
_WHERE = {name: module for module, names in _NAMES.items() for name in names}
__all__ = sorted(_WHERE)


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(importlib.import_module(f".{_WHERE[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
