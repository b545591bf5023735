"""Frechet distances, from rows where there are any and else from moments."""

from __future__ import annotations

from ...errors import UsageError
from ..metrics.frechet import Frechet, frechet_distance, frechet_from_features, frechet_from_moments
from ..metrics.frechet_infinity import frechet_infinity
from ..results import Result
from .evidence import NO_INTERVAL, SEED, Evidence


def frechet(evidence: Evidence, name: str, allow_small: bool = True) -> list[Result]:
    """The distance, and that of halves of the real set brought to these sizes by the 1/N law of the bias."""
    real = evidence.seen("real")
    count = min(real.moments.n if real.known else len(evidence.reference), len(evidence.generated))
    if not allow_small and count <= real.width:
        raise UsageError(
            f"{name} of {count} pictures is no {name}: their covariance is singular; give more than {real.width}, or "
            f"write {name}:allow_small=true"
        )
    found = _distance(evidence)
    null, kind = None, evidence.halves_kind
    if evidence.halves is not None:
        half, width = evidence.halves[0].shape
        null = frechet_distance(real=evidence.halves[0], generated=evidence.halves[1])
        if min(half, len(evidence.generated)) > 2 * width:  # below, covariances are singular and the law fails
            null *= (1 / len(evidence.reference) + 1 / len(evidence.generated)) / (2 / half)
            kind += ", times (1/N + 1/M) / (2/half)"
    details = {
        "mean_term": found.mean_term,
        "covariance_term": found.covariance_term,
        "route": found.route,
        "rank_real": found.rank_real,
        "rank_generated": found.rank_generated,
        "numerical_floor": found.numerical_floor,
    }
    protocol = f"{evidence.seen('generated').distance}, N-1 covariances, float64"
    return [
        evidence.result(
            name,
            found.value,
            interval_kind=NO_INTERVAL,
            null=null,
            null_kind=kind,
            protocol=protocol,
            details=details,
        )
    ]


def fid(evidence: Evidence, name: str, allow_small: bool = False) -> list[Result]:
    """The same under the name that needs as many pictures as features."""
    return frechet(evidence, name, allow_small)


def infinity(evidence: Evidence, name: str, sides: str = "both", points: int = 15) -> list[Result]:
    """The limit of many pictures; its interval is that of the line, not of other pictures."""
    real, generated = evidence.features
    found = frechet_infinity(real=real, generated=generated, sides=sides, points=points, seed=SEED)  # type: ignore[arg-type]
    half = 1.96 * found.standard_error
    details = {"slope": found.slope, "residual_error": found.residual_error, "rows": list(found.rows_generated)}
    protocol = f"{evidence.seen('generated').distance}, {points} independent subsets of {found.sides}, line in 1/N"
    return [
        evidence.result(
            name,
            found.value,
            interval=(found.value - half, found.value + half),
            interval_kind="normal 95 % of the intercept: how well the line fits, not how other pictures would do",
            null=0.0,
            null_kind="expected of equal distributions",
            protocol=protocol,
            details=details,
            cautions=found.notes,
        )
    ]


def _distance(evidence: Evidence) -> Frechet:
    real, generated = evidence.seen("real"), evidence.seen("generated")
    if real.has_rows and generated.has_rows:
        x, y = evidence.features
        return frechet_from_features(real=x, generated=y)
    return frechet_from_moments(real=real.moments, generated=generated.moments)
