"""Sums of a kernel over all pairs of rows, in blocks, and what follows from them: the squared MMD and its error.

    MMD^2 = mean_{i != j} k(x_i, x_j) + mean_{i != j} k(y_i, y_j) - 2 mean_{i, j} k(x_i, y_j)

the unbiased estimate of Gretton et al. 2012 (JMLR 13, 723), Lemma 6. Every product and every sum is float64.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor

BLOCK = 1024

Kernel = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Inner products (n, m), which it may overwrite, and squared norms (n, 1) and (1, m), to kernel values (n, m)."""


@dataclass(frozen=True)
class KernelSums:
    """What each row sums to, float64. A row is never paired with itself."""

    real: Tensor  # (N,): over the other real rows
    generated: Tensor  # (M,): over the other generated rows
    real_across: Tensor  # (N,): over the generated rows
    generated_across: Tensor  # (M,): over the real rows

    @classmethod
    def of(cls, x: Tensor, y: Tensor, kernel: Kernel, block: int = BLOCK) -> KernelSums:
        """Of real x (N, D) and generated y (M, D). Costs (N^2 + M^2 + 2 N M) D float64 flops, and two blocks."""
        return cls(_within(x, kernel, block), _within(y, kernel, block), *_across(x, y, kernel, block))

    @property
    def mean_real(self) -> float:
        """Mean kernel of two different real rows."""
        return _mean_of_pairs(self.real)

    @property
    def mean_generated(self) -> float:
        """Mean kernel of two different generated rows."""
        return _mean_of_pairs(self.generated)

    @property
    def squared_mmd(self) -> float:
        """The unbiased estimate, which is negative about half the time when the distributions are equal."""
        across = float(self.real_across.sum()) / (len(self.real) * len(self.generated))
        return self.mean_real + self.mean_generated - 2 * across

    @property
    def standard_error(self) -> float:
        """Of the unbiased estimate, by deleting one row at a time from either set; nan below three rows a set.

        Row sums give every replicate for nothing, so no rows are lumped into blocks. A jackknife errs upwards
        (Efron & Stein 1981, Ann. Stat. 9, 586): for equal distributions by a factor of sqrt(2), else hardly.
        """
        pairs = len(self.real) * len(self.generated)
        sides = (self.real, self.real_across), (self.generated, self.generated_across)
        return sum(_jackknife_variance(within, across, pairs) for within, across in sides) ** 0.5


def normal_interval(value: float, standard_error: float) -> tuple[float, float]:
    """value +- 1.96 standard errors."""
    half = NormalDist().inv_cdf(0.975) * standard_error
    return value - half, value + half


def _mean_of_pairs(sums: Tensor) -> float:
    return float(sums.sum()) / (len(sums) * (len(sums) - 1))


def _jackknife_variance(within: Tensor, across: Tensor, pairs: int) -> float:
    """(n - 1)/n sum (estimate without row i - their mean)^2; the other set's own term is the same in all."""
    n = len(within)
    if n < 3:
        return float("nan")
    others = pairs // n
    without = (within.sum() - 2 * within) / ((n - 1) * (n - 2)) - 2 * (across.sum() - across) / ((n - 1) * others)
    return float((without - without.mean()).square().sum()) * (n - 1) / n


def _within(rows: Tensor, kernel: Kernel, block: int) -> Tensor:
    """(N,): k(x_i, x_j) summed over j != i. Blocks below the diagonal are the transposes of those above."""
    sums = torch.zeros(len(rows), dtype=torch.float64, device=rows.device)
    for i in range(0, len(rows), block):
        left = rows[i : i + block].double()
        values = _values(left, left, kernel).fill_diagonal_(0)
        sums[i : i + block] += values.sum(1)
        for j in range(i + block, len(rows), block):
            values = _values(left, rows[j : j + block].double(), kernel)
            sums[i : i + block] += values.sum(1)
            sums[j : j + block] += values.sum(0)
    return sums


def _across(x: Tensor, y: Tensor, kernel: Kernel, block: int) -> tuple[Tensor, Tensor]:
    """(N,) and (M,): k(x_i, y_j) summed over j, and over i."""
    sums = tuple(torch.zeros(len(rows), dtype=torch.float64, device=x.device) for rows in (x, y))
    for i in range(0, len(x), block):
        left = x[i : i + block].double()
        for j in range(0, len(y), block):
            values = _values(left, y[j : j + block].double(), kernel)
            sums[0][i : i + block] += values.sum(1)
            sums[1][j : j + block] += values.sum(0)
    return sums[0], sums[1]


def _values(left: Tensor, right: Tensor, kernel: Kernel) -> Tensor:
    return kernel(left @ right.T, left.square().sum(1)[:, None], right.square().sum(1)[None])
