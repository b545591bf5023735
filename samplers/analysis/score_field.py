"""The geometry of a score field: is it a gradient, and how many dimensions has the data here?

*Gauge freedom.* A score is a gradient, so its Jacobian is symmetric; a network's need not be. That alone breaks
nothing: a field r with div(p_t r) = 0 at every t, added to the score, leaves all marginals p_t and so samples and
likelihoods as they are, for it drops out of the continuity equation. Horvat & Pfister 2024, arXiv 2402.03845, show that
conservativity is neither necessary nor sufficient for exact densities and samples, but desirable where the field is
read for local information on the data. The one-line argument and the numbers in our tests are ours, not the paper's.

*Intrinsic dimension.* Near data on a k-dimensional surface, d denoised / du is nearly the projector on the tangent
space: an eigenvalue is v / (v + rho^2) for data of variance v in its direction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ...errors import UsageError
from ..denoiser import Denoiser
from ..noise import SeededNoise
from ..schedule import Level
from .flow import integrate
from .jacobian import jacobian_of, rademacher, rows_of


def asymmetry(
    denoiser: Denoiser,
    x: Tensor,
    level: Level,
    *,
    probes: int = 8,
    noise: SeededNoise | None = None,
    condition: Any = None,
) -> Tensor:
    """|J - J^T| / (2 |J|) in Frobenius norms for J = d denoised / dx at x (B, ...): (B,), 0 for a gradient, 1 for a
    rotation.

    By random probes v of +-1, |A|^2 = E |A v|^2, with J v by forward and J^T v by reverse mode; probes = 0 takes all
    unit vectors, which is exact. The Jacobian of the score is (alpha J - I) / sigma^2, so it is symmetric just where J
    is.
    """
    jacobian = jacobian_of(denoiser, x, level, condition=condition)
    apart, whole = torch.zeros_like(rows_of(x)[:, 0]), torch.zeros_like(rows_of(x)[:, 0])
    for v in rademacher(noise, probes, x) or jacobian.units():
        ahead, back = rows_of(jacobian.times(v)), rows_of(jacobian.transposed_times(v))
        apart = apart + (ahead - back).square().sum(1)
        whole = whole + (ahead.square().sum(1) + back.square().sum(1)) / 2
    return (apart / whole.clamp(min=torch.finfo(x.dtype).tiny)).sqrt() / 2


@dataclass(frozen=True, eq=False)
class LocalDimension:
    """Three readings of one spectrum.

    spectrum (B, d): singular values of d denoised / du, largest first. half (B,): how many exceed 1/2, that is in how
    many directions data vary more than rho. gap (B,): the place of the largest ratio of neighbours, at least 1, at most
    d - 1. trace (B,): tr d denoised / du, a soft count.
    """

    spectrum: Tensor
    half: Tensor
    gap: Tensor
    trace: Tensor


def local_dimension(denoiser: Denoiser, x: Tensor, level: Level, *, condition: Any = None) -> LocalDimension:
    """Of the data around x (B, ...), at a small noise: below the extent of the data, above their thickness and the
    network's resolution. d products with the Jacobian."""
    matrix = level.alpha * jacobian_of(denoiser, x, level, condition=condition).matrix()
    values = torch.linalg.svdvals(matrix)
    trace = matrix.diagonal(dim1=1, dim2=2).sum(1)
    return LocalDimension(values, (values > 0.5).sum(1), intrinsic_dimension(values), trace)


def intrinsic_dimension(spectrum: Tensor) -> Tensor:
    """Place (B,) of the largest drop between neighbours of a falling spectrum (B, d) of tangent directions."""
    if spectrum.shape[1] < 2:
        raise UsageError("a drop needs two singular values: the data must have two coordinates or more")
    logs = spectrum.clamp(min=torch.finfo(spectrum.dtype).eps * 16).log()
    return (logs[:, :-1] - logs[:, 1:]).argmax(1) + 1


def normal_dimension(spectrum: Tensor) -> Tensor:
    """Intrinsic dimension (B,) from the spectrum (B, d) of normal directions of `score_spectrum`: d minus the place
    of the largest difference of neighbours. (Ratios would be fooled: tangent values are small, but not equally so.)"""
    return spectrum.shape[1] - (spectrum[:, :-1] - spectrum[:, 1:]).argmax(1) - 1


def score_spectrum(
    denoiser: Denoiser, clean: Tensor, level: Level, noise: SeededNoise, *, copies: int = 0, condition: Any = None
) -> Tensor:
    """Singular values (B, d), over sqrt(copies), of the noises predicted at noisy copies of clean pictures (B, ...).

    At a small noise predictions point along the normal space of the data, so as many values are near 1 as it has
    dimensions, and the others near 0 (Stanczuk et al. 2022, arXiv 2212.12611). No derivative is needed. copies: 4 d if
    0.
    """
    copies = copies or 4 * clean[0].numel()
    rows = []
    for k in range(copies):
        x = level.alpha * clean + level.sigma * noise.draw("score spectrum", k, clean)
        rows.append(rows_of(denoiser(x, level, condition).noise))
    return torch.linalg.svdvals(torch.stack(rows, dim=1)) / copies**0.5


def flow_spectrum(
    denoiser: Denoiser, x: Tensor, levels: Sequence[Level], *, condition: Any = None, method: str = "rk4"
) -> Tensor:
    """Singular values (L, B, d) of d u / d u_T along the flow from x (B, ...) at the noisiest of L levels, u = x /
    alpha.

    Towards the data those along its surface saturate and the others fall to 0, which is how Horvat & Pfister 2024,
    arXiv 2402.03845, Fig. 2, read the intrinsic dimension; the scaling by alpha is ours. d products a stage; finite lam
    only.
    """
    d = x[0].numel()
    ones = torch.eye(d, dtype=x.dtype, device=x.device)
    columns = [row.expand(len(x), d).reshape(x.shape) for row in ones]

    def slope(level: Level, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        u, *tangents = state
        jacobian = jacobian_of(denoiser, level.alpha * u, level, condition=condition)
        pairs = [jacobian.value_and_times(v) for v in tangents]
        return pairs[0][0] - u, *(level.alpha * product - v for (_, product), v in zip(pairs, tangents))

    state: tuple[Tensor, ...] = (x / levels[0].alpha, *columns)
    spectra = [torch.ones_like(rows_of(x))]
    for step in pairwise(levels):
        state = integrate(slope, state, step, denoiser.schedule, method)
        spectra.append(torch.linalg.svdvals(torch.stack([rows_of(v) for v in state[1:]], dim=2)))
    return torch.stack(spectra)
