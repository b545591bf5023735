"""Do two models that saw different pictures make the same ones? Then they generalise.

Kadkhodaie, Guth, Simoncelli & Mallat 2024, 2310.02557: two denoisers are trained on disjoint halves of a set, and each
makes a picture from the same noise. With the mean of both halves subtracted, a report has for each seed

    agreement   cosine of the two pictures
    nearest     cosine of a picture to the training picture of its own half that it is nearest to (largest cosine)

Memorising models: nearest is about 1 and agreement low. Generalising models: agreement rises towards 1 with the number
of training pictures, while nearest falls to what it is for the other half, which the model never saw.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ...errors import UsageError
from ..arrays import as_tensor, full_precision, mean_of_rows
from .duplicates import representatives

Sampler = Callable[[int], Any]  # a seed -> a picture: tensor or array of the shape of the training pictures


@dataclass(frozen=True)
class DisjointHalves:
    """One number a seed, float64 (seeds,), cosines -1..1; and the rows of the nearest training pictures, int64."""

    seeds: tuple[int, ...]
    agreement: Tensor
    nearest_a: Tensor  # picture of model a, nearest of its own half
    nearest_b: Tensor
    other_a: Tensor  # picture of model a, nearest of the half of b: what a model that copies nothing has
    other_b: Tensor
    rows_a: Tensor = field(repr=False)
    rows_b: Tensor = field(repr=False)

    @property
    def means(self) -> dict[str, float]:
        """Of agreement, of nearest (both models), and of the same for the other half."""
        return {
            "agreement": float(self.agreement.mean()),
            "nearest": float(torch.cat([self.nearest_a, self.nearest_b]).mean()),
            "other": float(torch.cat([self.other_a, self.other_b]).mean()),
        }


def disjoint_halves_report(
    sampler_a: Sampler, sampler_b: Sampler, train_a: Any, train_b: Any, seeds: Sequence[int]
) -> DisjointHalves:
    """Ask both samplers for the picture of each seed and compare; the training is the caller's.

    sampler: seed -> picture (...). Both must draw the same noise from a seed (a deterministic sampler, or the same
    noise at every step). train_a, train_b: pictures (N, ...) with no picture in common.
    Errors: no seeds, other shapes than the training pictures have, a picture in both halves, pictures not finite.
    """
    if not len(seeds):
        raise UsageError("there are no seeds to sample from; pass seeds=range(16)")
    a, b = _rows(train_a, "train_a"), _rows(train_b, "train_b")
    if a.shape[1:] != b.shape[1:]:
        raise UsageError(f"train_a has {a.shape[1]} numbers a picture and train_b {b.shape[1]}; use one size for both")
    both = torch.cat([a, b])
    if shared := int((representatives(both)[len(a) :] < len(a)).sum()):
        raise UsageError(f"{shared} pictures of train_b are in train_a as well; split the set without overlap")
    shape = tuple(as_tensor(train_a).shape[1:])
    made = [_made(sampler, seeds, shape) for sampler in (sampler_a, sampler_b)]
    centre = mean_of_rows(both)
    with full_precision(both.device):
        of_a, of_b, in_a, in_b = (_directions(rows, centre) for rows in (*made, a, b))
        nearest_a, nearest_b = (of_a @ in_a.T).max(1), (of_b @ in_b.T).max(1)
        return DisjointHalves(
            tuple(int(seed) for seed in seeds),
            (of_a * of_b).sum(1),
            nearest_a.values,
            nearest_b.values,
            (of_a @ in_b.T).amax(1),
            (of_b @ in_a.T).amax(1),
            nearest_a.indices,
            nearest_b.indices,
        )


def _made(sampler: Sampler, seeds: Sequence[int], shape: tuple[int, ...]) -> Tensor:
    pictures = [as_tensor(sampler(int(seed))) for seed in seeds]
    for picture in pictures:
        if tuple(picture.shape) not in (shape, (1, *shape)):
            raise UsageError(f"a sampler made {tuple(picture.shape)}, not {shape}; return one picture, as in training")
    return _rows(torch.stack([picture.reshape(shape).cpu() for picture in pictures]), "the pictures of a sampler")


def _rows(pictures: Any, name: str) -> Tensor:
    """float64 (N, D) on the CPU."""
    rows = as_tensor(pictures).cpu()
    if rows.ndim < 2 or not rows.numel():
        raise UsageError(f"{name} must be pictures (N, ...), got {tuple(rows.shape)}; put several in one tensor")
    rows = rows.flatten(1).double()
    if not bool(rows.isfinite().all()):
        raise UsageError(f"{name} are not finite; look for nan in the sampler")
    return rows


def _directions(rows: Tensor, centre: Tensor) -> Tensor:
    rows = rows - centre
    return rows / rows.norm(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)
