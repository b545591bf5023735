"""Which prompts and seeds an update has, and which of them are this process's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch

from ..errors import UsageError
from ..evaluation.processes import Processes
from ..samplers.noise import derived_seed

T = TypeVar("T")


def even_share(count: int, processes: Processes) -> list[int]:
    """Which of `count` things are this process's, as many on each: the last thing is done several times, by those who
    would wait for it otherwise."""
    rounds = range(0, count, processes.world)
    return [min(first + processes.rank, count - 1) for first in rounds]


@dataclass(frozen=True)
class Deal(Generic[T]):
    """Of prompts, or other things. All come once before any comes again, in a new order each time through. Nothing is
    drawn from a state, so update 70 has the same prompts and seeds after a resume, and with any number of processes."""

    prompts: Sequence[T]
    batch: int
    seed: int
    processes: Processes = Processes()  # noqa: RUF009, frozen

    def __post_init__(self) -> None:
        if self.batch % self.processes.world:
            raise UsageError(f"a batch of {self.batch} cannot be dealt to {self.processes.world} processes evenly")

    def of(self, update: int) -> tuple[list[T], list[str]]:
        """Prompts and seeds of this process: the share of the batch that is next in rank."""
        share = self.batch // self.processes.world
        items = range(self.processes.rank * share, (self.processes.rank + 1) * share)
        places = [divmod(update * self.batch + item, len(self.prompts)) for item in items]
        orders = {time: self._order(time) for time in {time for time, _ in places}}
        prompts = [self.prompts[orders[time][place]] for time, place in places]
        return prompts, [str(derived_seed(self.seed, "picture", update, item)) for item in items]

    def _order(self, time: int) -> list[int]:
        generator = torch.Generator().manual_seed(derived_seed(self.seed, "order", time))
        found: list[int] = torch.randperm(len(self.prompts), generator=generator).tolist()
        return found
