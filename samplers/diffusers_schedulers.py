"""Our samplers as diffusers schedulers, from the same update.

    pipe.scheduler = samplers.DPMPP2M.from_config(pipe.scheduler.config)

Each is the driver of `scheduler` with a sampler. Saved with a pipeline, it loads again wherever this package is
installed.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from diffusers import SchedulerMixin  # noqa: F401 (a loading pipeline looks for it in the module of its scheduler)
from diffusers.schedulers.scheduling_utils import SchedulerOutput
from torch import Tensor

from .ddim import DDIMSampler
from .dpmpp_2m import DPMPP2MSampler, SDEDPMPP2MSampler
from .euler import EulerSampler
from .euler_ancestral import EulerAncestralSampler
from .heun import HeunSampler
from .scheduler import PilotageScheduler


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


class Heun(PilotageScheduler):
    sampler_class = HeunSampler


class DPMPP2M(PilotageScheduler):
    sampler_class = DPMPP2MSampler


class SDEDPMPP2M(PilotageScheduler):
    sampler_class = SDEDPMPP2MSampler
