"""What APG costs beside the network: our rule against the guider of diffusers, interleaved.

    python benchmarks/apg_arithmetic.py [--shape 8 4 128 128] [--repeats 20]

One step from two branches' predictions to the guided one, with cap and momentum, in float32 on one thread. Ours starts
from the rule's generator and converts to the clean estimate and back; theirs works on the prediction as it is. Prints
the median and the least of the repeats and the ratios. The target: at most half.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from diffusers import AdaptiveProjectedGuidance

from pilotage import guidance
from pilotage.guidance.dialogue import Dialogue
from pilotage.guidance.rule import Context
from pilotage.samplers.prediction import EPSILON, FLOW_PREDICTION, Parameterization
from pilotage.samplers.schedule import NoiseSchedule, RectifiedFlow, stable_diffusion_schedule

logging.getLogger("diffusers").setLevel(logging.ERROR)
SCALE, ETA, CAP, MOMENTUM = 10.0, 0.0, 15.0, -0.5
CASES: dict[str, tuple[NoiseSchedule, Parameterization]] = {
    "epsilon": (stable_diffusion_schedule(), EPSILON),
    "flow": (RectifiedFlow(), FLOW_PREDICTION),
}


def ours(kind: str, x: torch.Tensor, branches: dict[str, torch.Tensor]) -> Callable[[], Any]:
    """One step of our rule, with a difference of the step before."""
    schedule, predicts = CASES[kind]
    rule = guidance.APG(SCALE, ETA, CAP, MOMENTUM)
    level, goal = schedule.level(500.0), schedule.level(400.0)
    memory = {("APG",): branches["cond"] * 0.1}
    ctx = Context(x, level, level, goal, 1, 20, 0, schedule, memory)

    def step() -> Any:
        answer = Dialogue(rule, ctx, Counter()).advance(
            lambda wanted: [(branches[w.ask.branch], predicts) for w in wanted]
        )
        assert answer is not None
        return answer.native

    return step


def theirs(branches: dict[str, torch.Tensor]) -> Callable[[], Any]:
    """One step of the guider, with a difference of the step before."""
    guider = AdaptiveProjectedGuidance(
        SCALE - 1, MOMENTUM, CAP, eta=ETA, use_original_formulation=True
    )  # the paper's formulation
    guider.set_state(0, 20, torch.tensor(500))
    guider.prepare_inputs({"x": (branches["cond"], branches["uncond"])})
    guider.forward(branches["cond"], branches["uncond"])
    guider.set_state(1, 20, torch.tensor(500))
    return lambda: guider.forward(branches["cond"], branches["uncond"]).pred


def seconds(step: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    step()
    return time.perf_counter() - begin


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--shape", type=int, nargs="+", default=[8, 4, 128, 128])
    options.add_argument("--repeats", type=int, default=20)
    given = options.parse_args()
    torch.set_num_threads(1)
    x, cond, uncond = torch.randn(3, *given.shape)
    branches = {"cond": cond, "uncond": uncond}
    print(f"latents {tuple(given.shape)}, {given.repeats} interleaved steps; milliseconds a step")
    print(f"{'':10}{'median':>18}{'least':>18}{'ratio of medians':>18}{'of least':>10}")
    print(f"{'':10}" + f"{'ours':>9}{'guider':>9}" * 2)
    with torch.no_grad():
        for kind in CASES:
            pair, spent = (ours(kind, x, branches), theirs(branches)), ([], [])  # type: ignore[var-annotated]
            for i in range(given.repeats + 2):
                for side in (0, 1) if i % 2 else (1, 0):
                    took = 1e3 * seconds(pair[side])
                    if i >= 2:  # the first two warm the caches
                        spent[side].append(took)
            medians, least = [statistics.median(s) for s in spent], [min(s) for s in spent]
            print(
                f"{kind:10}{medians[0]:9.2f}{medians[1]:9.2f}{least[0]:9.2f}{least[1]:9.2f}"
                f"{medians[0] / medians[1]:18.3f}{least[0] / least[1]:10.3f}"
            )


if __name__ == "__main__":
    main()
