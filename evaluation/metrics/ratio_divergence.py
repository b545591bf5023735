"""Divergences from the ratio of neighbours: who are the k nearest of a generated point, real points or generated ones?

Noshad, Moon, Sekeh & Hero 2017, 1702.05222. With X real (N points), Y generated (M points), eta = M / N, and of the k
nearest other points of Y_i N_i real and M_i = k - N_i generated,

    D_g(real || generated) ~ max((1/M) sum_i g(eta N_i / (M_i + 1)), 0)

    kl: g = t log t    tv: g = |t - 1| / 2    hellinger: g = (sqrt t - 1)^2
    renyi: log((1/M) sum_i (eta N_i / (M_i + 1))^alpha) / (alpha - 1)

The bias falls slowly with N and is not zero between equal distributions: a relative number, to be read beside its null.
The ratios do not average to 1, which t log t feels most: kl is the noisiest of the four, and falls back to 0 where no
real neighbour is left. So tv is the default.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...errors import UsageError
from ..arrays import as_features, full_precision, mean_of_rows, same_width
from .moments import Moments

KINDS = ("kl", "tv", "hellinger", "renyi")
_ENTRIES = 2**22  # of a block of distances


@dataclass(frozen=True)
class RatioDivergence:
    """A divergence of real from generated features, and what halves of the real set give at the same sizes.

    value: mean over the two halves, each against `n` generated rows. null: mean over both orders of the halves.
    """

    value: float
    null: float
    kind: str
    alpha: float | None
    k: int
    dimension: int  # after PCA
    kept_variance: float  # share of the real variance within it
    n: int  # rows on each side of each estimate
    n_real: int
    n_generated: int
    seed: int

    @property
    def excess(self) -> float:
        """value - null: what is beyond chance and bias; about 0 for equal distributions."""
        return self.value - self.null


def ratio_divergence(
    *,
    real: Any,
    generated: Any,
    kind: str = "tv",
    k: int | None = None,
    pca: int = 16,
    alpha: float = 0.5,
    seed: int = 0,
) -> RatioDivergence:
    """Divergence of real (N, D) from generated (M, D), with its null value from a split of the real set.

    kind: "kl", "tv" (0..1), "hellinger" (squared, 0..2) or "renyi" of order alpha > 0 (not 1); nats. k: neighbours,
    sqrt of the rows without one. pca: principal components of the real set that are kept; more than 16 bias it badly.
    seed: of the split and the draw. Every estimate has n = min(N // 2, M) rows on each side, so biases compare.
    """
    x, y = as_features(real, "real", 8), as_features(generated, "generated", 4)
    same_width(x, y)
    if pca < 1:
        raise UsageError(f"pca={pca} leaves no dimension; use pca=16 or less")
    with full_precision(x.device):
        axes, kept = principal_axes(x, pca)
        x, y = (_projected(rows.to(x.device), mean_of_rows(x), axes) for rows in (x, y))
    n = min(len(x) // 2, len(y))
    k = max(1, round(math.sqrt(n))) if k is None else k
    rng = np.random.default_rng(seed)
    order = torch.from_numpy(rng.permutation(len(x))).to(x.device)
    a, b = x[order[:n]], x[order[n : 2 * n]]
    g = y[torch.from_numpy(rng.permutation(len(y))[:n]).to(x.device)]

    def mean_of(pairs: tuple[tuple[Tensor, Tensor], ...]) -> float:
        found = [ratio_estimate(real=p, generated=q, kind=kind, k=k, alpha=alpha) for p, q in pairs]
        return sum(found) / len(found)

    return RatioDivergence(
        value=mean_of(((a, g), (b, g))),
        null=mean_of(((a, b), (b, a))),
        kind=kind,
        alpha=alpha if kind == "renyi" else None,
        k=k,
        dimension=x.shape[1],
        kept_variance=kept,
        n=n,
        n_real=len(x),
        n_generated=len(y),
        seed=seed,
    )


def ratio_estimate(*, real: Any, generated: Any, kind: str = "kl", k: int | None = None, alpha: float = 0.5) -> float:
    """The bare estimate of D(real || generated) from features as they are, (N, D) and (M, D): no PCA, no null.

    Costs 3 M (N + M) D in float64; distances are differences, so that copies lie at distance zero.
    """
    x, y = as_features(real, "real", 1), as_features(generated, "generated", 2)
    same_width(x, y)
    k = max(1, round(math.sqrt(len(x)))) if k is None else k
    _check(kind, k, len(x) + len(y) - 1, alpha)
    of_real = real_neighbours(real=x, generated=y, k=k)
    ratio = (len(y) / len(x)) * of_real / (k - of_real + 1)
    if kind == "renyi":
        mean = float(ratio.pow(alpha).mean())
        return max(math.log(mean) / (alpha - 1), 0.0) if mean else math.inf
    return max(float(_convex(kind, ratio).mean()), 0.0)


def real_neighbours(*, real: Tensor, generated: Tensor, k: int) -> Tensor:
    """float64 (M,): how many of each generated row's k nearest other rows are real.

    Rows at the distance of the k-th share the places that are left, so that ties favour nobody.
    """
    with full_precision(real.device):
        x, y = real.double(), generated.to(real.device).double()
        counts, size = [], max(1, _ENTRIES // (len(x) + len(y)))
        for first in range(0, len(y), size):
            part = y[first : first + size]
            distances = _distances(part, torch.cat([x, y]))
            own = torch.arange(len(part), device=x.device)
            distances[own, len(x) + first + own] = math.inf
            limit = distances.topk(k, dim=1, largest=False).values[:, -1:]
            nearer, tied = distances < limit, distances == limit
            places = k - nearer.sum(1)
            counts.append(nearer[:, : len(x)].sum(1) + places * tied[:, : len(x)].sum(1).double() / tied.sum(1))
        return torch.cat(counts)


def principal_axes(rows: Tensor, count: int) -> tuple[Tensor, float]:
    """The widest directions of rows (N, D), float64 (D, at most count), and the share of the variance along them."""
    variances, axes = torch.linalg.eigh(Moments.of(rows).covariance)  # ascending
    share = float(variances[-count:].sum() / variances.sum()) if float(variances.sum()) > 0 else 1.0
    return axes[:, -count:].flip(1), share


def _projected(rows: Tensor, centre: Tensor, axes: Tensor) -> Tensor:
    return torch.cat([(part.double() - centre) @ axes for part in rows.split(1024)])


def _distances(a: Tensor, b: Tensor) -> Tensor:
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")


def _convex(kind: str, ratio: Tensor) -> Tensor:
    if kind == "kl":
        return torch.special.xlogy(ratio, ratio)
    return (ratio - 1).abs() / 2 if kind == "tv" else (ratio.sqrt() - 1).square()


def _check(kind: str, k: int, others: int, alpha: float) -> None:
    if kind not in KINDS:
        raise UsageError(f"kind {kind!r} is none; use one of {', '.join(KINDS)}")
    if not 1 <= k <= others:
        raise UsageError(f"k={k} neighbours among {others} other rows; use 1 <= k <= {others}, about sqrt(N)")
    if kind == "renyi" and (alpha <= 0 or alpha == 1):
        raise UsageError(f"alpha={alpha} is no Renyi order here; use alpha=0.5, or kind='kl' for its limit at 1")
