"""Saturation, contrast and clipping beside their real values."""

from __future__ import annotations

from typing import Any

from ..metrics.colour import compare_colour
from ..metrics.intervals import mean_interval
from ..results import Result
from .evidence import Evidence

_ALSO = {"saturation": ("weighted_saturation",)}  # told in the details


def colour(evidence: Evidence, name: str) -> list[Result]:
    """The statistic of that name: its mean, and how far it lies from that of real pictures."""
    statistic = name.split(":")[0]
    values = getattr(evidence.generated.colour, statistic)
    others = {other: getattr(evidence.generated.colour, other) for other in _ALSO.get(statistic, ())}
    details: dict[str, Any] = {other: float(found.mean()) for other, found in others.items()}
    real = None
    if evidence.real and len(evidence.real.colour):
        found = compare_colour(real=evidence.real.colour, generated=evidence.generated.colour)[statistic]
        real = found.real
        details |= {
            "difference": found.difference.mean,
            "difference_interval": found.difference[1:],
            "wasserstein": found.wasserstein,
        }
    return [
        evidence.result(
            name,
            float(values.mean()),
            interval=mean_interval(values) if len(values) > 1 else None,
            interval_kind="normal 95 %, over pictures",
            real=real,
            protocol="sRGB-coded values in 0..1",
            details=details,
        )
    ]
