"""DOODL: Wallace et al. 2023, arXiv 2303.13703. The initial latent, by steps of one length on a sphere.

The paper's process is EDICT's, whose steps can be undone, so that its exact gradient needs the memory of one step:
`Problem(..., sampler="edict", remember="nothing")`. Any other sampler goes back by checkpoints: as exact, with one x a
step in memory. Only the abstract was read; the length of the steps and the momentum are ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .driver import Descent, lengths, refuse_negative


@dataclass(frozen=True)
class DOODL(Descent):
    """x <- |x_0| P / |P|, P = x - rate |x_0| v / |v|, with v = momentum v + gradient, row by row.

    rate: the length of a step as a share of |x|; it falls linearly to 0 over the iterations, so that the run settles.
    project: 1 keeps the norm of the first draw, 0 lets it drift.
    """

    rate: float = 0.1
    momentum: float = 0.5
    project: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_negative("doodl", rate=self.rate, momentum=self.momentum, project=self.project)

    def move(self, at: Tensor, gradient: Tensor, kept: Any, first: Tensor) -> tuple[Tensor, Any]:
        done, velocity = kept or (0, torch.zeros_like(gradient))
        length = lengths(gradient)
        velocity = self.momentum * velocity + torch.where(length > 0, gradient / length, 0.0)
        size, radius = lengths(velocity), lengths(first)
        step = self.rate * (1 - done / self.iterations) * radius
        moved = at - torch.where(size > 0, velocity / size, 0.0) * step
        if self.project:
            now = lengths(moved)
            moved = torch.where(now > 0, moved * (radius / now), moved)
        return moved, (done + 1, velocity)
