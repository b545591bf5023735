"""Latent consistency distillation: every point of the teacher's guided run is told the same picture (Luo et al. 2023,
arXiv 2310.04378).

    f(x, t) = c_skip(t) x + c_out(t) denoised(x, t)        x itself at t = 0 (`samplers.lcm.latent_consistency`)
    x_n = one DDIM step of the guided teacher from x_{n+k} at t_{n+k} down to t_n
    L = d(f(x_{n+k}, t_{n+k}; student), f(x_n, t_n; target))

t_{n+k} is one of `original` times of the teacher and t_n the one below it; x_{n+k} is a noised picture of a data set.
Without a target that follows (`decay` 0) it is the student of today, as in LCM-LoRA (arXiv 2311.05556).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ...errors import UsageError
from ...samplers.denoiser import Denoiser
from ...samplers.lcm import distilled_levels, latent_consistency
from ...samplers.loop import sample
from ...samplers.prediction import Prediction
from ...samplers.sampler import Levels
from ...samplers.schedule import DiscreteVP, Level, NoiseSchedule, is_flow
from ...training.learner import Learner
from ..following import follow, target_of
from ..method import DistillContext, DistillMethod, Part
from ..roles import STUDENT, TARGET, Roles
from ..scales import drawn_scale, scale_conditioned, scale_width, told_scale, with_scale
from ..student_parts import student_parts
from ..times import Group, Times

L2, HUBER = "l2", "huber"


@dataclass(frozen=True)
class Consistent:
    """A student with LCM's boundary condition, as it is drawn with."""

    student: Denoiser

    @property
    def schedule(self) -> NoiseSchedule:
        return self.student.schedule

    def __call__(self, x: Tensor, level: Level, condition: Any = None) -> Prediction:
        said = self.student(x, level, condition)
        return replace(said, kind=latent_consistency(said.kind))


@dataclass(frozen=True, kw_only=True)
class LCM(DistillMethod):
    """original: times of the teacher's DDIM grid, 50 in the authors' code. decay: of the target's average of the
    student; 0 is no target of its own. distance: "l2", or "huber", sqrt(difference^2 + c^2) - c of each number.

    scale_conditioned: the student's network is told the scale, drawn from [scale_low, scale_high] in the toolkit's
    units (w' of 5 to 15 in the authors' code), one for each level of a batch; `scale` is the one that sheets are drawn
    at. Otherwise it learns the teacher's rule as it is. strata: levels a batch has. steps: of the student's pictures.
    """

    original: int = 50
    decay: float = 0.95
    distance: str = L2
    c: float = 0.001
    scale_conditioned: bool = False
    scale_low: float = 6.0
    scale_high: float = 16.0
    scale: float = 8.0
    strata: int = 8
    steps: int = 4

    def __post_init__(self) -> None:
        if self.distance not in (L2, HUBER):
            raise UsageError(f'distance is "{L2}" or "{HUBER}", not {self.distance!r}')
        if not 0 <= self.decay < 1:
            raise UsageError(f"decay lies between 0 and below 1, not at {self.decay}")
        if not self.scale_low <= self.scale <= self.scale_high:
            raise UsageError("give scales with scale_low <= scale <= scale_high: others than these are not learnt")
        if not 1 <= self.steps <= self.original:
            raise UsageError(f"steps={self.steps} of a student that learns {self.original} times; take at most as many")

    # -- what it takes, and how it is drawn --------------------------------------------------------------------

    @property
    def roles(self) -> tuple[str, ...]:
        return (STUDENT, TARGET) if self.decay else (STUDENT,)

    @property
    def needs_data(self) -> bool:
        return True

    @property
    def sampler(self) -> str:
        return "lcm"

    def check(self, roles: Roles, guidance: str) -> None:
        self.levels(roles.student)  # refuses more times than the model has
        if self.scale_conditioned:
            with_scale(guidance, self.scale)  # refuses a rule without a scale
            scale_width(roles.student)

    def network(self, teacher: Any) -> Any:
        return scale_conditioned(teacher) if self.scale_conditioned else super().network(teacher)

    def scheduler(self, stock: Any) -> Any:
        from diffusers import LCMScheduler

        if is_flow(stock):
            return super().scheduler(stock)
        return LCMScheduler.from_config(stock.config, original_inference_steps=self.original, clip_sample=False)

    def levels(self, student: Learner) -> Levels:
        schedule = student.denoiser([""]).schedule
        if isinstance(schedule, DiscreteVP):
            return distilled_levels(schedule, self.steps, self.original)
        return super().levels(student)

    def by_hand(self, stock: Any) -> dict[str, Any]:
        """Our own sampler knows the times of `original` 50 alone."""
        return super().by_hand(stock) if is_flow(stock) or self.original == 50 else {}

    @property
    def scales(self) -> tuple[float, float] | None:
        return (self.scale_low, self.scale_high) if self.scale_conditioned else None

    def recommended(self) -> dict[str, Any]:
        return super().recommended() | ({"call": {"guidance_scale": self.scale}} if self.scale_conditioned else {})

    def denoiser(self, student: Learner, prompts: Sequence[str]) -> Denoiser:
        return self._consistent(student, prompts, self.scale if self.scale_conditioned else None)

    def _consistent(self, learner: Learner, prompts: Sequence[str], scale: float | None) -> Consistent:
        return Consistent(learner.denoiser(prompts) if scale is None else told_scale(learner, prompts, scale))

    # -- an update ---------------------------------------------------------------------------------------------

    def update(self, ctx: DistillContext) -> Iterator[Part]:
        pictures, strata = ctx.data(0), min(self.strata, ctx.total)
        target = target_of(ctx) if self.decay else ctx.roles.student

        def loss(group: Group) -> Tensor:
            some = pictures.of(group.rows)
            scale, line = None, ctx.guidance
            if self.scale_conditioned:
                scale = drawn_scale(self.scale_low, self.scale_high, ctx.seed("scale"), group.share, strata)
                line = with_scale(line, scale)
            teacher = ctx.roles.teacher.denoiser(some.prompts, line)
            level, below = self.step(teacher.schedule, group.share)
            assert some.clean is not None
            x = level.alpha * some.clean + level.sigma * ctx.noise(some, "level")
            with torch.no_grad():
                lower = sample(teacher, x, sampler="ddim", grid=(level, below))
                wanted = self._consistent(target, some.prompts, scale)(lower, below).denoised
            return self.distances(self._consistent(ctx.roles.student, some.prompts, scale)(x, level).denoised, wanted)

        yield from student_parts(ctx.groups(Times(strata=self.strata), len(pictures), "consistency"), loss)
        if self.decay:
            follow(ctx, self.decay)

    def step(self, schedule: NoiseSchedule, share: float) -> Levels:
        """(t_{n+k}, t_n): the step of the teacher's grid that a place in (0, 1) falls on, clean end first. The lowest
        step ends at time 0: the first of a table of betas, as the authors have it, or clean data."""
        place = min(int(share * self.original), self.original - 1)
        if isinstance(schedule, DiscreteVP):
            skip = int(schedule.T + 1) // self.original
            return schedule.levels([skip * (place + 1) - 1, max(0, skip * place - 1)])
        level = schedule.level(schedule.T * (place + 1) / self.original)
        below = schedule.level(schedule.T * place / self.original) if place else replace(schedule.clean, time=0.0)
        return level, below

    def distances(self, said: Tensor, wanted: Tensor) -> Tensor:
        """Their mean."""
        squares = (said - wanted).square()
        return squares.mean() if self.distance == L2 else ((squares + self.c**2).sqrt() - self.c).mean()
