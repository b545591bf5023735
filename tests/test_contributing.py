"""The code in CONTRIBUTING.md runs, and does what the text says."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path
from typing import Any

import torch

from pilotage import guidance, samplers
from pilotage.evaluation import METRICS
from pilotage.samplers.denoiser import ExactDenoiser
from pilotage.samplers.schedule import stable_diffusion_schedule

TEXT = (Path(__file__).resolve().parent.parent / "CONTRIBUTING.md").read_text()


class Standard:
    """Unit Gaussians about the condition."""

    def denoised(self, x: torch.Tensor, alpha: float, sigma: float, condition: torch.Tensor) -> torch.Tensor:
        return condition + alpha * (x - alpha * condition) / (alpha**2 + sigma**2)


def names() -> dict[str, Any]:
    module = types.ModuleType("contributing")
    sys.modules[module.__name__] = module  # dataclasses look their module up
    exec("\n\n".join(re.findall(r"```python\n(.*?)```", TEXT, re.S)), vars(module))
    return vars(module)


def test_the_blocks_run_and_agree_with_ours() -> None:
    made = names()
    red = torch.zeros(2, 3, 4, 4)
    red[0, 0] = 1
    assert made["warm"](red, ["", ""]).tolist() == [1, 0]
    METRICS.pop("mean-gap")  # other tests go through the registry
    assert made["report"]["mean-gap"].value > 0 and "sees nothing but means" in made["report"].warnings[-1]
    denoiser = ExactDenoiser(Standard(), stable_diffusion_schedule())
    x = torch.randn(3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    conditions = {"cond": torch.ones(3, 2, dtype=torch.float64), "uncond": torch.zeros(3, 2, dtype=torch.float64)}

    def sample(rule: guidance.Rule, sampler: Any) -> torch.Tensor:
        guided = guidance.Guided(denoiser, rule, conditions)
        return samplers.sample(guided, x, sampler=sampler, steps=7, grid="trailing")

    half = sample(made["HalfGuided"](5.0), made["PlainEuler"]())
    assert torch.allclose(half, sample(guidance.CFG(3.0), "euler"), atol=1e-12)
    assert made["entry"].off == {"scale": 1.0}
