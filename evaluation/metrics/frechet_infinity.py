"""Frechet distance as the number of pictures grows without end, by a straight line in 1/N.

Of finite sets it is too large by about c / N, and c depends on the model (Chong & Forsyth 2020, 1911.07023); so a line
over 1/N is laid through the distances of subsets of growing size, and its intercept is the answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ...errors import UsageError
from ..arrays import as_features, same_width
from .frechet import frechet_from_features, frechet_from_moments
from .moments import Moments

_SIDES = ("both", "generated")


@dataclass(frozen=True)
class FrechetInfinity:
    """The intercept, the line, and the points that it was laid through. It may be slightly negative."""

    value: float
    slope: float  # of the distance over 1 / rows, rows the harmonic mean of both sizes where both vary
    standard_error: float  # of the intercept about the line alone; data sets vary up to twice as much
    residual_error: float  # sqrt(sum of squared residuals / (points - 2))
    distances: tuple[float, ...]  # the last one is of the whole sets
    rows_real: tuple[int, ...]
    rows_generated: tuple[int, ...]
    sides: str
    seed: int
    notes: tuple[str, ...] = ()


def frechet_infinity(
    *, real: Any, generated: Any, sides: Literal["both", "generated"] = "both", points: int = 15, seed: int = 0
) -> FrechetInfinity:
    """Frechet distance of features real (N, D) and generated (M, D) without its bias; lower is better, 0 for equal.

    sides: "both" takes subsets of the same share of either set, and removes the bias of either. "generated" keeps the
    real set whole, and with it its bias: only for a real set far larger than the generated one.
    points: sizes, equally spaced from the least to the whole, of which each is an independent draw without replacement
    (prefixes of one order would share their rows). The least is a tenth, or four rows a feature where that is more, yet
    no more than half: below three rows a feature the bias is no longer c / N, which a note then says.

    Costs about 0.75 points (N + M) D^2 + 2 points D^3 flops in float64, 70 s for N = M = 10,000, D = 2048 on one core.
    """
    x, y = as_features(real, "real", 20), as_features(generated, "generated", 20)
    same_width(x, y)
    if sides not in _SIDES:
        raise UsageError(f"sides={sides!r} is unknown; use 'both' or 'generated'")
    if points < 3:
        raise UsageError(f"{points} points make no line with an error; use points=15")
    y = y.to(x.device)
    varied = (x, y) if sides == "both" else (y,)
    least = min(len(rows) for rows in varied)
    shares = np.linspace(_least_share(least, x.shape[1]), 1, points)
    sizes = {"real": _sizes(x, shares if sides == "both" else np.ones(points)), "generated": _sizes(y, shares)}
    distances = _distances(x, y, sizes["real"], sizes["generated"], seed)
    rows = (sizes["real"], sizes["generated"]) if sides == "both" else (sizes["generated"],)
    inverse = np.mean([1 / np.asarray(counts) for counts in rows], axis=0)
    value, slope, error, residual = _line(inverse, np.asarray(distances))
    return FrechetInfinity(
        value=value,
        slope=slope,
        standard_error=error,
        residual_error=residual,
        distances=distances,
        rows_real=sizes["real"],
        rows_generated=sizes["generated"],
        sides=sides,
        seed=seed,
        notes=_notes(sides, round(shares[0] * least), x.shape[1]),
    )


def _least_share(rows: int, width: int) -> float:
    return max(0.1, min(0.5, 4 * width / rows))


def _sizes(rows: Tensor, shares: np.ndarray) -> tuple[int, ...]:
    return tuple(max(2, round(share * len(rows))) for share in shares)


def _distances(
    x: Tensor, y: Tensor, sizes_x: tuple[int, ...], sizes_y: tuple[int, ...], seed: int
) -> tuple[float, ...]:
    """Of a random subset of each pair of sizes; a set that is always whole has its moments taken once."""
    rng = np.random.default_rng(seed)

    def drawn(rows: Tensor, size: int) -> Tensor:
        chosen = rng.choice(len(rows), size, replace=False) if size < len(rows) else np.arange(size)
        return rows[torch.from_numpy(chosen).to(rows.device)]

    if min(*sizes_x, *sizes_y) <= x.shape[1]:  # through the rows, where a covariance would be singular
        pairs = ((drawn(x, n), drawn(y, m)) for n, m in zip(sizes_x, sizes_y, strict=True))
        return tuple(frechet_from_features(real=a, generated=b).value for a, b in pairs)
    whole = Moments.of(x) if min(sizes_x) == len(x) else None
    found = []
    for n, m in zip(sizes_x, sizes_y, strict=True):
        moments = whole or Moments.of(drawn(x, n)), Moments.of(drawn(y, m))
        found.append(frechet_from_moments(real=moments[0], generated=moments[1]).value)
    return tuple(found)


def _line(inverse: np.ndarray, distances: np.ndarray) -> tuple[float, float, float, float]:
    """Intercept, slope, standard error of the intercept, residual standard error: ordinary least squares."""
    count, centre = len(inverse), inverse.mean()
    spread = float(((inverse - centre) ** 2).sum())
    slope = float(((inverse - centre) * distances).sum()) / spread
    intercept = float(distances.mean() - slope * centre)
    residual = float(((distances - intercept - slope * inverse) ** 2).sum() / (count - 2)) ** 0.5
    return intercept, slope, residual * float(1 / count + centre**2 / spread) ** 0.5, residual


def _notes(sides: str, least: int, width: int) -> tuple[str, ...]:
    notes = []
    if least < 3 * width:
        notes.append(f"subsets of {least} rows for {width} features: the bias is not yet c / N, the intercept is off")
    if sides == "generated":
        notes.append("the bias of the real set is still in the value; give sides='both' to remove it")
    return tuple(notes)
