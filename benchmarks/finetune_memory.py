"""Reward backpropagation on the embedded model: memory and time of one update, by method.

    python benchmarks/finetune_memory.py [--steps 20] [--rows 2] [--rounds 5] [--rank 4]

The reward is the mean red of the pictures; DDIM with eta = 1, no guidance. Passes: forward and backward passes of the
UNet a picture. Peak: the most bytes of tensors alive at once in an update, beside the weights and the gradients, at 10
and at 50 steps. Time: CPU time of an update through all steps against one that keeps all graphs, the median and the
range of the ratio over interleaved rounds; with LoRA and where all weights train. The bound is (2F + B) / (F + B), of
passes of the UNet that are timed alone: F forwards, B backwards, the median of both.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pilotage.finetune.method import Method, Sampling, UpdateContext
from pilotage.finetune.methods.registry import make_method
from pilotage.finetune.rewards.reward import Reward
from pilotage.training.learner import Learner
from pilotage.training.lora import LoraSettings
from pilotage.training.pipeline_learner import PipelineLearner
from pilotage.zoo.embedded import load

sys.path.append(str(Path(__file__).parent))
from adjoint_memory import Alive

LINES = (
    "draft:gradient=full", "draft", "draft:keep=5", "draft:gradient=checkpoint", "draft:gradient=segments",
    "draft-k:truncation=1", "draft-k:truncation=5", "draft-lv", "refl", "draft:kl=0.1",
    "draft-k:truncation=5,anchor=0.1",
)  # fmt: skip
SHORT, LONG = 10, 50


def red(pictures: Tensor, prompts: Sequence[str]) -> Tensor:
    return pictures[:, 0].mean((1, 2))


def an_update(learner: Learner, steps: int, rows: int) -> UpdateContext:
    prompts, seeds = ["a red circle on white"] * rows, [str(i) for i in range(rows)]
    sampling = Sampling("ddim:eta=1", "trailing", steps, "none")
    return UpdateContext(learner, Reward("red", red), sampling, prompts, seeds, update=0, updates=1, rows=rows)


def run(method: Method, ctx: UpdateContext) -> None:
    for part in method.update(ctx):
        part.loss.backward()


def peak(method: Method, ctx: UpdateContext) -> int:
    """Bytes."""
    for parameter in ctx.learner.parameters:
        parameter.grad = torch.zeros_like(parameter)
    with Alive() as alive:
        run(method, ctx)
    return alive.peak


class Passes:
    """Counts those of a network, in pictures. A forward pass is counted as it begins: one that is computed again may be
    left as soon as all is there that the backward pass needs."""

    def __init__(self, network: Any):
        self.calls = self.backs = 0
        self.hooks = [network.register_forward_pre_hook(self.asked), network.register_forward_hook(self.answered)]

    def asked(self, module: Any, args: Any) -> None:
        self.calls += len(args[0])

    def answered(self, module: Any, args: Any, output: Any) -> None:
        out = output if isinstance(output, Tensor) else output[0]
        if out.requires_grad:
            out.register_hook(self.back)

    def back(self, gradient: Tensor) -> None:
        self.backs += len(gradient)

    def stop(self) -> None:
        for hook in self.hooks:
            hook.remove()


def passes(line: str, learner: PipelineLearner, steps: int, rows: int) -> tuple[float, float]:
    counted = Passes(learner.pipe.unet)
    run(make_method(line), an_update(learner, steps, rows))
    counted.stop()
    return counted.calls / rows, counted.backs / rows


TIMED = ("draft:gradient=full", "draft", "draft:keep=5", "draft:gradient=checkpoint", "alignprop:truncation=3")


def ratios(learner: Learner, steps: int, rows: int, rounds: int) -> dict[str, list[float]]:
    """CPU time of each of `TIMED` over that of the first, a round each."""
    found: dict[str, list[float]] = {line: [] for line in TIMED}
    for _ in range(rounds + 1):
        times = {}
        for line in TIMED:
            method, ctx = make_method(line), an_update(learner, steps, rows)
            start = time.process_time()
            run(method, ctx)
            times[line] = time.process_time() - start
        for line in TIMED:
            found[line].append(times[line] / times[TIMED[0]])
    return {line: shares[1:] for line, shares in found.items()}  # the first round warms up


def bound(learner: Learner, rows: int, rounds: int = 9) -> float:
    """(2F + B) / (F + B) of one step."""
    ctx = an_update(learner, 10, rows)
    levels, denoiser = learner.levels("trailing", 10), learner.denoiser(ctx.prompts)
    x, times = learner.start(ctx.seeds, levels), []
    for _ in range(rounds):
        leaf, start = x.clone().requires_grad_(), time.process_time()
        end = denoiser(leaf, levels[3]).denoised
        middle = time.process_time()
        end.sum().backward()
        times.append((middle - start, time.process_time() - middle))
    forth, back = (statistics.median(column) for column in zip(*times))
    return (2 * forth + back) / (forth + back)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rows", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rank", type=int, default=4)
    args = parser.parse_args()
    torch.set_num_threads(1)
    lora = PipelineLearner(load(), LoraSettings(rank=args.rank))
    print(f"| method | forward, backward at {args.steps} steps | peak, MiB at {SHORT} | at {LONG} | ratio |")
    print("|---|---|---|---|---|")
    for line in LINES:
        calls, backs = passes(line, lora, args.steps, args.rows)
        sizes = [peak(make_method(line), an_update(lora, steps, args.rows)) for steps in (SHORT, LONG)]
        shown = " | ".join(f"{size / 2**20:.1f}" for size in sizes)
        print(f"| {line} | {calls:g}, {backs:g} | {shown} | {sizes[1] / sizes[0]:.3f} |", flush=True)
    print(f"\nCPU time against full backpropagation, {args.steps} steps, {args.rows} rows:\n")
    print(f"| what learns | bound | {' | '.join(TIMED[1:])} |")
    print(f"|---|---|{'---|' * len(TIMED[1:])}")
    for name, learner in (("LoRA", lora), ("all weights", PipelineLearner(load(), None))):
        found = ratios(learner, args.steps, args.rows, args.rounds)
        cells = [f"{statistics.median(v):.2f} ({min(v):.2f} to {max(v):.2f})" for v in list(found.values())[1:]]
        print(f"| {name} | {bound(learner, args.rows):.2f} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
