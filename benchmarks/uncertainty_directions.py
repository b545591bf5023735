"""What the embedded model knows besides its pictures: docs/analysis.md has the numbers and the picture.

    python benchmarks/uncertainty_directions.py picture       # docs/pictures/uncertainty.png, two minutes on one core
    python benchmarks/uncertainty_directions.py strangers     # AUROC of score norms
    python benchmarks/uncertainty_directions.py likelihood    # bits per dimension, test pictures against corrupted ones
    python benchmarks/uncertainty_directions.py geometry      # asymmetry of the Jacobian, dimension of the latents

Everything is unconditional (the empty prompt), on latents of unit deviation, in float32, by forward mode.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate

from pilotage.errors import UsageError
from pilotage.samplers import NetworkDenoiser, NoiseSchedule, SeededNoise, analysis
from pilotage.zoo import embedded, world

matplotlib.use("Agg")
import matplotlib.pyplot as plt

PICTURE = Path(__file__).resolve().parent.parent / "docs" / "pictures" / "uncertainty.png"
DEVIATIONS = (-2, -1, 0, 1, 2)


class Model:
    """The pipeline's UNet as a denoiser, and its autoencoder."""

    def __init__(self) -> None:
        pipe = embedded.load()
        for part in (pipe.unet, pipe.vae):
            part.requires_grad_(False)
        schedule = NoiseSchedule.from_scheduler(pipe.scheduler)
        self.denoiser = NetworkDenoiser(pipe.unet, schedule, str(pipe.scheduler.config.prediction_type))
        self.vae, self.schedule = pipe.vae, schedule

    def empty(self, rows: int) -> dict[str, Tensor]:
        return {"encoder_hidden_states": embedded.text_embedding("").expand(rows, -1, -1)}

    @torch.no_grad()
    def latents(self, pictures: Tensor) -> Tensor:
        """(B, 3, 32, 32) in [0, 1] -> (B, 4, 8, 8)."""
        return torch.cat([self.vae.encode(2 * part - 1).latent_dist.mode() for part in pictures.split(100)])

    @torch.no_grad()
    def pictures(self, latents: Tensor) -> np.ndarray:
        """(B, 4, 8, 8) -> (B, 32, 32, 3) in [0, 1]."""
        decoded = torch.cat([self.vae.decode(part).sample for part in latents.split(100)])
        return ((decoded.clamp(-1, 1) + 1) / 2).permute(0, 2, 3, 1).numpy()


def drawn(first: int, count: int, split: str = "test") -> Tensor:
    """(count, 3, 32, 32) in [0, 1]."""
    return torch.from_numpy(world.pictures(range(first, first + count), split)).permute(0, 3, 1, 2).float() / 255


# The picture


def picture(choice: argparse.Namespace) -> None:
    model, indices = Model(), choice.indices
    level = model.schedule.level_of_rho(choice.rho)
    noise = SeededNoise(indices)
    clean = model.latents(torch.cat([drawn(i, 1) for i in indices]))
    x = level.alpha * clean + level.sigma * noise.initial(clean.shape[1:])
    condition = model.empty(len(x))
    found = analysis.principal_components(
        model.denoiser, x, level, noise, count=3, iterations=choice.iterations, condition=condition
    )
    marginals = []
    for k in range(3):
        moments = analysis.moments_along(model.denoiser, x, level, found.directions[:, k], condition=condition)
        print(f"component {k + 1}: deviations {moments.variance.sqrt().tolist()}")
        print(f"   skewness {(moments.third / moments.variance**1.5).tolist()}")
        print(
            f"   kurtosis {(moments.fourth / moments.variance**2).tolist()}, residual {found.residuals[:, k].tolist()}"
        )
        marginals.append([_marginal(moments, row) for row in range(len(x))])
    moved = [[model.pictures(found.moved(k, s)) for s in DEVIATIONS] for k in range(3)]
    stages = [model.pictures(part) for part in (clean, x / level.alpha, found.mean)]
    _draw(stages, moved, marginals, choice)


def _marginal(moments: analysis.Moments, row: int) -> tuple[Tensor, Tensor] | None:
    """Positions in standard deviations and density there, or None where a network's moments are nobody's."""
    one = analysis.Moments(*(getattr(moments, name)[row : row + 1] for name in ("mean", "variance", "third", "fourth")))
    try:
        found = analysis.maximum_entropy(one, deviations=3.0)
    except UsageError:
        return None
    deviation = one.variance.double().sqrt()
    return (found.positions[0] - one.mean) / deviation, found.density[0] * deviation


def _draw(stages: list[np.ndarray], moved: Any, marginals: Any, choice: argparse.Namespace) -> None:
    """A block of three lines for each picture: its stages, the components with their deviations, and the densities."""
    blocks = len(choice.indices)
    figure = plt.figure(figsize=(11.5, 4.75 * blocks))
    outer = figure.add_gridspec(blocks, 3, width_ratios=(1, 5.2, 1), wspace=0.1, hspace=0.16)
    for row in range(blocks):
        left = outer[row, 0].subgridspec(3, 1, hspace=0.06).subplots(squeeze=False)
        middle = outer[row, 1].subgridspec(3, 5, hspace=0.06, wspace=0.03).subplots()
        right = outer[row, 2].subgridspec(3, 1, hspace=0.06).subplots(squeeze=False)
        for k in range(3):
            _show(left[k, 0], stages[k][row])
            left[k, 0].set_ylabel(("picture", f"noisy, rho = {choice.rho:g}", "denoised")[k], fontsize=12)
            for column in range(len(DEVIATIONS)):
                _show(middle[k, column], moved[k][column][row])
            middle[k, 0].set_ylabel(f"component {k + 1}", fontsize=11)
            _density(right[k, 0], marginals[k][row], last=k == 2)
        for axis, s in zip(middle[0], DEVIATIONS):
            axis.set_title("mean" if s == 0 else f"{s:+d} std", fontsize=12)
        right[0, 0].set_title("density / std", fontsize=12)
    choice.to.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(choice.to, dpi=100, bbox_inches="tight", pad_inches=0.1)
    print(choice.to)


def _show(axis: Any, image: np.ndarray) -> None:
    axis.imshow(image, interpolation="nearest")
    axis.set_xticks([])
    axis.set_yticks([])


def _density(axis: Any, curve: tuple[Tensor, Tensor] | None, last: bool) -> None:
    if curve is not None:
        axis.fill_between(*curve, color="tab:blue", alpha=0.5)
    axis.set_xlim(-3, 3)
    axis.set_ylim(0, 0.6)
    axis.set_yticks([])
    axis.set_xticks([-2, 0, 2], labels=["-2", "0", "2"] if last else ["", "", ""])
    axis.set_box_aspect(1)


# Strangers


def textures(count: int) -> Tensor:
    """Stripes and chequers of two of the world's colours, at random angles and widths."""
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    made = []
    for k in range(count):
        rng = np.random.default_rng(k)
        pair = torch.tensor([list(world.COLOURS.values())[i] for i in rng.choice(len(world.COLOURS), 2, False)]) / 255
        angle, width = rng.uniform(0, np.pi), rng.uniform(1.5, 5)
        across = torch.sin((x * np.cos(angle) + y * np.sin(angle)) * np.pi / width)
        along = torch.sin((y * np.cos(angle) - x * np.sin(angle)) * np.pi / width)
        mask = (across * along if k % 2 else across) > 0
        made.append(torch.where(mask, pair[0][:, None, None], pair[1][:, None, None]))
    return torch.stack(made)


def blurred(pictures: Tensor) -> Tensor:
    return interpolate(avg_pool2d(pictures, 4), scale_factor=4, mode="bilinear")


def grainy(pictures: Tensor) -> Tensor:
    noise = SeededNoise(range(len(pictures))).draw("grain", 0, pictures)
    return (pictures + 0.05 * noise).clamp(0, 1)


def shuffled(pictures: Tensor) -> Tensor:
    """The sixteen tiles of a picture in another order."""
    tiles = pictures.unfold(2, 8, 8).unfold(3, 8, 8).flatten(2, 3)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    rows = tiles[:, :, order].unflatten(2, (4, 4))
    return rows.permute(0, 1, 2, 4, 3, 5).reshape(pictures.shape)


def kinds(count: int) -> dict[str, Tensor]:
    test = drawn(20_000, count)
    noise = torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return {
        "other test pictures": drawn(30_000, count),
        "held-out combinations": drawn(0, count, "heldout"),
        "grain of 5 %": grainy(test),
        "blurred": blurred(test),
        "tiles shuffled": shuffled(test),
        "textures": textures(count),
        "flat colour": test.mean((2, 3), keepdim=True).expand_as(test).contiguous(),
        "noise": noise,
    }


def auroc(known: Tensor, strange: Tensor) -> float:
    """Share of pairs in which the stranger scores higher; ties count half."""
    apart = strange.double()[:, None] - known.double()
    return float((apart > 0).double().mean() + (apart == 0).double().mean() / 2)


@torch.no_grad()
def strangers(choice: argparse.Namespace) -> None:
    model = Model()
    levels = analysis.geometric_levels(model.schedule, 0.04, 4.0, 10)

    def features(pictures: Tensor) -> Tensor:
        parts = model.latents(pictures).split(100)
        return torch.cat(
            [analysis.score_norm_features(model.denoiser, z, levels, condition=model.empty(len(z))) for z in parts]
        )

    train = features(drawn(0, choice.train, "train"))
    components = analysis.choose_components(train, (1, 2, 4, 8), folds=5)
    detectors = {
        f"mixture of {components}": analysis.MixtureDetector.fit(train, components),
        "5th neighbour": analysis.NeighbourDetector.fit(train, 5),
    }
    known = features(drawn(20_000, choice.count))
    print("| strangers | " + " | ".join(detectors) + " |\n|---|" + "---|" * len(detectors))
    for name, pictures in kinds(choice.count).items():
        found = features(pictures)
        cells = [f"{auroc(d.score(known), d.score(found)):.3f}" for d in detectors.values()]
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


# Likelihood


@torch.no_grad()
def likelihood(choice: argparse.Namespace) -> None:
    model, rows = Model(), choice.count
    every = {"test pictures": drawn(20_000, rows), **kinds(rows)}
    noise = SeededNoise(range(rows))
    last = analysis.geometric_levels(model.schedule, choice.least, 14.0, 2)[0]
    grid = tuple(reversed(analysis.geometric_levels(model.schedule, choice.least, 14.0, choice.steps + 1)))
    known: Tensor | None = None
    print("| pictures | bits per dimension | difference, paired | AUROC of -log p |\n|---|---|---|---|")
    for name, pictures in every.items():
        z = model.latents(pictures)
        x = last.alpha * z + last.sigma * noise.draw("least noise", 0, z)
        settings: dict[str, Any] = {"grid": grid, "noise": noise, "probes": choice.probes, "method": "rk4"}
        prior = analysis.GaussianPrior(1.0)
        found = analysis.log_likelihood(model.denoiser, x, prior=prior, condition=model.empty(rows), **settings)
        bits = found.bits()
        known = bits if known is None else known
        apart = bits - known
        error = 1.96 * float(apart.std()) / rows**0.5
        cells = (f"{float(bits.mean()):.3f}", f"{float(apart.mean()):+.3f} +- {error:.3f}", f"{auroc(known, bits):.3f}")
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


# Geometry


def geometry(choice: argparse.Namespace) -> None:
    model = Model()
    z = model.latents(drawn(20_000, choice.count))
    noise, condition = SeededNoise(range(len(z))), model.empty(choice.count)
    print("| rho | asymmetry | values above 1/2 | trace | largest drop |\n|---|---|---|---|---|")
    for rho in choice.rhos:
        level = model.schedule.level_of_rho(rho)
        x = level.alpha * z + level.sigma * noise.draw("geometry", 0, z)
        asymmetry = analysis.asymmetry(model.denoiser, x, level, probes=4, noise=noise, condition=condition)
        found = analysis.local_dimension(model.denoiser, x, level, condition=condition)
        readings = [values.double().mean() for values in (found.half, found.trace, found.gap)]
        print(f"| {rho:g} | {float(asymmetry.mean()):.3f} | " + " | ".join(f"{float(v):.1f}" for v in readings) + " |")
        shown = found.spectrum.mean(0)[[0, 7, 15, 31, 63, 127, 191, 255]]
        print(
            "  spectrum at 1, 8, 16, 32, 64, 128, 192, 256:", " ".join(f"{v:.3f}" for v in shown.tolist()), flush=True
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(required=True)

    def part(name: str, run: Callable[[argparse.Namespace], None], count: int) -> argparse.ArgumentParser:
        made = parts.add_parser(name)
        made.set_defaults(run=run)
        made.add_argument("--count", type=int, default=count, help="pictures of each kind")
        return made

    made = part("picture", picture, 2)
    made.add_argument("--indices", type=int, nargs="+", default=[20_007, 20_011], help="test pictures; their seeds too")
    made.add_argument("--rho", type=float, default=2.0)
    made.add_argument("--iterations", type=int, default=20)
    made.add_argument("--to", type=Path, default=PICTURE)
    part("strangers", strangers, 100).add_argument("--train", type=int, default=300)
    made = part("likelihood", likelihood, 10)
    made.add_argument("--steps", type=int, default=6)
    made.add_argument("--probes", type=int, default=1)
    made.add_argument("--least", type=float, default=0.05, help="rho at which the density is taken")
    made = part("geometry", geometry, 4)
    made.add_argument("--rhos", type=float, nargs="+", default=[0.1, 0.3])
    choice = parser.parse_args()
    choice.run(choice)


if __name__ == "__main__":
    main()
