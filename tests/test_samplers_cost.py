"""Exact counts: tensor operations and host reads of a step. No timing: that is `benchmarks/scheduler_step.py`."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from stock_schedulers import SD
from test_samplers_diffusers import OURS
from torch.utils._python_dispatch import TorchDispatchMode

from pilotage.samplers import SAMPLERS, make_grid, make_sampler
from pilotage.samplers.prediction import EPSILON, Prediction
from pilotage.samplers.schedule import stable_diffusion_schedule

X = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
# Operations of each `tell` of a run of three steps, on predictions whose denoised and noise are known.
OPERATIONS = {
    "ddim": [2, 2, 0],
    "euler": [2, 2, 0],
    "euler-ancestral": [3, 3, 0],
    "heun": [2, 3, 2, 3, 0],
    "dpmpp-2m": [2, 3, 0],
    "sde-dpmpp-2m": [3, 4, 0],
    "dpmpp-2s": [2, 3, 2, 3, 0],
    "dpmpp-2s-ancestral": [2, 4, 2, 4, 0],
    "dpm2": [2, 3, 2, 3, 0],
    "dpm2-ancestral": [2, 4, 2, 4, 0],
    "dpmpp-3s": [2, 3, 3, 2, 3, 3, 0],
    "dpmpp-3m": [2, 3, 0],
    "sde-dpmpp-1": [3, 3, 0],
    "sde-dpmpp-2s": [3, 6, 3, 6, 0],
    "sde-dpmpp-3m": [3, 4, 0],
    "unipc": [2, 3, 0],
    "deis": [2, 3, 0],
    "lms": [2, 3, 0],
    "plms": [2, 3, 0],
    "exponential-rk": [2, 3, 2, 3, 0],
    "ddpm": [3, 3, 0],
    "flow-ancestral": [3, 3, 0],
    "lcm": [2, 2, 0],
    "tcd": [3, 3, 0],
    "er-sde": [3, 4, 0],
    "ucgm": [2, 2, 0],
    "restart": [2, 3, *[2, 5, 2, 3] * 2, 2, 3, 0],  # a rise is two
    "predictor-corrector": [6, 3, 6, 3, 6, 0],
    "langevin": [*[*[2] * 99, 3] * 2, *[2] * 100, 0],
}


class Count(TorchDispatchMode):
    """Counts the operations that reach the device; views and detaches do no work."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen[func.overloadpacket._qualified_op_name] += 1
        return func(*args, **(kwargs or {}))

    @property
    def total(self) -> int:
        return sum(self.seen.values())

    @property
    def reads(self) -> int:
        return self.seen["aten::_local_scalar_dense"] + self.seen["aten::item"]


@pytest.mark.parametrize("name", SAMPLERS)
def test_tell(name: str) -> None:
    sampler = make_sampler(name)
    schedule = stable_diffusion_schedule()
    state = sampler.init(X, make_grid("karras", schedule, 3), schedule)
    counts = []
    while not state.done:
        prediction = Prediction(state.x, state.level, X, EPSILON)
        prediction.denoised, prediction.noise  # the conversion
        with Count() as count:
            state = sampler.tell(state, prediction, X)
        counts.append(count.total)
        assert count.reads == 0
    assert counts == OPERATIONS[name]
    assert max(counts) <= 6


FULL_HISTORY = {
    "er-sde": 5,
    "ucgm": 4,
    "dpmpp-3m": 4,
    "sde-dpmpp-3m": 5,
    "unipc": 4,
    "unipc:order=3": 5,
    "deis": 4,
    "lms": 5,
    "plms": 5,
}


@pytest.mark.parametrize("line", FULL_HISTORY)
def test_looking_back_costs_one_operation_an_evaluation(line: str) -> None:
    sampler, schedule = make_sampler(line), stable_diffusion_schedule()
    state, counts = sampler.init(X, make_grid("karras", schedule, 8)), []
    while not state.done:
        prediction = Prediction(state.x, state.level, X, EPSILON)
        prediction.denoised, prediction.noise
        with Count() as count:
            state = sampler.tell(state, prediction, X)
        counts.append(count.total)
    assert counts[4:] == [FULL_HISTORY[line]] * 3 + [0]  # a corrector's differences are among them


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "flow_prediction"])
@pytest.mark.parametrize("name", OURS)
def test_scheduler_step(name: str, kind: str) -> None:
    settings = {"prediction_type": kind} if kind == "flow_prediction" else dict(SD, prediction_type=kind)
    scheduler = OURS[name](**settings)
    scheduler.set_timesteps(5)
    generators = [torch.Generator().manual_seed(s) for s in (1, 2)]
    x, conversion = X, 6  # denoised and noise: at most three operations each
    noise = 4 if scheduler.sampler.stochastic else 0  # two draws, their join, a device move
    for i, t in enumerate(scheduler.timesteps):
        more = {} if name == "ddim" else {"generator": generators}
        with Count() as count:
            x = scheduler.step(X, t, x, **more, return_dict=False)[0]
        assert count.reads <= (1 if i == 0 else 0), count.seen  # the first step looks its place up
        assert count.total - count.reads <= 6 + conversion + noise, count.seen
    if name == "dpmpp-2m" and kind == "epsilon":
        scheduler.set_timesteps(5)
        scheduler.set_begin_index(0)
        times = list(scheduler.timesteps)
        with Count() as count:
            for t in times:
                x = scheduler.step(X, t, x, return_dict=False)[0]
        assert count.reads == 0
        assert count.total == 4 + 3 * 5 + 2  # two of each step are the conversion to denoised


def test_no_step_grows_with_the_run() -> None:
    totals = []
    for steps in (10, 40):
        scheduler = OURS["dpmpp-2m"](**SD)
        scheduler.set_timesteps(steps)
        scheduler.set_begin_index(0)
        x, times = X, list(scheduler.timesteps)
        with Count() as count:
            for t in times:
                x = scheduler.step(X, t, x, return_dict=False)[0]
        totals.append(count.total)
    assert totals[1] - totals[0] == 30 * 5
