"""PG-SB's random guidance scale against SwiftBrush's fixed one, over three teachers: how steady are the curves?

    python benchmarks/distill_random_scale.py

The teachers are the embedded model, its weaker checkpoint and the mean of the two networks' weights. Each student is
looked at every 20 updates on the same 192 held-out pictures. Runs are under runs/distill-random-scale and are resumed;
writes docs/results/distill-random-scale.jsonl.
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import torch

from pilotage import distill
from pilotage.zoo import embedded

ROOT = Path(__file__).resolve().parent.parent
RUNS = ROOT / "runs" / "distill-random-scale"
RESULTS = ROOT / "docs" / "results" / "distill-random-scale.jsonl"
SHARED: dict[str, Any] = {
    "prompts": ["embedded:train:4000"],
    "held_out": ["embedded:heldout:48"],
    "held_out_seeds": 4,
    "features": "embedded",
    "guidance": "cfg:scale=3",
    "grid": "exponential",
    "train": "all",
    "updates": 80,
    "batch": 32,
    "rows": 32,
    "learning_rate": 2e-4,
    "fake_learning_rate": 4e-4,
    "ema": 0.98,
    "evaluate_every": 20,
    "sheet_every": 40,
    "checkpoint_every": 20,
    "threads": 1,
    "device": "cpu",
    "seed": 1,
}
METHODS = {"fixed": "swiftbrush:strata=4", "random": "pg-sb:strata=4"}


def teacher(name: str) -> str:
    """The folder of a teacher's pipeline, or "embedded"."""
    folder = RUNS / f"teacher-{name}"
    if name == "embedded" or folder.is_dir():
        return name if name == "embedded" else str(folder)
    pipe, weak = embedded.load(), embedded.load_weak()
    share = 1.0 if name == "weak" else 0.5
    with torch.no_grad():
        for own, other in zip(pipe.unet.parameters(), weak.parameters(), strict=True):
            own.lerp_(other, share)
    pipe.save_pretrained(folder)
    return str(folder)


def main() -> None:
    rows = []
    for of in ("embedded", "weak", "mean"):
        for name, line in METHODS.items():
            settings = SHARED | {"model": teacher(of), "method": line, "output": str(RUNS / f"{of}-{name}")}
            done = distill.train(distill.DistillSpec(**settings))
            lines = [json.loads(line) for line in (done.folder / "log.jsonl").read_text().splitlines()]
            looks = [
                {"update": line["update"], **line["held_out"], **line["judge"]} for line in lines if "judge" in line
            ]
            rows.append({"teacher": of, "scale": name, "method": line, "looks": looks})
            RESULTS.write_text("".join(json.dumps(row) + "\n" for row in rows))
    print("| teacher | scale | adherence, last | distance, last | its spread, last four looks |")
    print("|---|---|---|---|---|")
    for row in rows:
        last = [look["distance"] for look in row["looks"][-4:]]
        end, spread = row["looks"][-1], statistics.stdev(last)
        print(f"| {row['teacher']} | {row['scale']} | {end['adherence']:.3f} | {end['distance']:.2f} | {spread:.2f} |")


if __name__ == "__main__":
    main()
