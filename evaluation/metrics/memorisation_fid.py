"""Frechet distance that pays for lying on the training set (MiFID): divided by how far the nearest picture is.

Bai, Lin, Raffel & Kan 2021, 2106.03062. With the cosine distance 1 - |cos| of features as they are (not centred),

    m = mean over generated g of min over training t of 1 - |cos(g, t)|
    MiFID = FID / m  where m < threshold, else FID
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...errors import UsageError
from ..arrays import as_features, full_precision
from .frechet import frechet_distance
from .nearest import same_features

_NO_LESS = 1e-14  # exact copies would divide by zero
_ROWS = 256


@dataclass(frozen=True)
class MemorisationFID:
    """value: the distance with the penalty; frechet: without; distance: m, 0..1; penalised: was m below threshold?"""

    value: float
    frechet: float
    distance: float
    penalised: bool
    threshold: float
    direction: str


def memorisation_fid(
    *, train: Any, generated: Any, real: Any = None, direction: str = "generated", threshold: float = 0.1
) -> MemorisationFID:
    """Lower is better. train (N, D), generated (M, D); real: the set of the Frechet distance, where it is not train.

    direction: whose mean m is. "generated": how near each generated picture comes to a training picture. "real": how
    near each training picture is come to, as in torchmetrics; it falls when the
    training set is well covered, copied or not.
    """
    if direction not in ("generated", "real"):
        raise UsageError(f"direction {direction!r} is none; use 'generated', or 'real' for the numbers of torchmetrics")
    if not threshold > 0:
        raise UsageError(f"threshold={threshold} is no cosine distance; use 0.1")
    t, g = as_features(train, "train", 2), as_features(generated, "generated", 2)
    same_features(train=t, generated=g)
    frechet = frechet_distance(real=t if real is None else real, generated=g)
    nearest = cosine_distances(g, t) if direction == "generated" else cosine_distances(t, g)
    distance = float(nearest.mean())
    penalised = distance < threshold
    value = frechet / max(distance, _NO_LESS) if penalised else frechet
    return MemorisationFID(value, frechet, distance, penalised, threshold, direction)


def cosine_distances(queries: Tensor, among: Tensor) -> Tensor:
    """float64 (Q,): min over rows of among (N, D) of 1 - |cos|, 0..1. A row of zeros has distance 1 to everything.

    float32 products find the candidates, whose cosines are computed again in float64.
    """
    unsure = 2 * (among.shape[1] + 32) * 2.0**-24
    nearest = []
    with full_precision(among.device):
        for rows in queries.to(among.device).split(_ROWS):
            u = _unit(rows)
            products = torch.cat([u.float() @ _unit(part).float().T for part in among.split(4 * _ROWS)], 1).abs_()
            i, j = (products >= products.amax(1, keepdim=True) - unsure).nonzero(as_tuple=True)
            cosine = torch.cat(
                [(u[p] * _unit(among[q])).sum(1).abs() for p, q in zip(i.split(_ROWS), j.split(_ROWS), strict=True)]
            )
            best = u.new_zeros(len(u)).scatter_reduce_(0, i, cosine, "amax")
            nearest.append((1 - best).clamp(min=0))
    return torch.cat(nearest)


def _unit(rows: Tensor) -> Tensor:
    """float64 rows of length 1; zeros stay."""
    rows = rows.double()
    rows = rows / rows.abs().amax(1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)
    return rows / rows.norm(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)
