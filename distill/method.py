"""What a way of distilling is: losses for the student and for those who help it, some of which end in a step.

    for part in method.update(ctx):      # the trainer's whole loop
        backward(part.loss)
        if part.steps: step of part.role's optimiser; all gradients are dropped

A method holds settings only. What it has to remember from one update to the next lives in `ctx.state`, which the
checkpoint keeps. All that is random comes from `ctx.seed(...)` and the seeds of what was dealt, so an update is the
same after a resume. An update is one step of the student and all steps of its helpers that belong to it: a run that was
stopped in any phase begins that update again.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..samplers.denoiser import Denoiser
from ..samplers.loop import sample
from ..samplers.noise import SeededNoise
from ..samplers.schedule import is_flow
from ..training.learner import Learner
from ..training.update import Part, Update
from .roles import STUDENT, Roles

__all__ = ["DistillContext", "DistillMethod", "Part", "Pictures"]


@dataclass(frozen=True, eq=False)
class Pictures:
    """Rows that were dealt. prompts, seeds: one each. clean: latents (B, *shape) of a data set, where it has been asked
    for. pairs: is `clean` what the teacher made of the noise of `seeds`?"""

    prompts: Sequence[str]
    seeds: Sequence[str]
    clean: Tensor | None = None
    pairs: bool = False

    def __len__(self) -> int:
        return len(self.prompts)

    def of(self, rows: Sequence[int] | range) -> Pictures:
        """Some of the rows."""
        clean = None if self.clean is None else self.clean[list(rows)]
        return Pictures([self.prompts[i] for i in rows], [self.seeds[i] for i in rows], clean, self.pairs)


@dataclass(eq=False)
class DistillContext(Update):
    """One update. guidance: the teacher's rule, a line. batch: rows of a draw on this process.

    deal: the i-th draw of this update, prompts with fresh seeds. data: the same of the data set, with clean latents; a
    UsageError where there is none.
    """

    roles: Roles
    guidance: str
    batch: int
    deal: Callable[[int], Pictures]
    data: Callable[[int], Pictures]

    def noise(self, pictures: Pictures, purpose: str, step: int = 0) -> Tensor:
        """Unit noise (B, *shape) of those pictures, another for each purpose."""
        student, source = self.roles.student, SeededNoise(list(pictures.seeds))
        if purpose == "start":
            return source.initial(student.shape).to(student.device)
        return source.draw(purpose, step, torch.empty(len(pictures), *student.shape, device=student.device))


class DistillMethod(ABC):
    """Settings, and `update`. roles: who learns or is kept besides the teacher. draws: how many times an update deals
    prompts, each time a batch. steps, sampler: how a picture of the student is drawn, on the grid "trailing"."""

    @property
    def roles(self) -> tuple[str, ...]:
        return (STUDENT,)

    @property
    def draws(self) -> int:
        return 1

    @property
    def steps(self) -> int:
        return 1

    @property
    def sampler(self) -> str:
        return "ddim" if self.steps == 1 else "lcm"

    @property
    def needs_data(self) -> bool:
        return False

    @property
    def paced(self) -> bool:
        """Does an update depend on how many there will be?"""
        return False

    def check(self, roles: Roles, guidance: str) -> None:  # noqa: B027, most methods go with every teacher
        """UsageError for a teacher that this method cannot learn from, before anything is drawn."""

    def scheduler(self, stock: Any) -> Any:
        """The diffusers scheduler that draws the student's pictures in `steps` steps, of the model's own one."""
        from diffusers import DDIMScheduler, LCMScheduler

        if is_flow(stock):
            return type(stock).from_config(stock.config)
        if self.sampler == "lcm":
            return LCMScheduler.from_config(stock.config, timestep_spacing="trailing")
        return DDIMScheduler.from_config(stock.config, timestep_spacing="trailing", set_alpha_to_one=True,
                                         clip_sample=False)  # fmt: skip

    def denoiser(self, student: Learner, prompts: Sequence[str]) -> Denoiser:
        """The student as it is drawn with."""
        return student.denoiser(prompts)

    def sample(self, student: Learner, pictures: Pictures, rows: int) -> Tensor:
        """What the student makes: clean latents (B, *shape). rows: that go through the network together."""
        levels, made = student.levels("trailing", self.steps), []
        for first in range(0, len(pictures), rows):
            some = pictures.of(range(first, min(first + rows, len(pictures))))
            x, noise = student.start(some.seeds, levels), SeededNoise(list(some.seeds))
            made.append(sample(self.denoiser(student, some.prompts), x, sampler=self.sampler, grid=levels, noise=noise))
        return torch.cat(made)

    @abstractmethod
    def update(self, ctx: DistillContext) -> Iterator[Part]:
        """Yield losses to be lowered, with their roles. At least one part steps."""
