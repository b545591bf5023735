"""What an update of a training is made of: losses, some of which end in a step.

for part in parts:      # the trainer's whole loop
    backward(part.loss)
    if part.steps: clip, optimiser step, zero the gradients
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ..samplers.noise import derived_seed

Gather = Callable[[Tensor], Tensor]
LEARNER = "learner"  # the role of what learns where only one network does


@dataclass(frozen=True)
class Part:
    """A loss to be differentiated; steps: with the gradients of all parts since the last step. loss: a scalar.

    role: whose parameters it moves; the gradients of others are dropped at the step.
    """

    loss: Tensor
    steps: bool = True
    role: str = LEARNER


@dataclass(frozen=True, eq=False)
class Sampling:
    """How pictures are made while training. guidance: a line of rules."""

    sampler: str = "ddim:eta=1"
    grid: str = "trailing"
    steps: int = 20
    guidance: str = "cfg:scale=3"


@dataclass(eq=False, kw_only=True)
class Update:
    """One update: its number `update`, from 0, of `updates`. rows: pictures that go through the network together.

    state: what the method remembers from one update to the next, plain data and tensors, kept in the checkpoint.
    gather: a tensor (B, ...) of this process to those of all (identity alone). log: told numbers by name.
    """

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
