"""Inception Score: pictures should each be surely of one class, and together of many.

    exp(mean_x KL(p(y|x) | p(y))) = exp(H(mean_x p(y|x)) - mean_x H(p(y|x)))       Salimans et al. 2016, 1606.03498

It never looks at real pictures. The name belongs to the 1008 logits, taken without their bias, of the Inception network
of 2015; with another classifier it is a score of that classifier, which must not be the one that guided.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...errors import UsageError
from ..arrays import as_features, full_precision
from .intervals import mean_interval


@dataclass(frozen=True)
class InceptionScore:
    """Mean score over disjoint splits, from 1 (all pictures look alike to the classifier) to the number of classes."""

    scores: tuple[float, ...]  # of each split
    n: int
    classes: int
    seed: int

    @property
    def value(self) -> float:
        """Mean over splits. It grows with the rows of a split: compare only equal n and splits."""
        return float(np.mean(self.scores))

    @property
    def std(self) -> float:
        """Population deviation over splits, as first published; the error of `value` is less."""
        return float(np.std(self.scores))

    @property
    def interval(self) -> tuple[float, float]:
        """95 % for the mean score of splits of this size; (nan, nan) for one split."""
        return mean_interval(self.scores)

    @property
    def interval_kind(self) -> str:
        """How the interval was made."""
        return f"normal 95 %, over {len(self.scores)} disjoint splits; the bias of their size is not in it"


def inception_score(*, logits: Any, splits: int = 10, seed: int = 0) -> InceptionScore:
    """Inception Score of logits (N, classes) before any softmax, N >= splits; higher is better.

    Rows are shuffled by `seed` first: pictures sorted by class would give each split a marginal of few classes. Splits
    differ by at most one row. One pass, O(classes) memory beside a batch.
    """
    rows = as_features(logits, "logits")
    if not 1 <= splits <= len(rows):
        raise UsageError(f"{splits} splits of {len(rows)} rows cannot be; use splits=10 and at least 10 pictures")
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(rows))).to(rows.device)
    with full_precision(rows.device):
        scores = tuple(_score(rows, part) for part in order.tensor_split(splits))
    return InceptionScore(scores, len(rows), rows.shape[1], seed)


def _score(logits: Tensor, chosen: Tensor, batch: int = 4096) -> float:
    total = torch.zeros(logits.shape[1], dtype=torch.float64, device=logits.device)
    entropies = total.new_zeros(())
    for part in chosen.split(batch):
        logs = logits[part].double().log_softmax(1)
        total += logs.exp().sum(0)
        entropies += _entropy(logs.exp(), logs)
    marginal = total / len(chosen)
    logs = marginal.clamp(min=torch.finfo(torch.float64).tiny).log()  # 0 log 0 = 0
    return float((_entropy(marginal, logs) - entropies / len(chosen)).exp())


def _entropy(probabilities: Tensor, logs: Tensor) -> Tensor:
    """Summed over all rows. A finite logit has a finite logarithm, so that 0 times it is 0."""
    return -(probabilities * logs).sum()
