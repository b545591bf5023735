"""Reflow: the teacher's runs drawn straight (Liu et al. 2022, arXiv 2209.03003).

    L = E || (noise - denoised)(x_t, t) - (z - x_0) ||^2,     x_t = alpha_t x_0 + sigma_t z

where x_0 is what the guided teacher made *of z*, and not an independent picture. On a rectified flow noise - denoised
is the velocity; any other path is one after x is divided by alpha + sigma.

`regression` is the least that pairs can teach: at pure noise, E || denoised(sigma_T z, T) - x_0 ||^2. DMD2's one-step
SDXL students are warmed up with it on 10 000 pairs (arXiv 2405.14867, its code).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from ...errors import UsageError
from ..method import DistillContext, DistillMethod, Part
from ..student_parts import student_parts
from ..times import Group, Times


@dataclass(frozen=True, kw_only=True)
class Reflow(DistillMethod):
    """regression: at pure noise only. low, high: shares of the noise range; a, b: of the distribution Beta(a, b) of the
    level's place in it; strata: levels a batch has. steps: of the student's pictures; the straighter the runs, the
    fewer.

    The data are pairs of the teacher's, data=teacher:10000, made with its rule.
    """

    regression: bool = False
    low: float = 0.0
    high: float = 1.0
    a: float = 1.0
    b: float = 1.0
    strata: int = 8
    steps: int = 1

    def __post_init__(self) -> None:
        self.times  # noqa: B018, refuses ranges that are none
        if self.steps < 1:
            raise UsageError(f"steps must be at least 1, not {self.steps}")
        if self.regression and self.steps != 1:
            raise UsageError("a student of regression=true knows the noisiest level alone: leave steps at 1")

    @property
    def times(self) -> Times:
        return Times(self.low, self.high, 1 if self.regression else self.strata, self.a, self.b)

    @property
    def needs_data(self) -> bool:
        return True

    @property
    def needs_pairs(self) -> bool:
        return True

    @property
    def sampler(self) -> str:
        return "ddim"

    def update(self, ctx: DistillContext) -> Iterator[Part]:
        pictures = ctx.data(0)
        if not pictures.pairs:
            raise UsageError("reflow needs what the teacher made of known noise: give data=teacher:1000")
        noisiest = self.levels(ctx.roles.student)[0]

        def loss(group: Group) -> Tensor:
            some = pictures.of(group.rows)
            assert some.clean is not None
            z, denoiser = ctx.noise(some, "start").to(some.clean), ctx.roles.student.denoiser(some.prompts)
            if self.regression:
                return (denoiser(noisiest.sigma * z, noisiest).denoised - some.clean).square().mean()
            said = denoiser(group.level.alpha * some.clean + group.level.sigma * z, group.level)
            return (said.noise - said.denoised - (z - some.clean)).square().mean()

        yield from student_parts(ctx.groups(self.times, len(pictures), "reflow"), loss)
