"""From two collected sets to results: each metric with its interval, its null value and how it was made."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import UsageError
from ..registry import Spec
from .collect import Collected
from .metrics.adherence import ALL, Adherence
from .metrics.adherence import adherence as adherence_of
from .metrics.colour import compare_colour
from .metrics.frechet import frechet_distance, frechet_from_features
from .metrics.intervals import mean_interval, wilson
from .metrics.prdc import PRDC, prdc
from .results import Result

NullOf = Callable[["Evidence", str], tuple[float | None, str]]
SEED = 0  # of the split into halves
_BALL_KIND = "Wilson 95 %, conditional: {} points vary, the other set and all radii fixed"
_NO_INTERVAL = "none: repeat the generation with other seeds"


@dataclass
class Evidence:
    """Two sets, and what several metrics share. Each of these is computed once, when it is first wanted."""

    generated: Collected
    real: Collected | None
    k: int
    device: torch.device
    with_recall: bool = True
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def reference(self) -> Collected:
        if self.real is None:
            raise UsageError("this metric compares with real pictures; give real=, for example embedded:test:2000")
        return self.real

    @cached_property
    def features(self) -> tuple[Tensor, Tensor]:
        """(real, generated), float32 (N, D) and (M, D) on the device."""
        return tuple(c.needed_features().to(self.device) for c in (self.reference, self.generated))  # type: ignore

    @cached_property
    def halves(self) -> tuple[Tensor, Tensor] | None:
        """Two disjoint halves of the real features, or None when they would be too small to say anything."""
        real = self.features[0]
        half = len(real) // 2
        if half < 2 * (self.k + 1):
            return None
        order = torch.from_numpy(np.random.default_rng(SEED).permutation(len(real))).to(real.device)
        return real[order[:half]], real[order[half : 2 * half]]

    @cached_property
    def balls(self) -> PRDC:
        real, generated = self.features
        radii = self.reference.radii(self.k, self.device)
        return prdc(real=real, generated=generated, k=self.k, real_radii=radii, recall=self.with_recall)

    @cached_property
    def balls_of_halves(self) -> PRDC | None:
        if self.halves is None:
            return None
        return prdc(real=self.halves[0], generated=self.halves[1], k=self.k, recall=self.with_recall)

    @property
    def halves_kind(self) -> str:
        return f"halves of the real set, {len(self.halves[0])} each" if self.halves else ""

    def space(self) -> str:
        """The name of the feature space."""
        extractor = self.generated.extractor
        return extractor.name if extractor else ""

    def result(self, name: str, value: float, **rest: Any) -> Result:
        """A result with the sizes and the provenance of this evidence."""
        n_real = len(self.real) if self.real else 0
        return Result(
            name, value, n_real=n_real, n_generated=len(self.generated), provenance=dict(self.provenance), **rest
        )


def frechet(evidence: Evidence) -> list[Result]:
    """The distance, and that of halves of the real set brought to these sizes by the 1/N law of the bias."""
    real, generated = evidence.features
    found = frechet_from_features(real=real, generated=generated)
    null, kind = None, evidence.halves_kind
    if evidence.halves is not None:
        half, width = evidence.halves[0].shape
        null = frechet_distance(real=evidence.halves[0], generated=evidence.halves[1])
        if min(half, len(generated)) > 2 * width:  # below, covariances are singular and the law fails
            null *= (1 / len(real) + 1 / len(generated)) / (2 / half)
            kind += ", times (1/N + 1/M) / (2/half)"
    details = {
        "mean_term": found.mean_term,
        "covariance_term": found.covariance_term,
        "route": found.route,
        "rank_real": found.rank_real,
        "rank_generated": found.rank_generated,
        "numerical_floor": found.numerical_floor,
    }
    protocol = f"fd_{evidence.space()}, N-1 covariances, float64"
    return [
        evidence.result(
            "frechet",
            found.value,
            interval_kind=_NO_INTERVAL,
            null=null,
            null_kind=kind,
            higher_is_better=False,
            protocol=protocol,
            details=details,
        )
    ]


def precision(evidence: Evidence) -> list[Result]:
    """Over generated points."""
    hits = evidence.balls.balls > 0
    return [_ball_result(evidence, "precision", evidence.balls.precision, hits, "generated", _of_halves)]


def recall(evidence: Evidence) -> list[Result]:
    """Over real points."""
    found = evidence.balls
    return [_ball_result(evidence, "recall", found.recall, found.recalled, "real", _of_halves)]


def coverage(evidence: Evidence) -> list[Result]:
    """Over real points."""
    found = evidence.balls
    return [_ball_result(evidence, "coverage", found.coverage, found.covered, "real", _by_formula)]


def density(evidence: Evidence) -> list[Result]:
    """Over generated points; a mean of counts, so its interval is a normal one."""
    found = evidence.balls
    interval = mean_interval(found.balls.double().cpu().numpy() / found.k)
    return [
        evidence.result(
            "density",
            found.density,
            interval=interval,
            interval_kind="normal 95 %, conditional: generated points vary, the real set and its radii fixed",
            null=found.expected_density,
            null_kind="exact",
            higher_is_better=True,
            protocol=_ball_protocol(evidence),
        )
    ]


def _ball_result(evidence: Evidence, name: str, value: float, hits: Tensor, over: str, null_of: NullOf) -> Result:
    null, null_kind = null_of(evidence, name)
    return evidence.result(
        name,
        value,
        interval=wilson(int(hits.sum()), len(hits)),
        interval_kind=_BALL_KIND.format(over),
        null=null,
        null_kind=null_kind,
        higher_is_better=True,
        protocol=_ball_protocol(evidence),
    )


def _of_halves(evidence: Evidence, name: str) -> tuple[float | None, str]:
    halves = evidence.balls_of_halves
    return (getattr(halves, name), evidence.halves_kind) if halves else (None, "")


def _by_formula(evidence: Evidence, name: str) -> tuple[float | None, str]:
    return getattr(evidence.balls, f"expected_{name}"), "exact"


def _ball_protocol(evidence: Evidence) -> str:
    return f"prdc_{evidence.space()}, k={evidence.k}, strict <, exact"


def adherence(evidence: Evidence) -> list[Result]:
    """Of whole captions, then of each attribute stated somewhere. `real` is the ceiling: the judge on real pictures."""
    found, ceiling = _judged(evidence.generated), _judged(evidence.real) if evidence.real else None
    if found is None:
        raise UsageError(f"adherence cannot be judged: {evidence.generated.unjudged}")
    judge = evidence.generated.judgement.judge  # type: ignore[union-attr]
    results = []
    for name, rate in sorted(found.rates.items(), key=lambda item: item[0] != ALL):
        if not rate.stated and name != ALL:
            continue
        best = ceiling.rates.get(name) if ceiling else None
        results.append(
            evidence.result(
                "adherence" if name == ALL else f"adherence/{name}",
                rate.value,
                interval=(rate.low, rate.high),
                interval_kind="Wilson 95 %, over captions that state it",
                real=best.value if best and best.stated else None,
                higher_is_better=True,
                protocol=f"judge {judge.name}",
                details={"right": rate.right, "stated": rate.stated},
            )
        )
    return results


def _judged(collected: Collected) -> Adherence | None:
    judgement = collected.judgement
    return adherence_of(predicted=judgement.seen, stated=judgement.stated) if judgement else None


def saturation(evidence: Evidence) -> list[Result]:
    """HSV S; the weighted one is in the details."""
    return [_colour(evidence, "saturation", ("weighted_saturation",))]


def contrast(evidence: Evidence) -> list[Result]:
    """RMS contrast."""
    return [_colour(evidence, "contrast")]


def clipped(evidence: Evidence) -> list[Result]:
    """Share of clipped pixels."""
    return [_colour(evidence, "clipped")]


def _colour(evidence: Evidence, name: str, also: tuple[str, ...] = ()) -> Result:
    values = getattr(evidence.generated.colour, name)
    details: dict[str, Any] = {other: float(getattr(evidence.generated.colour, other).mean()) for other in also}
    real = None
    if evidence.real:
        found = compare_colour(real=evidence.real.colour, generated=evidence.generated.colour)[name]
        real = found.real
        details |= {
            "difference": found.difference.mean,
            "difference_interval": found.difference[1:],
            "wasserstein": found.wasserstein,
        }
    return evidence.result(
        name,
        float(values.mean()),
        interval=mean_interval(values) if len(values) > 1 else None,
        interval_kind="normal 95 %, over pictures",
        real=real,
        protocol="sRGB-coded values in 0..1",
        details=details,
    )


def generic(name: str, spec: Spec) -> Callable[[Evidence], list[Result]]:
    """The measure of a metric that is only a function of features: its null value comes from halves of the real set."""
    function = spec.load()

    def measure(evidence: Evidence) -> list[Result]:
        real, generated = evidence.features
        null = None
        if evidence.halves is not None:
            null = float(function(real=evidence.halves[0], generated=evidence.halves[1]))
        return [
            evidence.result(
                name,
                float(function(real=real, generated=generated)),
                null=null,
                null_kind=evidence.halves_kind,
                higher_is_better=getattr(spec, "higher_is_better", None),
                protocol=f"{name}_{evidence.space()}",
            )
        ]

    return measure
