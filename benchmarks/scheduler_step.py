"""What a scheduler step costs outside the denoiser: ours against stock diffusers, interleaved.

    python benchmarks/scheduler_step.py [--rows 1] [--steps 20] [--repeats 200]

Prints, for each pair, the tensor operations of a step in the middle of a run (exact), the time of a step (median over
the runs, and the least), and the ratios. The targets: our DPM++ 2M and DDIM take at most a fifth of the stock step, and
UniPC at most a tenth. On a busy machine the least times are the fairer ones.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import time
from typing import Any

import diffusers as D
import torch
from operations import Operations

from pilotage import samplers

logging.getLogger("diffusers").setLevel(logging.ERROR)
SD = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing="trailing")
PAIRS: dict[str, tuple[Any, Any]] = {
    "DPM++ 2M": (samplers.DPMPP2M(**SD), D.DPMSolverMultistepScheduler(**SD)),
    "SDE-DPM++ 2M": (
        samplers.SDEDPMPP2M(**SD),
        D.DPMSolverMultistepScheduler(**SD, algorithm_type="sde-dpmsolver++"),
    ),
    "DPM++ 3M": (samplers.DPMPP3M(**SD), D.DPMSolverMultistepScheduler(**SD, solver_order=3)),
    "UniPC-2": (samplers.UniPC(**SD), D.UniPCMultistepScheduler(**SD)),
    "UniPC-3": (samplers.UniPC(**SD, settings={"order": 3}), D.UniPCMultistepScheduler(**SD, solver_order=3)),
    "DEIS-2": (samplers.DEIS(**SD, settings={"order": 2}), D.DEISMultistepScheduler(**SD)),
    "LMS": (samplers.LMS(**SD), D.LMSDiscreteScheduler(**SD)),
    "DDIM": (samplers.DDIM(**SD), D.DDIMScheduler(**SD, clip_sample=False)),
    "Euler": (samplers.Euler(**SD), D.EulerDiscreteScheduler(**SD)),
    "Heun": (samplers.Heun(**SD), D.HeunDiscreteScheduler(**SD)),
    "flow Euler": (
        samplers.Euler.from_config(D.FlowMatchEulerDiscreteScheduler(shift=3.0).config),
        D.FlowMatchEulerDiscreteScheduler(shift=3.0),
    ),
}


def run(scheduler: Any, x: torch.Tensor, output: torch.Tensor, steps: int) -> float:
    """Seconds a call of everything that a pipeline asks of its scheduler between two network calls."""
    scheduler.set_timesteps(steps)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)
    scale = getattr(scheduler, "scale_model_input", None)
    times = list(scheduler.timesteps)
    begin = time.perf_counter()
    for t in times:
        if scale is not None:
            scale(x, t)
        x = scheduler.step(output, t, x, return_dict=False)[0]
    return (time.perf_counter() - begin) / len(times)


def operations(scheduler: Any, x: torch.Tensor, output: torch.Tensor) -> float:
    """Tensor operations a call in the middle of a run, exact; a mean over calls where they alternate."""
    totals = []
    for steps in (10, 20):
        with Operations() as count:
            run(scheduler, x, output, steps)
        totals.append((count.total - _setting_up(scheduler, steps), len(scheduler.timesteps)))
    (a, n), (b, m) = totals
    return (b - a) / (m - n)


def _setting_up(scheduler: Any, steps: int) -> int:
    with Operations() as count:
        scheduler.set_timesteps(steps)
        list(scheduler.timesteps)
    return count.total


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--rows", type=int, default=1)
    options.add_argument("--steps", type=int, default=20)
    options.add_argument("--repeats", type=int, default=200)
    given = options.parse_args()
    torch.set_num_threads(1)
    x, output = torch.randn(2, given.rows, 4, 8, 8)
    print(f"latents {tuple(x.shape)}, {given.steps} steps, {given.repeats} interleaved runs; microseconds a call")
    head = f"{'':14}{'operations':>16}{'median':>18}{'least':>18}{'ratio of medians':>18}{'of least':>10}"
    print(head + f"\n{'':14}" + f"{'ours':>8}{'stock':>8}" + f"{'ours':>9}{'stock':>9}" * 2)
    for name, (ours, stock) in PAIRS.items():
        spent: tuple[list[float], list[float]] = ([], [])
        for i in range(given.repeats):
            order = (0, 1) if i % 2 else (1, 0)
            for side in order:
                spent[side].append(1e6 * run((ours, stock)[side], x, output, given.steps))
        counts = [operations(s, x, output) for s in (ours, stock)]
        medians, least = [statistics.median(s) for s in spent], [min(s) for s in spent]
        print(
            f"{name:14}{counts[0]:8.1f}{counts[1]:8.1f}{medians[0]:9.1f}{medians[1]:9.1f}{least[0]:9.1f}{least[1]:9.1f}"
            f"{medians[0] / medians[1]:18.3f}{least[0] / least[1]:10.3f}"
        )


if __name__ == "__main__":
    main()
