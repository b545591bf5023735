"""Autoguidance against CFG where the truth is known: a fractal tree of two classes, learned by tiny networks.

    python benchmarks/fractal_tree.py          # a minute and a half on one core; draws docs/pictures/fractal-tree.png

After Karras et al. 2024, arXiv 2406.02507, figure 1: one network learns class A well, one badly, and one learns both
classes badly. Autoguidance guides the good one with the bad one of the same class, CFG with the bad one of both
classes. Because the tree is a mixture of Gaussians, the density at every sample is exact. Printed for 20,000 samples:
mean log density under the true class, the share of samples inside the tree (denser than 99 % of true samples), and the
share of the tree's mass in branches that keep at least half of their samples.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import torch
from torch import Tensor, nn

from pilotage import guidance, samplers
from pilotage.samplers.prediction import SAMPLE, Prediction
from pilotage.samplers.schedule import Level, VarianceExploding
from pilotage.zoo.toy import Mixture, fractal_tree

PICTURE = Path(__file__).resolve().parent.parent / "docs" / "pictures" / "fractal-tree.png"
SCHEDULE = VarianceExploding(sigma_min=0.002, sigma_max=5.0)
CLASS, BOTH, DATA_DEVIATION, PIECES = 0, -1, 0.5, 8
RUNS = {
    "no guidance": ("bad", 1.0),
    "autoguidance, scale 2": ("bad", 2.0),
    "autoguidance, scale 3": ("bad", 3.0),
    "CFG, scale 2": ("bad of both classes", 2.0),
    "CFG, scale 3": ("bad of both classes", 3.0),
    "CFG, scale 4": ("bad of both classes", 4.0),
}
SHOWN = ("truth", "no guidance", "autoguidance, scale 3", "CFG, scale 4")


class Learned(nn.Module):
    """A preconditioned denoiser of points, and a `Denoiser` at once."""

    def __init__(self, width: int):
        super().__init__()
        sizes = (3, width, width, width, width)
        hidden = [m for a, b in zip(sizes, sizes[1:], strict=False) for m in (nn.Linear(a, b), nn.SiLU())]
        self.layers = nn.Sequential(*hidden, nn.Linear(width, 2))
        self.schedule = SCHEDULE

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Denoised points (B, 2) of noisy ones (B, 2) at sigma (B, 1)."""
        total = (sigma.square() + DATA_DEVIATION**2).sqrt()
        out = self.layers(torch.cat([x / total, sigma.log() / 4], 1))
        return x * (DATA_DEVIATION / total) ** 2 + out * sigma * DATA_DEVIATION / total

    def __call__(self, x: Tensor, level: Level | Tensor, condition: object = None) -> object:
        if isinstance(level, Tensor):
            return super().__call__(x, level)
        with torch.no_grad():
            return Prediction(x, level, super().__call__(x, torch.full((len(x), 1), level.sigma)), SAMPLE)


def train(tree: Mixture, width: int, steps: int, condition: int) -> Learned:
    """The network with averaged weights after `steps` steps on the data of a class, or of both."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    network, average = Learned(width), Learned(width)
    average.load_state_dict(network.state_dict())
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-2)
    pool = tree.sample(200_000, generator, condition).float()
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = 1e-2 * min(1.0, (512 / (step + 1)) ** 0.5)
        x = pool[torch.randint(len(pool), (4096,), generator=generator)]
        sigma = (torch.randn(4096, 1, generator=generator) * 1.5 - 2.3).exp()
        denoised = network(x + sigma * torch.randn(4096, 2, generator=generator), sigma)
        weight = (sigma.square() + DATA_DEVIATION**2) / (sigma * DATA_DEVIATION).square()
        optimiser.zero_grad()
        (weight * (denoised - x).square()).mean().backward()
        optimiser.step()
        with torch.no_grad():
            for kept, new in zip(average.parameters(), network.parameters(), strict=True):
                kept.lerp_(new, 1 - (step / (step + 1)) ** 97)  # a window of 1 % of the steps so far
    return average


@dataclass
class Truth:
    """The tree of one class: densities, and the branch of a point."""

    tree: Mixture
    points: Tensor

    def __post_init__(self) -> None:
        self.inside = self.log_density(self.points).quantile(0.01)
        self.mass = self.share_of_branches(self.points)

    def log_density(self, points: Tensor) -> Tensor:
        """(N,) under the class, blurred as samples are at the last level."""
        labels = torch.zeros(2000, dtype=torch.long) + CLASS
        parts = points.double().split(2000)
        return torch.cat([self.tree.log_density(p, 1.0, SCHEDULE.t_min, labels[: len(p)]) for p in parts])

    def share_of_branches(self, points: Tensor, of: int | None = None) -> Tensor:
        """The share of `of` points (default: all) that is nearest to each branch, (branches,)."""
        own = torch.where(self.tree.labels == CLASS, self.tree.weights.log(), -torch.inf)
        nearest = [
            torch.cdist(p, self.tree.means).masked_fill(own.isinf(), torch.inf).argmin(1)
            for p in points.double().split(2000)
        ]
        branches = torch.bincount(torch.cat(nearest) // PIECES, minlength=len(own) // PIECES)
        return branches / (of or len(points))


def report(name: str, points: Tensor, truth: Truth) -> None:
    density = truth.log_density(points)
    inside = density > truth.inside
    got = truth.share_of_branches(points[inside], len(points))
    kept = truth.mass[got >= truth.mass / 2].sum()
    print(f"| {name} | {density.clamp(min=-50).mean():.2f} | {inside.double().mean():.3f} | {kept:.3f} |", flush=True)


def draw(panels: dict[str, Tensor], truth: Truth) -> None:
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(panels), figsize=(4 * len(panels), 4.2), sharex=True, sharey=True)
    for axis, (name, points) in zip(axes, panels.items(), strict=True):
        inside = truth.log_density(points) > truth.inside
        axis.scatter(*truth.points.T, s=0.3, color="#d9dce3", rasterized=True)
        axis.scatter(*points[inside].T, s=0.3, color="#2f5fd0", rasterized=True)
        axis.scatter(*points[~inside].T, s=0.6, color="#d0452f", rasterized=True)
        axis.set_title(name)
        axis.set_axis_off()
        axis.set_aspect("equal")
    low, high = truth.points.amin(0), truth.points.amax(0)
    axes[0].set(xlim=(float(low[0]) - 0.1, float(high[0]) + 0.1), ylim=(float(low[1]) - 0.1, float(high[1]) + 0.1))
    figure.tight_layout()
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(PICTURE, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=20_000)
    given = parser.parse_args()
    torch.set_num_threads(1)
    tree, generator = fractal_tree(), torch.Generator().manual_seed(7)
    truth = Truth(tree, tree.sample(given.count, generator, CLASS))
    good = train(tree, 64, 4096, CLASS)
    rivals = {"bad": train(tree, 32, 512, CLASS), "bad of both classes": train(tree, 32, 512, BOTH)}
    start = SCHEDULE.T * torch.randn(given.count, 2, generator=generator)
    panels = {"truth": truth.points}
    print("| | mean log density | inside the tree | mass of branches that keep half |\n|---|---|---|---|")
    report("truth", truth.points, truth)
    for name, (rival, scale) in RUNS.items():
        guided = guidance.Guided({"main": good, "weak": rivals[rival]}, guidance.Autoguidance(scale))
        points = samplers.sample(guided, start, sampler="heun", grid="karras", steps=32)
        report(name, points, truth)
        panels[name] = points
    draw({name: panels[name] for name in SHOWN}, truth)


if __name__ == "__main__":
    main()
