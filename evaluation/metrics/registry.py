"""The metrics by the names of the command line. `cls` is the pure function, `measure` what a report makes of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ...registry import Spec, lookup


@dataclass(frozen=True)
class MetricSpec(Spec):
    """A metric. needs: "real", "features" and "captions" are what it cannot do without.

    higher_is_better: None where nearness to the value of real pictures is what counts. measure: a lazy "module:name" of
    a function from `measures.Evidence` to results; without it `cls(real=features, generated=features) -> float` is
    called, and its null value comes from halves of the real set.
    """

    higher_is_better: bool | None = None
    measure: Any = None

    def load_measure(self) -> Any:
        """The measuring function, or None."""
        return Spec(self.measure, "").load() if self.measure else None


_BALLS = "evaluation.metrics.prdc:prdc"
_COLOUR = "evaluation.metrics.colour:colour_statistics"
_SETS = ("real", "features")

METRICS: dict[str, MetricSpec] = {
    "frechet": MetricSpec(
        "evaluation.metrics.frechet:frechet_distance",
        "Frechet distance of features taken as Gaussians",
        "Heusel et al. 2017, 1706.08500",
        "N D^2 + D^3",
        _SETS,
        higher_is_better=False,
        measure="evaluation.measures:frechet",
        notes="FID on Inception features only; here fd_<features>. Biased by about 1/N: never compare different N.",
    ),
    "precision": MetricSpec(
        _BALLS,
        "share of generated points near real ones",
        "Kynkaanniemi et al. 2019, 1904.06991",
        "2 N^2 D",
        _SETS,
        higher_is_better=True,
        measure="evaluation.measures:precision",
        notes="Falls with the number of features and depends on N: read it beside its null value.",
    ),
    "recall": MetricSpec(
        _BALLS,
        "share of real points near generated ones",
        "Kynkaanniemi et al. 2019, 1904.06991",
        "2 N^2 D",
        _SETS,
        higher_is_better=True,
        measure="evaluation.measures:recall",
    ),
    "density": MetricSpec(
        _BALLS,
        "real balls that hold a generated point, over k; 1 is right, more is over-concentration",
        "Naeem et al. 2020, 2002.09797",
        "1.5 N^2 D",
        _SETS,
        higher_is_better=True,
        measure="evaluation.measures:density",
        notes="Expected to be exactly 1 for equal distributions; not bounded by it.",
    ),
    "coverage": MetricSpec(
        _BALLS,
        "share of real points whose ball holds a generated one",
        "Naeem et al. 2020, 2002.09797",
        "1.5 N^2 D",
        _SETS,
        higher_is_better=True,
        measure="evaluation.measures:coverage",
        notes="The null value is exact for any N, M, k and dimension.",
    ),
    "adherence": MetricSpec(
        "evaluation.metrics.adherence:adherence",
        "share of pictures that show all that their caption states, and by attribute",
        "after Ghosh et al. 2023, 2310.11513",
        "one pass of a classifier",
        ("captions",),
        higher_is_better=True,
        measure="evaluation.measures:adherence",
        notes="The judge must not be the classifier that guided.",
    ),
    "saturation": MetricSpec(
        _COLOUR,
        "mean HSV saturation",
        "Sadat et al. 2024, 2410.02416",
        "one pass over the pixels",
        measure="evaluation.measures:saturation",
    ),
    "contrast": MetricSpec(
        _COLOUR,
        "mean deviation of the luma",
        "Sadat et al. 2024, 2410.02416",
        "one pass over the pixels",
        measure="evaluation.measures:contrast",
    ),
    "clipped": MetricSpec(
        _COLOUR,
        "share of pixels with a channel at 0 or 255",
        "",
        "one pass over the pixels",
        measure="evaluation.measures:clipped",
    ),
}

GROUPS = {
    "prdc": ("precision", "recall", "density", "coverage"),
    "colour": ("saturation", "contrast", "clipped"),
}


def needs_of(spec: Spec) -> tuple[str, ...]:
    """What a metric cannot do without. A mere function of features needs both sets."""
    return spec.needs if getattr(spec, "measure", None) else (*_SETS, *spec.needs)


def chosen(names: Iterable[str] | None) -> dict[str, Spec]:
    """The metrics of these names and groups, in order; all of ours without names. Unknown names are a UsageError."""
    if names is None:
        return dict(METRICS)
    single = [one for name in names for one in GROUPS.get(name, (name,))]
    return {name: lookup("metrics", METRICS, name, "metric") for name in single}
