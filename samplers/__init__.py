"""Samplers: noise schedules, grids and the methods that integrate a denoiser along them."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import adjoint, inversion
    from .denoiser import Denoiser, ExactDenoiser, NetworkDenoiser
    from .diffusers_schedulers import (
        DDIM,
        DDPM,
        DEIS,
        DPM2,
        DPMPP2M,
        DPMPP2S,
        DPMPP3M,
        DPMPP3S,
        ERSDE,
        LCM,
        LMS,
        PLMS,
        SDEDPMPP1,
        SDEDPMPP2M,
        SDEDPMPP2S,
        SDEDPMPP3M,
        TCD,
        UCGM,
        DPM2Ancestral,
        DPMPP2SAncestral,
        Euler,
        EulerAncestral,
        ExponentialRK,
        FlowAncestral,
        Heun,
        PredictorCorrector,
        Restart,
        UniPC,
    )
    from .ensemble import EnsembleDenoiser, SampledDenoiser
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
    "DPMPP2S": "diffusers_schedulers",
    "DPMPP2SAncestral": "diffusers_schedulers",
    "DPM2": "diffusers_schedulers",
    "DPM2Ancestral": "diffusers_schedulers",
    "DPMPP3S": "diffusers_schedulers",
    "DPMPP3M": "diffusers_schedulers",
    "SDEDPMPP1": "diffusers_schedulers",
    "SDEDPMPP2S": "diffusers_schedulers",
    "SDEDPMPP3M": "diffusers_schedulers",
    "UniPC": "diffusers_schedulers",
    "DEIS": "diffusers_schedulers",
    "LMS": "diffusers_schedulers",
    "PLMS": "diffusers_schedulers",
    "ExponentialRK": "diffusers_schedulers",
    "DDPM": "diffusers_schedulers",
    "ERSDE": "diffusers_schedulers",
    "FlowAncestral": "diffusers_schedulers",
    "LCM": "diffusers_schedulers",
    "PredictorCorrector": "diffusers_schedulers",
    "Restart": "diffusers_schedulers",
    "TCD": "diffusers_schedulers",
    "UCGM": "diffusers_schedulers",
    "EnsembleDenoiser": "ensemble",
    "SampledDenoiser": "ensemble",
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
_PACKAGES = ("adjoint", "inversion")
__all__ = sorted((*_WHERE, *_PACKAGES))


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        return importlib.import_module(f".{name}", __name__)
    if name in _WHERE:
        return getattr(importlib.import_module(f".{_WHERE[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
