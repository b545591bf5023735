"""Scores of the generated pictures alone, beside those of as many real ones."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..metrics.inception_score import inception_score as score_of
from ..metrics.vendi import vendi as vendi_of
from ..results import Result
from .evidence import NO_INTERVAL, SEED, Evidence


def vendi(evidence: Evidence, name: str, order: float = 1.0) -> list[Result]:
    """Of as many real pictures too, for it grows with their number."""
    generated = evidence.rows("generated")
    count = len(generated)
    real = None
    if evidence.real is not None and evidence.seen("real").has_rows:
        rows = evidence.rows("real")
        count = min(count, len(rows))
        real = vendi_of(_some(rows, count), order).value
    found = vendi_of(_some(generated, count), order)
    return [
        evidence.result(
            name,
            found.value,
            interval_kind=NO_INTERVAL,
            real=real,
            protocol=f"cosine kernel of {evidence.seen('generated').name}, order {order:g}, n = {count}",
            details={"n": count, "bound": found.bound, "orders": {q: found.of_order(q).value for q in (0.5, 1, 2)}},
        )
    ]


def inception_score(evidence: Evidence, name: str, splits: int = 10) -> list[Result]:
    """Of the network's logits; that of real pictures is the ceiling."""
    found = score_of(logits=evidence.rows("generated", "logits"), splits=splits, seed=SEED)
    real = None
    if evidence.real is not None and "logits" in evidence.seen("real").outputs:
        real = score_of(logits=evidence.rows("real", "logits"), splits=splits, seed=SEED).value
    low, high = found.interval
    return [
        evidence.result(
            name,
            found.value,
            interval=None if np.isnan(low) else (low, high),
            interval_kind=found.interval_kind,
            real=real,
            protocol=f"logits of {evidence.seen('generated').name}, {splits} splits of {found.n // splits}, shuffled",
            details={"std": found.std, "scores": list(found.scores), "classes": found.classes},
        )
    ]


def _some(rows: Tensor, count: int) -> Tensor:
    """That many of the rows, drawn once and for all."""
    if count == len(rows):
        return rows
    return rows[torch.from_numpy(np.random.default_rng(SEED).choice(len(rows), count, replace=False)).to(rows.device)]
