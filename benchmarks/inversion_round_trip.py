"""Round trips of inversion methods on the embedded model: a real test picture to noise and back.

    python benchmarks/inversion_round_trip.py --count 64 --steps 25

Prints a Markdown table for each grid: the relative error of the latents, |back - x| / |x|, and the PSNR of the decoded
picture against the decoded latents it started from, each the median over the pictures (with the worst latent error),
once from what the inversion carries and once from its noise alone. Every inversion is of the caption's own condition,
and rules guide both ways. The line above a rule's rows says how well it draws captions from fresh noise by DDIM, as the
share of pictures in which the judge finds all that the caption states. Methods and rules can be named to shorten a run;
16 pictures in 25 steps take about 10 minutes on one idle thread, 64 four times that.
"""

from __future__ import annotations

import argparse
import statistics
from typing import Any

import torch
from torch import Tensor

from pilotage.generation.latents import decoded, encoded
from pilotage.guidance.pipelines.denoiser import denoiser_of
from pilotage.samplers.grids import make_grid
from pilotage.samplers.inversion import forward, invert, make_inversion
from pilotage.samplers.loop import sample
from pilotage.samplers.noise import SeededNoise
from pilotage.zoo import embedded, world

METHODS = (
    "naive", "fixed-point:iterations=1", "fixed-point:iterations=3", "fixed-point:iterations=10",
    "fixed-point:iterations=10,anderson=3", "edict", "bdia", "o-belm", "mccallum-foster", "reversible-heun",
)  # fmt: skip
RULES = ("none", "cfg:scale=3", "cfg++:scale=3", "cfg++:lam=0.6")


def pictures_of(count: int) -> tuple[Tensor, list[str]]:
    """Test pictures (count, 3, 32, 32) in [0, 1], and their captions."""
    scenes = [world.scene(i, "test") for i in range(count)]
    drawn = torch.stack([torch.from_numpy(scene.draw().copy()) for scene in scenes])
    return drawn.permute(0, 3, 1, 2).float() / 255, [scene.caption for scene in scenes]


def errors(back: Tensor, x: Tensor) -> Tensor:
    return (back - x).flatten(1).norm(dim=1) / x.flatten(1).norm(dim=1)


def psnr(pictures: Tensor, of: Tensor) -> Tensor:
    return -10 * (pictures - of).square().flatten(1).mean(1).log10()


def figures(back: Tensor, x: Tensor, shown: Tensor, pipe: Any) -> list[str]:
    """Median and worst latent error, median PSNR. What has run away counts as infinitely far."""
    if not back.isfinite().all():
        return ["diverges", "", ""]
    apart = errors(back, x)
    return [f"{apart.median():.1e}", f"{apart.max():.1e}", f"{psnr(decoded(pipe, back), shown).median():.1f}"]


@torch.no_grad()
def row(method: str, denoiser: Any, x: Tensor, shown: Tensor, levels: Any, pipe: Any) -> list[str]:
    how = make_inversion(method)
    carried = invert(denoiser, x, levels, method=how)
    end = how.end(forward(denoiser, carried, levels, method=how))
    alone = end  # where nothing but the noise is carried
    if len(carried.tensors) > 1:
        alone = how.end(forward(denoiser, how.noise(carried), levels, method=how))
    spread = f"{how.noise(carried).std() / levels[0].sigma:.2f}"
    worst = f"{max(float(change.max()) for change in carried.changes):.0e}" if carried.changes else ""
    return [method, *figures(end, x, shown, pipe), *figures(alone, x, shown, pipe), spread, worst]


@torch.no_grad()
def adherence(pipe: Any, rule: str, captions: list[str], levels: Any) -> float:
    """Share of DDIM's pictures that show all of their caption, seed i for caption i."""
    judge, hits = embedded.judge(), []
    for start in range(0, len(captions), 100):
        part = captions[start : start + 100]
        noise = SeededNoise(range(start, start + len(part))).initial((4, 8, 8)) * levels[0].sigma
        end = sample(denoiser_of(pipe, part, rule), noise, sampler="ddim", grid=levels)
        tensor = (decoded(pipe, end) * 255).round().to(torch.uint8)
        hits += [float(hit) for hit in judge.adherence(tensor, part)["all"]]
    return statistics.fmean(hits)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=16, help="pictures")
    parser.add_argument("--steps", type=int, nargs="+", default=[25])
    parser.add_argument("--grids", nargs="+", default=["exponential"])
    parser.add_argument("--rules", nargs="+", default=RULES)
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--captions", type=int, default=300, help="for adherence; 0 leaves it out")
    choice = parser.parse_args()
    torch.set_num_threads(1)
    pipe = embedded.load()
    pictures, captions = pictures_of(choice.count)
    x = encoded(pipe, pictures)
    shown = decoded(pipe, x)
    further = [world.scene(i, "test").caption for i in range(choice.captions)]
    print(f"{choice.count} test pictures; the VAE alone keeps them at {psnr(shown, pictures).median():.1f} dB.")
    for grid in choice.grids:
        for steps in choice.steps:
            for rule in choice.rules:
                denoiser = denoiser_of(pipe, captions, rule)
                levels = make_grid(grid, denoiser.schedule, steps)
                drawn = f", adherence {adherence(pipe, rule, further, levels):.3f}" if further else ""
                print(f"\n`{rule}`, {steps} steps, {grid} grid{drawn}\n")
                print("| method | error | worst | PSNR | from the noise alone | worst | PSNR | noise | last move |")
                print("|---" * 9 + "|")
                for method in choice.methods:
                    print(f"| {' | '.join(row(method, denoiser, x, shown, levels, pipe))} |", flush=True)


if __name__ == "__main__":
    main()
