"""What each f-divergence makes of a student that is too small, where all scores are exact.

    python benchmarks/distill_toys.py            # everything, some minutes on one core
    python benchmarks/distill_toys.py a c        # some tables

(a) one dimension, by quadrature: a Gaussian that starts on the minor of two modes, for several noise ranges; (b) the
same in the plane, by samples; (c) four Gaussians for a ring of eight modes; (d) the same with the ratio learnt by a
discriminator, raw and through the pipeline of a run. Draws docs/pictures/distill-divergences.png of (a) and (c).
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import torch
from torch import Tensor

from pilotage.distill.divergences import make_divergence
from pilotage.distill.ratio import RatioWeights

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))
import matching_toys as toys

ROOT = Path(__file__).resolve().parent.parent
PICTURE = ROOT / "docs" / "pictures" / "distill-divergences.png"

NAMES = ("reverse-kl", "softened", "jensen-shannon", "hellinger", "forward-kl", "jeffreys")
SIX = [make_divergence(name) for name in NAMES]
SEEDS = (0, 1, 2)
SHOWN = 2.0  # the noise range of the picture


def told(name: str, *cells: str) -> None:
    print(f"{name:<46}" + "".join(f"{cell:>18}" for cell in cells), flush=True)


def several(values: Tensor, form: str) -> str:
    return ", ".join(format(value, form) for value in values.tolist())


def one_dimension() -> Tensor:
    """Table (a): mean / deviation and share of the minor mode. The students of the range that is drawn (6, 2)."""
    shown = torch.empty(0)
    told("(a) noise up to", *NAMES)
    for sigma_max in (1.0, 1.5, 2.0, 3.0, 10.0):
        learnt = toys.matched_by_quadrature(SIX, sigma_max, points=1401)
        left = toys.left_mass(*learnt.T)
        told(f"{sigma_max:g}", *(f"{m:.3f} / {s:.3f}" for m, s in learnt.tolist()))
        told("   share on the minor mode, 0.35", *(f"{share:.3f}" for share in left.tolist()))
        shown = learnt if sigma_max == SHOWN else shown
    for sigma_max in (1.0, 2.0):
        learnt = toys.matched_by_quadrature(SIX, sigma_max, points=1401, clip=(0.1, 20.0))
        told(f"{sigma_max:g}, ratio clipped to [0.1, 20]", *(f"{m:.3f} / {s:.3f}" for m, s in learnt.tolist()))
    return shown


def plane() -> None:
    """Table (b)."""
    student = toys.Gaussians(len(SIX) * len(SEEDS))
    weighing, draws = toys.Weighing(SIX, len(SEEDS)), toys.Draws.of(SEEDS, len(SIX))
    seen = toys.matched_by_samples(student, toys.two_modes(2), weighing, draws, steps=1500)
    left = toys.left_mass(student.mean[:, 0], (student.root @ student.root.mT)[:, 0, 0].sqrt()).detach()
    told("(b) two modes in the plane", *NAMES)
    told("   share on the minor mode, 0.35", *(several(some, ".2f") for some in left.reshape(len(SIX), -1)))
    told("   variation of the weights", *(f"{some.mean():.2f}" for some in seen.spread.reshape(len(SIX), -1)))


def tell_ring(title: str, names: tuple[str, ...], student: toys.FourParts, seen: toys.Seen) -> None:
    on, rows = toys.looked_at(student, toys.ring()), len(names)
    told(title, "modes hit", "precision", "-log q of teacher", "KL(q, p)", "variation", "likeness")
    for run, name in enumerate(names):
        modes, *others = (values.reshape(rows, -1)[run] for values in (on.modes, on.precision, on.surprise, on.reverse))
        like = seen.likeness.reshape(rows, -1)[run] if seen.likeness.dim() else torch.full((1,), math.nan)
        others += [seen.spread.reshape(rows, -1)[run], like]
        told(f"   {name}", several(modes, "d"), *(f"{values.mean():.2f}" for values in others))


def on_a_ring() -> toys.FourParts:
    """Table (c); its students, 6 x 3."""
    student = toys.FourParts(len(SIX) * len(SEEDS))
    weighing, draws = toys.Weighing(SIX, len(SEEDS)), toys.Draws.of(SEEDS, len(SIX))
    seen = toys.matched_by_samples(student, toys.ring(), weighing, draws, steps=1200)
    tell_ring("(c) ring, exact ratio", NAMES, student, seen)
    return student


class Piped(toys.Weighing):
    """Weights of `RatioWeights`."""

    def __init__(self, names: tuple[str, ...], seeds: int, **settings: Any):
        super().__init__([make_divergence(name) for name in names], seeds)
        self.settings = RatioWeights(**settings)
        self.states: list[dict[str, Any]] = [{} for _ in self.divergences]

    def weigh(self, log_ratio: Tensor, shares: Tensor) -> Tensor:
        each = zip(log_ratio, shares, self.divergences, self.states)
        return torch.stack([self.settings.weights(*some, lambda rows: rows)[0] for some in each]).double()


def learnt_ratio() -> None:
    """Table (d), and what the settings of the pipeline do where the ratio is exact."""
    names, few = ("reverse-kl", "jensen-shannon", "forward-kl"), SEEDS[:2]
    runs = len(names) * len(few)
    raw = toys.Weighing([make_divergence(name) for name in names], len(few))
    ways: dict[str, toys.Weighing] = {
        "raw logit": raw,
        "pipeline": Piped(names, len(few)),
        "pipeline, clip 0.001..20": Piped(names, len(few), clip=(1e-3, 20.0)),
    }
    for title, weighing in ways.items():
        student = toys.FourParts(runs)
        critic = toys.Critic(runs, torch.Generator().manual_seed(0))
        draws = toys.Draws.of(few, len(names))
        seen = toys.matched_by_samples(student, toys.ring(), weighing, draws, 800, critic)
        tell_ring(f"(d) learnt ratio, {title}", names, student, seen)
    settings: dict[str, dict[str, Any]] = {"": {}, ", ema 0.9": {"ema": 0.9}, ", no bins": {"by_bin": False}}
    for rows in (16, 512):
        for title, some in settings.items():
            for low in (0.1, 1e-3):
                student, draws = toys.FourParts(2 * len(few)), toys.Draws.of(few, 2)
                draws.rows = rows
                weighing = Piped(names[1:], len(few), clip=(low, 20.0), **some)
                seen = toys.matched_by_samples(student, toys.ring(), weighing, draws, 1200)
                tell_ring(f"(d) exact, batch {rows}, clip {low:g}{title}", names[1:], student, seen)


def draw(one: Tensor, rings: toys.FourParts) -> None:
    """(a) densities, above; (c) pictures of the first seed, below."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 6, figsize=(16, 5.6), height_ratios=(1, 1.35))
    x = torch.linspace(-8, 9, 600).double()
    none = torch.zeros(1).double()
    teacher = toys.two_modes(1).told(x[:, None], none)[0].exp()
    for axis, name, (m, s) in zip(axes[0], NAMES, one.tolist()):
        axis.fill_between(x, teacher, color="0.82", label="teacher")
        axis.plot(x, (-((x - m) ** 2) / (2 * s**2)).exp() / (s * math.sqrt(2 * math.pi)), color="C3", label="student")
        axis.set(title=name, yticks=[], ylim=(0, 0.68))
    axes[0, 0].legend(frameon=False, fontsize=8, loc="upper right")
    runs = len(SIX) * len(SEEDS)
    noise = torch.randn(runs, 1200, 2, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    with torch.no_grad():
        made = rings(noise)[:: len(SEEDS)]
    real = toys.ring().sample(1200, torch.Generator().manual_seed(8))
    for axis, points in zip(axes[1], made):
        axis.scatter(*real.T, s=3, color="0.8", linewidths=0)
        axis.scatter(*points.T, s=3, color="C3", alpha=0.45, linewidths=0)
        axis.set(xlim=(-6.5, 6.5), ylim=(-6.5, 6.5), xticks=[], yticks=[], aspect="equal")
    axes[0, 0].set_ylabel("a Gaussian\nfor two modes")
    axes[1, 0].set_ylabel("four Gaussians\nfor eight modes")
    figure.tight_layout()
    figure.savefig(PICTURE, dpi=100, metadata={"Software": None})
    print(f"drew {PICTURE.relative_to(ROOT)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="*", default=["a", "b", "c", "d"], help="a, b, c, d")
    wanted = parser.parse_args().tables
    torch.set_num_threads(1)
    tables: dict[str, Callable[[], Any]] = {"a": one_dimension, "b": plane, "c": on_a_ring, "d": learnt_ratio}
    found = {}
    for name in wanted:
        began = time.perf_counter()
        found[name] = tables[name]()
        print(f"    {time.perf_counter() - began:.0f} s\n")
    if "a" in found and "c" in found:
        draw(found["a"], found["c"])


if __name__ == "__main__":
    main()
