"""Our samplers as diffusers schedulers, from the same update.

    pipe.scheduler = samplers.DPMPP2M.from_config(pipe.scheduler.config)

Each is the driver of `scheduler` with a sampler. Saved with a pipeline, it loads again wherever this package is
installed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from diffusers import SchedulerMixin  # noqa: F401 (a loading pipeline looks for it in the module of its scheduler)
from diffusers.schedulers.scheduling_lcm import LCMSchedulerOutput
from diffusers.schedulers.scheduling_utils import SchedulerOutput
from torch import Tensor

from ..errors import UsageError
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
from .grids import Levels
from .heun import HeunSampler
from .lcm import LCMSampler, distilled_levels, latent_consistency
from .plms import PLMSSampler
from .prediction import Parameterization
from .predictor_corrector import PredictorCorrectorSampler
from .restart import RestartSampler
from .sampler import Leg
from .schedule import DiscreteVP
from .scheduler import PilotageScheduler
from .sde_dpmpp_1 import SDEDPMPP1Sampler
from .sde_dpmpp_2s import SDEDPMPP2SSampler
from .tcd import TCDSampler
from .ucgm import UCGMSampler
from .unipc import UniPCSampler


class DDIM(PilotageScheduler):
    sampler_class = DDIMSampler

    def step(  # type: ignore[override]
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        eta: float = 0.0,
        generator: Any = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[Tensor]:
        """eta: pipelines always pass theirs, mostly 0; a value above 0 replaces the one of the config."""
        wanted = eta or self.config.eta or 0.0
        if wanted != self.sampler.eta:  # type: ignore[attr-defined]
            self.sampler = self._sampler(wanted)
            self.legs = self.sampler.plan(self.levels, self.schedule)
            if self._state is not None:
                self._state = replace(self._state, legs=self.sampler.plan(self._state.levels, self.schedule))
        return super().step(model_output, timestep, sample, generator, return_dict)


class Euler(PilotageScheduler):
    sampler_class = EulerSampler


class EulerAncestral(PilotageScheduler):
    sampler_class = EulerAncestralSampler


class WithoutHistory(PilotageScheduler):
    """Steps that look at nothing but x: a run that begins inside the list goes the legs that are left."""

    def _legs_from(self, step: int) -> tuple[Leg, ...]:
        return self.legs[step:]


class Heun(WithoutHistory):
    sampler_class = HeunSampler


class DPMPP2M(PilotageScheduler):
    sampler_class = DPMPP2MSampler


class SDEDPMPP2M(PilotageScheduler):
    sampler_class = SDEDPMPP2MSampler


class DPMPP2S(PilotageScheduler):
    sampler_class = DPMPP2SSampler


class DPMPP2SAncestral(PilotageScheduler):
    sampler_class = DPMPP2SAncestralSampler


class DPM2(PilotageScheduler):
    sampler_class = DPM2Sampler


class DPM2Ancestral(PilotageScheduler):
    sampler_class = DPM2AncestralSampler


class DPMPP3S(PilotageScheduler):
    sampler_class = DPMPP3SSampler


class DPMPP3M(PilotageScheduler):
    sampler_class = DPMPP3MSampler

    def set_begin_index(self, begin_index: int = 0) -> None:
        """UsageError inside the list with start="single": its first two steps have three entries there, not one."""
        if begin_index and self.sampler.start == "single":  # type: ignore[attr-defined]
            raise UsageError("a run that begins inside the list needs start=lower, which is the default")
        super().set_begin_index(begin_index)


class SDEDPMPP1(PilotageScheduler):
    sampler_class = SDEDPMPP1Sampler


class SDEDPMPP2S(PilotageScheduler):
    sampler_class = SDEDPMPP2SSampler


class SDEDPMPP3M(PilotageScheduler):
    sampler_class = SDEDPMPP3MSampler


class UniPC(PilotageScheduler):
    sampler_class = UniPCSampler


class DEIS(PilotageScheduler):
    sampler_class = DEISSampler


class LMS(PilotageScheduler):
    sampler_class = LMSSampler


class PLMS(PilotageScheduler):
    sampler_class = PLMSSampler


class ExponentialRK(PilotageScheduler):
    sampler_class = ExponentialRKSampler


class DDPM(PilotageScheduler):
    sampler_class = DDPMSampler


class FlowAncestral(PilotageScheduler):
    """From the config of LTXEulerAncestralRFScheduler it takes eta and s_noise, which are of this method."""

    sampler_class = FlowAncestralSampler

    @classmethod
    def _translated(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        found = super()._translated(config)
        if "s_noise" in config:
            found |= {"eta": config["eta"], "settings": {"noise": config["s_noise"]}}
        return found


class Distilled(PilotageScheduler):
    """On a table of betas the default grid is that of LCM and TCD students, distilled on `original_inference_steps`
    times of the config. Their pipelines may say that number, and the strength of image-to-image, to `set_timesteps`."""

    _strength = 1.0

    def set_timesteps(  # type: ignore[override]
        self,
        num_inference_steps: int | None = None,
        device: Any = None,
        original_inference_steps: int | None = None,
        timesteps: list[float] | None = None,  # by name: pipelines look for these before they pass them
        sigmas: list[float] | None = None,
        mu: float | None = None,
        strength: float = 1.0,
    ) -> None:
        if original_inference_steps is not None:
            self.register_to_config(original_inference_steps=original_inference_steps)
        self._strength = strength
        super().set_timesteps(num_inference_steps, device, timesteps, sigmas, mu)

    def _table_levels(self, steps: int, timesteps: Any, sigmas: Any, mu: float | None) -> Levels:
        if timesteps is None and sigmas is None and self._grid() is None:
            assert isinstance(self.schedule, DiscreteVP)
            return distilled_levels(self.schedule, steps, self.config.original_inference_steps, self._strength)
        return super()._table_levels(steps, timesteps, sigmas, mu)


class LCM(Distilled):
    """A step also tells the denoised sample, which the pipelines of latent consistency models decode."""

    sampler_class = LCMSampler

    def step(
        self, model_output: Tensor, timestep: Any, sample: Tensor, generator: Any = None, return_dict: bool = True
    ) -> LCMSchedulerOutput | tuple[Tensor, Tensor]:
        x, prediction = self._told(model_output, timestep, sample, generator)
        denoised = prediction.denoised.to(sample.dtype)
        return LCMSchedulerOutput(prev_sample=x, denoised=denoised) if return_dict else (x, denoised)

    def _parameterization(self) -> Parameterization:
        kind = super()._parameterization()
        return kind if self.alphas_cumprod is None else latent_consistency(kind)


class TCD(Distilled):
    sampler_class = TCDSampler


class ERSDE(PilotageScheduler):
    sampler_class = ERSDESampler


class UCGM(PilotageScheduler):
    sampler_class = UCGMSampler


class Restart(WithoutHistory):
    sampler_class = RestartSampler


class PredictorCorrector(WithoutHistory):
    sampler_class = PredictorCorrectorSampler
