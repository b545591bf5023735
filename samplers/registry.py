"""The samplers that ship, by name."""

from __future__ import annotations

from typing import Any

from ..registry import Spec, make
from .ddim import DDIMSampler
from .ddpm import DDPMSampler
from .deis import DEISSampler, LMSSampler
from .dpm2 import DPM2AncestralSampler, DPM2Sampler
from .dpmpp_2m import DPMPP2MSampler, SDEDPMPP2MSampler
from .dpmpp_2s import DPMPP2SSampler
from .dpmpp_2s_ancestral import DPMPP2SAncestralSampler
from .dpmpp_3m import DPMPP3MSampler, SDEDPMPP3MSampler
from .dpmpp_3s import DPMPP3SSampler
from .er_sde import ERSDESampler
from .euler import EulerSampler
from .euler_ancestral import EulerAncestralSampler
from .exponential_rk import ExponentialRKSampler
from .flow_ancestral import FlowAncestralSampler
from .heun import HeunSampler
from .langevin import AnnealedLangevinSampler
from .lcm import LCMSampler
from .plms import PLMSSampler
from .predictor_corrector import PredictorCorrectorSampler
from .restart import RestartSampler
from .sampler import Sampler
from .sde_dpmpp_1 import SDEDPMPP1Sampler
from .sde_dpmpp_2s import SDEDPMPP2SSampler
from .tcd import TCDSampler
from .ucgm import UCGMSampler
from .unipc import UniPCSampler

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
        HeunSampler,
        "second order, two evaluations a step; churn adds noise before a step",
        "Karras et al. 2022, 2206.00364",
        "2 evaluations",
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
    "dpmpp-2s": Spec(
        DPMPP2SSampler, "second order, nothing looked back at", "Lu et al. 2022, 2211.01095", "2 evaluations"
    ),
    "dpmpp-2s-ancestral": Spec(
        DPMPP2SAncestralSampler,
        "second order, nothing looked back at, with fresh noise each step",
        "k-diffusion",
        "2 evaluations",
        off={"eta": 0.0},
    ),
    "dpm2": Spec(
        DPM2Sampler,
        "second order, the midpoint rule in rho; dpmpp-2s is steadier",
        "Lu et al. 2022, 2206.00927",
        "2 evaluations",
    ),
    "dpm2-ancestral": Spec(
        DPM2AncestralSampler,
        "midpoint rule in rho with fresh noise each step",
        "k-diffusion",
        "2 evaluations",
        off={"eta": 0.0},
    ),
    "dpmpp-3s": Spec(
        DPMPP3SSampler, "third order, nothing looked back at", "Lu et al. 2022, 2211.01095", "3 evaluations"
    ),
    "dpmpp-3m": Spec(
        DPMPP3MSampler,
        "third order multistep, its widely copied error mended",
        "Lu et al. 2022, 2211.01095",
        "1 evaluation",
    ),
    "sde-dpmpp-1": Spec(
        SDEDPMPP1Sampler,
        "first order with fresh noise, exact for any eta",
        "Lu et al. 2022, 2211.01095",
        "1 evaluation",
        off={"eta": 0.0},
    ),
    "sde-dpmpp-2s": Spec(
        SDEDPMPP2SSampler,
        "second order, nothing looked back at, fresh noise before both evaluations",
        "k-diffusion",
        "2 evaluations",
        off={"eta": 0.0},
    ),
    "sde-dpmpp-3m": Spec(
        SDEDPMPP3MSampler,
        "third order multistep with fresh noise",
        "Lu et al. 2022, 2211.01095",
        "1 evaluation",
        off={"eta": 0.0},
    ),
    "unipc": Spec(
        UniPCSampler,
        "multistep predictor of order 2 and a corrector that costs nothing; for few steps",
        "Zhao et al. 2023, 2302.04867",
        "1 evaluation",
    ),
    "deis": Spec(DEISSampler, "Adams-Bashforth in log rho, rho or t", "Zhang & Chen 2022, 2204.13902", "1 evaluation"),
    "lms": Spec(LMSSampler, "linear multistep of order 4: DEIS in rho", "k-diffusion", "1 evaluation"),
    "plms": Spec(
        PLMSSampler, "Adams-Bashforth with the weights of equal steps", "Liu et al. 2022, 2202.09778", "1 evaluation"
    ),
    "exponential-rk": Spec(
        ExponentialRKSampler,
        "second order; half the error of dpmpp-2s",
        "exponential Runge-Kutta; RES",
        "2 evaluations",
    ),
    "ddpm": Spec(
        DDPMSampler,
        "ancestral sampling, variance small or large",
        "Ho et al. 2020, 2006.11239",
        "1 evaluation",
    ),
    "flow-ancestral": Spec(
        FlowAncestralSampler,
        "what rectified-flow code calls Euler-ancestral: less noise than ancestral sampling",
        "ComfyUI, diffusers",
        "1 evaluation",
        off={"eta": 0.0},
    ),
    "lcm": Spec(
        LCMSampler,
        "all noise is fresh in each step; for distilled models, 1 to 8 steps",
        "Luo et al. 2023, 2310.04378",
        "1 evaluation",
        models="distilled",
    ),
    "tcd": Spec(
        TCDSampler,
        "down too far and back up by gamma; for distilled models",
        "Zheng et al. 2024, 2402.19159",
        "1 evaluation",
        off={"gamma": 0.0},
        models="distilled",
    ),
    "er-sde": Spec(
        ERSDESampler,
        "order 1 to 3 multistep of an SDE with a noise function of its own",
        "Cui et al. 2023, 2309.06169",
        "1 evaluation",
        off={"phi": "ode"},
    ),
    "ucgm": Spec(
        UCGMSampler,
        "first order with extrapolated predictions; second order at kappa auto2",
        "Sun et al. 2025, 2505.07447",
        "1 evaluation",
        off={"kappa": 0.0, "rho_s": 0.0},
    ),
    "restart": Spec(
        RestartSampler,
        "Heun that goes back up to high and down to low again, to forget its errors",
        "Xu et al. 2023, 2306.14878",
        "2 evaluations, and 2 (points - 1) repeats in all",
        off={"repeats": 0},
    ),
    "predictor-corrector": Spec(
        PredictorCorrectorSampler,
        "Langevin corrections at each level, then a reverse step",
        "Song et al. 2021, 2011.13456",
        "1 evaluation + 1 a correction",
    ),
    "langevin": Spec(
        AnnealedLangevinSampler,
        "annealed Langevin dynamics: many steps at each level",
        "Song & Ermon 2019, 1907.05600",
        "100 evaluations a level",
    ),
}


def make_sampler(sampler: str | Sampler, **settings: Any) -> Sampler:
    """A sampler by name, with settings here or in the line ("heun:churn=40,high=50"), or the given one."""
    if isinstance(sampler, Sampler):
        return sampler
    made: Sampler = make("samplers", SAMPLERS, sampler, "sampler", **settings)
    return made
