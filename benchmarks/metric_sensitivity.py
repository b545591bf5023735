"""Which metric sees what: pictures of the embedded world, wrong in one known way each, before every metric.

    python benchmarks/metric_sensitivity.py                 # writes docs/metrics.md and its picture
    python benchmarks/metric_sensitivity.py --count 300     # a quick look; the page is for 1000

A set of `--count` pictures is compared with as many real ones. Sixteen sets of real pictures are the null; their mean
and deviation are the measure of everything else: z = (value - mean) / deviation, and a metric sees what moves it by
more than four. Every set has the same size, the same reference, the same training and test pictures. Damage is done to
the first of the null sets, so that doses are compared on the same pictures. `strangers` needs ten evaluations of the
model a picture, so it is given a tenth of each set, and two tenths of the reference.

Results are appended to docs/results/metric-sensitivity.jsonl, a line a set; what stands there for the same count and
weights is not measured again, so the same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import matplotlib
import numpy as np

from pilotage.evaluation import memorisation_fid, open_source, reference, score
from pilotage.evaluation.features import open_features
from pilotage.evaluation.judges import open_judge
from pilotage.evaluation.measures.evidence import Evidence
from pilotage.evaluation.sensitivity import NULLS, RESULTS, SEEN, Sensitivity, read
from pilotage.evaluation.table import COUNT, PLACE, SPACES, document, seen_by_group
from pilotage.zoo import damage, embedded, world

REFERENCE, TEST, CHOSEN, POOL = 100_000, 200_000, 300_000, 400_000  # numbers of the first picture of each set
EMBEDDED = (
    *("frechet", "frechet-infinity", "kernel-distance", "energy", "sliced-energy", "sid"),
    *("ratio-divergence:kind=kl", "ratio-divergence:kind=tv"),
    *("precision", "recall", "density", "coverage", "clipped-density", "clipped-coverage", "realism"),
    *("vendi", "authenticity", "copying"),
    *("adherence", "classifier-precision", "saturation", "contrast", "clipped"),
)
ALSO = ("frechet", "kernel-distance", "energy", "precision", "recall", "density", "coverage")  # in the other spaces
SLIGHTLY = 2.0  # levels of noise on copies: not to be seen by eye
PICTURE = PLACE.parent / "pictures" / "metric-sensitivity.png"

Pictures = tuple[np.ndarray, list[str]]  # uint8 (N, 32, 32, 3), and their captions


@dataclass(frozen=True)
class World:
    """The sets of pictures that conditions are made from, `count` in each."""

    count: int

    def drawn(self, numbers: range | list[int], split: str = "test") -> Pictures:
        return world.pictures(numbers, split, 32), world.captions(numbers, split)

    def real(self, which: int) -> Pictures:
        """One of the null sets."""
        return self.drawn(range(which * self.count, (which + 1) * self.count))

    @cached_property
    def base(self) -> Pictures:
        return self.real(0)

    @cached_property
    def train(self) -> Pictures:
        return self.drawn(range(self.count), "train")

    def damaged(self, damages: Callable[[np.ndarray], np.ndarray]) -> Pictures:
        return damages(self.base[0]), self.base[1]

    def lacking(self, keep: Callable[[world.Object], bool]) -> Pictures:
        """Scenes with nothing but such objects."""
        return self.drawn(damage.numbers_where(lambda s: all(map(keep, s.objects)), self.count, CHOSEN))

    def collapsed(self, levels: float) -> Pictures:
        """A tenth of the pictures, ten times each."""
        rows = np.arange(self.count) // 10
        pictures, captions = self.base[0][rows], [self.base[1][row] for row in rows]
        return damage.noisy(pictures, levels, seed=1), captions

    def concentrated(self) -> Pictures:
        """The third of a larger set whose embedded features are nearest to their mean."""
        pictures, captions = self.drawn(range(POOL, POOL + 3 * self.count))
        features = open_features("embedded")(pictures).double()
        near = (features - features.mean(0)).norm(dim=1).argsort()[: self.count].sort().values.tolist()
        return pictures[near], [captions[row] for row in near]

    def with_outliers(self, share: float) -> Pictures:
        pictures, captions = self.base
        bad = np.random.default_rng(2).permutation(self.count)[: round(share * self.count)]
        pictures = pictures.copy()
        pictures[bad] = damage.noise_pictures(len(bad), seed=3)
        return pictures, captions

    def copies(self, share: float, levels: float) -> Pictures:
        """Training pictures in the place of a share of the generated ones."""
        copied = round(share * self.count)
        (own, own_captions), (seen, seen_captions) = self.base, self.train
        pictures = np.concatenate([damage.noisy(seen[:copied], levels, seed=4), own[copied:]])
        return pictures, [*seen_captions[:copied], *own_captions[copied:]]

    def miscaptioned(self, share: float) -> Pictures:
        """A share of the captions handed round."""
        pictures, captions = self.base[0], list(self.base[1])
        wrong = np.random.default_rng(5).permutation(self.count)[: round(share * self.count)]
        for row, other in zip(wrong, np.roll(wrong, 1), strict=True):
            captions[row] = self.base[1][other]
        return pictures, captions


_FEW_SHAPES, _FEW_COLOURS = set(world.SHAPES[::2]), set(list(world.COLOURS)[::2])

CONDITIONS: dict[str, Callable[[World], Pictures]] = {
    **{f"null {i}": partial(World.real, which=i) for i in range(NULLS)},
    **{f"blur {s:g}": partial(World.damaged, damages=partial(damage.blurred, sigma=s)) for s in (0.5, 1, 2)},
    **{f"noise {s}": partial(World.damaged, damages=partial(damage.noisy, levels=s)) for s in (8, 24)},
    "JPEG 30": partial(World.damaged, damages=partial(damage.compressed, quality=30)),
    **{f"saturation {s:g}": partial(World.damaged, damages=partial(damage.saturated, factor=s)) for s in (0.5, 1.5, 3)},
    "contrast 0.7": partial(World.damaged, damages=partial(damage.contrasted, factor=0.7)),
    "half the shapes": partial(World.lacking, keep=lambda o: o.shape in _FEW_SHAPES),
    "half the colours": partial(World.lacking, keep=lambda o: o.colour in _FEW_COLOURS),
    "collapse": partial(World.collapsed, levels=0),
    "collapse, noisy": partial(World.collapsed, levels=SLIGHTLY),
    "concentration": World.concentrated,
    "outliers 5 %": partial(World.with_outliers, share=0.05),
    "copies": partial(World.copies, share=1, levels=0),
    "copies, noisy": partial(World.copies, share=1, levels=SLIGHTLY),
    "half copies": partial(World.copies, share=0.5, levels=0),
    "wrong captions": partial(World.miscaptioned, share=0.25),
}


class Bench:
    """Reference, training and test pictures, read once, and the networks."""

    def __init__(self, pictures: World):
        self.world, self.tenth = pictures, max(20, pictures.count // 10)
        self.judge, self.norms = open_judge("embedded"), open_features("score-norms")
        self.spaces = [open_features(name) for name in SPACES]
        real = pictures.drawn(range(REFERENCE, REFERENCE + pictures.count))[0]
        held = pictures.drawn(range(TEST, TEST + pictures.count))[0]
        self.real = reference(real, features=self.spaces)
        self.few = reference(real[: max(4 * 11, 2 * self.tenth)], features=self.norms)  # as few as strangers takes
        self.memory: dict[str, Any] = {
            "train": reference(pictures.train[0], features=self.spaces[0]),
            "test": reference(held, features=self.spaces[0]),
        }

    def measure(self, made: Pictures) -> dict[str, Any]:
        """Values by metric, those in other spaces as "metric:features=space"; and of which kinds a report is."""
        order = np.random.default_rng(6).permutation(self.world.count)
        pictures, captions = made[0][order], [made[1][i] for i in order]
        found: dict[str, float] = {}

        def look(_: str, evidence: Evidence) -> None:  # its formula; its own features need weights
            rows: dict[str, Any] = {which: evidence.rows(which) for which in ("real", "train", "generated")}
            found["mifid"] = memorisation_fid(**rows).value

        source = open_source(pictures, captions=captions)
        first, *others = self.spaces
        ask = partial(score, real=self.real, judge=self.judge, device="cpu")
        results = [*ask(generated=source, metrics=EMBEDDED, features=first, look=look, **self.memory)]
        few = pictures[: self.tenth]
        results += score(generated=few, real=self.few, metrics=["strangers"], features=self.norms, device="cpu")
        results = [result for result in results if "/" not in result.name or result.name.startswith("sid/")]
        found |= {result.name: result.value for result in results}
        for space in others:
            report = ask(generated=source, metrics=ALSO, features=space)
            found |= {f"{result.name}:features={space.name}": result.value for result in report}
        return {"values": found, "kinds": {r.name: [r.null_kind, r.interval_kind] for r in results}}


def run(count: int) -> Iterator[dict[str, Any]]:
    """Measure whatever is missing, and yield the lines of all sets."""
    key = {"count": count, "weights": embedded.identity()}
    known = {line["condition"]: line for line in read(RESULTS) if all(line[k] == v for k, v in key.items())}
    bench = Bench(World(count)) if CONDITIONS.keys() - known.keys() else None
    for number, (name, make) in enumerate(CONDITIONS.items(), 1):
        if name not in known and bench:
            began = time.perf_counter()
            known[name] = {"condition": name, **key, **bench.measure(make(bench.world))}
            with RESULTS.open("a") as file:
                file.write(json.dumps(known[name]) + "\n")
            print(f"{number}/{len(CONDITIONS)} {name}: {time.perf_counter() - began:.1f} s", flush=True)
        yield known[name]


# The axis, and (dose, condition), undamaged pictures among them.
DOSES: dict[str, tuple[str, list[tuple[float, str]]]] = {
    "blur": ("deviation in pixels", [(0, "null 0"), (0.5, "blur 0.5"), (1, "blur 1"), (2, "blur 2")]),
    "noise": ("deviation in levels", [(0, "null 0"), (8, "noise 8"), (24, "noise 24")]),
    "saturation": ("factor", [(0.5, "saturation 0.5"), (1, "null 0"), (1.5, "saturation 1.5"), (3, "saturation 3")]),
}
DISTANCES = ("frechet", "kernel-distance", "energy")  # in every space


def draw(found: Sensitivity) -> None:
    """How many null deviations each distance moves with the dose; a row of panels a space. Grey: not seen."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(len(SPACES), len(DOSES), figsize=(11, 8.2), sharey=True, sharex="col")
    for column, (way, (unit, _)) in enumerate(DOSES.items()):
        axes[0, column].set_title(way)
        axes[-1, column].set_xlabel(unit)
    for row, space in zip(axes, SPACES, strict=True):
        names = [*DISTANCES, "frechet-infinity"] if space == SPACES[0] else DISTANCES
        for axis, (_, doses) in zip(row, DOSES.values(), strict=True):
            axis.axhspan(-SEEN, SEEN, color="0.9")
            for name in names:
                key = name if space == SPACES[0] else f"{name}:features={space}"
                axis.plot([d for d, _ in doses], [found.z(key, c) for _, c in doses], "o-", ms=4, lw=1.4, label=name)
            axis.set_yscale("symlog", linthresh=SEEN, linscale=0.6)
            axis.set(ylim=(-2, 500), yticks=[0, 4, 16, 64, 256], yticklabels=["0", "4", "16", "64", "256"])
            axis.minorticks_off()
            axis.grid(alpha=0.25)
        row[0].set_ylabel(f"{space}\nnull deviations")
    axes[0, 0].legend(fontsize=8, frameon=False, loc="upper left")
    figure.tight_layout()
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(PICTURE, dpi=100)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=COUNT, help="pictures of each set")
    choice = parser.parse_args()
    if choice.count < 200:
        parser.error(f"--count {choice.count}: {SPACES[-1]} has 192 features; take 200 or more")
    found = Sensitivity.of(list(run(choice.count)), choice.count)
    if choice.count == COUNT:
        PLACE.write_text(document(), encoding="utf-8")
        draw(found)
        print(PLACE)
    else:
        print("\n".join(f"{name}\n\n{seen}" for name, seen in seen_by_group(found).items()))


if __name__ == "__main__":
    main()
