"""Every diffusers scheduler family that has a Gaussian noise schedule, with configs that models in use have.

`STOCK` maps a name to a scheduler factory. Beta tables are those of Stable Diffusion unless the name says otherwise.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import diffusers as D

logging.getLogger("diffusers").setLevel(logging.ERROR)  # "scale_model_input should be called", once a step

SD = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
ZERO_SNR = dict(SD, rescale_betas_zero_snr=True, prediction_type="v_prediction", timestep_spacing="trailing")
DDIM = dict(SD, clip_sample=False, steps_offset=1)
FLOW = dict(use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0)

TABLES: dict[str, Callable[[], Any]] = {  # state x, no sigmas
    "ddim": partial(D.DDIMScheduler, **DDIM),
    "ddim-alpha0": partial(D.DDIMScheduler, **DDIM, set_alpha_to_one=False),
    "ddim-trailing": partial(D.DDIMScheduler, **DDIM, timestep_spacing="trailing"),
    "ddim-linspace": partial(D.DDIMScheduler, **DDIM, timestep_spacing="linspace"),
    "ddim-linear": partial(D.DDIMScheduler, clip_sample=False),
    "ddim-cosine": partial(D.DDIMScheduler, clip_sample=False, beta_schedule="squaredcos_cap_v2"),
    "ddim-v": partial(D.DDIMScheduler, **DDIM, prediction_type="v_prediction"),
    "ddim-sample": partial(D.DDIMScheduler, **DDIM, prediction_type="sample"),
    "ddim-zero-snr": partial(D.DDIMScheduler, **ZERO_SNR, clip_sample=False),
    "ddim-inverse": partial(D.DDIMInverseScheduler, **SD, clip_sample=False, set_alpha_to_one=False),
    "ddpm": partial(D.DDPMScheduler, **SD, clip_sample=False),
    "ddpm-sigmoid": partial(D.DDPMScheduler, clip_sample=False, beta_schedule="sigmoid"),
    "pndm": partial(D.PNDMScheduler, **SD, skip_prk_steps=True, steps_offset=1),
    "pndm-runge-kutta": partial(D.PNDMScheduler, **SD, set_alpha_to_one=True),
    "lcm": partial(D.LCMScheduler, **SD),
    "tcd": partial(D.TCDScheduler, **SD),
    "cogvideox-ddim": partial(D.CogVideoXDDIMScheduler, **SD, clip_sample=False),
    "cogvideox-ddim-zero-snr": partial(D.CogVideoXDDIMScheduler, **ZERO_SNR, clip_sample=False),
    "cogvideox-dpm": partial(D.CogVideoXDPMScheduler, **SD, clip_sample=False),
}
MULTISTEP: dict[str, Callable[[], Any]] = {  # state x, sigmas hold rho
    "dpm-multistep": partial(D.DPMSolverMultistepScheduler, **SD),
    "dpm-multistep-karras": partial(D.DPMSolverMultistepScheduler, **SD, use_karras_sigmas=True),
    "dpm-multistep-lu": partial(D.DPMSolverMultistepScheduler, **SD, use_lu_lambdas=True),
    "dpm-multistep-sde": partial(D.DPMSolverMultistepScheduler, **SD, algorithm_type="sde-dpmsolver++"),
    "dpm-multistep-zero-snr": partial(D.DPMSolverMultistepScheduler, **ZERO_SNR),
    "dpm-singlestep": partial(D.DPMSolverSinglestepScheduler, **SD),
    "unipc": partial(D.UniPCMultistepScheduler, **SD),
    "deis": partial(D.DEISMultistepScheduler, **SD),
    "sa": partial(D.SASolverScheduler, **SD),
}
SCALED: dict[str, Callable[[], Any]] = {  # state x / alpha
    "euler": partial(D.EulerDiscreteScheduler, **SD, steps_offset=1, timestep_spacing="leading"),
    "euler-linspace": partial(D.EulerDiscreteScheduler, **SD),
    "euler-karras": partial(D.EulerDiscreteScheduler, **SD, use_karras_sigmas=True),
    "euler-exponential": partial(D.EulerDiscreteScheduler, **SD, use_exponential_sigmas=True),
    "euler-zero-snr": partial(D.EulerDiscreteScheduler, **ZERO_SNR),
    "euler-sigma-min": partial(D.EulerDiscreteScheduler, **SD, final_sigmas_type="sigma_min"),
    "euler-ancestral": partial(D.EulerAncestralDiscreteScheduler, **SD),
    "heun": partial(D.HeunDiscreteScheduler, **SD),
    "heun-v-trailing": partial(
        D.HeunDiscreteScheduler, **SD, prediction_type="v_prediction", timestep_spacing="trailing"
    ),
    "kdpm2": partial(D.KDPM2DiscreteScheduler, **SD),
    "kdpm2-ancestral": partial(D.KDPM2AncestralDiscreteScheduler, **SD),
    "lms": partial(D.LMSDiscreteScheduler, **SD),
    "dpm-sde": partial(D.DPMSolverSDEScheduler, **SD),
}
FLOWS: dict[str, Callable[[], Any]] = {  # state x, sigmas hold t
    "flow-euler": partial(D.FlowMatchEulerDiscreteScheduler, shift=3.0),
    "flow-euler-terminal": partial(D.FlowMatchEulerDiscreteScheduler, shift=3.0, shift_terminal=0.1),
    "flow-euler-inverted": partial(D.FlowMatchEulerDiscreteScheduler, invert_sigmas=True),
    "flow-euler-stochastic": partial(D.FlowMatchEulerDiscreteScheduler, stochastic_sampling=True),
    "flow-heun": partial(D.FlowMatchHeunDiscreteScheduler, shift=3.0),
    "flow-lcm": partial(D.FlowMatchLCMScheduler, shift=3.0),
    "flow-ltx-ancestral": partial(D.LTXEulerAncestralRFScheduler),
    "flow-dpm-multistep": partial(D.DPMSolverMultistepScheduler, **FLOW),
    "flow-unipc": partial(D.UniPCMultistepScheduler, **FLOW),
}
EXPLODING: dict[str, Callable[[], Any]] = {  # alpha = 1
    "edm-euler": D.EDMEulerScheduler,
    "edm-dpm-multistep": D.EDMDPMSolverMultistepScheduler,
    "cosine-dpm": D.CosineDPMSolverMultistepScheduler,
    "consistency": D.CMStochasticIterativeScheduler,
    "score-sde-ve": D.ScoreSdeVeScheduler,
}
STOCK: dict[str, Callable[[], Any]] = {
    **TABLES,
    **MULTISTEP,
    **SCALED,
    **FLOWS,
    **EXPLODING,
    "scm": partial(D.SCMScheduler, sigma_data=1.0),
}
