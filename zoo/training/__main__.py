"""Make the embedded model: `python -m pilotage.zoo.training <stage> [--work DIR]`.

Stages in order: autoencoder, latents, judge, features, denoiser, guide, export, calibrate, evaluate. The same command
resumes a stage.
"""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path

import torch

STAGES = ("autoencoder", "latents", "judge", "features", "denoiser", "guide", "export", "calibrate", "evaluate")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m pilotage.zoo.training", description=__doc__)
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--work", type=Path, default=Path(__file__).parent / "work", help="checkpoints and logs")
    parser.add_argument("--minutes", type=float, help="budget; the learning rate falls to zero with it")
    parser.add_argument("--steps", type=int, help="budget in steps instead")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.work.mkdir(parents=True, exist_ok=True)
    budget = {k: v for k in ("minutes", "steps") if (v := getattr(options, k)) is not None}
    importlib.import_module(f"{__package__}.{options.stage}").run(options.work, **budget)


if __name__ == "__main__":
    main()
