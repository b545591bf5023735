"""A denoiser that is not asked the same question twice in a row."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..denoiser import Denoiser
from ..prediction import Prediction
from ..sampler import State
from ..schedule import Level


class Once:
    """Keeps its last answer, with its graph, for the same tensor at the same level."""

    def __init__(self, denoiser: Any):
        self.denoiser, self.schedule = denoiser, denoiser.schedule
        self.question: tuple[Any, ...] | None = None
        self.answer: Any = None

    def __call__(self, x: Tensor, level: Level, condition: Any = None) -> Prediction:
        if not self.known(x, level):
            self.answer = self.denoiser(x, level, condition)
        return self.answer

    def known(self, x: Tensor, *place: Any) -> bool:
        """Is it the question of before? It is held, so that its identity stays its own."""
        before, self.question = self.question, (x, *place)
        return before is not None and before[0] is x and before[1:] == place


class GuidedOnce(Once):
    @property
    def rule(self) -> Any:
        return self.denoiser.rule

    def guide(self, state: State, condition: Any = None) -> tuple[Prediction, Any]:
        if not self.known(state.x, state.level, state.step, state.stage):
            self.answer = self.denoiser.guide(state, condition)
        answer: tuple[Prediction, Any] = self.answer
        return answer


def once(denoiser: Denoiser) -> Denoiser:
    return GuidedOnce(denoiser) if hasattr(denoiser, "guide") else Once(denoiser)
