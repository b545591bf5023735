"""The Jacobian of a denoiser's answer, as products: it is formed only where somebody asks for the whole matrix.

Forward mode costs about three evaluations a product and is right to rounding in any precision. Finite differences are
for networks without forward mode; they want float64, for the step has to be small (trap 17 of the sampler notes).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ...errors import UsageError
from ..denoiser import Denoiser
from ..noise import SeededNoise
from ..schedule import Level

Field = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Jacobian:
    """d field / dx at x, per row.

    field: (B, ...) -> (B, ...), each row by itself. step: None for forward mode, else the length of the displacement of
    central finite differences.
    """

    field: Field
    x: Tensor
    step: float | None = None

    def value_and_times(self, v: Tensor) -> tuple[Tensor, Tensor]:
        """(field(x), J v), each in the shape of x."""
        if self.step is None:  # forward mode wants one memory layout for value and tangent
            with differentiable_attention():
                found = torch.func.jvp(self.field, (self.x.contiguous(),), (v.contiguous(),))
            return found[0], found[1]
        return self.field(self.x), self._difference(v, self.step)

    def times(self, v: Tensor) -> Tensor:
        """J v."""
        return self.value_and_times(v)[1] if self.step is None else self._difference(v, self.step)

    def _difference(self, v: Tensor, step: float) -> Tensor:
        c = step / rows_of(v).norm(dim=1).clamp(min=torch.finfo(v.dtype).tiny)
        c = c.reshape(-1, *[1] * (v.dim() - 1))
        return (self.field(self.x + c * v) - self.field(self.x - c * v)) / (2 * c)

    def transposed_times(self, w: Tensor) -> Tensor:
        """J^T w, by reverse mode."""
        with differentiable_attention():
            found = torch.func.vjp(self.field, self.x)
            product: Tensor = found[1](w.to(found[0].dtype))[0]
        return product

    def matrix(self) -> Tensor:
        """(B, d, d) with d the number of coordinates of a row: d products."""
        return torch.stack([rows_of(self.times(e)) for e in self.units()], dim=2)

    def value_and_trace(self, probes: tuple[Tensor, ...] = ()) -> tuple[Tensor, Tensor]:
        """(field(x), tr J (B,)): exact by d products, or the mean of v^T J v over the probes (Hutchinson)."""
        total, value = None, self.x
        for v in probes or self.units():
            value, product = self.value_and_times(v)
            part = rows_of(v * product).sum(1)
            total = part if total is None else total + part
        assert total is not None
        return value, total / len(probes) if probes else total

    def units(self) -> Iterator[Tensor]:
        """The unit vectors of a row, each in all rows at once."""
        for i in range(self.x[0].numel()):
            unit = torch.zeros_like(rows_of(self.x))
            unit[:, i] = 1
            yield unit.reshape(self.x.shape)


def jacobian_of(
    denoiser: Denoiser, x: Tensor, level: Level, *, condition: Any = None, derivative: str = "forward"
) -> Jacobian:
    """The Jacobian of `denoised` at x (B, ...), with respect to x.

    derivative: "forward", or "finite" for central differences of length cbrt(eps) sigma, which is where their
    truncation and their rounding are about equal.
    """
    if derivative not in ("forward", "finite"):
        raise UsageError(f"derivative is 'forward' or 'finite', not {derivative!r}")
    step = None if derivative == "forward" else torch.finfo(x.dtype).eps ** (1 / 3) * level.sigma
    return Jacobian(lambda at: denoiser(at, level, condition).denoised, x, step)


def rows_of(x: Tensor) -> Tensor:
    """(B, d)."""
    return x.reshape(x.shape[0], -1)


def rademacher(noise: SeededNoise | None, probes: int, like: Tensor) -> tuple[Tensor, ...]:
    """Probes of +-1, each (B, ...), seeded row by row. 0 probes ask for nothing: the trace is exact."""
    if probes and noise is None:
        raise UsageError("an estimated trace needs noise=SeededNoise([seed, ...]), one seed a row; or probes=0: exact")
    if noise is None:
        return ()
    return tuple(noise.draw("trace", k, like).sign() for k in range(probes))


@contextmanager
def differentiable_attention() -> Iterator[None]:
    """The fused kernels of attention have no forward mode; the plain one has."""
    with sdpa_kernel(SDPBackend.MATH):
        yield
