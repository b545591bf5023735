"""The samplers that ship, by name."""

from __future__ import annotations

from typing import Any

from ..grammar import name_and_settings
from ..registry import Spec, lookup
from .ddim import DDIMSampler
from .dpmpp_2m import DPMPP2MSampler, SDEDPMPP2MSampler
from .euler import EulerSampler
from .euler_ancestral import EulerAncestralSampler
from .heun import HeunSampler
from .sampler import Sampler, configured

SAMPLERS: dict[str, Spec] = {
    "ddim": Spec(
        DDIMSampler,
        "first order; eta adds noise",
        "Song et al. 2020, 2010.02502",
        "1 evaluation",
        off={"eta": 0.0},
    ),
    "euler": Spec(
        EulerSampler,
        "first order on x/alpha; the same as DDIM with eta 0",
        "Karras et al. 2022, 2206.00364",
        "1 evaluation",
    ),
    "euler-ancestral": Spec(
        EulerAncestralSampler,
        "Euler with fresh noise each step",
        "k-diffusion",
        "1 evaluation",
        off={"eta": 0.0},
    ),
    "heun": Spec(
        HeunSampler, "second order, two evaluations a step", "Karras et al. 2022, 2206.00364", "2 evaluations"
    ),
    "dpmpp-2m": Spec(
        DPMPP2MSampler, "second order multistep; the default", "Lu et al. 2022, 2211.01095", "1 evaluation"
    ),
    "sde-dpmpp-2m": Spec(
        SDEDPMPP2MSampler,
        "second order multistep with fresh noise",
        "Lu et al. 2022, 2211.01095",
        "1 evaluation",
        off={"eta": 0.0},
    ),
}


def make_sampler(sampler: str | Sampler, **settings: Any) -> Sampler:
    """A sampler by name, with settings here or in the line ("heun:churn=40,high=50"), or the given one."""
    if isinstance(sampler, Sampler):
        return sampler
    name, written = name_and_settings(sampler)
    return configured(lookup("samplers", SAMPLERS, name, "sampler").load(), {**written, **settings})
