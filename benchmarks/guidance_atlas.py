"""The atlas: every rule over its scale on the embedded model, at equal evaluations, as curves and tables.

    python benchmarks/guidance_atlas.py                  # writes docs/guidance-atlas.md and its curves
    python benchmarks/guidance_atlas.py --family attention --count 2000

Each setting gets as many steps as make about `--budget` evaluations a picture: what a step costs is counted on a short
run first. Captions, seeds and real pictures are those of `embedded_rules.py`. Results are appended to
docs/results/atlas.jsonl, one line a setting; what stands there with the same count and budget is not run again, so the
same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import matplotlib
import numpy as np
import torch
from embedded_rules import REFERENCE, RESULTS, colours, generate, hits_of, measure

from pilotage import guidance, samplers
from pilotage.evaluation import paired_difference
from pilotage.evaluation.metrics.intervals import wilson
from pilotage.zoo import embedded, world

DOCS = RESULTS.parent
BASE = "cfg:scale=3"
LEAST = 0.7  # adherence from which on a point is drawn; the tables have all


@dataclass(frozen=True)
class Curve:
    """One rule: its line with {} where the knob goes, and the values of the knob, weakest first."""

    name: str
    line: str
    values: tuple[Any, ...]

    def lines(self) -> list[str]:
        return [self.line.format(value) for value in self.values]


FAMILIES: dict[str, tuple[Curve, ...]] = {
    "classifier-free": (
        Curve("CFG", "cfg:scale={}", (1, 1.5, 2, 3, 5, 8)),
        Curve("APG", "apg:scale={}", (2, 3, 5, 8, 12)),
        Curve("CFG++", "cfg++:scale={}", (1.5, 3, 5, 8)),
        Curve("TCFG", "tcfg:scale={}", (2, 3, 5, 8)),
        Curve("FDG", "fdg:scale={0},low_scale=2", (2, 4, 7)),
        Curve("MAMBO-G", "mambo-g:scale={}", (3, 5, 10)),
        Curve("feedback", "feedback:prior={}", (0.98, 0.95, 0.9)),
        Curve("autoguidance", "autoguidance:scale={}", (1.5, 2, 3, 4)),
        Curve("autoguidance, half CFG", "autoguidance:scale={},mix=0.5", (2, 3, 4)),
        Curve("S2", "s2:scale=3,weight={}", (0.1, 0.25, 0.5)),
    ),
    "modifiers": (
        Curve("CFG", "cfg:scale={}", (1, 1.5, 2, 3, 5, 8)),
        Curve("CFG + interval", "cfg:scale={} + interval:low=0.6,high=5", (2, 3, 5, 8)),
        Curve("CFG + adaptive", "cfg:scale={} + adaptive", (2, 3, 5, 8)),
        Curve("CFG + rescale", "cfg:scale={} + rescale:phi=0.7", (3, 5, 8)),
        Curve("CFG + schedule", "cfg:scale={} + schedule:shape=cosine", (3, 5, 8)),
        Curve("CFG + threshold", "cfg:scale={} + threshold:mimic_scale=2", (3, 8)),
        Curve("CFG + CADS", "cfg:scale=3 + cads:noise={}", (0.1, 0.25, 0.5)),
        Curve("CFG + HiGS", "cfg:scale=2 + higs:weight={}", (0.5, 1)),
        Curve("ICG", "cfg:scale={} + icg", (2, 3)),
        Curve("CFG + sliding window", "cfg:scale=3 + sliding-window:size={}", (1, 4)),
    ),
    "attention": (
        Curve("CFG", "cfg:scale={}", (1, 1.5, 2, 3, 5, 8)),
        Curve("PAG", "pag:weight={}", (0.5, 1, 2)),
        Curve("SEG", "seg:weight={}", (0.5, 1, 2)),
        Curve("SLG", "slg:weight={}", (0.25, 0.5, 1)),
        Curve("TPG", "tpg:weight={}", (0.25, 0.5, 1)),
        Curve("TSG", "tsg:weight={}", (1, 2)),
        Curve("CFG + SAG", "cfg:scale=2 + sag:weight={}", (0.25, 0.5)),
        Curve("CFG + PAG", "cfg:scale=2 + pag:weight={}", (0.5, 1)),
    ),
    "classifier": (
        Curve("CFG", "cfg:scale={}", (1, 1.5, 2, 3, 5, 8)),
        Curve("GFCG (reconstruction)", "gfcg-reconstruction:scale={}", (2, 3, 5)),
        Curve("GFCG with autoguidance", "gfcg-reconstruction:form=autoguidance,scale={}", (2, 3)),
        Curve("autoguidance", "autoguidance:scale={}", (1.5, 2, 3, 4)),
        Curve("EluCD", "elucd:weight={}", (1, 3)),
        Curve("classifier", "classifier:weight={}", (1, 3)),
    ),
}
# Why the others are not here.
ELSEWHERE = {
    "cfg-zero, rectified-cfg++, cfg-mp": "for flow models; the embedded model predicts v",
    "image-cfg": "for models that are conditioned on a picture",
    "perp-neg, composable, sega, nag, nasa": "for further or negative prompts, which these captions have not",
    "linear": "needs a fit of its own for each setting: `pilotage fit-linear-ag`",
    "policy": "a plan for each step rather than a scale",
    "ppap": "its experts are taught for the purpose; their figures stand in results.md",
    "dps, lgd, freedom, ugd, mpgd, tfg, greedy": "follow a loss that a user brings; proven on exact worlds",
    "reflect": "for data that lives in a box; latents do not",
}


def steps_for(pipe: Any, weak: Any, line: str, budget: float) -> int:
    """As many steps as make the budget of evaluations, counted on sixteen captions."""
    steps = 25
    _, rows = generate(pipe, weak, line, list(world.captions(range(16), "test")), steps, 16)
    return max(2, round(budget / (rows / 16 / steps)))


def run(choice: argparse.Namespace, path: Path) -> Iterator[dict[str, Any]]:
    """Measure whatever is missing, and yield every result of the chosen families."""
    pipe, weak = embedded.load(), embedded.load_weak()
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = samplers.DPMPP2M.from_config(pipe.scheduler.config)
    tools = {"judge": embedded.judge(), "features": embedded.features()}
    captions = list(world.captions(range(choice.count), "test"))
    truth = torch.from_numpy(world.pictures(range(REFERENCE, REFERENCE + 2000), "test", 32)).permute(0, 3, 1, 2)
    real = {"features": torch.cat([tools["features"](part) for part in truth.split(256)])}
    key = {"count": choice.count, "budget": choice.budget, "weights": embedded.identity()}
    done = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    known = {r["rule"]: r for r in done if all(r.get(k) == v for k, v in key.items())}
    wanted = dict.fromkeys(line for name in choice.family for curve in FAMILIES[name] for line in curve.lines())
    for number, line in enumerate(wanted):
        if line not in known:
            started = time.perf_counter()
            spelled = guidance.spell(guidance.parse(line, embedded.guidance_defaults()))
            steps = steps_for(pipe, weak, spelled, choice.budget)
            pictures, rows = generate(pipe, weak, spelled, captions, steps, choice.batch)
            found = brief(measure(pictures, captions, real, tools))
            known[line] = {"rule": line, **key, "steps": steps, "evaluations": rows / choice.count, **found}
            with path.open("a") as file:
                file.write(json.dumps(known[line]) + "\n")
            left = (time.perf_counter() - started) * (len(wanted) - number - 1)
            said = f"{hits_of(found).mean():.3f}, {rows / choice.count:.1f} evaluations; about {left / 60:.0f} min left"
            print(f"{number + 1}/{len(wanted)} {line}: adherence {said}", flush=True)
        yield known[line]


def brief(found: dict[str, Any]) -> dict[str, Any]:
    """A result with intervals in place of the draws that they come from."""
    draws = np.array(found.pop("frechet_draws"))
    near, far = np.percentile(draws, [2.5, 97.5]) / draws.mean() * found["frechet"]
    spread = {name: round(1.96 * float(np.std(values)), 5) for name, values in found.pop("half_draws").items()}
    return {**found, "frechet_interval": [round(near, 4), round(far, 4)], "spread": spread}


def draw(family: str, results: dict[str, dict[str, Any]]) -> Path:
    """Adherence against distance, coverage and contrast; a curve a rule, a point a value of its knob. The cross is the
    95 % interval of CFG at 3, much the same for every point."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(15, 4.6))
    panels = (("frechet", "Fréchet distance (lower is better)"), ("coverage", "coverage"), ("contrast", "contrast"))
    for axis, (name, label) in zip(axes, panels, strict=True):
        shown = [results[line] for curve in FAMILIES[family] for line in curve.lines()]
        shown = [r for r in shown if hits_of(r).mean() >= LEAST]
        for curve in FAMILIES[family]:
            rows = [results[line] for line in curve.lines()]
            style = {"color": "black", "lw": 2} if curve.name == "CFG" else {"lw": 1.2}
            axis.plot([hits_of(r).mean() for r in rows], [r[name] for r in rows], "o-", ms=4, label=curve.name, **style)
        base = results[BASE]
        low, high = wilson(int(hits_of(base).sum()), len(base["hits"]))
        tall = np.diff(base["frechet_interval"])[0] / 2 if name == "frechet" else base["spread"][name]
        axis.errorbar(hits_of(base).mean(), base[name], tall, (high - low) / 2, color="black", alpha=0.35, lw=1)
        least, most = min(r[name] for r in shown), max(r[name] for r in shown)
        axis.set(xlabel="adherence", ylabel=label, xlim=(LEAST, 0.93))
        axis.set_ylim(least - 0.08 * (most - least), most + 0.08 * (most - least))
        axis.grid(alpha=0.25)
    handles = axes[0].get_legend_handles_labels()
    figure.legend(*handles, fontsize=8, frameon=False, loc="center right")
    figure.tight_layout(rect=(0, 0, 0.87, 1))
    path = DOCS / "pictures" / f"atlas-{family}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    pyplot.close(figure)
    return path


def row(r: dict[str, Any], base: dict[str, Any]) -> str:
    hits = hits_of(r)
    low, high = wilson(int(hits.sum()), len(hits))
    mean, below, above = paired_difference(hits, hits_of(base))
    near, far = r["frechet_interval"]
    shown = ("recall", "density", "coverage", "saturation", "contrast")
    shape = " | ".join(f"{r[name]:.3f} ± {r['spread'][name]:.3f}" for name in shown)
    return (
        f"| `{r['rule']}` | {r['steps']} | {r['evaluations']:.1f} | {hits.mean():.3f} [{low:.3f}, {high:.3f}] "
        f"| {mean:+.3f} [{below:+.3f}, {above:+.3f}] | {r['frechet']:.2f} [{near:.2f}, {far:.2f}] "
        f"| {r['precision']:.3f} | {shape} |"
    )


def write(choice: argparse.Namespace, results: dict[str, dict[str, Any]]) -> None:
    pages = []
    for name in choice.family:
        lines = dict.fromkeys(line for curve in FAMILIES[name] for line in curve.lines())
        pages.append({
            "name": name,
            "picture": draw(name, results).relative_to(DOCS).as_posix(),
            "rows": [row(results[line], results[BASE]) for line in lines],
        })  # fmt: skip
    template = jinja2.Template(Path(__file__).with_suffix(".md.j2").read_text(), trim_blocks=True, lstrip_blocks=True)
    real = colours(world.pictures(range(REFERENCE, REFERENCE + 2000), "test", 32))
    text = template.render(
        pages=pages, elsewhere=ELSEWHERE, base=BASE, count=choice.count, budget=choice.budget, real=real
    )
    (DOCS / "guidance-atlas.md").write_text(text.rstrip() + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", choices=FAMILIES, action="append", help="default: all; the page needs all")
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--budget", type=float, default=50)
    parser.add_argument("--batch", type=int, default=100)
    choice = parser.parse_args()
    partial = choice.family is not None
    choice.family = choice.family or list(FAMILIES)
    results = {r["rule"]: r for r in run(choice, RESULTS / "atlas.jsonl")}
    if not partial:
        write(choice, results)


if __name__ == "__main__":
    main()
