"""Quality of guidance rules on the embedded model, paired over the same captions and seeds.

    python benchmarks/embedded_rules.py --count 2000 --steps 25 "none" "cfg:scale=3" "cfg:scale=3 + adaptive"

Prints (as tables in Markdown) and writes (docs/results/embedded_rules.jsonl, one line a rule, appended) adherence by
the judge with its Wilson interval, the paired difference to the first rule, Frechet distance and its change against the
first rule (paired bootstrap), precision, and recall, density, coverage and saturation each with the interval of its
difference to the first rule (paired half samples), on the embedded features against real test pictures, and evaluations
per picture. A rule that stands in the file with the same
count, steps and levels is not run again.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import pilotage
from pilotage import guidance, samplers
from pilotage.evaluation import frechet_distance, paired_difference, prdc
from pilotage.evaluation.metrics.colour import colour_statistics
from pilotage.evaluation.metrics.intervals import wilson
from pilotage.samplers.noise import generator_of
from pilotage.zoo import embedded, world

REFERENCE = 100_000  # index of the first real picture
RESULTS = Path(__file__).resolve().parent.parent / "docs" / "results"


def generate(pipe: Any, weak: Any, line: str, captions: list[str], steps: int, batch: int) -> tuple[np.ndarray, int]:
    """(N, 32, 32, 3) uint8 pictures, seed i for caption i, and the rows evaluated."""
    pictures, rows = [], 0
    rule = guidance.parse(line)
    for start in range(0, len(captions), batch):
        part = captions[start : start + batch]
        seeds = range(start, start + len(part))
        with pilotage.attach(pipe, rule, networks={"weak": weak}, seeds=list(seeds)) as run:
            made = pipe(part, num_inference_steps=steps, generator=[generator_of(s) for s in seeds], output_type="pil")
        rows += sum(run.evaluations.values())
        pictures += [np.asarray(image) for image in made.images]
    return np.stack(pictures), rows


def measure(pictures: np.ndarray, captions: list[str], real: dict[str, Any], tools: dict[str, Any]) -> dict[str, Any]:
    tensor = torch.from_numpy(pictures).permute(0, 3, 1, 2)
    found = tools["judge"].adherence(tensor, captions)
    features = torch.cat([tools["features"](part) for part in tensor.split(256)])
    shape = prdc(real=real["features"], generated=features, k=5)
    rates = {name: float(np.nanmean(np.asarray(hit, dtype=float))) for name, hit in found.items()}
    return {
        "hits": "".join(str(int(h)) for h in found["all"]),  # a digit a picture
        "adherence": rates,
        "frechet": frechet_distance(real=real["features"], generated=features),
        "frechet_draws": resampled(real["features"], features),
        "precision": shape.precision,
        "recall": shape.recall,
        "density": shape.density,
        "coverage": shape.coverage,
        **colours(pictures),
        "half_draws": halves(pictures, features, real["features"]),
    }


def colours(pictures: np.ndarray) -> dict[str, float]:
    found = colour_statistics(pictures)
    return {name: float(getattr(found, name).mean()) for name in ("saturation", "contrast", "clipped")}


def halves(
    pictures: np.ndarray, features: torch.Tensor, real: torch.Tensor, draws: int = 100
) -> dict[str, list[float]]:
    """Shape and colour of random halves of the pictures, the same halves for every rule: pairs for an interval. The
    spread of a half drawn without replacement is that of the whole sample, and no picture stands in it twice."""
    generator = torch.Generator().manual_seed(0)
    found: dict[str, list[float]] = {}
    for _ in range(draws):
        pick = torch.randperm(len(features), generator=generator)[: len(features) // 2]
        shape = prdc(real=real, generated=features[pick], k=5)
        values = {name: getattr(shape, name) for name in ("recall", "density", "coverage")}
        for name, value in {**values, **colours(pictures[pick.numpy()])}.items():
            found.setdefault(name, []).append(round(value, 5))
    return found


def resampled(real: torch.Tensor, generated: torch.Tensor, draws: int = 200) -> list[float]:
    """Frechet distances of pictures drawn with replacement, the same draws for every rule: pairs for an interval."""
    generator = torch.Generator().manual_seed(0)
    picks = torch.randint(len(generated), (draws, len(generated)), generator=generator)
    return [round(frechet_distance(real=real, generated=generated[pick]), 4) for pick in picks]


def grid_of(pipe: Any) -> str:
    """What the pipeline's own settings come to, for the key of a result."""
    config = pipe.scheduler.config
    return "exponential" if config.use_exponential_sigmas else str(config.timestep_spacing)


def save_sheet(pictures: np.ndarray, path: Path) -> None:
    """One row of pictures, three times enlarged."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.concatenate([np.kron(p, np.ones((3, 3, 1), np.uint8)) for p in pictures], axis=1)).save(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rules", nargs="+", help="lines of the guidance grammar; the first is the one to compare with")
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--real", type=int, default=2000)
    parser.add_argument("--split", choices=("test", "heldout"), default="test", help="heldout: unseen combinations")
    parser.add_argument("--sheet", type=Path, help="write a row of the first pictures of each rule into this folder")
    choice = parser.parse_args()
    pipe, weak = embedded.load(), embedded.load_weak()
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = samplers.DPMPP2M.from_config(pipe.scheduler.config)
    captions = list(world.captions(range(choice.count), choice.split))
    tools = {"judge": embedded.judge(), "features": embedded.features()}
    others = range(REFERENCE, REFERENCE + choice.real)  # other scenes than those of the captions
    truth = world.pictures(others, choice.split, 32)
    tensor = torch.from_numpy(truth).permute(0, 3, 1, 2)
    real = {"features": torch.cat([tools["features"](part) for part in tensor.split(256)])}
    path = RESULTS / "embedded_rules.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    done = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    key = {
        "split": choice.split,
        "count": choice.count,
        "steps": choice.steps,
        "grid": grid_of(pipe),
        "weights": embedded.identity(),
    }
    known = {r["rule"]: r for r in done if "half_draws" in r and all(r.get(k) == v for k, v in key.items())}
    found = tools["judge"].adherence(tensor, list(world.captions(others, choice.split)))
    ceiling = {name: float(np.nanmean(np.asarray(hit, dtype=float))) for name, hit in found.items()}
    lines = [guidance.spell(guidance.parse(line, embedded.guidance_defaults())) for line in choice.rules]
    print(f"{choice.count} captions, {choice.steps} steps; saturation of the real pictures "
          f"{float(colour_statistics(truth).saturation.mean()):.3f}\n")  # fmt: skip
    print_head(lines[0])
    for line in lines:
        if line not in known:
            started = time.perf_counter()
            pictures, rows = generate(pipe, weak, line, captions, choice.steps, choice.batch)
            if choice.sheet:
                save_sheet(pictures[:12], choice.sheet / f"{len(known):02d}.png")
            result = {
                "rule": line,
                **key,
                "evaluations": rows / choice.count,
                **measure(pictures, captions, real, tools),
            }
            result["seconds"] = time.perf_counter() - started
            known[line] = result
            with path.open("a") as file:
                file.write(json.dumps(result) + "\n")
        report(known[line], known[lines[0]])
    print_attributes([known[line] for line in lines], ceiling)


def hits_of(result: dict[str, Any]) -> np.ndarray:
    """Whether each picture shows all that its caption says, (N,) of 0 and 1."""
    return np.array([int(digit) for digit in result["hits"]])


def report(r: dict[str, Any], first: dict[str, Any]) -> None:
    """One row of a Markdown table; the paired difference is to the first rule."""
    hits, base = hits_of(r), hits_of(first)
    low, high = wilson(int(hits.sum()), len(hits))
    mean, below, above = paired_difference(hits, base)
    change = 100 * (np.array(r["frechet_draws"]) / np.array(first["frechet_draws"]) - 1)
    nearer, farther = np.percentile(change, [2.5, 97.5])
    shape = " | ".join(with_change(r, first, name) for name in ("recall", "density", "coverage", "saturation"))
    print(
        f"| `{r['rule']}` | {hits.mean():.3f} [{low:.3f}, {high:.3f}] | {mean:+.3f} [{below:+.3f}, {above:+.3f}] "
        f"| {r['frechet']:.3f} | [{nearer:+.1f}, {farther:+.1f}] % "
        f"| {r['precision']:.3f} | {shape} | {r['evaluations']:.1f} |",
        flush=True,
    )


def with_change(r: dict[str, Any], first: dict[str, Any], name: str) -> str:
    """The value, and the interval of its difference to the first rule's."""
    half = 1.96 * float(np.std(np.subtract(r["half_draws"][name], first["half_draws"][name])))
    change = r[name] - first[name]
    return f"{r[name]:.3f} [{change - half:+.3f}, {change + half:+.3f}]"


def print_head(first: str) -> None:
    columns = ("rule", "adherence", f"difference to {first}", "Frechet distance", "its change", "precision", "recall",
               "density", "coverage", "saturation", "evaluations")  # fmt: skip
    print("| " + " | ".join(columns) + " |\n|" + "---|" * len(columns), flush=True)


def print_attributes(rows: list[dict[str, Any]], ceiling: dict[str, float]) -> None:
    """Adherence by attribute, under the table of rules; the last row is the judge on real pictures."""
    print("\n| adherence by attribute | " + " | ".join(ceiling) + " |\n|" + "---|" * (len(ceiling) + 1))
    for name, rates in [*((f"`{r['rule']}`", r["adherence"]) for r in rows), ("real pictures", ceiling)]:
        print(f"| {name} | " + " | ".join(f"{rates[key]:.3f}" for key in ceiling) + " |")


if __name__ == "__main__":
    main()
