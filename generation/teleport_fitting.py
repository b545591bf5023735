"""Fit the Gaussian of teleportation to what a spec's runs end in: its model, rule and size of picture."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..errors import UsageError
from .spec import RunSpec

if TYPE_CHECKING:
    from torch import Tensor

    from ..samplers.sampler import Levels
    from ..samplers.schedule import Level
    from ..samplers.teleport import GaussianMap
    from .models import Loaded

_FEWEST = 8  # pictures; some hundreds are better


@dataclass(frozen=True)
class Outcome:
    """levels: the spec's own grid but clean data. errors: how far the Gaussian is from the guided network at each, in
    deviations of the data, on the pictures kept for checking. left_out: steps of this grid above the landing."""

    gaussian: GaussianMap
    levels: Levels
    errors: tuple[float, ...]
    left_out: int


def fit_teleport_of(spec: RunSpec, model: Loaded, *, tolerance: float = 0.02, rank: int | None = None) -> Outcome:
    """Draw the spec's pictures as latents, fit on three of four, and scan on the rest how far a run may jump: to the
    lowest level down to which every error is below `tolerance`.

    rank: principal directions that are kept. UsageError for fewer than 8 pictures, for the stock sampler, for runs from
    a picture, and for pipelines other than Stable Diffusion's and SDXL's, whose network cannot be asked by itself.
    """
    from ..samplers.teleport import GaussianMap, relative_errors, skip_level
    from .grid_fitting import Latents

    if spec.sampler == "stock" or spec.image or spec.teleport:
        raise UsageError("teleportation is fitted to whole runs of one of our samplers; leave image and teleport out")
    pictures = spec.pictures()
    if len(pictures) < _FEWEST:
        raise UsageError(f"{len(pictures)} pictures are too few for a Gaussian; give {_FEWEST} or more, best hundreds")
    checked = pictures[3::4]
    runs = Latents(spec, model, [p for i, p in enumerate(pictures) if i % 4 != 3])
    checks = Latents(spec, model, checked)
    denoise = _Network(spec, model, [prompt for prompt, _ in checked])  # refuses pipelines before anything is drawn
    runs.scheduler.set_timesteps(spec.steps)
    levels = runs.scheduler.levels
    gaussian = GaussianMap.fit(runs(levels), rank=rank, model=spec.model)
    errors = relative_errors(denoise, gaussian, checks(levels).cpu(), _noise(checked, gaussian.shape), levels[:-1])
    landing = skip_level(errors, levels[:-1], tolerance)
    fitted = replace(gaussian, rule=spec.guidance, landing=landing.rho)
    return Outcome(fitted, levels[:-1], tuple(errors), levels.index(landing))


def _noise(pictures: list[tuple[str, int | str]], shape: tuple[int, ...]) -> Tensor:
    from ..samplers.noise import SeededNoise

    return SeededNoise([seed for _, seed in pictures]).initial(shape)


class _Network:
    """The guided network by itself: denoise(x, level), rows in the order of the prompts."""

    def __init__(self, spec: RunSpec, model: Loaded, prompts: list[str]):
        from ..guidance.grammar import parse
        from ..guidance.pipelines.denoiser import denoiser_of

        pipe, self.size, self.device = model.pipe, spec.batch_size, model.pipe.device
        networks = model.networks(spec, parse(spec.guidance).needs)
        parts = [prompts[i : i + self.size] for i in range(0, len(prompts), self.size)]
        size = (spec.width, spec.height) if spec.width and spec.height else None
        self.parts = [
            denoiser_of(pipe, part, spec.guidance, negative=spec.negative or "", networks=networks, size=size)
            for part in parts
        ]

    def __call__(self, x: Tensor, level: Level) -> Tensor:
        import torch

        rows = x.split(self.size)
        with torch.no_grad():
            told = [denoise(r.to(self.device), level) for denoise, r in zip(self.parts, rows, strict=True)]
        return torch.cat([prediction.denoised.cpu() for prediction in told])
