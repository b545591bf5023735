"""What a way of fine-tuning is: from pictures and their rewards to losses, some of which end in a step.

    for part in method.update(ctx):      # the trainer's whole loop
        backward(part.loss)
        if part.steps: clip, optimiser step, zero the gradients

A method holds settings only. What it has to remember from one update to the next lives in `ctx.state`, which the
checkpoint keeps. All that is random comes from `ctx.seed(...)`, so an update is the same after a resume.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from ..training.learner import Learner
from ..training.update import Gather, Part, Sampling, Update
from .rewards.reward import Reward

__all__ = ["Gather", "Method", "Part", "Sampling", "UpdateContext"]


@dataclass(eq=False)
class UpdateContext(Update):
    """One update. prompts, seeds: of this process's pictures, one each (a method may draw further ones by `seed`).

    learner: the model that learns. reward: what is raised. sampling: how.
    """

    learner: Learner
    reward: Reward
    sampling: Sampling
    prompts: Sequence[str]
    seeds: Sequence[str]


class Method(ABC):
    """Settings, and `update`. differentiable: needs the gradient of the reward. paced: an update depends on how many
    there will be."""

    differentiable: ClassVar[bool] = True

    @property
    def paced(self) -> bool:
        return False

    @property
    def alike(self) -> bool:
        """Does an update call the network equally often on every process? Weights that are sharded need that."""
        return self.differentiable

    def pictures(self, prompts: int) -> int:
        """How many pictures one update samples for so many prompts: what sample efficiency is counted in."""
        return prompts

    def check(self, learner: Learner, sampling: Sampling) -> None:  # noqa: B027, most methods go with every sampler
        """UsageError for a way of sampling that this method cannot learn from, before anything is drawn."""

    @abstractmethod
    def update(self, ctx: UpdateContext) -> Iterator[Part]:
        """Sample, reward, and yield losses to be lowered. At least one part steps, unless nothing was learnt (say so
        with `ctx.log`)."""
