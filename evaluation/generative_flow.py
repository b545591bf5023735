"""A generator that follows the particle flow: a chain of small networks, each of which has learned some steps of it.

Hertrich et al. 2023, 2305.11463. Particles start as noise. Then, stage after stage: move them by some steps of the
flow; fit a network to their displacement; and put them where the network puts them, so that the next stage starts from
what the chain really makes. New noise through the chain is a new sample; the data are not needed any more.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from ..errors import UsageError
from .metrics.riesz import energy_distance
from .particle_flow import FlowSettings, particle_flow


@dataclass(frozen=True)
class GeneratorSettings:
    """stages: networks. flow: of the whole chain; its steps and its falling step size are shared among the stages.

    width: channels of a network. fit_steps, batch, learning_rate: of each network's fit by Adam, from the weights of
    the one before. seed: of noise, weights and batches.
    """

    particles: int = 2000
    stages: int = 8
    flow: FlowSettings = field(default_factory=FlowSettings)
    width: int = 32
    fit_steps: int = 500
    batch: int = 100
    learning_rate: float = 2e-3
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.particles, self.stages, self.width, self.batch) < 1:
            raise UsageError("particles, stages, width and batch must be 1 or more; use GeneratorSettings()")
        if self.flow.steps < self.stages:
            raise UsageError(
                f"{self.flow.steps} steps of flow are not enough for {self.stages} stages; use fewer stages"
            )


class Stage(nn.Module):
    """A displacement of pictures (n, C, H, W): convolutions, each with the mean of all places, and the place itself."""

    def __init__(self, channels: int, width: int, depth: int = 3) -> None:
        super().__init__()
        self.enter = nn.Conv2d(channels + 2, width, 3, padding=1)
        self.near = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(depth))
        self.far = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.leave = nn.Conv2d(width, channels, 3, padding=1)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        down, across = (torch.linspace(-1, 1, side, device=x.device, dtype=x.dtype) for side in x.shape[-2:])
        places = torch.stack(torch.meshgrid(down, across, indexing="ij")).expand(len(x), -1, -1, -1)
        h = self.enter(torch.cat([x, places], dim=1))
        for near, far in zip(self.near, self.far, strict=True):
            a = nn.functional.silu(h)
            h = h + near(a) + far(a.mean((2, 3)))[:, :, None, None]
        return self.leave(nn.functional.silu(h))


class GenerativeFlow(nn.Module):
    """x + stage(x), one stage after another, from standard normal noise times the spread of the data."""

    mean: Tensor
    spread: Tensor

    def __init__(self, shape: tuple[int, int, int], settings: GeneratorSettings) -> None:
        super().__init__()
        self.shape = shape
        self.settings = settings
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            first = Stage(shape[0], settings.width)
        self.stages = nn.ModuleList(copy.deepcopy(first) for _ in range(settings.stages))
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("spread", torch.ones(()))

    def noise(self, count: int, generator: torch.Generator) -> Tensor:
        """Where samples start, (count, C, H, W), float32, in units of the spread."""
        return torch.randn(count, *self.shape, generator=generator).to(self.mean.device)

    def forward(self, noise: Tensor, stages: int | None = None) -> Tensor:
        """Samples from noise; `stages` ends after that many of them."""
        x = noise
        for stage in list(self.stages)[:stages]:
            x = x + stage(x)
        return self.mean + self.spread * x

    @torch.no_grad()
    def sample(self, count: int, seed: int, batch: int = 256) -> Tensor:
        """(count, C, H, W), the same for the same seed."""
        noise = self.noise(count, torch.Generator().manual_seed(seed))
        return torch.cat([self(part) for part in noise.split(batch)])


@dataclass(frozen=True)
class StageReport:
    """After a stage: energy distance of the flow's particles and of the network's from the data, and the fit's error.

    unexplained: mean squared error of the displacement over its mean square, 0 for a perfect fit.
    """

    stage: int
    flow_energy: float
    energy: float
    unexplained: float


def fit_generative_flow(
    data: Tensor, settings: GeneratorSettings | None = None, report: Callable[[StageReport], None] | None = None
) -> GenerativeFlow:
    """Fit the chain to data (M, C, H, W), float. report: called after each stage. Deterministic by its seeds."""
    settings = GeneratorSettings() if settings is None else settings
    if data.ndim != 4 or not data.is_floating_point():
        raise UsageError(
            f"data must be float (M, C, H, W), got {tuple(data.shape)} {data.dtype}; convert with .float()"
        )
    chain = GenerativeFlow(tuple(data.shape[1:]), settings).to(data.device)  # type: ignore[arg-type]
    chain.mean.copy_(data.mean())
    chain.spread.copy_(data.std())
    y = ((data - chain.mean) / chain.spread).float()
    generator = torch.Generator().manual_seed(settings.seed)
    x = chain.noise(settings.particles, generator)
    for number in range(settings.stages):
        moved = particle_flow(x.flatten(1), y.flatten(1), _share(settings, chain.shape, number)).particles.view_as(x)
        stage = chain.stages[number]
        if number:
            stage.load_state_dict(chain.stages[number - 1].state_dict())
        error = _fit(stage, x, moved - x, settings, generator)
        with torch.no_grad():
            x = torch.cat([part + stage(part) for part in x.split(256)])
        if report is not None:
            of_flow, of_chain = (energy_distance(real=y.flatten(1), generated=p.flatten(1)).value for p in (moved, x))
            report(StageReport(number + 1, of_flow, of_chain, error))
    return chain.eval()


def _share(settings: GeneratorSettings, shape: tuple[int, int, int], number: int) -> FlowSettings:
    """The part of the whole flow that a stage learns."""
    flow, count = settings.flow, settings.stages
    fall = flow.last_step_size - flow.step_size
    return replace(
        flow,
        steps=flow.steps * (number + 1) // count - flow.steps * number // count,
        step_size=flow.step_size + fall * number / count,
        last_step_size=flow.step_size + fall * (number + 1) / count,
        shape=shape,
        seed=flow.seed + number,
    )


def _fit(
    stage: nn.Module, x: Tensor, displacement: Tensor, settings: GeneratorSettings, generator: torch.Generator
) -> float:
    """Least squares of the displacement by Adam with a falling rate; the share left unexplained, over all particles."""
    optimiser = torch.optim.Adam(stage.parameters(), settings.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, max(1, settings.fit_steps))
    unit = displacement.square().mean()
    with torch.enable_grad():
        for _ in range(settings.fit_steps):
            rows = torch.randint(len(x), (settings.batch,), generator=generator).to(x.device)
            loss = (stage(x[rows]) - displacement[rows]).square().mean() / unit
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    with torch.no_grad():
        errors = [(stage(a) - d).square().sum() for a, d in zip(x.split(256), displacement.split(256), strict=True)]
    return float(torch.stack(errors).sum() / displacement.numel() / unit)
