"""From a latent to its picture, always the same one: a pipeline, a prompt, a rule and a deterministic sampler."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...errors import UsageError
from ...generation.inversion import size_of
from ...generation.latents import decoded
from ...guidance.grammar import parse
from ...guidance.pipelines.denoiser import denoiser_of
from ...samplers.grids import make_grid, parse_grid
from ...samplers.loop import sample
from ...samplers.noise import SeededNoise
from ...samplers.registry import make_sampler

Draw = Callable[[Tensor], Tensor]  # latents (B, C, h, w) of unit variance -> pictures (B, 3, H, W) in [0, 1]


@dataclass(frozen=True)
class Drawing:
    """How a latent becomes a picture. guidance: a line of rules. width, height: in pixels; the model's own without
    them. Refuses samplers that take noise of their own, for they would draw another picture each time."""

    prompt: str
    negative: str = ""
    guidance: str = "cfg:scale=3"
    sampler: str = "dpmpp-2m"
    grid: str = "exponential"
    steps: int = 25
    width: int | None = None
    height: int | None = None

    def __post_init__(self) -> None:
        parse(self.guidance)
        parse_grid(self.grid)
        if make_sampler(self.sampler).stochastic:
            raise UsageError(
                f"{self.sampler} takes fresh noise, so that pictures of one latent differ; rank with a deterministic "
                "sampler such as dpmpp-2m or ddim"
            )


def drawer_of(pipe: Any, drawing: Drawing, rows: int = 4) -> Draw:
    """The function from latents to pictures; it draws so many rows at a time. Stable Diffusion and SDXL."""
    size = size_of(pipe, drawing.width, drawing.height)
    denoiser = denoiser_of(pipe, drawing.prompt, drawing.guidance, negative=drawing.negative, size=size)
    levels = make_grid(drawing.grid, denoiser.schedule, drawing.steps)
    sampler = make_sampler(drawing.sampler)

    def draw(latents: Tensor) -> Tensor:
        found = []
        with torch.no_grad():
            for part in latents.split(rows):
                x = levels[0].sigma * part.to(pipe.device)
                found.append(decoded(pipe, sample(denoiser, x, sampler=sampler, grid=levels)))
        return torch.cat(found)

    return draw


def first_latent(pipe: Any, drawing: Drawing, seed: int | str) -> Tensor:
    """(C, h, w): the noise that the pipeline itself starts from with this seed."""
    width, height = size_of(pipe, drawing.width, drawing.height)
    grain = pipe.vae_scale_factor
    return SeededNoise([seed]).initial((pipe.unet.config.in_channels, height // grain, width // grain))[0]
