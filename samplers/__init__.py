"""Samplers: noise schedules, grids and the methods that integrate a denoiser along them."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .denoiser import Denoiser, ExactDenoiser, NetworkDenoiser
    from .diffusers_schedulers import DDIM, DPMPP2M, SDEDPMPP2M, Euler, EulerAncestral, Heun
    from .grids import GRIDS, make_grid
    from .loop import Step, iterate, sample
    from .noise import SeededNoise
    from .prediction import Prediction
    from .registry import SAMPLERS, make_sampler
    from .sampler import Sampler, State
    from .schedule import Level, NoiseSchedule

_WHERE = {
    "Denoiser": "denoiser",
    "ExactDenoiser": "denoiser",
    "NetworkDenoiser": "denoiser",
    "DDIM": "diffusers_schedulers",
    "Euler": "diffusers_schedulers",
    "EulerAncestral": "diffusers_schedulers",
    "Heun": "diffusers_schedulers",
    "DPMPP2M": "diffusers_schedulers",
    "SDEDPMPP2M": "diffusers_schedulers",
    "GRIDS": "grids",
    "make_grid": "grids",
    "Step": "loop",
    "iterate": "loop",
    "sample": "loop",
    "SeededNoise": "noise",
    "Prediction": "prediction",
    "SAMPLERS": "registry",
    "make_sampler": "registry",
    "Sampler": "sampler",
    "State": "sampler",
    "Level": "schedule",
    "NoiseSchedule": "schedule",
}
__all__ = sorted(_WHERE)


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(importlib.import_module(f".{_WHERE[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
