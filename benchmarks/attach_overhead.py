"""What `attach` costs over the stock pipeline: milliseconds and tensor operations a step, and the ratio at 64 rows.

    python benchmarks/attach_overhead.py            # all parts
    python benchmarks/attach_overhead.py --runs 5 --part small

Stock and attached runs alternate, so that a busy machine slows both; the minimum of all runs counts, of the wall clock
and, for a machine that is not ours alone, of the processor's.
(a) bare: a network that answers at once, so that all that is left is the pipeline, the scheduler and `attach`.
    Target: at most 0.2 ms a step more.
(b) small: a tiny UNet, where a step is nearly all overhead: what (a) becomes when a network has emptied the caches.
(c) large: 32 pictures, 64 rows, in a UNet of the embedded model's size on 4 x 8 x 8 latents. Target: at most 2 %.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers as D
import torch
from operations import Operations

import pilotage
from pilotage import guidance

STEPS = 20


def pipeline(channels: tuple[int, ...], width: int, groups: int, heads: int) -> Any:
    """A text-to-image pipeline with random weights that is called with embeddings; nothing is encoded or decoded."""
    torch.manual_seed(0)
    network = D.UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, layers_per_block=2 if channels[0] > 8 else 1,
        block_out_channels=channels, cross_attention_dim=width, attention_head_dim=heads, norm_num_groups=groups,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    ).eval()  # fmt: skip
    vae = D.AutoencoderKL(
        block_out_channels=[4, 8], norm_num_groups=2, down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
    )  # fmt: skip
    scheduler = D.DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1
    )
    pipe = D.StableDiffusionPipeline(
        vae=vae, text_encoder=None, tokenizer=None, unet=network, scheduler=scheduler, safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


def runs_of(pipe: Any, pictures: int, width: int) -> dict[str, Callable[[], torch.Tensor]]:
    """One guided call, stock and attached."""
    generator = torch.Generator().manual_seed(1)
    embeds = torch.randn(2, pictures, 16, width, generator=generator)
    latents = torch.randn(pictures, 4, 8, 8, generator=generator)

    def stock() -> torch.Tensor:
        return pipe(
            prompt_embeds=embeds[0], negative_prompt_embeds=embeds[1], latents=latents, guidance_scale=5.0,
            num_inference_steps=STEPS, output_type="latent", return_dict=False,
        )[0]  # fmt: skip

    def attached() -> torch.Tensor:
        with pilotage.attach(pipe, guidance.CFG(5.0)):
            return stock()

    return {"stock": stock, "attached": attached}


def best_of(runs: dict[str, Callable[[], torch.Tensor]], count: int) -> dict[str, tuple[float, float]]:
    """Least (wall, processor) seconds a step of each, in turns, the first of a turn changing."""
    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for turn in range(count + 1):
        for name in runs if turn % 2 else reversed(runs):
            wall, processor = time.perf_counter(), time.process_time()
            runs[name]()
            spent[name].append((time.perf_counter() - wall, time.process_time() - processor))
    return {  # the first turn warms up
        name: (min(w for w, _ in times[1:]) / STEPS, min(p for _, p in times[1:]) / STEPS)
        for name, times in spent.items()
    }


def bare(count: int) -> dict[str, Any]:
    pipe = pipeline((8, 16), 32, 2, 2)
    answer = (torch.randn(2, 4, 8, 8),)
    pipe.unet.forward = lambda sample, timestep, encoder_hidden_states, **others: answer
    return _small(pipe, count)


def small(count: int) -> dict[str, Any]:
    return _small(pipeline((8, 16), 32, 2, 2), count)


def _small(pipe: Any, count: int) -> dict[str, Any]:
    runs = runs_of(pipe, 1, 32)
    assert torch.equal(runs["stock"](), runs["attached"]())
    best = best_of(runs, count)
    operations = {}
    for name, run in runs.items():
        with Operations() as seen:
            run()
        operations[name] = seen.counts
    extra = operations["attached"].copy()
    extra.subtract(operations["stock"])
    return {
        "stock_ms_per_step": 1e3 * best["stock"][0],
        "added_ms_per_step": 1e3 * (best["attached"][0] - best["stock"][0]),
        "added_processor_ms_per_step": 1e3 * (best["attached"][1] - best["stock"][1]),
        "operations_per_step": {name: counts.total() / STEPS for name, counts in operations.items()},
        "added_operations_per_step": {name: n / STEPS for name, n in sorted(extra.items()) if n},
    }


def large(count: int) -> dict[str, Any]:
    runs = runs_of(pipeline((64, 128), 128, 32, 8), 32, 128)
    assert torch.equal(runs["stock"](), runs["attached"]())
    best = best_of(runs, count)
    wall, processor = (best["attached"][i] / best["stock"][i] for i in range(2))
    return {"stock_ms_per_step": 1e3 * best["stock"][0], "ratio": wall, "processor_ratio": processor}


PARTS = {"bare": bare, "small": small, "large": large}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=PARTS, action="append")
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    figures = {part: PARTS[part](given.runs) for part in given.part or PARTS}
    text = json.dumps(figures, indent=2)
    sys.stdout.write(text + "\n")
    if given.out:
        given.out.write_text(text)


if __name__ == "__main__":
    main()
