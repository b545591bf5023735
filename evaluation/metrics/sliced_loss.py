"""The sliced energy distance as a loss, and its gradient in closed form.

In one dimension, x_1..x_N and y_1..y_M, with F the distribution functions (half a step up at a point):

    E = 2 integral (F_x - F_y)^2        dE/dx_i = (4/N) (F_y(x_i) - F_x(x_i))

so both are a matter of sorting. Hertrich et al. 2023, 2305.11463.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...errors import UsageError
from .sliced_energy import directions, slice_constant


def energy_1d(x: Tensor, y: Tensor, *, unbiased: bool = False) -> Tensor:
    """Energy distance (P,) of numbers x (P, N) and y (P, M), row by row; differentiable in both.

    unbiased: without the pairs of a point with itself, N and M >= 2.
    """
    n, m = x.shape[1], y.shape[1]
    z, order = torch.cat([x, y], dim=1).sort(dim=1)
    gaps = z.diff(dim=1)
    of_x = (order < n).cumsum(1)[:, :-1]  # whole numbers, so nothing is rounded
    of_y = torch.arange(1, n + m, device=z.device) - of_x
    f_x, f_y = of_x.to(z.dtype) / n, of_y.to(z.dtype) / m
    weights = 2 * ((of_x * m - of_y * n).to(z.dtype) / (n * m)).square()
    if unbiased:  # E|x - x'| = 2 integral F (1 - F)
        weights = weights - 2 * f_x * (1 - f_x) / (n - 1) - 2 * f_y * (1 - f_y) / (m - 1)
    return (weights * gaps).sum(1)


def energy_1d_gradient(x: Tensor, y: Tensor) -> Tensor:
    """dE/dx (P, N) of `energy_1d(x, y)`, from ranks, in O((N + M) log(N + M)); equal points do not push one another."""
    z, order = x.sort(dim=1)
    own = _rank(z, z)
    other = _rank(y.sort(dim=1).values, z)
    gradient = (2 / x.shape[1]) * (other / y.shape[1] - own / x.shape[1])
    return torch.empty_like(gradient).scatter_(1, order, gradient)


def _rank(among: Tensor, z: Tensor) -> Tensor:
    """2 F(z) times the number of points: how many of the sorted points lie below z and how many up to it."""
    below = torch.searchsorted(among, z)
    return (below + torch.searchsorted(among, z, right=True)).to(z.dtype)


def sliced_energy_loss(
    x: Tensor, y: Tensor, slices: int = 256, generator: torch.Generator | None = None, *, unbiased: bool = False
) -> Tensor:
    """Energy distance of rows x (N, D) and y (M, D) over `slices` new directions, a differentiable number.

    generator: draws the directions, on the CPU; without one they are those of seed 0, the same at every call.
    """
    u, scale = _drawn(x, y, slices, generator)
    return scale * energy_1d(u @ x.T, u @ y.T, unbiased=unbiased).mean()


def sliced_energy_gradient(x: Tensor, y: Tensor, slices: int = 256, generator: torch.Generator | None = None) -> Tensor:
    """Gradient (N, D) of `sliced_energy_loss(x, y)` in x, from ranks and without a graph; same directions."""
    with torch.no_grad():
        u, scale = _drawn(x, y, slices, generator)
        return (energy_1d_gradient(u @ x.T, u @ y.T).T @ u) * (scale / slices)


def _drawn(x: Tensor, y: Tensor, slices: int, generator: torch.Generator | None) -> tuple[Tensor, float]:
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise UsageError(f"the loss needs rows (N, D) and (M, D), got {tuple(x.shape)} and {tuple(y.shape)}; flatten")
    if slices < 1:
        raise UsageError(f"slices={slices} are none; use 1 or more, for example 256")
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    u = directions(x.shape[1], slices, generator).to(x.device, x.dtype)
    return u, 1 / slice_constant(x.shape[1])
