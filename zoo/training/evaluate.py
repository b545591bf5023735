"""Stage `evaluate`: how many captions the exported model follows, by guidance scale; runs after `export`."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from .. import embedded, world
from . import common, denoiser, export

STEPS, SEED = 25, 0


def run(work: Path, count: int = 200, **_: float) -> None:
    """Adherence on test and on held-out captions, sheets in the work folder, and a fresh summary of the log."""
    log, pipe, judge = common.Log(work, "evaluate"), embedded.load(), embedded.judge()
    pipe.set_progress_bar_config(disable=True)
    for split, scales in (("test", (1.0, 2.0, 3.0, 5.0, 8.0)), ("heldout", (1.0, 3.0))):
        captions = world.captions(range(count), split)
        for scale in scales:
            start = time.monotonic()
            made = denoiser.generate(pipe, captions, scale, STEPS, SEED)
            right = {k: round(float(np.nanmean(v)), 3) for k, v in judge.adherence(made, captions).items()}
            log(
                event="end",
                split=split,
                first=0,
                count=count,
                scale=scale,
                steps=STEPS,
                seed=SEED,
                adherence=right,
                seconds=round(time.monotonic() - start, 1),
            )
            common.sheet(made[:96], 12, work / f"samples-{split}-{scale:g}.png")
    export.summarise(work)
