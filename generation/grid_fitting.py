"""Fit a grid to what a spec runs: its model, rule, sampler and number of steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import UsageError
from .spec import RunSpec

if TYPE_CHECKING:
    from torch import Tensor

    from ..samplers.fit_grid import FittedGrid
    from ..samplers.sampler import Levels
    from .models import Loaded

CANDIDATES = ("exponential", "karras", "trailing")  # the best of them, and of the spec's grid, is begun with


@dataclass(frozen=True)
class Outcome:
    """losses: on the pictures kept for checking, of each grid by its line, and of the fitted one as "fitted"."""

    grid: FittedGrid
    losses: dict[str, float]
    runs: int


class Latents:
    """The end of a spec's pipeline run along any levels, as latents: (pictures, ...)."""

    def __init__(self, spec: RunSpec, model: Loaded, pictures: list[Any]):
        from ..guidance.grammar import parse
        from ..guidance.pipelines import adapter_of
        from .scheduling import scheduler_for

        self.spec, self.model, self.pictures, self.pipe = spec, model, pictures, model.pipe
        self.rule = parse(spec.guidance)
        self.networks = model.networks(spec, self.rule.needs)
        self.adapter = adapter_of(self.pipe)
        self.scheduler = scheduler_for(spec.changed(grid=None), model.scheduler)

    def __call__(self, levels: Levels) -> Tensor:
        import torch

        from ..guidance.pipelines import attach
        from .call import call_arguments, pictures_of

        found, size, inputs = [], self.spec.batch_size, pictures_of(self.spec)
        for begin in range(0, len(self.pictures), size):
            prompts, seeds = zip(*self.pictures[begin : begin + size], strict=True)
            on, needs = self.adapter.on_settings, self.rule.needs
            arguments = call_arguments(self.spec, self.pipe, on, needs, prompts, seeds, inputs)
            arguments |= {"num_inference_steps": len(levels) - 1, "output_type": "latent"}
            self.scheduler.set_timesteps = fixed_levels(self.scheduler, levels)
            self.pipe.scheduler = self.scheduler
            with attach(self.pipe, self.rule, self.networks, seeds=list(seeds)):
                found.append(self.pipe(**arguments).images)
            del self.scheduler.set_timesteps
        return torch.cat(found)


def fixed_levels(scheduler: Any, levels: Levels) -> Callable[..., None]:
    """A `set_timesteps` that takes these levels, whatever the pipeline asks for."""

    def set_timesteps(num_inference_steps: Any = None, device: Any = None, **other: Any) -> None:
        scheduler._use(levels, device)

    return set_timesteps


def fit_grid_of(
    spec: RunSpec,
    model: Loaded,
    *,
    fine: int = 100,
    iterations: int = 6,
    told: Callable[[int, float], None] | None = None,
) -> Outcome:
    """Fit on three of four pictures of the spec and check on the rest (with fewer than four, on the same ones).

    fine: steps of the solution that is aimed at, on the exponential grid. UsageError for a sampler with fresh noise,
    whose runs cannot be compared, and for the stock one.
    """
    from ..samplers.fit_grid import FittedGrid, best_of, error, fit_grid
    from ..samplers.grids import make_grid
    from ..samplers.registry import make_sampler

    if spec.sampler == "stock" or make_sampler(spec.sampler).stochastic:
        raise UsageError("a grid is fitted to one of our samplers without fresh noise, such as dpmpp-2m")
    if spec.image or spec.teleport:
        raise UsageError("a grid is fitted to whole runs; leave image and teleport out")
    pictures = spec.pictures()
    checked = pictures[3::4] or pictures
    runs = Latents(spec, model, [p for i, p in enumerate(pictures) if i % 4 != 3])
    checks = Latents(spec, model, checked)
    schedule = runs.scheduler.schedule
    lines = dict.fromkeys((*([spec.grid] if spec.grid else ()), *CANDIDATES))
    grids = {line: make_grid(line, schedule, spec.steps) for line in lines}
    aim = make_grid("exponential", schedule, fine)
    target, check_target = runs(aim), checks(aim)
    begin, _ = best_of(runs, target, list(grids.values()))
    fit = fit_grid(runs, target, schedule, begin, iterations=iterations, told=told)
    losses = {line: error(checks(levels), check_target) for line, levels in grids.items()}
    losses["fitted"] = error(checks(fit.levels), check_target)
    before = next(losses[line] for line, levels in grids.items() if levels == begin)
    made = FittedGrid(spec.model, spec.sampler, spec.guidance, fit.rhos, before, losses["fitted"])
    return Outcome(made, losses, fit.runs + len(grids))
