"""Who takes part in a distillation: the teacher, the student that becomes a picture maker, and their helpers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..errors import UsageError
from ..samplers.denoiser import Denoiser
from ..samplers.sampler import Level
from ..training.learner import Learner

STUDENT, FAKE, HEAD, TARGET = "student", "fake", "head", "target"


class Frozen(Learner):
    """A learner as it was before training: the teacher."""

    def __init__(self, of: Learner):
        self.of, self.shape, self.device, self.parameters = of, of.shape, of.device, []

    def denoiser(self, prompts: Sequence[str | None], guidance: str = "none", **told: Any) -> Denoiser:
        with self.of.base():
            return self.of.denoiser(prompts, guidance, **told)

    def inner(self, prompts: Sequence[str], x: Tensor, level: Level) -> Tensor:
        with self.of.base():
            return self.of.inner(prompts, x, level)

    def decode(self, latents: Tensor) -> Tensor:
        return self.of.decode(latents)

    def encode(self, pictures: Tensor) -> Tensor:
        return self.of.encode(pictures)

    @contextmanager
    def base(self) -> Iterator[None]:
        yield


@dataclass(eq=False)
class Roles:
    """teacher: frozen; any rule guides it. student: what is learnt. fake: a model of the student's own pictures, whose
    score is needed. head: tells noised real from noised made, from `features`. target: an average of the student.

    One network may carry several of them as adapters; then the teacher is that network without any.
    """

    teacher: Learner
    student: Learner
    fake: Learner | None = None
    head: nn.Module | None = None
    target: Learner | None = None

    def parameters(self) -> Mapping[str, list[nn.Parameter]]:
        """What learns by gradients, by role; the student first."""
        found = {STUDENT: self.student.parameters}
        if self.fake is not None:
            found[FAKE] = self.fake.parameters
        if self.head is not None:
            found[HEAD] = list(self.head.parameters())
        return found

    def need(self, role: str) -> Any:
        """The learner of a role. UsageError where nobody has it."""
        found = getattr(self, role)
        if found is None:
            raise UsageError(f"this method needs a {role}; open the roles with it")
        return found
