"""UCGM-T on a ring of eight modes: a flow for many steps, then two steps of the same network.

    python benchmarks/distill_ucgm_ring.py        # about 5 minutes of one core

Prints a Markdown table of energy distances to the data: stage 1 learns with consistency 0, stage 2 goes on with 1, both
without enhancement. The floor is that of two samples of the data. Stage 1 is shown for both ends of c: at 0 the loss is
a distance and its optimum a median of the velocities, at 5 nearly a square and its optimum their mean, a flow.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from pilotage.distill.method import DistillContext, Pictures
from pilotage.distill.methods.ucgm_t import UCGMT
from pilotage.distill.roles import Roles
from pilotage.evaluation.metrics.riesz import energy_distance
from pilotage.samplers import Denoiser, sample
from pilotage.samplers.denoiser import NetworkDenoiser
from pilotage.samplers.noise import SeededNoise, derived_seed
from pilotage.samplers.schedule import RectifiedFlow
from pilotage.training.learner import Learner

UPDATES, BATCH, COUNT = 3000, 256, 4000


class Network(nn.Module):
    """3-128-128-2 of (x, t)."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(3, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU(), nn.Linear(128, 2))

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        said: Tensor = self.layers(torch.cat([x.flatten(1), time[:, None] / 1000], 1))
        return said.reshape(x.shape)


class Points(Learner):
    """A rectified flow of points (B, 2, 1, 1) without prompts."""

    def __init__(self) -> None:
        self.shape, self.network, self.schedule = (2, 1, 1), Network(), RectifiedFlow()
        self.parameters = list(self.network.parameters())

    def denoiser(
        self, prompts: Sequence[str], guidance: str = "none", told: Mapping[str, Tensor] | None = None
    ) -> Denoiser:
        return NetworkDenoiser(self.network, self.schedule, "flow_prediction")

    def decode(self, latents: Tensor) -> Tensor:
        return latents

    @contextmanager
    def base(self) -> Iterator[None]:
        yield


def ring(seeds: Sequence[str]) -> Tensor:
    """(N, 2, 1, 1): eight modes of std 0.1 on a circle of radius 2."""
    angles = torch.tensor([derived_seed(seed, "mode") % 8 * math.pi / 4 for seed in seeds])
    unit = SeededNoise(list(seeds)).draw("data", 0, torch.empty(len(seeds), 2))
    return (2 * torch.stack([angles.cos(), angles.sin()], 1) + 0.1 * unit)[:, :, None, None]


def learn(student: Points, method: UCGMT, optimiser: torch.optim.Optimizer, updates: range, clip: float) -> None:
    """`updates` of them, with pictures and noise of their own."""
    roles = Roles(student, student)
    for update in updates:
        seeds = [str(derived_seed("ring", method.consistency, update, i)) for i in range(BATCH)]
        pictures = Pictures([""] * BATCH, seeds, ring(seeds))
        ctx = DistillContext(
            roles=roles, guidance="none", deal=lambda i, p=pictures: p, data=lambda i, p=pictures: p,
            first=0, total=BATCH, update=update, updates=UPDATES, rows=BATCH)  # fmt: skip
        for part in method.update(ctx):
            part.loss.backward()
            if part.steps:
                nn.utils.clip_grad_norm_(student.parameters, clip)
                optimiser.step()
                optimiser.zero_grad()


def distance(student: Points, sampler: str, steps: int) -> float:
    """Energy distance of its points to the data."""
    seeds, levels = [str(i) for i in range(COUNT)], student.levels("trailing", steps)
    with torch.no_grad():
        made = sample(student.denoiser([""] * COUNT), student.start(seeds, levels), sampler=sampler, grid=levels,
                      noise=SeededNoise(seeds))  # fmt: skip
    return compared(made)


def compared(points: Tensor) -> float:
    data = ring([str(10**6 + i) for i in range(COUNT)])
    return energy_distance(real=data.flatten(1), generated=points.flatten(1)).value


def row(name: str, student: Points, started: float) -> str:
    """Of the table."""
    ways: list[tuple[str, int]] = [("ddim", 1), ("ddim", 2), ("ddim", 30), (UCGMT().sampler, 2)]
    cells = " | ".join(f"{distance(student, *way):.3f}" for way in ways)
    return f"| {name} | {cells} | {time.perf_counter() - started:.0f} |"


def main() -> None:
    torch.set_num_threads(1)
    started = time.perf_counter()
    floor = compared(ring([str(2 * 10**6 + i) for i in range(COUNT)]))
    print(f"floor {floor:.3f}\n")
    print("| after | one step | Euler 2 | Euler 30 | two steps, stochastic | seconds |\n|---|---|---|---|---|---|")
    for c in (0.0, 5.0):
        student = Points()
        flow = UCGMT(consistency=0.0, zeta=0.0, c=c, a=1.0, weighted=False)
        learn(student, flow, torch.optim.Adam(student.parameters, lr=1e-3), range(UPDATES), clip=1.0)
        print(row(f"{UPDATES} updates of consistency 0, c = {c:g}", student, started), flush=True)
    optimiser: Any = torch.optim.RAdam(student.parameters, lr=1e-3)
    for done in range(0, UPDATES, 1000):
        learn(student, UCGMT(zeta=0.0), optimiser, range(done, done + 1000), clip=0.1)
        print(row(f"and {done + 1000} of consistency 1", student, started), flush=True)


if __name__ == "__main__":
    main()
