"""Every way to fine-tune, on the embedded model without guidance, for one reward: held-out reward, judge and coverage.

    python benchmarks/finetune_methods.py                    # all, about 90 minutes on one core
    python benchmarks/finetune_methods.py alignprop ddpo     # some; what is done is not run again

AlignProp, DDPO and Flow-GRPO first try three learning rates for a few updates, on captions of their own; they begin
again with the one whose reward was highest, and the other methods take it from them (`RATE_OF`). Each run is an
ordinary `pilotage.finetune` folder under runs/finetune-unguided, so it can be stopped and gone on with. Then 512
pictures of held-out captions are drawn by the model before and after training, with the same seeds, so that all
differences are of pairs. The baselines are the model itself, the best of four of its pictures by the reward, and
guidance.

The reward is the log-probability that the *guiding* classifier gives to the caption's words; the judge is another
network, which counts pictures that show the whole caption. Writes docs/results/finetune-methods.jsonl, pictures in
docs/pictures and runs/finetune-unguided/index.html, and prints the tables of docs/finetuning.md.
"""

from __future__ import annotations

import argparse
import json
import textwrap
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from embedded_rules import REFERENCE, hits_of, measure

from pilotage import finetune
from pilotage.evaluation import paired_difference
from pilotage.finetune.methods.batch import Batch
from pilotage.samplers.loop import sample
from pilotage.training.page import write_comparison
from pilotage.zoo import embedded, world

ROOT = Path(__file__).resolve().parent.parent
RUNS, DOCS = ROOT / "runs" / "finetune-unguided", ROOT / "docs"
RESULTS = DOCS / "results" / "finetune-methods.jsonl"
PICTURE, SHEET = DOCS / "pictures" / "finetune-methods.png", DOCS / "pictures" / "finetune-methods-sheet.png"

SHARED: dict[str, Any] = {
    "prompts": ["embedded:train:400"],
    "held_out": ["embedded:heldout:96"],
    "held_out_seeds": 2,
    "features": "embedded",
    "reward": "adherence:least=0.02",
    "guidance": "none",
    "sampler": "ddim:eta=1",
    "grid": "trailing",
    "steps": 10,
    "rows": 16,
    "checkpoint_every": 5,
    "threads": 1,
    "device": "cpu",
    "seed": 1,
}
THROUGH = {"batch": 16, "updates": 144, "evaluate_every": 24, "sheet_every": 72}  # gradients through the sampler
POLICY = {"batch": 48, "updates": 48, "evaluate_every": 12, "sheet_every": 24}
METHODS: dict[str, dict[str, Any]] = {
    "alignprop": {"method": "alignprop", **THROUGH},
    "draft-k": {"method": "draft-k:truncation=1", **THROUGH},
    "draft-lv": {"method": "draft-lv", **THROUGH, "updates": 72, "evaluate_every": 12},
    "refl": {"method": "refl", **THROUGH},
    "draft": {"method": "draft", **THROUGH},
    "ddpo": {"method": "ddpo", **POLICY},
    "ddpo-slow": {"method": "ddpo", **POLICY, "learning_rate": 3e-4},
    "b2-diffurl": {"method": "b2-diffurl", **POLICY, "batch": 10},
    "fpo": {"method": "fpo", **POLICY, "updates": 24},
    "flow-grpo": {"method": "flow-grpo:group=8", **POLICY, "batch": 6},
    "dance-grpo": {"method": "dance-grpo:group=8", **POLICY, "batch": 6},
}
RATES = (3e-4, 1e-3, 3e-3)
# Methods with trials of their own, and whose rate the others take.
RATE_OF = {name: "alignprop" for name in ("alignprop", "draft-k", "draft-lv", "refl", "draft")}
RATE_OF |= {"ddpo": "ddpo"} | {name: "flow-grpo" for name in ("flow-grpo", "dance-grpo", "b2-diffurl", "fpo")}
CLOSELY = {"updates": 10, "evaluate_every": 2, "sheet_every": 0}  # the start of a run once more
CAPTIONS = range(96, 608)  # held-out ones that no run has looked at
BEST_OF = 4
BEST = f"best of {BEST_OF}"
BASELINES = ("before", BEST, "cfg:scale=2")
SHOWN = ("before", "alignprop", "ddpo-slow", "flow-grpo", "best of 4")  # on the sheet


# -- training --------------------------------------------------------------------------------------------------------


def run(name: str, folder: str, **settings: Any) -> dict[str, Any]:
    """Train, or find it trained: its rate, what was seen at each look, and why it ended early."""
    spec = finetune.FinetuneSpec(**{**SHARED, **METHODS[name], **settings, "output": str(RUNS / folder)})
    done = finetune.train(spec, told=lambda entry: print(folder, json.dumps(entry)[:200], flush=True))
    lines = [json.loads(line) for line in (done.folder / "log.jsonl").read_text().splitlines()]
    looks = [{k: line.get(k) for k in ("update", "pictures", "seconds", "held_out", "judge")} for line in lines]
    return {
        "learning_rate": spec.learning_rate,
        "updates": done.updates,
        "stopped": done.stopped,
        "looks": [look for look in looks if look["held_out"]],
    }


def trained(name: str, seed: int) -> dict[str, Any]:
    """The run at its rate, which the trials say where it is not given."""
    trials = tried(RATE_OF[name]) if name in RATE_OF else []
    rate = max(trials, key=lambda t: t["reward"][-1])["learning_rate"] if trials else METHODS[name]["learning_rate"]
    label = name if seed == SHARED["seed"] else f"{name}, seed {seed}"
    found = run(name, label, learning_rate=rate, seed=seed)
    if label == "alignprop":
        first = run(name, f"{name}-closely", learning_rate=rate, **CLOSELY)
        last = first["looks"][-1]["update"]
        found["looks"] = first["looks"] + [look for look in found["looks"] if look["update"] > last]
    return {"name": label, "method": METHODS[name]["method"], "trials": trials, **found}


def tried(name: str) -> list[dict[str, Any]]:
    """By rate, the reward before and after a few updates, on 48 captions of unseen combinations that nothing else looks
    at, four seeds each."""
    updates = 20 if METHODS[name]["batch"] == THROUGH["batch"] else 8
    texts = captions(range(CAPTIONS.stop, CAPTIONS.stop + 48))
    few = {"updates": updates, "evaluate_every": 0, "sheet_every": 0, "held_out": texts, "held_out_seeds": 4}
    found = []
    for rate in RATES:
        looks = run(name, f"trials/{name}-{rate:g}", learning_rate=rate, **few)["looks"]
        found.append({"learning_rate": rate, "reward": [look["held_out"]["reward"] for look in looks]})
    return found


# -- before and after ------------------------------------------------------------------------------------------------


def drawn(name: str) -> torch.Tensor:
    """uint8 (N, 3, 32, 32): a picture for each caption, seed i for caption i, by that run's LoRA or by a baseline."""
    kept = RUNS / "pictures" / f"{name}.npy"
    if not kept.exists():
        pipe = embedded.load()
        if name not in BASELINES:
            pipe.load_lora_weights(str(RUNS / name / "lora"))
            pipe.fuse_lora()
            pipe.unload_lora_weights()
        guidance = name if name.startswith("cfg") else SHARED["guidance"]
        sampling = finetune.Sampling(SHARED["sampler"], SHARED["grid"], SHARED["steps"], guidance)
        learner = finetune.PipelineLearner(pipe)
        pictures = _best(learner, sampling) if name == BEST else _plain(learner, sampling)
        kept.parent.mkdir(parents=True, exist_ok=True)
        np.save(kept, pictures.clamp(0, 1).mul(255).round().to(torch.uint8).numpy())
    return torch.from_numpy(np.load(kept))


@torch.no_grad()
def _plain(learner: finetune.Learner, sampling: finetune.Sampling, rows: int = 32) -> torch.Tensor:
    pictures = []
    for start in range(0, len(CAPTIONS), rows):
        part = CAPTIONS[start : start + rows]
        batch = Batch(learner, captions(part), [str(seed) for seed in part], sampling)
        ends = sample(batch.denoiser, batch.start(), sampler=sampling.sampler, grid=batch.levels, noise=batch.noise)
        pictures.append(learner.decode(ends))
    return torch.cat(pictures)


def _best(learner: finetune.Learner, sampling: finetune.Sampling) -> torch.Tensor:
    seeds = [str(seed) for seed in CAPTIONS]  # the first of the candidates is the picture of "before"
    return finetune.best_of_n(learner, reward(), captions(CAPTIONS), seeds, BEST_OF, sampling).pictures


def captions(numbers: range) -> list[str]:
    return list(world.captions(numbers, "heldout"))


@cache
def reward() -> finetune.Reward:
    return finetune.open_rewards(SHARED["reward"])


@cache
def tools() -> dict[str, Any]:
    """What measures: judge, features, and the features of 2,000 real pictures of other held-out scenes."""
    features = embedded.features()
    others = range(REFERENCE, REFERENCE + 2000)
    real = torch.from_numpy(world.pictures(others, "heldout", 32)).permute(0, 3, 1, 2)
    return {
        "judge": embedded.judge(),
        "features": features,
        "real": {"features": torch.cat([features(part) for part in real.split(256)])},
    }


def measured(name: str) -> dict[str, Any]:
    """Of the pictures after training: `embedded_rules.measure`, and the reward of each picture. Kept with the runs."""
    kept = RUNS / "measured" / f"{name}.json"
    if not kept.exists():
        pictures, texts = drawn(name), captions(CAPTIONS)
        with torch.no_grad():
            rewards = torch.cat([reward()(p / 255, t) for p, t in zip(pictures.split(64), _split(texts, 64))])
        found = measure(pictures.permute(0, 2, 3, 1).numpy(), texts, tools()["real"], tools())
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps({**found, "rewards": [round(float(value), 5) for value in rewards]}))
    return dict(json.loads(kept.read_text()))


def _split(texts: list[str], size: int) -> list[list[str]]:
    return [texts[i : i + size] for i in range(0, len(texts), size)]


def after(name: str) -> dict[str, Any]:
    """What was measured, each with the 95 % interval of its difference to the model before training: pairs of pictures
    for the reward and the judge, pairs of draws for distances between sets."""
    found, base = measured(name), measured("before")
    judged = paired_difference(hits_of(found), hits_of(base))
    rewarded = paired_difference(found["rewards"], base["rewards"])
    far = np.subtract(found["frechet_draws"], base["frechet_draws"])
    told: dict[str, Any] = {
        "reward": {"value": float(np.mean(found["rewards"])), "change": list(rewarded)},
        "adherence": {"value": float(hits_of(found).mean()), "change": list(judged)},
        "frechet": {"value": found["frechet"], "change": [found["frechet"] - base["frechet"], *_middle(far)]},
        "precision": {"value": found["precision"]},
    }
    for kind in ("recall", "density", "coverage", "saturation"):
        half = 1.96 * float(np.std(np.subtract(found["half_draws"][kind], base["half_draws"][kind])))
        change = found[kind] - base[kind]
        told[kind] = {"value": found[kind], "change": [change, change - half, change + half]}
    return {"hits": found["hits"], "by_attribute": found["adherence"], **told}


def _middle(draws: np.ndarray) -> list[float]:
    low, high = np.percentile(draws, [2.5, 97.5])
    return [float(low), float(high)]


# -- pictures and tables ---------------------------------------------------------------------------------------------


def draw(results: list[dict[str, Any]]) -> None:
    """Held-out reward, judged adherence and diversity against pictures sampled; dashed are policy gradients."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(16, 5))
    for number, result in enumerate(results):
        looks = result["looks"]
        pictures = [look["pictures"] for look in looks]
        style = "--" if METHODS[result["name"].partition(",")[0]]["batch"] != THROUGH["batch"] else "-"
        for axis, of in zip(axes, ("reward", "judge", "diversity"), strict=True):
            values = [look["judge"]["adherence"] if of == "judge" else look["held_out"][of] for look in looks]
            axis.plot(pictures, values, style, marker="o", ms=3, lw=1.4, color=f"C{number % 10}", label=result["name"])
    titles = ("held-out reward", "adherence by the judge, held-out", "diversity of the seeds of a caption")
    for axis, title in zip(axes, titles, strict=True):
        axis.set(xlabel="pictures sampled", title=title)
        axis.set_xscale("symlog", linthresh=16, linscale=0.4)
        axis.axhline(axis.get_lines()[0].get_ydata()[0], color="black", lw=0.8, alpha=0.5)
        axis.grid(alpha=0.25)
    figure.legend(*axes[0].get_legend_handles_labels(), fontsize=9, frameon=False, loc="center right")
    figure.tight_layout(rect=(0, 0, 0.9, 1))
    figure.savefig(PICTURE, dpi=90)
    pyplot.close(figure)


def draw_sheet(names: tuple[str, ...], count: int = 14) -> None:
    """A row for each run, the same captions and seeds: the first ones on whose pictures the judge does not say the same
    of all runs, for better or worse. A tick where it finds all that the caption says, a cross where not."""
    from matplotlib import pyplot

    verdicts = zip(*(measured(name)["hits"] for name in names if name != BEST), strict=True)
    chosen = [i for i, said in enumerate(verdicts) if len(set(said)) > 1][:count]
    texts = captions(CAPTIONS)
    figure, axes = pyplot.subplots(len(names), count, figsize=(1.1 * count, 1.3 * len(names) + 0.8), squeeze=False)
    for row, name in zip(axes, names, strict=True):
        pictures, hits = drawn(name), measured(name)["hits"]
        for i, axis in zip(chosen, row, strict=True):
            axis.imshow(pictures[i].permute(1, 2, 0).numpy(), interpolation="nearest")
            axis.set(xticks=[], yticks=[])
            right = hits[i] == "1"
            axis.set_xlabel("✓" if right else "✗", color="green" if right else "red", labelpad=1)
        row[0].set_ylabel(name, fontsize=9)
    for i, axis in zip(chosen, axes[0], strict=True):
        axis.set_title("\n".join(textwrap.wrap(texts[i], 17)), fontsize=7)
    figure.tight_layout(pad=0.4)
    figure.savefig(SHEET, dpi=100)
    pyplot.close(figure)


def table(results: list[dict[str, Any]]) -> str:
    """Markdown: a row for each baseline and method, with changes against the model before training. diversity: share of
    what it was before, on the captions that were watched."""
    head = ("method", "rate", "pictures", "reward", "adherence by the judge", "coverage", "Fréchet distance",
            "density", "precision", "recall", "diversity")  # fmt: skip
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for r in results:
        found = r["after"]
        cells = [f"`{r['method']}`" if "method" in r else r["name"], *_training(r)]
        cells += [_cell(found[kind]) for kind in ("reward", "adherence", "coverage", "frechet")]
        cells += [f"{found[kind]['value']:.3f}" for kind in ("density", "precision", "recall")]
        lines.append("| " + " | ".join([*cells, _diversity(r)]) + " |")
    return "\n".join(lines)


def _training(r: dict[str, Any]) -> list[str]:
    stopped = ", stopped" if r.get("stopped") else ""
    return [f"{r['learning_rate']:g}", f"{r['looks'][-1]['pictures']:,}{stopped}"] if "looks" in r else ["", ""]


def _diversity(r: dict[str, Any]) -> str:
    seen = [look["held_out"]["diversity"] for look in r.get("looks", [])]
    return f"{seen[-1] / seen[0]:.0%}" if seen else ""


def _cell(found: dict[str, Any]) -> str:
    mean, low, high = found["change"]
    changed = f", {mean:+.3f} [{low:+.3f}, {high:+.3f}]" if mean else ""
    return f"{found['value']:.3f}{changed}"


def race(results: list[dict[str, Any]]) -> str:
    """Markdown: the best held-out reward at a look, and after how many pictures each method was first that good."""
    best = {r["name"]: max(r["looks"], key=lambda look: look["held_out"]["reward"]) for r in results}
    lines = ["| its best | reward | pictures | " + " | ".join(best) + " |", "|" + "---|" * (3 + len(best))]
    for name, look in best.items():
        cells = [_until(r["looks"], look["held_out"]["reward"]) for r in results]
        shown = [name, f"{look['held_out']['reward']:.3f}", f"{look['pictures']:,}"]
        lines.append("| " + " | ".join([*shown, *cells]) + " |")
    return "\n".join(lines)


def _until(looks: list[dict[str, Any]], level: float) -> str:
    return next((f"{look['pictures']:,}" for look in looks if look["held_out"]["reward"] >= level), "never")


# -- the whole -------------------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(METHODS)}")
    parser.add_argument("--seed", type=int, default=SHARED["seed"], help="another run of the same rate")
    parser.add_argument("--report", action="store_true", help="train nothing: measure and draw what is there")
    choice = parser.parse_args()
    known = {r["name"]: r for r in map(json.loads, RESULTS.read_text().splitlines())} if RESULTS.exists() else {}
    for name in () if choice.report else choice.names or METHODS:
        found = trained(name, choice.seed)
        known[found["name"]] = found
        _write(known)
    report(known)


def report(known: dict[str, dict[str, Any]]) -> None:
    """Measure the baselines and every run, then write results, pictures, the page and the tables."""
    matplotlib.use("Agg")
    for name in (*BASELINES, *known):
        known[name] = {"name": name, **known.get(name, {}), "after": after(name)}
    results = [r for r in known.values() if "looks" in r]
    results.sort(key=lambda r: list(METHODS).index(r["name"].partition(",")[0]))
    rows = [*(known[name] for name in BASELINES), *results]
    _write({r["name"]: r for r in rows})
    draw(results)
    draw_sheet(tuple(name for name in SHOWN if name in known))
    write_comparison({r["name"]: RUNS / r["name"] for r in results}, RUNS / "index.html")
    print(table(rows), race(results), sep="\n\n")


def _write(known: dict[str, dict[str, Any]]) -> None:
    RESULTS.write_text("".join(json.dumps(r) + "\n" for r in known.values()))


if __name__ == "__main__":
    main()
