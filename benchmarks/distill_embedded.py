"""One-step students of the embedded model: divergences under one budget, several seeds, against their guided teacher.

    python benchmarks/distill_embedded.py                       # all; what is done is not run again
    python benchmarks/distill_embedded.py jensen-shannon-1      # some: name and seed

Each run is an ordinary `pilotage.distill` folder under runs/distill-embedded. Measured on 1,000 test captions, the same
seeds for all: the judge's adherence (paired with the teacher's), and precision, recall, density, coverage and Frechet
distance in the embedded features against 2,000 pictures of the world with other captions (with the same captions every
student covers everything: a caption says more than a seed). Diversity is the mean distance of 8 seeds of 64 captions.
Writes docs/results/distill-embedded.jsonl and docs/pictures/distill-embedded.png.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from pilotage import distill, evaluation
from pilotage.distill.data import Latents, taught
from pilotage.distill.method import Pictures
from pilotage.distill.opening import open_run
from pilotage.evaluation.features import open_features
from pilotage.generation.sheet import contact_sheet
from pilotage.training.judging import adherence
from pilotage.training.update import Sampling
from pilotage.zoo import world

ROOT = Path(__file__).resolve().parent.parent
RUNS = ROOT / "runs" / "distill-embedded"
RESULTS = ROOT / "docs" / "results" / "distill-embedded.jsonl"
PICTURE = ROOT / "docs" / "pictures" / "distill-embedded.png"
TEACHER = Sampling("dpmpp-2m", "exponential", 25, "cfg:scale=3")
COUNT, NEAREST, SHOWN = 1000, 5, 10
CAPTIONS, SEEDS_EACH = 64, 8  # of the diversity of a caption

SHARED: dict[str, Any] = {
    "held_out": ["embedded:heldout:48"],
    "updates": 200,
    "batch": 32,
    "rows": 32,
    "learning_rate": 2e-4,
    "fake_learning_rate": 4e-4,
    "ema": 0.98,
    "evaluate_every": 50,
    "sheet_every": 100,
    "checkpoint_every": 25,
    "threads": 1,
    "device": "cpu",
}
F_DISTILL = "f-distill:divergence={},critic_steps=1,strata=4"
DIVERGENCES = ("jensen-shannon", "forward-kl", "reverse-kl")
METHODS: dict[str, dict[str, Any]] = {
    **{name: {"method": F_DISTILL.format(name)} for name in DIVERGENCES},
    "longer": {"method": F_DISTILL.format("jensen-shannon"), "updates": 420},
    "two-critics": {
        "method": "f-distill:divergence=jensen-shannon,critic_steps=2,clip_low=0.1",
        "updates": 300,
    },
    "regressed": {"method": F_DISTILL.format("jensen-shannon") + ",regression=0.25", "data": "teacher:2000"},
    "ucgm-t": {"method": "ucgm-t:steps=2,strata=4"},
}
SEEDS = (1, 2, 3)


def spec_of(name: str) -> distill.DistillSpec:
    """name: of a method and a seed, "forward-kl-2"."""
    method, _, seed = name.rpartition("-")
    return distill.DistillSpec(**SHARED | METHODS[method], seed=int(seed), output=str(RUNS / name))


class Measure:
    """Everything that students are compared with, made once into runs/distill-embedded."""

    def __init__(self) -> None:
        roles = open_run(spec_of("reverse-kl-1").changed(output=None)).roles
        self.teacher, self.prompts = roles.teacher, world.captions(range(COUNT), "test")
        self.features, self.judge = open_features("embedded", "cpu"), adherence()[0]
        self.theirs = self._teachers("teacher-0", Pictures(self.prompts, [str(i) for i in range(COUNT)]))
        self.varied = Pictures(*zip(*((p, str(s)) for p in self.prompts[:CAPTIONS] for s in range(SEEDS_EACH))))
        self.spread = self.diversity(self._teachers("teacher-varied", self.varied))
        real = torch.from_numpy(world.pictures(range(COUNT, 3 * COUNT), "test")).permute(0, 3, 1, 2)
        self.world = self.features(real).float()
        self.right = self.judge(self.theirs.float() / 255, self.prompts)

    def _teachers(self, name: str, of: Pictures) -> torch.Tensor:
        latents = Latents(RUNS / name, taught(self.teacher, TEACHER, of.prompts, of.seeds, 32))
        latents.make()
        return self.pictures(latents.of(range(len(of))))

    def diversity(self, made: torch.Tensor) -> float:
        told = self.features(made).float().split(SEEDS_EACH)
        return float(torch.stack([torch.pdist(of_caption).mean() for of_caption in told]).mean())

    def pictures(self, latents: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            found = [
                self.teacher.decode(part).clamp(0, 1).mul(255).round().to(torch.uint8) for part in latents.split(64)
            ]
        return torch.cat(found)

    def of(self, made: torch.Tensor) -> dict[str, Any]:
        """Numbers of uint8 pictures of the test captions."""
        right = self.judge(made.float() / 255, self.prompts)
        apart = evaluation.paired_difference(right, self.right)
        told = self.features(made).float()
        numbers = evaluation.prdc(real=self.world, generated=told, k=NEAREST)
        found: dict[str, Any] = {"adherence": float(right.mean()), "against_teacher": list(apart)}
        found |= {name: float(getattr(numbers, name)) for name in ("precision", "recall", "density", "coverage")}
        return found | {"distance": evaluation.frechet_distance(real=self.world, generated=told)}


def run(name: str, measure: Measure) -> tuple[dict[str, Any], torch.Tensor]:
    """Distil, or find it done, and measure. The first pictures as well."""
    spec = spec_of(name)
    opened = open_run(spec)
    done = distill.train(spec, opened=opened, told=lambda entry: print(name, json.dumps(entry)[:150], flush=True))
    student = open_run(spec.changed(start=str(done.folder), output=None)).roles.student
    with torch.no_grad():
        same = Pictures(measure.prompts, [str(i) for i in range(COUNT)])
        made = measure.pictures(opened.method.sample(student, same, 64))
        varied = measure.pictures(opened.method.sample(student, measure.varied, 64))
    lines = [json.loads(line) for line in (done.folder / "log.jsonl").read_text().splitlines()]
    looks = [{k: line[k] for k in ("update", "pictures", "seconds", "held_out", "judge")} for line in lines
             if "held_out" in line]  # fmt: skip
    row = {"name": name, "method": spec.method, "updates": done.updates, "steps": opened.method.steps, "looks": looks}
    row |= {"diversity": measure.diversity(varied)}
    return row | measure.of(made), made[:SHOWN]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"a method and a seed: {', '.join(METHODS)} with -1 to -3")
    parser.add_argument("--train-only", action="store_true", help="leave the measurement to a later call")
    given = parser.parse_args()
    names = given.names or [
        *(f"{m}-{s}" for s in SEEDS for m in DIVERGENCES),
        "longer-1",
        "two-critics-1",
        "regressed-1",
        "ucgm-t-1",
    ]
    if given.train_only:
        for name in names:
            distill.train(spec_of(name), told=lambda entry, name=name: print(name, json.dumps(entry)[:150], flush=True))
        return
    measure = Measure()
    known = {r["name"]: r for r in map(json.loads, RESULTS.read_text().splitlines())} if RESULTS.exists() else {}
    known["teacher"] = {"name": "teacher", "steps": 50, "diversity": measure.spread} | measure.of(measure.theirs)
    shown = [measure.theirs[:SHOWN]]
    for name in names:
        known[name], first = run(name, measure)
        shown += [first] if name.endswith("-1") else []
        RESULTS.write_text("".join(json.dumps(r) + "\n" for r in known.values()))
    write_sheet(shown)
    for row in known.values():
        cells = [f"{row[n]:.3f}" for n in ("precision", "recall", "density", "coverage", "distance", "diversity")]
        print(f"| {row['name']} | {row['steps']} | {row['adherence']:.3f} | {' | '.join(cells)} |")


def write_sheet(shown: list[torch.Tensor]) -> None:
    from PIL import Image

    pictures = [Image.fromarray(p.permute(1, 2, 0).numpy()).resize((96, 96), 0) for row in shown for p in row]
    contact_sheet(pictures, SHOWN).save(PICTURE)


if __name__ == "__main__":
    main()
