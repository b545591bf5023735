"""The driver that makes a diffusers scheduler of any sampler: it keeps a `State`, wraps the model output in a
`Prediction` and calls `tell`. The classes that people use stand in `diffusers_schedulers`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch
from diffusers import ConfigMixin, SchedulerMixin
from diffusers.configuration_utils import register_to_config
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers, SchedulerOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from ..errors import UsageError
from .betas import beta_table
from .grids import Levels, from_rhos, from_times, is_plain, make_grid
from .prediction import Parameterization, Prediction, predicted_by, working_precision
from .sampler import Leg, Sampler, State, configured
from .schedule import (
    DiscreteVP,
    Level,
    NoiseSchedule,
    RectifiedFlow,
    flow_shift,
    is_flow,
    is_flow_config,
    shift_of_mu,
    stretch_to_terminal,
)


class PilotageScheduler(SchedulerMixin, ConfigMixin):
    """What all of them share. The state that the pipeline keeps is x_t itself (alpha x_0 + sigma noise), so
    `init_noise_sigma` is 1 and `scale_model_input` is the identity.

    The config keys are those of the stock schedulers, so `from_config` takes any of theirs that has a table of betas or
    runs on rectified flow. `grid` names one of `samplers.GRIDS`; None follows `use_karras_sigmas`,
    `use_exponential_sigmas`, and then `timestep_spacing`, or on rectified flow the times of the model. Every run ends
    at clean data. `settings` are those of the sampler, by name. Clipping and thresholding are rules here (`guidance`),
    not settings of a scheduler.
    """

    # Names that diffusers looks up among its own classes: their configs are taken without a warning.
    _compatibles: ClassVar[list] = [
        *(kind.name for kind in KarrasDiffusionSchedulers),
        "FlowMatchEulerDiscreteScheduler",
        "FlowMatchHeunDiscreteScheduler",
    ]
    init_noise_sigma = 1.0
    sampler_class: ClassVar[type[Sampler]]

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: list[float] | None = None,
        prediction_type: str = "epsilon",
        timestep_spacing: str = "trailing",
        steps_offset: int = 0,
        rescale_betas_zero_snr: bool = False,
        snr_shift_scale: float | None = None,
        use_karras_sigmas: bool = False,
        use_exponential_sigmas: bool = False,
        grid: str | None = None,
        original_inference_steps: int = 50,
        shift: float = 1.0,
        use_dynamic_shifting: bool = False,
        base_shift: float = 0.5,
        max_shift: float = 1.15,
        base_image_seq_len: int = 256,
        max_image_seq_len: int = 4096,
        shift_terminal: float | None = None,
        time_shift_type: str = "exponential",
        eta: float | None = None,
        settings: dict[str, Any] | None = None,
    ):
        self.alphas_cumprod = None if is_flow(self) else beta_table(self.config)
        self.schedule: NoiseSchedule = (
            RectifiedFlow(float(num_train_timesteps))
            if self.alphas_cumprod is None
            else DiscreteVP(self.alphas_cumprod)
        )
        self.kind = self._parameterization()
        self.sampler = self._sampler(eta)
        self.order = self.sampler.stages
        self._use(make_grid("trailing", self.schedule, num_train_timesteps), "cpu")

    @classmethod
    def from_config(cls, config: Any = None, return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """As diffusers, with three differences. Keys that describe the model are taken from `config` even where it has
        them by default (LCM's and CogVideoX's default betas are not DDIM's); only `timestep_spacing` is then ours. A
        flow-matching scheduler's config, which does not name its prediction type, is recognised. UsageError for models
        that these classes would run wrongly: EDM, consistency, TrigFlow, SVD, Mochi."""
        if isinstance(config, Mapping):
            defaults = [key for key in config.get("_use_default_values", ()) if key == "timestep_spacing"]
            config = {**config, "_use_default_values": defaults}
            kwargs = {**cls._translated(config), **kwargs}
        return super().from_config(config, return_unused_kwargs=return_unused_kwargs, **kwargs)

    @classmethod
    def _translated(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """Settings of ours that a stock config says in other words. The config of a scheduler made in memory does not
        name its class; one without betas is then known by its other keys."""
        name = str(config.get("_class_name", "stock scheduler"))
        if config.get("timestep_type") == "continuous" or config.get("invert_sigmas"):
            raise UsageError(f"{cls.__name__} does not know the time of this model; keep its {name}")
        tabled, exploding = "beta_start" in config, "sigma_min" in config or "sigma_data" in config
        if not tabled and exploding:
            raise UsageError(f"{cls.__name__} needs a table of betas or a flow model; keep the {name}")
        if is_flow_config(name, config) or (not tabled and ("shift" in config or "s_noise" in config)):
            found: dict[str, Any] = {"prediction_type": "flow_prediction"}
            if config.get("use_flow_sigmas"):
                found["shift"] = config.get("flow_shift") or 1.0
            return found | ({"eta": None} if "s_noise" in config else {})  # LTX: its eta is another method's
        return {}

    def _parameterization(self) -> Parameterization:
        """What the network says."""
        return predicted_by(self)

    def _sampler(self, eta: float | None) -> Sampler:
        known = self.sampler_class.__dataclass_fields__  # type: ignore[attr-defined]
        settings = {} if eta is None or "eta" not in known else {"eta": eta}
        return configured(self.sampler_class, {**settings, **(self.config.settings or {})})

    # -- the grid ---------------------------------------------------------------------------------------------------

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: Any = None,
        timesteps: list[float] | None = None,
        sigmas: list[float] | None = None,
        mu: float | None = None,
    ) -> None:
        """Choose the levels and compute every coefficient of the run.

        timesteps: model times (0 .. num_train_timesteps), decreasing. sigmas: rho of a VP model, or t of a flow model
        before its shift, decreasing; a final 0 may be left out. mu: log shift of a flow model with dynamic shifting.
        """
        if self.config.use_dynamic_shifting and mu is None:
            raise UsageError("this flow model shifts its grid with the picture size: set_timesteps needs mu=")
        if timesteps is not None and sigmas is not None:
            raise UsageError("set_timesteps takes timesteps= or sigmas=, not both")
        given = sigmas if timesteps is None else timesteps
        steps = num_inference_steps if given is None else len(given)
        if not steps:
            raise UsageError("set_timesteps needs num_inference_steps, timesteps= or sigmas=")
        choose = self._flow_levels if self.alphas_cumprod is None else self._table_levels
        self._use(choose(steps, timesteps, sigmas, mu), device)

    def _grid(self) -> str | None:
        """The grid that the config names."""
        config = self.config
        return (
            config.grid
            or ("karras" if config.use_karras_sigmas else None)
            or ("exponential" if config.use_exponential_sigmas else None)
        )

    def _table_levels(self, steps: int, timesteps: Any, sigmas: Any, mu: float | None) -> Levels:
        if timesteps is not None:
            return from_times(self.schedule, timesteps)
        if sigmas is not None:
            return from_rhos(self.schedule, _above_zero(sigmas))
        grid = self._grid() or self.config.timestep_spacing
        offset = {"offset": self.config.steps_offset} if is_plain(grid, "leading") else {}
        return make_grid(grid, self.schedule, steps, **offset)

    def _flow_levels(self, steps: int, timesteps: Any, sigmas: Any, mu: float | None) -> Levels:
        """Default 1 .. 1/1000; then the shift, once; then the terminal stretch. A grid that the config names is
        preferred to `sigmas`, which most flow pipelines pass unasked; only the grid "flow" is shifted."""
        if timesteps is None and (grid := self._grid()):
            shift = {"shift": self._shift(mu)} if is_plain(grid, "flow") else {}
            return make_grid(grid, self.schedule, steps, **shift)
        scale = float(self.config.num_train_timesteps)
        if timesteps is not None:
            t = _above_zero(timesteps) / scale
        elif sigmas is not None:
            t = _above_zero(sigmas)
        else:
            t = torch.linspace(1.0, 1.0 / scale, steps, dtype=torch.float64)
        t = flow_shift(t, self._shift(mu))
        if self.config.shift_terminal:
            t = stretch_to_terminal(t, self.config.shift_terminal)
        return from_times(self.schedule, t)

    def _shift(self, mu: float | None) -> float:
        if mu is None or not self.config.use_dynamic_shifting:
            return float(self.config.shift)
        return shift_of_mu(float(mu), self.config.time_shift_type)

    def _use(self, levels: Levels, device: Any) -> None:
        self.levels = levels
        self.legs = self.sampler.plan(levels, self.schedule)
        self.points = [level for leg in self.legs for level in leg.points]
        self._begins = [step for step, leg in enumerate(self.legs) for _ in leg.points]
        self.timesteps = torch.tensor([p.time for p in self.points], dtype=torch.float32, device=device)
        flow = self.alphas_cumprod is None
        self.sigmas = torch.tensor([p.sigma if flow else p.rho for p in self.points] + [0.0])
        self.num_inference_steps = len(self.legs)
        self._state: State | None = None
        self._shifted = False
        self._step_index: int | None = None
        self._begin_index: int | None = None

    # -- the step ---------------------------------------------------------------------------------------------------

    def step(
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        generator: Any = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[Tensor]:
        """One evaluation: `sample` (B, ...) to the next point where the network is wanted."""
        x, _ = self._told(model_output, timestep, sample, generator)
        return SchedulerOutput(prev_sample=x) if return_dict else (x,)

    def _told(self, model_output: Tensor, timestep: Any, sample: Tensor, generator: Any) -> tuple[Tensor, Prediction]:
        """The next point, in the sample's precision, and what the network said of this one."""
        if self._state is None:
            self._start(timestep, sample)
        state, sampler = self._state, self.sampler
        assert state is not None and self._step_index is not None
        if sample is not state.x:  # half precision, or the pipeline changed it (inpainting)
            state = replace(state, x=working_precision(sample))
        if self._shifted and not state.shifted:
            state = replace(state, shifted=True)
        prediction = Prediction(state.x, state.level, working_precision(model_output), self.kind)
        noise = None
        if sampler.wants_noise(state):
            noise = randn_tensor(state.x.shape, generator=generator, device=state.x.device, dtype=state.x.dtype)
        self._state = sampler.tell(state, prediction, noise)
        self._step_index += 1
        return self._state.x.to(sample.dtype), prediction

    def rest_corrector(self) -> None:
        """From here on x is moved beside the step, as CFG++ does: correctors of the rest of this run do nothing."""
        self._shifted = True

    def _start(self, timestep: Any, sample: Tensor) -> None:
        self._step_index = self._begin_index if self._begin_index is not None else self.index_for_timestep(timestep)
        self._state = State(working_precision(sample), self._legs_from(self._begins[self._step_index]))

    def _legs_from(self, step: int) -> tuple[Leg, ...]:
        """Image-to-image starts inside the list, with nothing to look back at."""
        if not step:
            return self.legs
        start = self.legs[step].level
        return self.sampler.plan((start, *(level for level in self.levels if level.rho < start.rho)), self.schedule)

    def index_for_timestep(self, timestep: Any, schedule_timesteps: Any = None) -> int:
        """Place of a model time in `timesteps`, where an outer step begins (Heun's list has most times twice)."""
        wanted = float(timestep)
        begins = (i for i, step in enumerate(self._begins) if not i or step != self._begins[i - 1])
        return min(begins, key=lambda i: abs(self.points[i].time - wanted))

    # -- what pipelines read ------------------------------------------------------------------------------------------

    @property
    def step_index(self) -> int | None:
        return self._step_index

    @property
    def begin_index(self) -> int | None:
        return self._begin_index

    def set_begin_index(self, begin_index: int = 0) -> None:
        self._begin_index = begin_index

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        return sample

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """alpha x_0 + sigma noise at the model times of each row."""
        levels = [self._level_at(float(t)) for t in timesteps.reshape(-1)]
        shape = (-1, *[1] * (original_samples.dim() - 1))
        alpha = torch.tensor([l.alpha for l in levels], dtype=original_samples.dtype, device=original_samples.device)
        sigma = torch.tensor([l.sigma for l in levels], dtype=original_samples.dtype, device=original_samples.device)
        return alpha.reshape(shape) * original_samples + sigma.reshape(shape) * noise

    def scale_noise(self, sample: Tensor, timestep: Tensor, noise: Tensor) -> Tensor:
        """The name that flow pipelines use for `add_noise`."""
        return self.add_noise(sample, noise, timestep.expand(sample.shape[0]) if timestep.dim() == 0 else timestep)

    def _level_at(self, time: float) -> Level:
        level = self.points[self.index_for_timestep(time)]
        if abs(level.time - time) < 1e-3:
            return level
        return self.schedule.level(time / self.schedule.scale if isinstance(self.schedule, RectifiedFlow) else time)

    def __len__(self) -> int:
        return self.config.num_train_timesteps


def _above_zero(levels: Any) -> Tensor:
    """A list of noise levels in float64 without the final 0."""
    values = torch.as_tensor(levels, dtype=torch.float64)
    return values[values > 0]
