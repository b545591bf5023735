"""Every way to fine-tune, on the embedded model, for one reward: reward and judge against pictures sampled.

    python benchmarks/finetune_methods.py                    # all, an hour on one core; what is done is not run again
    python benchmarks/finetune_methods.py alignprop ddpo     # some

Each run is an ordinary `pilotage.finetune` folder under runs/finetune-methods, so it can be stopped and gone on with.
The reward is `adherence`, the log-probability that the *guiding* classifier gives to the caption, capped; the judge is
another network, which counts captions that are shown whole. Both look at the same held-out combinations, which no
prompt of the training names. Writes docs/results/finetune-methods.jsonl, docs/pictures/finetune-methods.png and
runs/finetune-methods/index.html.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib

from pilotage import finetune
from pilotage.training.page import write_comparison

ROOT = Path(__file__).resolve().parent.parent
RUNS = ROOT / "runs" / "finetune-methods"
RESULTS, PICTURE = (
    ROOT / "docs" / "results" / "finetune-methods.jsonl",
    ROOT / "docs" / "pictures" / "finetune-methods.png",
)

SHARED: dict[str, Any] = {
    "prompts": ["embedded:train:400"],
    "held_out": ["embedded:heldout:96"],
    "held_out_seeds": 2,
    "reward": "adherence",
    "guidance": "cfg:scale=2",
    "sampler": "ddim:eta=1",
    "grid": "trailing",
    "steps": 10,
    "rows": 16,
    "evaluate_every": 15,
    "sheet_every": 30,
    "checkpoint_every": 5,
    "threads": 1,
    "device": "cpu",
    "seed": 1,
}
THROUGH = {"batch": 16, "updates": 60, "learning_rate": 1e-3}  # gradients through the sampler
POLICY = {"batch": 48, "updates": 45, "learning_rate": 1e-3}
METHODS: dict[str, dict[str, Any]] = {
    "alignprop": {"method": "alignprop", **THROUGH},
    "draft-k": {"method": "draft-k:truncation=1", **THROUGH},
    "draft-lv": {"method": "draft-lv", **THROUGH},
    "refl": {"method": "refl", **THROUGH},
    "draft": {"method": "draft", **THROUGH},
    "ddpo": {"method": "ddpo", **POLICY},
    "b2-diffurl": {"method": "b2-diffurl", **POLICY, "batch": 12},
    "fpo": {"method": "fpo", **POLICY, "learning_rate": 3e-4},
    "flow-grpo": {"method": "flow-grpo", **POLICY, "batch": 6},
    "dance-grpo": {"method": "dance-grpo", **POLICY, "batch": 6},
}


def run(name: str) -> dict[str, Any]:
    """Train, or find it trained: what was seen before and after, and at each look."""
    spec = finetune.FinetuneSpec(**{**SHARED, **METHODS[name], "output": str(RUNS / name)})
    done = finetune.train(spec, told=lambda entry: print(name, json.dumps(entry)[:220], flush=True))
    lines = [json.loads(line) for line in (done.folder / "log.jsonl").read_text().splitlines()]
    looks = [{k: line.get(k) for k in ("update", "pictures", "seconds", "held_out", "judge")} for line in lines]
    looks = [look for look in looks if look["held_out"]]
    return {"name": name, "method": spec.method, "updates": done.updates, "stopped": done.stopped, "looks": looks}


def draw(results: list[dict[str, Any]]) -> None:
    """Held-out reward, judged adherence and diversity against pictures sampled."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(15, 4.6))
    for result in results:
        pictures = [max(1, look["pictures"]) for look in result["looks"]]
        for axis, of in zip(axes, ("reward", "judge", "diversity"), strict=True):
            values = [look["judge"]["adherence"] if of == "judge" else look["held_out"][of] for look in result["looks"]]
            axis.plot(pictures, values, "o-", ms=3, lw=1.4, label=result["name"])
    titles = ("held-out reward", "adherence by the judge, held-out", "diversity of the seeds of a prompt")
    for axis, title in zip(axes, titles, strict=True):
        axis.set(xlabel="pictures sampled", title=title, xscale="symlog")
        axis.grid(alpha=0.25)
    axes[0].legend(fontsize=8, frameon=False)
    figure.tight_layout()
    figure.savefig(PICTURE, dpi=90)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(METHODS)}")
    names = parser.parse_args().names or list(METHODS)
    known = {r["name"]: r for r in map(json.loads, RESULTS.read_text().splitlines())} if RESULTS.exists() else {}
    for name in names:
        known[name] = run(name)
        RESULTS.write_text("".join(json.dumps(r) + "\n" for r in known.values()))
    results = [known[name] for name in METHODS if name in known]
    draw(results)
    write_comparison({r["name"]: RUNS / r["name"] for r in results}, RUNS / "index.html")
    print(
        "| method | pictures | held-out reward | adherence by the judge | diversity | stopped |\n"
        "|---|---|---|---|---|---|"
    )
    for r in results:
        first, last = r["looks"][0], r["looks"][-1]
        cells = [f"{first['held_out'][k]:.3f} → {last['held_out'][k]:.3f}" for k in ("reward", "diversity")]
        judged = f"{first['judge']['adherence']:.3f} → {last['judge']['adherence']:.3f}"
        print(f"| `{r['method']}` | {last['pictures']} | {cells[0]} | {judged} | {cells[1]} | {r['stopped'] or 'no'} |")


if __name__ == "__main__":
    main()
