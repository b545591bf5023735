"""UCGM-T: one objective from many steps to one (Sun et al. 2025, arXiv 2505.07447).

    x_t = t z + (1 - t) x,      F = zhat - xhat,      target F* = z - x

consistency = 0, a flow:        F_target = z* - x*
above 0, few steps:             F_target = F + t (4 / sin(1.57 t)) clip(Delta, -1, 1)     without a gradient
        below 1:                Delta = (xhat(t) - xhat(consistency t)) / (t - consistency t)
        1:                      Delta = (xhat(t + e) - xhat(t - e)) / (2 e),              e = 0.005
L = sqrt(mean (F - F_target)^2 + c^2) - c   [+ mean(1 - cos(F, F_target))]     [times cos(1.57 t)]

xhat(r) is the student's picture of x_r = r z* + (1 - r) x*, on the line through x_t that the *enhanced* pair x*, z*
spans: what a guided model would say, without two evaluations in a run. With the enhancement ratio zeta and x, z the
data and its noise,

consistency = 0:   x* = x + zeta (xhat - xhat_null), the last one of the average of the student     inside the interval
                   (x + xhat)/2 outside, and (x + xhat_null)/2 for prompts that are left out
above 0:           x* = x + zeta (xhat_teacher - x) inside the interval, (x + xhat_teacher)/2 outside

and z* alike, which leaves x_t where it is. Without zeta x* and z* are what the guided teacher says of x_t.

Other paths than the linear one go through it by a change of variables: x / (alpha + sigma) at t = sigma / (alpha +
sigma) has the same picture, noise and predictions of both. A finite difference needs the same dropout in all of its
evaluations; here networks are in evaluation mode and have none. It needs full precision as well: rounding errors are
divided by 2 e.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from ...errors import UsageError
from ...guidance.grammar import parse
from ...samplers.denoiser import Denoiser
from ...samplers.flow_ancestral import flow_time
from ...samplers.incomplete_beta import beta_quantile
from ...samplers.lcm import distilled_levels
from ...samplers.noise import derived_seed
from ...samplers.prediction import Prediction
from ...samplers.sampler import Levels
from ...samplers.schedule import DiscreteVP, Level, NoiseSchedule, is_flow
from ...training.learner import Learner
from ..following import follow, target_of
from ..method import DistillContext, DistillMethod, Part, Pictures
from ..roles import STUDENT, TARGET, Roles
from ..student_parts import student_parts
from ..times import Group, Times

E = 0.005  # half of the finite difference
ANGLE = 1.57  # as in the source; nearly pi / 2
TINY = 1e-16  # under a root, so that its gradient at 0 is 0


@dataclass(frozen=True, kw_only=True)
class UCGMT(DistillMethod):
    """consistency: the ratio lambda; 0 learns a flow for many steps, 1 a consistency function for one or two, which
    cannot start from random weights. zeta: the enhancement ratio, None for the teacher's rule; 0 learns the data alone.
    With consistency 0 a zeta of 1 or more stands for (zeta - 1)/zeta. The paper's pairs are 0, 0.47 and 1, 2.0.

    interval: below which t enhancement is whole. dropout: share of prompts that are left out where the student's own
    null prediction is needed. decay: of the average that gives it, ramped up from 0. c, cosine, weighted: of the loss;
    c = 0 makes it a distance, whose optimum at consistency 0 is a median of the velocities, sharper than their mean in
    a few Euler steps, and at consistency 1 collapses to the mean picture. a, b: of the times' distribution Beta(a, b).
    strata: levels a batch has.

    steps, stochasticity, extrapolation: of the sampler "ucgm" that draws the student's pictures: its rho_s and kappa.
    The authors have 2 steps, 1 and 0 for consistency 1, with RAdam at 1e-4 and gradients clipped at 0.1; for
    consistency 0 they have 30, 0 and 0.5, with c=0, cosine=true, a=1, b=1 and AdamW at 2e-4.
    """

    consistency: float = 1.0
    zeta: float | None = None
    interval: float = 0.75
    dropout: float = 0.1
    decay: float = 0.999
    c: float = 5.0
    cosine: bool = False
    weighted: bool = True
    a: float = 0.8
    b: float = 1.0
    strata: int = 8
    steps: int = 2
    stochasticity: float = 1.0
    extrapolation: float = 0.0

    def __post_init__(self) -> None:
        Times(strata=self.strata, a=self.a, b=self.b)  # refuses distributions that are none
        if not 0 <= self.consistency <= 1:
            raise UsageError(f"consistency is a ratio from 0 to 1, not {self.consistency}")
        if self.zeta is not None and self.zeta < 0:
            raise UsageError(f"zeta is 0 or more, not {self.zeta}; leave it out to learn from the teacher's rule")
        if not 0 <= self.dropout < 1 or not 0 <= self.decay < 1:
            raise UsageError("dropout and decay lie between 0 and below 1")
        if self.c < 0 or self.steps < 1 or not 0 <= self.stochasticity <= 1:
            raise UsageError("c is 0 or more, steps 1 or more, and stochasticity from 0 to 1")

    # -- what it takes, and how it is drawn --------------------------------------------------------------------

    @property
    def boosts_itself(self) -> bool:
        return self.consistency == 0 and bool(self.zeta)

    @property
    def roles(self) -> tuple[str, ...]:
        return (STUDENT, TARGET) if self.boosts_itself else (STUDENT,)

    @property
    def needs_data(self) -> bool:
        return True

    @property
    def sampler(self) -> str:
        return f"ucgm:kappa={self.extrapolation},rho_s={self.stochasticity}"

    def check(self, roles: Roles, guidance: str) -> None:
        if self.consistency and getattr(roles.student, "autocast", None) is not None:
            raise UsageError("ucgm-t divides small differences of the network's answers; use precision no")
        if self.zeta is None and parse(guidance).shifts:
            raise UsageError(f"{guidance!r} steps on another noise than its picture's, and a network cannot say both; "
                             "take another rule, or the method lcm, which learns where the step ends")  # fmt: skip

    def levels(self, student: Learner) -> Levels:
        schedule = student.denoiser([""]).schedule
        if self.stochasticity == 1 and not self.extrapolation and isinstance(schedule, DiscreteVP):
            return distilled_levels(schedule, self.steps)  # LCMScheduler's, which will draw
        return super().levels(student)

    def scheduler(self, stock: Any) -> Any:
        """stochasticity 0 is DDIM and 1 what LCMScheduler does, or FlowMatchEulerDiscreteScheduler with
        `stochastic_sampling`; what lies between, or extrapolates, is the toolkit's own scheduler."""
        from diffusers import DDIMScheduler, LCMScheduler

        from ...samplers.diffusers_schedulers import UCGM

        if self.extrapolation or self.stochasticity not in (0, 1):
            settings = {"kappa": self.extrapolation, "rho_s": self.stochasticity}
            return UCGM.from_config(stock.config, timestep_spacing="trailing", settings=settings)
        if is_flow(stock):
            return type(stock).from_config(stock.config, stochastic_sampling=self.stochasticity == 1)
        made: Any = LCMScheduler if self.stochasticity else DDIMScheduler
        return made.from_config(stock.config, timestep_spacing="trailing", set_alpha_to_one=True, clip_sample=False)

    def by_hand(self, stock: Any) -> dict[str, Any]:
        if self.stochasticity == 1 and not self.extrapolation and not is_flow(stock):
            return {"sampler": "lcm", "grid": None}  # what LCMScheduler does
        return super().by_hand(stock)

    # -- an update ---------------------------------------------------------------------------------------------

    def update(self, ctx: DistillContext) -> Iterator[Part]:
        pictures = ctx.data(0)
        target = target_of(ctx) if self.boosts_itself else None

        def loss(group: Group) -> Tensor:
            some = pictures.of(group.rows)
            assert some.clean is not None
            z, t = ctx.noise(some, "level").to(some.clean), beta_quantile(group.share, self.a, self.b)
            return self.loss(ctx, some, z, t, target)

        yield from student_parts(ctx.groups(Times(strata=self.strata), len(pictures), "ucgm"), loss)
        if target is not None:
            follow(ctx, self.decay, ramp=True)

    def loss(self, ctx: DistillContext, pictures: Pictures, z: Tensor, t: float, target: Learner | None) -> Tensor:
        """The mean over rows, at the noise z (B, *shape) and a time t of the linear path."""
        assert pictures.clean is not None
        out = self.left_out(pictures)
        student = ctx.roles.student.denoiser(
            [None if gone else prompt for prompt, gone in zip(pictures.prompts, out, strict=True)]
        )
        level = level_at(student.schedule, t)
        said = student(level.alpha * pictures.clean + level.sigma * z, level)
        velocity = said.noise - said.denoised  # F, before anything is asked for without a graph: predictions keep it
        with torch.no_grad():
            x, z = self.enhanced(ctx, pictures, z, said, target, torch.tensor(out, device=z.device))
            wanted = velocity + self.pull(student, x, z, said) if self.consistency else z - x
        return self.distance(velocity, wanted, flow_time(level))

    def left_out(self, pictures: Pictures) -> list[bool]:
        """Whose prompt is not told to the student, by the pictures' own seeds."""
        share = self.dropout if self.boosts_itself else 0.0
        return [derived_seed(seed, "dropout") < share * 2**63 for seed in pictures.seeds]

    def enhanced(
        self,
        ctx: DistillContext,
        pictures: Pictures,
        z: Tensor,
        said: Prediction,
        target: Learner | None,
        left_out: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """(x*, z*)."""
        x = pictures.clean
        assert x is not None
        if self.zeta == 0:
            return x, z
        inside = 0 < flow_time(said.level) < self.interval
        if self.consistency == 0 and target is not None:
            null = target.denoiser([None] * len(pictures))(said.x, said.level)
            out = left_out.reshape(-1, *[1] * (x.dim() - 1))
            return (
                self._boosted(x, said.denoised, null.denoised, inside, out),
                self._boosted(z, said.noise, null.noise, inside, out),
            )
        line = ctx.guidance if self.zeta is None else "none"
        taught = ctx.roles.teacher.denoiser(pictures.prompts, line)(said.x, said.level)
        if self.zeta is None:
            return taught.denoised, taught.noise
        share = self.zeta if inside else 0.5
        return x + share * (taught.denoised - x), z + share * (taught.noise - z)

    def _boosted(self, true: Tensor, known: Tensor, without: Tensor, inside: bool, left_out: Tensor) -> Tensor:
        """One half of the pair at consistency 0, from its true value and what is said with the prompt and without."""
        assert self.zeta is not None
        zeta = (self.zeta - 1) / self.zeta if self.zeta >= 1 else self.zeta
        told = true + zeta * (known - without) if inside else (true + known) / 2
        return torch.where(left_out, (true + without) / 2, told)

    def pull(self, student: Denoiser, x: Tensor, z: Tensor, said: Prediction) -> Tensor:
        """F_target - F at consistency above 0."""
        t = flow_time(said.level)
        return t * 4 / math.sin(ANGLE * t) * self.slope(student, x, z, said).clamp(-1, 1)

    def slope(self, student: Denoiser, x: Tensor, z: Tensor, said: Prediction) -> Tensor:
        """Delta: how the student's picture changes with t along r z + (1 - r) x."""
        t = flow_time(said.level)

        def picture(time: float) -> tuple[Tensor, float]:
            level = level_at(student.schedule, time)
            return student(level.alpha * x + level.sigma * z, level).denoised, flow_time(level)

        if self.consistency < 1:
            (high, above), (low, below) = (said.denoised, t), picture(self.consistency * t)
        else:
            (high, above), (low, below) = picture(t + E), picture(t - E)
        return (high - low) / (above - below) if above > below else torch.zeros_like(x)

    def distance(self, said: Tensor, wanted: Tensor, t: float) -> Tensor:
        """The mean over rows."""
        errors = ((said - wanted).square().flatten(1).mean(1) + self.c**2 + TINY).sqrt() - self.c
        if self.cosine:
            errors = errors + (1 - cosine_similarity(said, wanted, dim=1)).flatten(1).mean(1)
        return errors.mean() * (math.cos(ANGLE * t) if self.weighted else 1.0)


def level_at(schedule: NoiseSchedule, t: float) -> Level:
    """The level with sigma / (alpha + sigma) = t, or the nearest that the schedule has."""
    lowest, highest = float(schedule.rho(schedule.t_min)), float(schedule.rho(schedule.T))
    rho = t / (1 - t) if t < 1 else math.inf
    return schedule.level_of_rho(min(max(rho, lowest), highest))
