"""Sliced-energy flows on the latents of the embedded world: particles, and a small generator that follows them.

    python benchmarks/sliced_flow.py flow         # about 1 minute of one core
    python benchmarks/sliced_flow.py generator    # about 5 minutes of one core

Each prints Markdown tables and writes its picture into docs/pictures/.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from pilotage.evaluation import open_features, prdc
from pilotage.evaluation.generative_flow import GeneratorSettings, StageReport, fit_generative_flow
from pilotage.evaluation.metrics.riesz import energy_distance
from pilotage.evaluation.particle_flow import FlowSettings, particle_flow
from pilotage.generation.latents import decoded, encoded
from pilotage.zoo import embedded, world

SHAPE = (4, 8, 8)
WINDOWS = (5, 3)
PICTURES = Path(__file__).parent.parent / "docs" / "pictures"


@torch.no_grad()
def latents(pipe: Any, split: str, count: int, first: int = 0) -> Tensor:
    """(count, 4, 8, 8) of pictures first.. of the world."""
    drawn = torch.from_numpy(world.pictures(range(first, first + count), split)).permute(0, 3, 1, 2).float() / 255
    return torch.cat([encoded(pipe, part) for part in drawn.split(250)])


@torch.no_grad()
def pictures(pipe: Any, some: Tensor) -> Tensor:
    """uint8 (N, 3, 32, 32) of latents in any shape."""
    parts = [decoded(pipe, part) for part in some.view(-1, *SHAPE).split(250)]
    return (torch.cat(parts) * 255).round().to(torch.uint8)


def sheet(rows: list[Tensor], path: Path, zoom: int = 2) -> None:
    """Rows of uint8 pictures, as a PNG."""
    joined = torch.cat([torch.cat(list(row), dim=2) for row in rows], dim=1)
    image = Image.fromarray(joined.permute(1, 2, 0).numpy())
    path.parent.mkdir(parents=True, exist_ok=True)
    image.resize((image.width * zoom, image.height * zoom), Image.Resampling.NEAREST).save(path)
    print(f"wrote {path}")


def scores(pipe: Any, named: dict[str, Tensor], test: Tensor, train: Tensor) -> None:
    """A table of sets of latents against test pictures, and of how near they lie to training pictures."""
    extract = open_features("embedded")
    real = extract(pictures(pipe, test))
    print("\n| set | pictures | energy, latents | energy, features | precision | coverage | to train |")
    print("|---" * 7 + "|")
    for name, some in named.items():
        features = extract(pictures(pipe, some))
        inside = prdc(real=real, generated=features, k=5, recall=False)
        in_latents = energy_distance(real=test.flatten(1), generated=some.flatten(1)).value
        in_features = energy_distance(real=real, generated=features)
        error = in_features.standard_error
        nearest = torch.cdist(some.flatten(1), train.flatten(1)).amin(1).median()
        cells = [name, len(some), f"{in_latents:.3f}", f"{in_features.value:.2f} +- {1.96 * error:.2f}"]
        cells += [f"{inside.precision:.3f}", f"{inside.coverage:.3f}", f"{nearest:.1f}"]
        print(f"| {' | '.join(map(str, cells))} |", flush=True)


def flow(pipe: Any, choice: argparse.Namespace) -> None:
    """Particles and where they went."""
    train, test = latents(pipe, "train", choice.data).flatten(1), latents(pipe, "test", 1000)
    start = torch.randn(choice.particles, train.shape[1], generator=torch.Generator().manual_seed(0))
    kept = [0, 10, 30, 100, 300, 1000]
    began, found = time.process_time(), {}
    for name, windows in (("whole latents only", ()), ("with windows", WINDOWS)):
        settings = FlowSettings(steps=choice.steps, windows=windows, shape=SHAPE)
        found[name] = particle_flow(start, train, settings, keep=[step for step in kept if step < choice.steps])
        line = ", ".join(f"{step}: {value:.3f}" for step, value in found[name].energies.items())
        print(f"{name}: energy by step {line}; {time.process_time() - began:.0f} s so far", flush=True)
    best = found["with windows"]
    nearest = train[torch.cdist(best.particles[:16], train).argmin(1)]
    sheet([pictures(pipe, row[:16]) for row in [*best.kept.values(), nearest]], PICTURES / "sliced-flow.png")
    named = {"noise": start, **{name: one.particles for name, one in found.items()}}
    named["other training pictures"] = latents(pipe, "train", choice.particles, first=choice.data)
    scores(pipe, named, test, train)


def generator(pipe: Any, choice: argparse.Namespace) -> None:
    """The chain and new samples from it."""
    train, test = latents(pipe, "train", choice.data), latents(pipe, "test", 1000)
    settings = GeneratorSettings(
        particles=choice.particles,
        stages=choice.stages,
        fit_steps=choice.fit_steps,
        flow=FlowSettings(steps=choice.steps, windows=WINDOWS, shape=SHAPE),
    )
    began = time.process_time()
    print("| stage | energy of the flow | of the chain | unexplained | seconds |")
    print("|---" * 5 + "|")

    def report(done: StageReport) -> None:
        cells = f"{done.flow_energy:.4f} | {done.energy:.4f} | {done.unexplained:.2f}"
        print(f"| {done.stage} | {cells} | {time.process_time() - began:.0f} |", flush=True)

    chain = fit_generative_flow(train, settings, report)
    print(f"\n{sum(p.numel() for p in chain.parameters()):,} parameters")
    fresh = chain.sample(1000, seed=1)
    sheet(list(pictures(pipe, fresh[:64]).split(16)), PICTURES / "sliced-flow-generator.png")
    noise = chain.mean + chain.spread * chain.noise(1000, torch.Generator().manual_seed(1))
    other = latents(pipe, "train", 1000, first=choice.data)
    scores(pipe, {"noise": noise, "new samples": fresh, "other training pictures": other}, test, train)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("flow", "generator"))
    parser.add_argument("--data", type=int, help="training pictures")
    parser.add_argument("--particles", type=int)
    parser.add_argument("--steps", type=int, help="steps of the flow")
    parser.add_argument("--stages", type=int, default=12)
    parser.add_argument("--fit-steps", type=int, default=400)
    choice = parser.parse_args()
    defaults = (1000, 400, 3000) if choice.what == "flow" else (4000, 3000, 1800)
    for name, value in zip(("data", "particles", "steps"), defaults, strict=True):
        setattr(choice, name, getattr(choice, name) or value)
    torch.set_num_threads(1)
    (flow if choice.what == "flow" else generator)(embedded.load(), choice)


if __name__ == "__main__":
    main()
