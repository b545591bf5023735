"""Guidance distillation: one evaluation a step says what the guided teacher says with two or more.

    L = E || student(x_t, t, c, w) - teacher guided by w (x_t, t, c) ||^2,     w ~ U[scale_low, scale_high]

Stage 1 of Meng et al. 2022 (arXiv 2210.03142), where w is told to the network; or of one rule as it is (`fixed`), which
needs no other network, so that a LoRA can learn it. On the teacher's own guided runs (states="trajectory") no data are
needed: adapter guidance distillation (arXiv 2503.07274). The student has as many steps as the teacher.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ...errors import UsageError
from ...guidance.grammar import parse
from ...samplers.denoiser import Denoiser
from ...samplers.loop import iterate
from ...samplers.noise import SeededNoise
from ...samplers.prediction import Prediction
from ...training.learner import Learner
from ..method import DistillContext, DistillMethod, Part, Pictures
from ..roles import STUDENT, Roles
from ..scales import drawn_scale, scale_conditioned, scale_width, told_scale, with_scale
from ..student_parts import student_parts
from ..times import Group, Times

DATA, TRAJECTORY = "data", "trajectory"
SPACES = ("native", "noise", "denoised")


@dataclass(frozen=True, kw_only=True)
class GuidanceDistillation(DistillMethod):
    """fixed: the rule is learnt as it is and the network is told nothing. Otherwise its scale is drawn from [scale_low,
    scale_high], in the toolkit's units, one for each level of a batch, and told as an embedding, for which the
    student's network must be `scale_conditioned`; `scale` is the one that sheets are drawn at. Scales outside the range
    are not learnt. (The paper's is believed to be 3 to 15 for latent models and 1 to 5 for pixels: unverified.)

    states: where the two are compared: noised "data", or "trajectory", `points` of the points of the teacher's guided
    run of `steps` steps; there a rule's memory counts, at noised data a rule sees each point as a first step. space: of
    the squared error: "native", what the network predicts, "noise" or "denoised". low, high: shares of the noise range;
    strata: levels a batch has. steps, sampler: of the student's pictures and of the teacher's runs.
    """

    fixed: bool = False
    scale_low: float = 1.0
    scale_high: float = 15.0
    scale: float = 5.0
    states: str = DATA
    points: int = 4
    space: str = "native"
    low: float = 0.0
    high: float = 1.0
    strata: int = 8
    steps: int = 20
    sampler: str = "ddim"

    def __post_init__(self) -> None:
        self.times  # noqa: B018, refuses ranges that are none
        if self.states not in (DATA, TRAJECTORY):
            raise UsageError(f'states is "{DATA}" or "{TRAJECTORY}", not {self.states!r}')
        if self.space not in SPACES:
            raise UsageError(f"space is one of {', '.join(SPACES)}, not {self.space!r}")
        if not self.scale_low <= self.scale <= self.scale_high:
            raise UsageError("give scales with scale_low <= scale <= scale_high: others than these are not learnt")
        if self.states == TRAJECTORY and not 1 <= self.points <= self.steps:
            raise UsageError(f"points={self.points} of a run of {self.steps} steps; take 1 to {self.steps}")

    @property
    def times(self) -> Times:
        return Times(self.low, self.high, self.strata)

    @property
    def needs_data(self) -> bool:
        return self.states == DATA

    def check(self, roles: Roles, guidance: str) -> None:
        if parse(guidance).shifts:
            raise UsageError(f"{guidance!r} steps on another noise than its picture's, and a network cannot say both; "
                             "take another rule, or the method lcm, which learns where the step ends")  # fmt: skip
        if not self.fixed:
            with_scale(guidance, self.scale)  # refuses a rule without a scale
            scale_width(roles.student)

    def network(self, teacher: Any) -> Any:
        return super().network(teacher) if self.fixed else scale_conditioned(teacher)

    @property
    def scales(self) -> tuple[float, float] | None:
        return None if self.fixed else (self.scale_low, self.scale_high)

    def recommended(self) -> dict[str, Any]:
        return super().recommended() | ({} if self.fixed else {"call": {"guidance_scale": self.scale}})

    def denoiser(self, student: Learner, prompts: Sequence[str]) -> Denoiser:
        return self._student(student, prompts, None if self.fixed else self.scale)

    def _student(self, student: Learner, prompts: Sequence[str], scale: float | None) -> Denoiser:
        return student.denoiser(prompts) if scale is None else told_scale(student, prompts, scale)

    # -- an update ---------------------------------------------------------------------------------------------

    def update(self, ctx: DistillContext) -> Iterator[Part]:
        return self._on_data(ctx) if self.states == DATA else self._on_trajectories(ctx)

    def _on_data(self, ctx: DistillContext) -> Iterator[Part]:
        pictures, strata = ctx.data(0), min(self.strata, ctx.total)

        def loss(group: Group) -> Tensor:
            some, scale = pictures.of(group.rows), self._scale(ctx, group.share, strata)
            assert some.clean is not None
            x = group.level.alpha * some.clean + group.level.sigma * ctx.noise(some, "level")
            with torch.no_grad():
                taught = ctx.roles.teacher.denoiser(some.prompts, self._line(ctx, scale))(x, group.level)
            return self._error(ctx, some, scale, taught)

        yield from student_parts(ctx.groups(self.times, len(pictures), "guidance"), loss)

    def _on_trajectories(self, ctx: DistillContext) -> Iterator[Part]:
        """Rows of one scale have a run together."""
        pictures, strata = ctx.deal(0), 1 if self.fixed else min(self.strata, ctx.total)
        groups = ctx.groups(Times(strata=strata), len(pictures), "guidance")
        for group in groups:
            some, scale = pictures.of(group.rows), self._scale(ctx, group.share, strata)
            run = self._run(ctx, some, scale, group.share)
            share = len(group.rows) / len(pictures) / len(run)
            for number, taught in enumerate(run, start=1):
                last = group is groups[-1] and number == len(run)
                yield Part(share * self._error(ctx, some, scale, taught), last, STUDENT)

    def _run(self, ctx: DistillContext, pictures: Pictures, scale: float | None, share: float) -> list[Prediction]:
        """What the teacher says at some points of its run."""
        teacher, wanted = ctx.roles.teacher, self.places(ctx.seed("points", share))
        denoiser, levels = teacher.denoiser(pictures.prompts, self._line(ctx, scale)), self.levels(teacher)
        with torch.no_grad():
            x, noise = teacher.start(pictures.seeds, levels), SeededNoise(list(pictures.seeds))
            run = iterate(denoiser, x, sampler=self.sampler, grid=levels, noise=noise)
            return [step.prediction for step in run if step.index in wanted]

    def places(self, seed: int) -> list[int]:
        """`points` different steps at equal distances, each as likely as any other."""
        offset = float(torch.rand((), generator=torch.Generator().manual_seed(seed), dtype=torch.float64))
        return [min(int((k + offset) * self.steps / self.points), self.steps - 1) for k in range(self.points)]

    def _scale(self, ctx: DistillContext, share: float, strata: int) -> float | None:
        """The one of a level; None where the rule is learnt as it is."""
        if self.fixed:
            return None
        return drawn_scale(self.scale_low, self.scale_high, ctx.seed("scale"), share, strata)

    def _line(self, ctx: DistillContext, scale: float | None) -> str:
        return ctx.guidance if scale is None else with_scale(ctx.guidance, scale)

    def _error(self, ctx: DistillContext, pictures: Pictures, scale: float | None, taught: Prediction) -> Tensor:
        """The mean squared difference at the point of the teacher's prediction."""
        said = self._student(ctx.roles.student, pictures.prompts, scale)(taught.x, taught.level)
        if taught.kind.name != said.kind.name:
            taught = replace(said, native=said.native.detach()).with_denoised(taught.denoised)
        apart: Tensor = getattr(said, self.space) - getattr(taught, self.space).detach()
        return apart.square().mean()
