"""From a discriminator's logits to the weights of an f-divergence.

    r = clip(exp(clamp(mean of the heads)))     log r is the logit of a discriminator at its best
    r <- r / (its mean in its time bin)         E_q[p/q] = 1 at every noise level
    h = f''(r) r^2
    h <- h / (its mean over the batch)          so that the divergences step alike

(The pipeline of f-distill, Xu, Nie & Vahdat 2025, arXiv 2502.15681, and its code.) Both means are over the batches of
all processes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..errors import UsageError
from ..samplers.schedule import NoiseSchedule
from ..training.update import Gather
from .divergences import Divergence
from .times import Group

_BINS = "ratio_bins"


@dataclass(frozen=True)
class RatioWeights:
    """How logits become weights.

    clip: bounds of the ratio. The upper one bounds the variance and makes the students of forward KL narrow; the lower
    one gives a weight to samples that the teacher does not make, and costs Jensen-Shannon modes of a student that is
    too small (0.001 does not; benchmarks/distill_toys.py). logit: bound of the logits' size.
    bins: of time, each with a mean ratio; ema: how much of the mean so far is kept at a batch that has rows in the bin,
    0 for that batch alone. Batches below some hundred rows need one, such as 0.9: the ratio of a row that is alone in
    its bin would be 1, whatever it is, and every divergence reverse KL.
    equal_width: bins of equal width in time, not of equal probability. by_bin, by_batch: the two normalisations.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    clip: tuple[float, float] = (0.1, 20.0)
    logit: float = 10.0
    bins: int = 10
    ema: float = 0.0
    equal_width: bool = False
    by_bin: bool = True
    by_batch: bool = True

    def __post_init__(self) -> None:
        if not (0 <= self.clip[0] < self.clip[1] and self.logit > 0 and self.bins >= 1 and 0 <= self.ema < 1):
            raise UsageError(f"ratios need 0 <= clip[0] < clip[1], logit > 0, bins >= 1, 0 <= ema < 1, not {self}")

    def share(self, group: Group, schedule: NoiseSchedule) -> float:
        """Where a group's rows lie, in [0, 1], for the bins: in the distribution of times, or of all times."""
        return float(schedule.t_of_lam(group.level.lam)) / schedule.T if self.equal_width else group.share

    @torch.no_grad()
    def weights(
        self, logits: Tensor, shares: Tensor, divergence: Divergence, state: dict[str, Any], gather: Gather
    ) -> tuple[Tensor, dict[str, float]]:
        """h (B,), float32, without gradient, with mean 1 over all processes; exactly 1 where the divergence is flat.

        logits: (B,) or (B, heads), high for real. shares: (B,) in [0, 1], see `share`. state: keeps the bins from one
        batch to the next. gather: a tensor (B, ...) of this process to those of all; called once.

        Numbers of all processes: effective, (sum h)^2 / (B sum h^2); ratio, the mean of exp(logit) before clipping, 1
        for a good discriminator, with ratio_low and ratio_high, the least and greatest of the bins' means; clipped, the
        share of rows outside of `clip`.
        """
        if divergence.flat:
            return torch.ones(len(logits), device=logits.device), {"effective": 1.0}
        logits = logits.float().reshape(len(logits), -1).mean(1).clamp(-self.logit, self.logit)
        rows = torch.stack([logits, shares.to(logits)], 1)
        everyone = gather(rows)
        bins = self._bins(everyone, state)
        mine, all_of_them = (self._weights(some, bins, divergence) for some in (rows, everyone))
        h = mine / all_of_them.mean() if self.by_batch else mine
        return h, {"effective": _effective(all_of_them), **self._numbers(everyone)}

    def _weights(self, rows: Tensor, bins: Tensor, divergence: Divergence) -> Tensor:
        """h before the second normalisation, of rows (B, 2) of logit and share."""
        log_ratio = self._clipped(rows[:, 0])
        if self.by_bin:
            log_ratio = log_ratio - bins.to(rows)[self._bin(rows[:, 1])].log()
        return divergence.weight(log_ratio)

    def _clipped(self, logits: Tensor) -> Tensor:
        low, high = self.clip
        return logits.clamp(math.log(low) if low else None, math.log(high))

    def _bin(self, shares: Tensor) -> Tensor:
        return (shares * self.bins).long().clamp(0, self.bins - 1)

    def _bins(self, rows: Tensor, state: dict[str, Any]) -> Tensor:
        """The mean ratio of each bin, kept in `state`; 0 for a bin that has had no row yet."""
        means = self._means(self._clipped(rows[:, 0]), rows[:, 1]).cpu()
        old = state.get(_BINS, torch.zeros_like(means))
        mixed = torch.where(old > 0, self.ema * old + (1 - self.ema) * means, means)
        state[_BINS] = torch.where(means > 0, mixed, old)
        return state[_BINS]

    def _means(self, log_ratio: Tensor, shares: Tensor) -> Tensor:
        """Mean ratio of each bin (bins,), 0 for an empty one. A sum by products, the same in every run on a GPU too."""
        within = torch.nn.functional.one_hot(self._bin(shares), self.bins).double()
        return log_ratio.double().exp() @ within / within.sum(0).clamp(min=1)

    def _numbers(self, rows: Tensor) -> dict[str, float]:
        logits, shares = rows.unbind(1)
        low, high = self.clip
        ratio, means = logits.exp(), self._means(logits, shares)
        means = means[means > 0]
        return {
            "ratio": float(ratio.mean()),
            "ratio_low": float(means.min()),
            "ratio_high": float(means.max()),
            "clipped": float(((ratio < low) | (ratio > high)).float().mean()),
        }


def _effective(h: Tensor) -> float:
    """(sum h)^2 / (B sum h^2), in [1/B, 1]: the share of the rows that as many equal weights would use."""
    h = h / h.max()
    return float(h.sum() ** 2 / (len(h) * (h**2).sum()))
