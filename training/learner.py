"""The model that learns, as the methods see it: a denoiser by prompts, its trainable parameters, its base, pictures."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UsageError
from ..samplers.denoiser import Denoiser
from ..samplers.grids import make_grid
from ..samplers.noise import SeededNoise
from ..samplers.sampler import Level, Levels


class Learner(ABC):
    """shape: of one latent, (C, H, W). parameters: what learns, leaf tensors that require a gradient.

    A denoiser's prompts are bound: rows of x belong to rows of prompts. So is whether adapters act: a denoiser stays
    what it was when it was made, also where a step is computed again inside `base()`. Methods never see the pipeline.
    """

    shape: tuple[int, ...]
    parameters: list[nn.Parameter]
    device: torch.device = torch.device("cpu")

    @abstractmethod
    def denoiser(self, prompts: Sequence[str | None], guidance: str = "none") -> Denoiser:
        """The guided denoiser of latents (B, *shape) for B prompts, with the parameters as they are now. None among the
        prompts is what guidance subtracts."""

    def inner(self, prompts: Sequence[str], x: Tensor, level: Level) -> Tensor:
        """(B, C, ...): what the middle of the network makes of noisy latents (B, *shape), for discriminators."""
        raise UsageError(f"{type(self).__name__} shows nothing of the inside of its network")

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """Clean latents (B, *shape) -> pictures (B, 3, H, W) in [0, 1], float32, differentiable, not clamped."""

    def encode(self, pictures: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) in [0, 1] -> clean latents (B, *shape)."""
        raise UsageError(f"{type(self).__name__} makes no latents of pictures; distil from data=teacher:1000")

    @contextmanager
    @abstractmethod
    def base(self) -> Iterator[None]:
        """Inside, denoisers are those of the model before training (adapters off)."""

    def levels(self, grid: Any, steps: int) -> Levels:
        """The noise levels of a run of this model."""
        schedule = self.denoiser([""]).schedule
        return make_grid(grid, schedule, steps)

    def start(self, seeds: Sequence[str], levels: Levels) -> Tensor:
        """x (B, *shape) at the first level: that picture's own noise, the same alone or in a batch."""
        return levels[0].sigma * SeededNoise(list(seeds)).initial(self.shape).to(self.device)

    def change(self) -> float:
        """How far the weights are from the base's; here the norm of what learns."""
        return sum(float(p.detach().double().square().sum()) for p in self.parameters) ** 0.5
