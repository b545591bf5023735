"""How sure a denoiser is: covariance, principal components and moments of the posterior of x_0 given x_t.

    Cov[x_0 | x_t] = (sigma^2 / alpha) d denoised / d x_t

which is symmetric and positive for an exact denoiser, and nearly so for a trained one. Principal components, moments
and marginals after Manor & Michaeli 2024, arXiv 2309.13598; here the derivatives are forward-mode, not finite
differences, so float32 suffices.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...errors import UsageError
from ..denoiser import Denoiser
from ..noise import SeededNoise
from ..schedule import Level
from .jacobian import differentiable_attention, jacobian_of, rows_of


@dataclass(frozen=True, eq=False)
class PrincipalComponents:
    """mean (B, ...): the denoised picture. directions (B, count, ...): unit vectors, the widest first. variances
    (B, count) along them. residuals (B, count): |C v - variance v| / largest variance, how far from an eigenvector."""

    mean: Tensor
    directions: Tensor
    variances: Tensor
    residuals: Tensor

    def moved(self, component: int, deviations: float) -> Tensor:
        """The mean, moved by so many standard deviations along a component: (B, ...)."""
        length = deviations * self.variances[:, component].clamp(min=0).sqrt()
        return self.mean + length.reshape(-1, *[1] * (self.mean.dim() - 1)) * self.directions[:, component]


@dataclass(frozen=True, eq=False)
class Moments:
    """Of the posterior along a unit direction v, each (B,): mean of v . x_0, and central moments two to four."""

    mean: Tensor
    variance: Tensor
    third: Tensor
    fourth: Tensor


def posterior_covariance(
    denoiser: Denoiser, x: Tensor, level: Level, *, condition: Any = None, derivative: str = "forward"
) -> Tensor:
    """Cov[x_0 | x_t = x], (B, d, d), for rows of few coordinates: d products with the Jacobian."""
    _check(level)
    jacobian = jacobian_of(denoiser, x, level, condition=condition, derivative=derivative)
    return level.sigma**2 / level.alpha * jacobian.matrix()


def principal_components(
    denoiser: Denoiser,
    x: Tensor,
    level: Level,
    noise: SeededNoise,
    *,
    count: int = 3,
    iterations: int = 50,
    condition: Any = None,
    mask: Tensor | None = None,
    derivative: str = "forward",
) -> PrincipalComponents:
    """The widest directions of the posterior by subspace iteration, V <- qr(J V), from seeded random starts.

    x: (B, ...). mask: of the shape of a row or of x, true where components may live; they are then those of the masked
    coordinates alone. iterations: rounds of `count` products; the last one serves the Rayleigh quotients, taken after a
    rotation inside the subspace (Ritz vectors), times sigma^2 / alpha.
    """
    _check(level)
    d = x[0].numel()
    if not 1 <= count <= d or iterations < 1:
        raise UsageError(f"count must lie in 1 .. {d} and iterations be at least 1, not {count} and {iterations}")
    allowed = torch.ones_like(rows_of(x)) if mask is None else rows_of(mask.to(x).expand_as(x))
    if bool((allowed.count_nonzero(1) < count).any()):
        raise UsageError(f"the mask leaves a row fewer than {count} coordinates; ask for fewer components")
    jacobian = jacobian_of(denoiser, x, level, condition=condition, derivative=derivative)

    def product(basis: Tensor) -> Tensor:
        """Masked J v of each column of basis (B, d, count)."""
        columns = [rows_of(jacobian.times(v.reshape(x.shape))) for v in basis.unbind(2)]
        return torch.stack(columns, dim=2) * allowed[:, :, None]

    starts = [rows_of(noise.draw("posterior", k, x)) * allowed for k in range(count)]
    basis = torch.linalg.qr(torch.stack(starts, dim=2))[0]
    for _ in range(iterations - 1):
        basis = torch.linalg.qr(product(basis).to(basis))[0]
    return _ritz(denoiser(x, level, condition).denoised, basis, product(basis), level.sigma**2 / level.alpha)


def _ritz(mean: Tensor, basis: Tensor, product: Tensor, scale: float) -> PrincipalComponents:
    """Rotate the basis (B, d, m) so that it diagonalises the symmetric part of V^T J V."""
    inner = basis.transpose(1, 2).to(product) @ product
    values, turn = torch.linalg.eigh((inner + inner.transpose(1, 2)) / 2)
    values, turn = values.flip(1), turn.flip(2)
    vectors, images = basis.to(product) @ turn, product @ turn
    off = (images - vectors * values[:, None, :]).norm(dim=1) / values[:, :1].abs()
    directions = vectors.transpose(1, 2).contiguous().reshape(mean.shape[0], -1, *mean.shape[1:])
    return PrincipalComponents(mean, directions, scale * values, off)


def moments_along(
    denoiser: Denoiser,
    x: Tensor,
    level: Level,
    direction: Tensor,
    *,
    condition: Any = None,
    derivative: str = "forward",
) -> Moments:
    """Moments of v . x_0 given x_t = x, from three derivatives of m(c) = v . denoised(x + c v) at c = 0.

    With s = sigma^2 / alpha: variance s m', third central moment s^2 m'', fourth s^3 m''' + 3 variance^2. direction:
    (B, ...), normalised here; zero outside a mask, if there is one. "finite" takes seven evaluations at steps of
    eps^(1/7) sigma.
    """
    _check(level)
    if derivative not in ("forward", "finite"):
        raise UsageError(f"derivative is 'forward' or 'finite', not {derivative!r}")
    x = x.contiguous()  # forward mode wants one memory layout for value and tangent
    v = (direction / rows_of(direction).norm(dim=1).reshape(-1, *[1] * (x.dim() - 1))).contiguous()

    def mean(c: Tensor) -> Tensor:
        moved = x + c.reshape(-1, *[1] * (x.dim() - 1)) * v
        return rows_of(v * denoiser(moved, level, condition).denoised).sum(1)

    step = torch.finfo(x.dtype).eps ** (1 / 7) * level.sigma
    zero = torch.zeros_like(rows_of(x)[:, 0])
    found = _forward(mean, zero) if derivative == "forward" else _finite(mean, zero, step)
    m, first, second, third = found
    s = level.sigma**2 / level.alpha
    return Moments(m, s * first, s**2 * second, s**3 * third + 3 * (s * first) ** 2)


def _forward(m: Callable[[Tensor], Tensor], c: Tensor) -> tuple[Tensor, ...]:
    """m and its first three derivatives, by forward mode in forward mode."""

    def derived(f: Callable[[Tensor], tuple[Tensor, ...]]) -> Callable[[Tensor], tuple[Tensor, ...]]:
        def both(at: Tensor) -> tuple[Tensor, ...]:
            found = torch.func.jvp(f, (at,), (torch.ones_like(at),))
            return (*found[0], found[1][-1])

        return both

    # Without gradients the networks' activations have no second derivative in forward mode.
    with differentiable_attention(), torch.enable_grad():
        found = derived(derived(derived(lambda at: (m(at),))))(c)
    return tuple(value.detach() for value in found)


def _finite(m: Callable[[Tensor], Tensor], c: Tensor, h: float) -> tuple[Tensor, ...]:
    """The same by the central stencils of seven points."""
    f = torch.stack([m(c + k * h) for k in range(-3, 4)], dim=1)
    first = f.new_tensor([-1.0, 9.0, -45.0, 0.0, 45.0, -9.0, 1.0]) / (60 * h)
    second = f.new_tensor([2.0, -27.0, 270.0, -490.0, 270.0, -27.0, 2.0]) / (180 * h**2)
    third = f.new_tensor([1.0, -8.0, 13.0, 0.0, -13.0, 8.0, -1.0]) / (8 * h**3)
    return f[:, 3], f @ first, f @ second, f @ third


def _check(level: Level) -> None:
    if level.alpha <= 0 or level.sigma <= 0:
        raise UsageError("the posterior at pure noise or clean data says nothing; take a level between")
