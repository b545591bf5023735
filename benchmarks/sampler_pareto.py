"""Distance and adherence against network calls, for every sampler on the embedded model.

    python benchmarks/sampler_pareto.py                      # writes docs/pictures/samplers.png, prints a table
    python benchmarks/sampler_pareto.py --count 1000 --calls 8 25

Every sampler gets as many steps as make each number of calls with the model's own grid, CFG at scale 3, the same
captions and seeds. Results are appended to docs/results/samplers.jsonl; what stands there is not run again, so the same
command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib
import torch
from embedded_rules import REFERENCE, RESULTS, generate, hits_of, measure

from pilotage import samplers
from pilotage.errors import UsageError
from pilotage.evaluation.metrics.intervals import wilson
from pilotage.generation.scheduling import scheduler_class
from pilotage.registry import everything
from pilotage.zoo import embedded, world

RULE = "cfg:scale=3"
DETERMINISTIC_FIRST = ("dpmpp-2m", "ddim", "heun")  # drawn thick: the default, the oldest, the two-stage one


def run(choice: argparse.Namespace, path: Path) -> Iterator[dict[str, Any]]:
    """Measure whatever is missing, and yield every result."""
    pipe = embedded.load()
    pipe.set_progress_bar_config(disable=True)
    config = pipe.scheduler.config
    tools = {"judge": embedded.judge(), "features": embedded.features()}
    captions = list(world.captions(range(choice.count), "test"))
    truth = torch.from_numpy(world.pictures(range(REFERENCE, REFERENCE + 2000), "test", 32)).permute(0, 3, 1, 2)
    real = {"features": torch.cat([tools["features"](part) for part in truth.split(256)])}
    key = {"count": choice.count, "rule": RULE, "weights": embedded.identity()}
    done = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    known = {(r["sampler"], r["calls"]): r for r in done if all(r.get(k) == v for k, v in key.items())}
    for name in choice.sampler or everything("samplers", samplers.SAMPLERS):
        for calls in choice.calls:
            if (name, calls) not in known:
                try:
                    pipe.scheduler, steps = with_calls(scheduler_class(name).from_config(config), calls)
                except UsageError as error:
                    print(f"{name}, {calls} calls: left out, {error}", flush=True)
                    continue
                pictures, rows = generate(pipe, None, RULE, captions, steps, choice.batch)
                found = measure(pictures, captions, real, tools)
                kept = {k: v for k, v in found.items() if not k.endswith("_draws")}
                made = {"sampler": name, "calls": calls, **key, "steps": steps, "evaluations": rows / choice.count}
                known[name, calls] = {**made, **kept}
                with path.open("a") as file:
                    file.write(json.dumps(known[name, calls]) + "\n")
                print(f"{name}, {calls} calls: {row(known[name, calls])}", flush=True)
            yield known[name, calls]


def with_calls(scheduler: Any, calls: int) -> tuple[Any, int]:
    """The scheduler, and the largest number of steps that makes no more than so many calls."""
    steps = calls
    while steps > 1:
        scheduler.set_timesteps(steps)
        if len(scheduler.timesteps) <= calls:
            return scheduler, steps
        steps -= 1
    raise UsageError(f"no run of it makes as few as {calls} calls")


def row(r: dict[str, Any]) -> str:
    hits = hits_of(r)
    low, high = wilson(int(hits.sum()), len(hits))
    shape = " | ".join(f"{r[name]:.3f}" for name in ("precision", "recall", "density", "coverage"))
    return (
        f"| `{r['sampler']}` | {r['evaluations'] / 2:.0f} | {hits.mean():.3f} [{low:.3f}, {high:.3f}] "
        f"| {r['frechet']:.2f} | {shape} |"
    )


def draw(results: list[dict[str, Any]], path: Path) -> None:
    """Fréchet distance and adherence against calls; a curve a sampler. What fails outright lies outside the picture."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(15, 6))
    names = list(dict.fromkeys(r["sampler"] for r in results))
    colours = pyplot.get_cmap("tab20")
    for number, name in enumerate(names):
        rows = sorted((r for r in results if r["sampler"] == name), key=lambda r: r["evaluations"])
        calls = [r["evaluations"] / 2 for r in rows]
        style = {"lw": 2.5 if name in DETERMINISTIC_FIRST else 1.1, "color": colours(number % 20)}
        marker = "o-" if number < 20 else "s--"
        axes[0].plot(calls, [r["frechet"] for r in rows], marker, ms=4, label=name, **style)
        axes[1].plot(calls, [hits_of(r).mean() for r in rows], marker, ms=4, **style)
    for axis, label in zip(axes, ("Fréchet distance (lower is better)", "adherence"), strict=True):
        axis.set(xlabel="network calls a picture", ylabel=label, xscale="log")
        axis.set_xticks(sorted({r["calls"] for r in results}), [str(c) for c in sorted({r["calls"] for r in results})])
        axis.minorticks_off()
        axis.grid(alpha=0.25)
    axes[0].set_ylim(4.8, 7.2)
    axes[1].set_ylim(0.62, 0.94)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="center right", fontsize=8, frameon=False)
    figure.tight_layout(rect=(0, 0, 0.87, 1))
    figure.savefig(path, dpi=90)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sampler", action="append", help="default: all")
    parser.add_argument("--calls", type=int, nargs="+", default=[6, 10, 16, 25])
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--batch", type=int, default=100)
    choice = parser.parse_args()
    results = list(run(choice, RESULTS / "samplers.jsonl"))
    draw(results, RESULTS.parent / "pictures" / "samplers.png")
    print("\n| sampler | calls | adherence | Fréchet distance | precision | recall | density | coverage |")
    print("|---|---|---|---|---|---|---|---|")
    for result in results:
        print(row(result))


if __name__ == "__main__":
    main()
