"""Every registered rule with settings at which it acts, on an exact toy world; for the registry-wide tests.

`acting(name)` takes the registry's defaults, and from `SETTINGS` what a rule cannot do without. A rule whose defaults
do nothing is found out by the tests and needs a line here.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import guidance_toys as toys
import torch
from torch import Tensor

from pilotage import guidance, samplers
from pilotage.guidance.attention import negative, patch
from pilotage.guidance.compose import compose
from pilotage.guidance.modifiers.linear import LinearFit, Watch
from pilotage.guidance.registry import RULES
from pilotage.guidance.rule import Modifier, Rule
from pilotage.samplers.noise import SeededNoise
from pilotage.samplers.prediction import FLOW_PREDICTION, Parameterization, Prediction
from pilotage.samplers.schedule import Level, NoiseSchedule, RectifiedFlow

SHAPE = (3, 4, 8, 6)
STEPS = 4
SCALE = 3.0
FLOW = RectifiedFlow()
NAMES = list(RULES)
RULE_NAMES = [name for name in NAMES if not issubclass(RULES[name].load(), Modifier)]
MODIFIER_NAMES = [name for name in NAMES if issubclass(RULES[name].load(), Modifier)]
FLOW_ONLY = ("rectified-cfg++", "cfg-mp")


def bent(z: Tensor) -> Tensor:
    """A loss with a curved gradient, (B,)."""
    flat = z.flatten(1)
    return (1 + flat.square()).sqrt().mean(1) + flat.mean(1).sin()


def logits(z: Tensor) -> Tensor:
    return z.flatten(1)[:, :3] * 2


def log_probability(x: Tensor, level: Level) -> Tensor:
    return -bent(x)


RIVALS = toys.normal(3, *SHAPE[1:], seed=31)
SETTINGS: dict[str, dict[str, Any]] = {
    "interval": {"low": 0.6, "high": 3.0},
    "adaptive": {"threshold": 0.5},
    "threshold": {"percentile": 0.5, "mimic_scale": 2.0},
    "fdg": {"parallel": 0.2},
    "higs": {"low": 0.0},
    "reflect": {"low": -0.5, "high": 0.5},
    "apg": {"norm_threshold": 4.0},
    "perp-neg": {"negatives": "a:1.5"},
    "composable": {"prompts": "a:2"},
    "sega": {"concepts": "a:3", "warmup": 0},
    "cfg-zero": {"zero_steps": 0},
    "gfcg-reconstruction": {"classifier": logits, "target": 0, "sure": 1.1, "conditions": RIVALS, "reads": "latents"},
    "classifier": {"classifier": log_probability},
    "ppap": {"classifier": log_probability},
    "elucd": {"classifier": logits, "target": 1, "reads": "latents"},
    **{name: {"loss": bent, "weight": 0.1} for name in ("dps", "lgd", "freedom", "ugd", "mpgd", "greedy")},
    "tfg": {"loss": bent, "rho": 0.1, "mu": 0.1},
}


def settings(name: str) -> dict[str, Any]:
    """Settings at which it does something."""
    cls = RULES[name].load()
    scaled = any(f.name == "scale" for f in fields(cls)) and name not in ("cfg++", "linear")
    fit = {"file": fitted(), "guided": 1.0, "model": "toy"} if name == "linear" else {}
    return {**({"scale": SCALE} if scaled else {}), **fit, **SETTINGS.get(name, {})}


def acting(name: str, **changes: Any) -> Rule:
    """The rule or modifier alone, with settings at which it does something; every `scale` is 3."""
    return RULES[name].load()(**{**settings(name), **changes})


def whole(name: str, **changes: Any) -> Rule:
    """The rule; a modifier around CFG."""
    made = acting(name, **changes)
    return compose(guidance.CFG(SCALE), made) if isinstance(made, Modifier) else made


def off(name: str) -> Rule:
    """The acting rule turned off as its entry says."""
    return whole(name, **RULES[name].off)


# -- the world ---------------------------------------------------------------------------------------------------------


@dataclass
class PatchableToy(toys.Toy):
    """A toy network that patches of the attention family make worse, and that feeds those which listen."""

    patches: list[Any] = field(default_factory=list)

    def __call__(self, x: Tensor, level: Level, condition: Any = None) -> Prediction:
        for one in self.patches:
            if hasattr(one, "heard"):
                rows = x.detach().flatten(2).abs().mean(1).unflatten(1, x.shape[2:])
                one.heard.parts.append(rows / rows.flatten(1).mean(1)[:, None, None])
        worse = [one for one in self.patches if not hasattr(one, "heard")]
        width, self.width = self.width, self.width * 1.4 ** len(worse)
        try:
            return super().__call__(x, level, condition)
        finally:
            self.width = width


@contextmanager
def _on(self: Any, network: Any) -> Iterator[None]:
    network.patches.append(self)
    try:
        yield
    finally:
        network.patches.pop()


def patchable(monkeypatch: Any) -> None:
    """Patches look for attention layers, which a toy does not have; here they only lie on it."""
    monkeypatch.setattr(patch.Patch, "on", _on)
    monkeypatch.setattr(negative.NegativePatch, "on", _on)


def conditions(*shape: int, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    names = ("cond", "uncond", "image", "prompt:a")
    return {name: toys.normal(*(shape or SHAPE), seed=1 + i, dtype=dtype) for i, name in enumerate(names)}


def guided(
    rule: Rule,
    kind: Parameterization = FLOW_PREDICTION,
    schedule: NoiseSchedule = FLOW,
    given: dict[str, Tensor] | None = None,
) -> guidance.Guided:
    networks = {"main": PatchableToy(kind, schedule=schedule), "weak": PatchableToy(kind, 0.8, schedule)}
    return guidance.Guided(networks, rule, given or conditions())


X = toys.normal(*SHAPE, seed=9)
RHOS = (9.0, 3.0, 1.2, 0.5, 0.0)


def levels(schedule: NoiseSchedule = FLOW) -> tuple[Level, ...]:
    return tuple(schedule.level_of_rho(rho) if rho else schedule.clean for rho in RHOS)


def run(made: guidance.Guided, x: Tensor = X, seeds: Sequence[int] | None = None, **settings: Any) -> Tensor:
    """A run of four steps; where it begins an epsilon network can still say something. seeds: of the rows' noise."""
    noise = SeededNoise(range(len(x)) if seeds is None else seeds)
    return samplers.sample(
        made, x, **{"sampler": "euler", "grid": levels(made.schedule), "steps": STEPS, "noise": noise, **settings}
    )


@functools.cache
def fitted() -> str:
    """A file of LinearAG for CFG on this world."""
    import tempfile

    fit = LinearFit("toy", scale=SCALE)
    for seed in range(4):
        watched = guided(compose(guidance.CFG(SCALE), Watch()))
        run(watched, toys.normal(*SHAPE, seed=100 + seed))
        fit.add(watched.steps)
    path = Path(tempfile.mkdtemp()) / "linear.json"
    fit.solve().save(path)
    return str(path)
