"""What a way of fine-tuning is: from pictures and their rewards to losses, some of which end in a step.

    for part in method.update(ctx):      # the trainer's whole loop
        backward(part.loss)
        if part.steps: clip, optimiser step, zero the gradients

A method holds settings only. What it has to remember from one update to the next lives in `ctx.state`, which the
checkpoint keeps. All that is random comes from `ctx.seed(...)`, so an update is the same after a resume.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor

from ..samplers.noise import derived_seed
from .learner import Learner
from .rewards.reward import Reward

Gather = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Part:
    """A loss to be differentiated; steps: with the gradients of all parts since the last step. loss: a scalar."""

    loss: Tensor
    steps: bool = True


@dataclass(frozen=True, eq=False)
class Sampling:
    """How pictures are made while training. guidance: a line of rules."""

    sampler: str = "ddim:eta=1"
    grid: str = "trailing"
    steps: int = 20
    guidance: str = "cfg:scale=3"


@dataclass(eq=False)
class UpdateContext:
    """One update. prompts, seeds: of this process's pictures, one each (a method may draw further ones by `seed`).

    learner: the model that learns. reward: what is raised. sampling: how. update: its number, from 0, of `updates`.
    rows: pictures that go through the network together. state: what the method remembers, plain data and tensors.
    gather: a tensor (B, ...) of this process to those of all (identity alone). log: told numbers by name.
    """

    learner: Learner
    reward: Reward
    sampling: Sampling
    prompts: Sequence[str]
    seeds: Sequence[str]
    update: int
    updates: int
    rows: int
    run_seed: int = 0
    state: dict[str, Any] = field(default_factory=dict)
    gather: Gather = lambda values: values
    log: Callable[..., None] = lambda **numbers: None

    def seed(self, *what: object) -> int:
        """A seed for a purpose in this update, the same on every process and after a resume."""
        return derived_seed(self.run_seed, self.update, *what)


class Method(ABC):
    """Settings, and `update`. differentiable: needs the gradient of the reward. costs: the pictures of one update are
    those of `prompts` times this many."""

    differentiable: ClassVar[bool] = True

    def pictures(self, prompts: int) -> int:
        """How many pictures one update samples for so many prompts: what sample efficiency is counted in."""
        return prompts

    def check(self, learner: Learner, sampling: Sampling) -> None:  # noqa: B027, most methods go with every sampler
        """UsageError for a way of sampling that this method cannot learn from, before anything is drawn."""

    @abstractmethod
    def update(self, ctx: UpdateContext) -> Iterator[Part]:
        """Sample, reward, and yield losses to be lowered. At least one part steps, unless nothing was learnt (say so
        with `ctx.log`)."""
