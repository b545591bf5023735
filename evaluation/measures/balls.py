"""Precision, recall, density and coverage: shares of points, with conditional intervals."""

from __future__ import annotations

from torch import Tensor

from ..metrics.clipped_balls import ClippedBalls
from ..metrics.intervals import mean_interval, wilson
from ..metrics.prdc import PRDC
from ..metrics.realism import realism as realism_of
from ..results import Result
from .evidence import NO_INTERVAL, Evidence

_Null = tuple[float | None, str]  # the value and how it was found
_KIND = "Wilson 95 %, conditional: {} points vary, the other set and all radii fixed"


def precision(evidence: Evidence, name: str, preset: str = "") -> list[Result]:
    """Over generated points. preset: of `prdc.SETTINGS`, as a paper has it; "" is k and strict."""
    found, halves = evidence.balls_as(preset)
    null = (halves.precision, evidence.halves_kind) if halves else (None, "")
    return [_share(evidence, name, found, found.precision, found.balls > 0, "generated", null)]


def recall(evidence: Evidence, name: str, preset: str = "") -> list[Result]:
    """Over real points. preset: as for precision."""
    found, halves = evidence.balls_as(preset)
    null = (halves.recall, evidence.halves_kind) if halves else (None, "")
    return [_share(evidence, name, found, found.recall, found.recalled, "real", null)]


def coverage(evidence: Evidence, name: str) -> list[Result]:
    """Over real points."""
    found = evidence.balls
    return [_share(evidence, name, found, found.coverage, found.covered, "real", (found.expected_coverage, "exact"))]


def density(evidence: Evidence, name: str) -> list[Result]:
    """Over generated points; a mean of counts, so its interval is a normal one."""
    found = evidence.balls
    interval = mean_interval(found.balls.double().cpu().numpy() / found.k)
    return [
        evidence.result(
            name,
            found.density,
            interval=interval,
            interval_kind="normal 95 %, conditional: generated points vary, the real set and its radii fixed",
            null=found.expected_density,
            null_kind="exact",
            protocol=_protocol(evidence, found),
        )
    ]


def _share(
    evidence: Evidence, name: str, found: PRDC, value: float, hits: Tensor, over: str, expected: _Null
) -> Result:
    null, null_kind = expected
    return evidence.result(
        name,
        value,
        interval=wilson(int(hits.sum()), len(hits)),
        interval_kind=_KIND.format(over),
        null=null,
        null_kind=null_kind,
        protocol=_protocol(evidence, found),
    )


def _protocol(evidence: Evidence, found: PRDC | ClippedBalls) -> str:
    inside = "<=" if getattr(found, "closed", False) else "strict <"
    return f"prdc_{evidence.seen('real').name}, k={found.k}, {inside}, exact"


def clipped_density(evidence: Evidence, name: str) -> list[Result]:
    """With the contribution of each generated point bounded."""
    found = evidence.clipped
    low, high = mean_interval(found.of_generated.cpu().numpy())
    half = (high - low) / 2 / found.raw_density_of_real
    return [_clipped(evidence, name, found.density, half, {"raw": found.raw_density}, "generated")]


def clipped_coverage(evidence: Evidence, name: str) -> list[Result]:
    """With the contribution of each real point bounded."""
    found = evidence.clipped
    details = {"raw": found.raw_coverage, "expected_raw": found.expected_raw_coverage}
    return [_clipped(evidence, name, found.coverage, None, details, "real")]


def _clipped(
    evidence: Evidence, name: str, value: float, half: float | None, details: dict[str, float], over: str
) -> Result:
    return evidence.result(
        name,
        value,
        interval=None if half is None else (value - half, value + half),
        interval_kind=NO_INTERVAL if half is None else f"normal 95 %, conditional: {over} points vary",
        null=1.0,
        null_kind="expected of equal distributions",
        protocol=f"{_protocol(evidence, evidence.clipped)}, clipped at k, our calibration",
        details=details,
    )


def realism(evidence: Evidence, name: str, k: int = 3) -> list[Result]:
    """The share of generated pictures with a realism of 1 or more, and quantiles of it."""
    real, generated = evidence.features
    found = realism_of(real=real, generated=generated, k=k, real_radii=evidence.seen("real").radii(k, evidence.device))
    deep = found >= 1
    quantiles = found.clamp(max=1e6).quantile(found.new_tensor([0.05, 0.5, 0.95])).tolist()

    def share(*, real: Tensor, generated: Tensor) -> float:
        return float((realism_of(real=real, generated=generated, k=k) >= 1).double().mean())

    return [
        evidence.result(
            name,
            float(deep.double().mean()),
            interval=wilson(int(deep.sum()), len(deep)),
            interval_kind=_KIND.format("generated"),
            protocol=f"share of realism >= 1, {evidence.seen('real').name}, k={k}, balls up to the median radius",
            details=dict(zip(("quantile_05", "median", "quantile_95"), quantiles, strict=True)),
            **evidence.null_of_halves(share),
        )
    ]
