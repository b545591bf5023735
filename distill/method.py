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

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..errors import UsageError
from ..samplers.denoiser import Denoiser
from ..samplers.lcm import distilled_levels
from ..samplers.loop import sample
from ..samplers.noise import SeededNoise
from ..samplers.sampler import Levels
from ..samplers.schedule import DiscreteVP, is_flow
from ..training.learner import Learner
from ..training.update import Part, Update
from .roles import STUDENT, Roles
from .times import Group, Times

__all__ = ["DistillContext", "DistillMethod", "Part", "Pictures"]


@dataclass(frozen=True, eq=False)
class Pictures:
    """Rows that were dealt. prompts, seeds: one each. clean: latents (B, *shape) of a data set, where it has been asked
    for. starts: the seeds of whose noise the teacher made `clean`, where it did."""

    prompts: Sequence[str]
    seeds: Sequence[str]
    clean: Tensor | None = None
    starts: Sequence[str] | None = None

    @property
    def pairs(self) -> bool:
        """Is `clean` what the teacher made of known noise?"""
        return self.starts is not None

    def __len__(self) -> int:
        return len(self.prompts)

    def of(self, rows: Sequence[int] | range) -> Pictures:
        """Some of the rows."""
        clean = None if self.clean is None else self.clean[list(rows)]
        starts = None if self.starts is None else [self.starts[i] for i in rows]
        return Pictures([self.prompts[i] for i in rows], [self.seeds[i] for i in rows], clean, starts)


@dataclass(eq=False)
class DistillContext(Update):
    """One update. guidance: the teacher's rule, a line. lockstep: so many processes must call the networks equally
    often, as for weights that are sharded.

    deal: the i-th draw of this update, prompts with fresh seeds. data: the same of the data set, with clean latents; a
    UsageError where there is none. first, total: of a draw's rows, all processes together, those from `first` on are
    this process's.
    """

    roles: Roles
    guidance: str
    deal: Callable[[int], Pictures]
    data: Callable[[int], Pictures]
    first: int
    total: int
    lockstep: int = 1

    def chunks(self, count: int) -> list[range]:
        """Rows of a draw in portions of at most `rows`."""
        return [range(first, min(first + self.rows, count)) for first in range(0, count, self.rows)]

    def groups(self, times: Times, count: int, purpose: str, rows: range | None = None) -> list[Group]:
        """Which rows of this process's draw, or of `rows` in it, have which level, at most `self.rows` together. The
        levels are those of the whole draw, so that they depend on no number of processes."""
        schedule = self.roles.teacher.denoiser([""]).schedule
        everything = times.groups(schedule, self.total, self.seed("times", purpose))
        wanted = range(count) if rows is None else rows
        share = self.total // self.lockstep
        calls = {len(self._dealt(everything, rank * share, wanted)) for rank in range(self.lockstep)}
        if len(calls) > 1 and self.lockstep > 1:
            raise UsageError(f"{len(everything)} noise levels of a batch of {self.total} do not come to "
                             f"{self.lockstep} processes evenly, and sharded weights need equal calls; make strata "
                             "or batch a multiple of the processes, or rows smaller")  # fmt: skip
        return self._dealt(everything, self.first, wanted)

    def _dealt(self, groups: Sequence[Group], first: int, wanted: range) -> list[Group]:
        """What a process whose rows begin at `first` has of the groups, at most `rows` together."""
        found = []
        for group in groups:
            start, stop = max(group.rows.start - first, wanted.start), min(group.rows.stop - first, wanted.stop)
            for low in range(start, stop, self.rows):
                found.append(replace(group, rows=range(low, min(low + self.rows, stop))))
        return found

    def noise(self, pictures: Pictures, purpose: str, step: int = 0) -> Tensor:
        """Unit noise (B, *shape) of those pictures, another for each purpose: "start" is where a run begins, which for
        pairs is where the teacher began."""
        student, source = self.roles.student, SeededNoise(list(pictures.seeds))
        if purpose == "start":
            begun = SeededNoise(list(pictures.starts or pictures.seeds)).initial(student.shape)
            return begun.to(student.device, student.parameters[0].dtype)
        like = torch.empty(len(pictures), *student.shape, device=student.device, dtype=student.parameters[0].dtype)
        return source.draw(purpose, step, like)


class DistillMethod(ABC):
    """Settings, and `update`. roles: who learns or is kept besides the teacher. draws: how many times an update deals
    prompts, each time a batch. steps, sampler: how a picture of the student is drawn, at `levels`."""

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
    def needs_pairs(self) -> bool:
        """Must the data be what the teacher made of known noise?"""
        return False

    @property
    def paced(self) -> bool:
        """Does an update depend on how many there will be?"""
        return False

    @property
    def alike(self) -> bool:
        """Does an update call the networks equally often on every process, where its levels are dealt so?"""
        return True

    def check(self, roles: Roles, guidance: str) -> None:  # noqa: B027, most methods go with every teacher
        """UsageError for a teacher that this method cannot learn from, before anything is drawn."""

    def network(self, teacher: Any) -> Any:
        """The network of a learner whose weights all learn: a copy of the teacher's."""
        return copy.deepcopy(teacher)

    def scheduler(self, stock: Any) -> Any:
        """The diffusers scheduler that draws the student's pictures in `steps` steps, of the model's own one."""
        from diffusers import DDIMScheduler, LCMScheduler

        if is_flow(stock):
            return type(stock).from_config(stock.config, stochastic_sampling=self.sampler == "lcm")
        if self.sampler == "lcm":
            return LCMScheduler.from_config(stock.config, clip_sample=False)
        return DDIMScheduler.from_config(stock.config, timestep_spacing="trailing", set_alpha_to_one=True,
                                         clip_sample=False)  # fmt: skip

    def by_hand(self, stock: Any) -> dict[str, Any]:
        """The sampler and grid of a RunSpec that do what `scheduler` does where the model keeps its own one."""
        return {"sampler": self.sampler, "grid": None if self.sampler == "lcm" and not is_flow(stock) else "trailing"}

    @property
    def scales(self) -> tuple[float, float] | None:
        """The lowest and highest guidance scale that the network learns to be told; None where it is told none."""
        return None

    def recommended(self) -> dict[str, Any]:
        """Settings of a RunSpec that draws the student's pictures."""
        return {"guidance": "none", "sampler": "stock", "steps": self.steps}

    def denoiser(self, student: Learner, prompts: Sequence[str]) -> Denoiser:
        """The student as it is drawn with."""
        return student.denoiser(prompts)

    def levels(self, student: Learner) -> Levels:
        """Those of a run of `steps` steps: LCMScheduler's where it will draw, else the grid "trailing"."""
        schedule = student.denoiser([""]).schedule
        if self.sampler == "lcm" and isinstance(schedule, DiscreteVP):
            return distilled_levels(schedule, self.steps)
        return student.levels("trailing", self.steps)

    def sample(self, student: Learner, pictures: Pictures, rows: int) -> Tensor:
        """What the student makes: clean latents (B, *shape). rows: that go through the network together."""
        levels, made = self.levels(student), []
        for first in range(0, len(pictures), rows):
            some = pictures.of(range(first, min(first + rows, len(pictures))))
            x, noise = student.start(some.seeds, levels), SeededNoise(list(some.seeds))
            made.append(sample(self.denoiser(student, some.prompts), x, sampler=self.sampler, grid=levels, noise=noise))
        return torch.cat(made)

    @abstractmethod
    def update(self, ctx: DistillContext) -> Iterator[Part]:
        """Yield losses to be lowered, with their roles. At least one part steps."""
