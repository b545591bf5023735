"""Editing by a change of the condition: back to noise under what the picture shows, and forth under what it shall show
(on real pictures as in EDICT, Wallace et al. 2022, arXiv 2211.12446)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...errors import UsageError
from ..denoiser import Denoiser
from ..sampler import Levels
from .registry import make_inversion
from .reversible import Carried, ReversibleStep
from .run import forward, invert


@dataclass(frozen=True, eq=False)
class Edited:
    """sample: the edited x at levels[-1], (B, ...). noise: what the inversion found; `forward` along `levels` under the
    source gives the picture back. levels: those that were gone along."""

    sample: Tensor
    noise: Carried
    levels: Levels


def edit(
    denoiser: Denoiser,
    x: Tensor,
    levels: Levels,
    source: Any,
    target: Any,
    *,
    method: str | ReversibleStep = "fixed-point",
    strength: float = 1.0,
    draws: Denoiser | None = None,
) -> Edited:
    """x (B, ...) at levels[-1], inverted under the condition `source` and sampled under `target`.

    strength: share of the steps that is gone back, in (0, 1]; low ones keep more of the picture. draws: the denoiser
    for the way forth, where it is guided otherwise than the inversion.
    """
    how = make_inversion(method)
    levels = last_steps(levels, strength)
    with torch.no_grad():
        noise = invert(denoiser, x, levels, method=how, condition=source)
        sample = how.end(forward(draws or denoiser, noise, levels, method=how, condition=target))
    return Edited(sample, noise, levels)


def last_steps(levels: Levels, strength: float) -> Levels:
    """The grid from where so large a share of the steps is left; at least one."""
    if not 0 < strength <= 1:
        raise UsageError(f"strength={strength} must be above 0 and at most 1, which goes back to noise")
    return levels[-1 - max(1, round(strength * (len(levels) - 1))) :]
