"""The DDIM step solved for where it began, by iteration (Pan et al. 2023, arXiv 2309.04907; Walker & Ni 2011 for
Anderson's acceleration)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ...errors import UsageError
from ..denoiser import Denoiser
from .ddim_step import Affine
from .naive import Naive
from .reversible import Carried
from .slope import slope_at


@dataclass(frozen=True)
class FixedPoint(Naive):
    """y <- g(y) = (x' - d slope(y, t)) / c, from y = x'.

    iterations: after the naive one, which is 0; a step back costs 1 + iterations calls, and k of them leave a round
    trip off by order k + 1. It converges where |d / c| times the slope's Jacobian is below 1, which a large guidance
    scale breaks. damping: share of the way to g(y) that is gone, in (0, 1]; below 1 it still converges where the
    iteration overshoots. anderson: how many earlier iterates are combined, row by row, so that what is left of
    g(y) - y is least; 0 is the plain iteration, 2 to 5 help guided models. `Carried.changes` is the length of the last
    move against that of y, (B,) a step: not small means not converged.
    """

    iterations: int = 3
    damping: float = 1.0
    anderson: int = 0

    def __post_init__(self) -> None:
        if self.iterations < 0 or self.anderson < 0:
            raise UsageError("fixed-point takes iterations and anderson from 0 on")
        if not 0 < self.damping <= 1:
            raise UsageError(f"fixed-point damping={self.damping} must be above 0 and at most 1 (1 is undamped)")

    def back(self, denoiser: Denoiser, state: Carried, i: int, condition: Any = None) -> Carried:
        (after,) = state.tensors
        ddim: Affine = state.legs[i].weights
        mixer = Anderson(self.anderson, self.damping)
        y, change = after, after.new_zeros(len(after))
        for _ in range(1 + self.iterations):
            image = ddim.back(after, slope_at(denoiser, y, state.legs, i, ddim.slope, condition))
            moved = mixer.next(y, image)
            y, change = moved, relative(moved - y, moved)
        return replace(state.now(y), changes=(*state.changes, change))


class Anderson:
    """Where to look next for y = g(y), from the last `depth` moves; rows (B, ...) are solved side by side."""

    def __init__(self, depth: int, damping: float = 1.0):
        self.depth, self.damping = depth, damping
        self.points: list[Tensor] = []
        self.images: list[Tensor] = []

    def next(self, y: Tensor, image: Tensor) -> Tensor:
        """After y (B, ...) was sent to its image g(y)."""
        self.points = [*self.points, y][-1 - self.depth :]
        self.images = [*self.images, image][-1 - self.depth :]
        points, images = (torch.stack(kept, dim=1).flatten(2) for kept in (self.points, self.images))
        towards = torch.lerp(points, images, self.damping)
        if len(self.points) == 1:
            return towards.reshape(image.shape)
        return (shares(images - points).to(image.dtype) @ towards).reshape(image.shape)


def shares(moves: Tensor) -> Tensor:
    """The a (B, 1, n) that sum to one in each row and make |sum a_j moves_j| least; moves: (B, n, d). In float64, for
    moves nearly agree when the iteration has nearly converged."""
    moves = moves.double()
    last, apart = moves[:, -1:], moves[:, -1:] - moves[:, :-1]
    gram = apart @ apart.transpose(1, 2)
    size = gram.diagonal(dim1=1, dim2=2).sum(-1)
    # a little of its own size for moves that are alike, and next to nothing for moves that are nothing
    ridge = torch.eye(gram.shape[1], dtype=gram.dtype, device=gram.device) * (1e-12 * size + 1e-100)[:, None, None]
    earlier = torch.linalg.solve_ex(gram + ridge, apart @ last.transpose(1, 2)).result.transpose(1, 2)
    return torch.cat([earlier, 1 - earlier.sum(2, keepdim=True)], dim=2)


def relative(apart: Tensor, to: Tensor) -> Tensor:
    """|apart| / |to| of each row, (B,)."""
    return apart.flatten(1).norm(dim=1) / to.flatten(1).norm(dim=1)
