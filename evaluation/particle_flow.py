"""Particles that flow towards a data set down the gradient of the sliced energy distance.

Hertrich et al. 2023, 2305.11463 (there: MMD flows with the Riesz kernel, r = 1). The force on a particle is

    f_i = mean_j e(y_j - x_i) - mean_k e(x_k - x_i) = -(N/2) dE/dx_i,    e(z) = z / |z|

towards the data and away from the other particles, estimated on a few new directions at every step by sorting; then
heavy-ball momentum: v = f + momentum v, x = x + step v. In many dimensions f soon drowns in the noise of directions.
For pictures, forces between patches are added: a window at a random place, the same for all, and directions within.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..errors import UsageError
from .metrics.riesz import energy_distance
from .metrics.sliced_loss import sliced_energy_gradient


@dataclass(frozen=True)
class FlowSettings:
    """How particles move. Lengths are in units of the data's spread, the root mean square distance to their mean.

    step_size falls linearly to last_step_size (ours; a step of constant size ends in a haze of about its own length).
    slices: directions a step, and again for each window. windows: sides of the patches of pictures of this shape
    (C, H, W), which is otherwise not needed. seed: of directions and windows.
    """

    steps: int = 2000
    step_size: float = 0.06
    last_step_size: float = 0.0
    momentum: float = 0.8
    slices: int = 24
    windows: tuple[int, ...] = ()
    shape: tuple[int, int, int] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 0 or self.slices < 1 or not self.step_size > 0 or self.last_step_size < 0:
            raise UsageError(
                f"steps={self.steps}, slices={self.slices}, step_size={self.step_size}, "
                f"last_step_size={self.last_step_size} are no flow; use steps=2000, slices=24, step_size=0.06"
            )
        if not 0 <= self.momentum < 1:
            raise UsageError(f"momentum={self.momentum} never comes to rest; use 0 <= momentum < 1, for example 0.8")
        if self.windows and (self.shape is None or min(self.windows) < 1):
            raise UsageError(f"windows={self.windows} need sides of 1 or more and shape=(C, H, W) of the pictures")


@dataclass(frozen=True)
class Flow:
    """Particles after the flow (N, D), those kept on the way by step, and their energy distance from the data."""

    particles: Tensor
    kept: dict[int, Tensor] = field(repr=False)
    energies: dict[int, float]


def particle_flow(
    start: Tensor, data: Tensor, settings: FlowSettings | None = None, *, keep: Iterable[int] = ()
) -> Flow:
    """Move particles start (N, D) towards data (M, D), of a float dtype. Neither is changed.

    keep: steps after which particles are kept and measured, 0 for the start; the last step is always among them.
    A step sorts N + M numbers for every slice. Errors: other widths, or windows of another shape.
    """
    settings = FlowSettings() if settings is None else settings
    x, y = start.detach().clone(), data.detach().to(start.device, start.dtype)
    _check(x, y, settings)
    unit = float((y - y.mean(0)).square().sum(1).mean().sqrt())
    velocity = torch.zeros_like(x)
    generator = torch.Generator().manual_seed(settings.seed)
    wanted, kept = {*keep, settings.steps}, {}
    for step in range(settings.steps + 1):
        if step in wanted:
            kept[step] = x.clone()
        if step < settings.steps:
            done = step / settings.steps
            length = unit * (settings.step_size + done * (settings.last_step_size - settings.step_size))
            velocity.mul_(settings.momentum).add_(_force(x, y, settings, generator))
            x.add_(velocity, alpha=length)
    energies = {step: energy_distance(real=y, generated=some).value for step, some in kept.items()}
    return Flow(x, kept, energies)


def force(x: Tensor, data: Tensor, slices: int, generator: torch.Generator) -> Tensor:
    """f (N, D) on particles x (N, D) from data (M, D): an unbiased estimate on `slices` new directions."""
    return sliced_energy_gradient(x, data, slices, generator) * (-len(x) / 2)


def _force(x: Tensor, y: Tensor, settings: FlowSettings, generator: torch.Generator) -> Tensor:
    """Of the whole, and of a patch for every window."""
    total = force(x, y, settings.slices, generator)
    for side in settings.windows:
        inside = _window(side, settings.shape, generator).to(x.device)  # type: ignore[arg-type]
        slices = min(settings.slices, len(inside))  # more directions than dimensions say little more
        total[:, inside] += force(x[:, inside], y[:, inside], slices, generator)
    return total


def _window(side: int, shape: tuple[int, int, int], generator: torch.Generator) -> Tensor:
    """int64: the places of a patch in a flattened picture. It may hang over the edge, so all pixels count alike."""
    channels, *sizes = shape
    mask = torch.ones(channels, *sizes, dtype=torch.bool)
    for axis, size in enumerate(sizes, start=1):
        first = int(torch.randint(1 - side, size, (1,), generator=generator))
        at = torch.arange(size)
        along = ((at >= first) & (at < first + side)).view([-1 if a == axis else 1 for a in range(3)])
        mask &= along
    return mask.flatten().nonzero()[:, 0]


def _check(x: Tensor, y: Tensor, settings: FlowSettings) -> None:
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise UsageError(f"particles {tuple(x.shape)} and data {tuple(y.shape)} differ; flatten both to (N, D)")
    if settings.windows and settings.shape is not None and torch.Size(settings.shape).numel() != x.shape[1]:
        raise UsageError(f"shape={settings.shape} has not the {x.shape[1]} numbers of a particle; give theirs")
