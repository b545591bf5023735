"""What is looked at while distilling: student beside teacher on the same prompts and seeds, never trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..evaluation.metrics.colour import colour_statistics
from ..evaluation.metrics.frechet import frechet_distance
from ..evaluation.metrics.prdc import prdc
from ..evaluation.processes import Processes
from ..training.dealing import even_share
from ..training.judging import adherence, of_the_world
from ..training.learner import Learner
from ..training.look import Look, features_of
from .data import Latents
from .method import DistillMethod, Pictures

SHOWN, COLUMNS = 8, 4  # prompts of a sheet, and seeds of student and teacher
NEAREST = 5


@dataclass(eq=False)
class Watch:
    """prompts, each with seeds 0 to seeds - 1. teacher: its pictures of the same, prompt by prompt. features: uint8
    pictures -> (n, D), or None.

    Coverage, density, precision, recall and the Frechet distance are of the student against the teacher in features;
    diversity is the mean distance of two pictures of a prompt. The judge, of the embedded world, knows no student.
    """

    prompts: Sequence[str]
    seeds: int
    rows: int
    method: DistillMethod
    teacher: Latents
    features: Any = None
    processes: Processes = Processes()  # noqa: RUF009, frozen

    def __post_init__(self) -> None:
        self.judge = adherence()[0] if of_the_world(self.prompts) else None
        self._known: tuple[Tensor, Tensor] | None = None  # the teacher's pictures and features

    def look(self, student: Learner) -> Look:
        """At the student as it is now. Prompts are dealt to the processes, and every process gets the whole."""
        pictures = self._gathered(lambda number: self._drawn(student, number))
        told = features_of(self.features, pictures)
        theirs, features = self._teachers(student)
        numbers = {"diversity": self._diversity(told), **self._against(features, told)}
        numbers |= {"diversity of the teacher": self._diversity(features)} | colours(pictures)
        judges = {}
        if self.judge is not None:
            judges = {"adherence": self._judged(pictures), "adherence of the teacher": self._judged(theirs)}
        return Look(numbers, judges, self._sheet(pictures, theirs))

    # -- parts of it -------------------------------------------------------------------------------------------

    def _gathered(self, make: Any) -> Tensor:
        """uint8 (prompts * seeds, 3, H, W) of all processes, in the order of the prompts."""
        with torch.no_grad():
            mine = {i: make(i) for i in even_share(len(self.prompts), self.processes)}
        everything: dict[int, Tensor] = {}
        for part in self.processes.gathered(mine):
            everything |= part
        return torch.cat([everything[i] for i in range(len(self.prompts))])

    def _drawn(self, student: Learner, number: int) -> Tensor:
        pictures = Pictures([self.prompts[number]] * self.seeds, [str(seed) for seed in range(self.seeds)])
        return self._bytes(student, self.method.sample(student, pictures, self.rows))

    def _teachers(self, student: Learner) -> tuple[Tensor, Tensor]:
        if self._known is None:
            many = self.seeds
            made = self._gathered(
                lambda i: self._bytes(student, self.teacher.of(range(i * many, (i + 1) * many)).to(student.device))
            )
            self._known = made, features_of(self.features, made)
        return self._known

    def _bytes(self, student: Learner, latents: Tensor) -> Tensor:
        pictures = [
            student.decode(part).clamp(0, 1).mul(255).round().to(torch.uint8) for part in latents.split(self.rows)
        ]
        return torch.cat(pictures).cpu()

    def _diversity(self, features: Tensor) -> float:
        apart = [torch.pdist(of_prompt).mean() for of_prompt in features.split(self.seeds)]
        return float(torch.stack(apart).mean())

    def _against(self, real: Tensor, made: Tensor) -> dict[str, float]:
        if len(real) <= NEAREST:
            return {}
        found = prdc(real=real, generated=made, k=NEAREST)
        numbers = {name: float(getattr(found, name)) for name in ("precision", "recall", "density", "coverage")}
        return numbers | {"distance": frechet_distance(real=real, generated=made)}

    def _judged(self, pictures: Tensor) -> float:
        prompts = [prompt for prompt in self.prompts for _ in range(self.seeds)]
        assert self.judge is not None
        return float(self.judge(pictures.float() / 255, prompts).mean())

    def _sheet(self, made: Tensor, theirs: Tensor) -> Tensor:
        """(prompts, 2 * seeds, 3, H, W): the student's on the left, the teacher's on the right."""
        sides = [side.unflatten(0, (-1, self.seeds))[:SHOWN, :COLUMNS] for side in (made, theirs)]
        return torch.cat(sides, 1)


def colours(pictures: Tensor) -> dict[str, float]:
    """Mean saturation, which rises where a teacher is guided too much."""
    return {"saturation": float(colour_statistics(pictures).saturation.mean())}
