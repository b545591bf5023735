"""Several processes that read one set of pictures: who reads which, and how what they found comes together.

Started with `accelerate launch` on GPUs, with `torchrun --nproc-per-node 4 -m pilotage score ...` on any machine (or
any launcher that sets the variables of torch.distributed), alone otherwise. `accelerate launch --cpu` starts one
process, whatever number it is given.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from ..errors import UsageError

T = TypeVar("T")


def leave_at_exit() -> None:
    """Leave the group of processes before the interpreter ends: a connection that a mate has closed meanwhile would
    abort a process whose work is done."""
    atexit.unregister(_leave)
    atexit.register(_leave)


def _leave() -> None:
    from torch import distributed

    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


@dataclass(frozen=True)
class Processes:
    """This process and its mates. Alone, everything here does nothing."""

    rank: int = 0
    world: int = 1

    @classmethod
    def found(cls) -> Processes:
        """Those that the launcher started."""
        if int(os.environ.get("WORLD_SIZE", "1")) <= 1:
            return cls()
        from accelerate import PartialState
        from torch import cuda

        on_cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("true", "1") or not cuda.is_available()
        state = PartialState(cpu=on_cpu)  # it starts no group of processes on the CPU unless it is told so
        leave_at_exit()
        return cls(state.process_index, state.num_processes)

    def mine(self, item: int, block: int) -> bool:
        """Is that item of the set read here? Dealt in blocks in turn, each item once, whatever the number of items."""
        return item // block % self.world == self.rank

    def gathered(self, found: T) -> list[T]:
        """What every process found, by rank."""
        if self.world == 1:
            return [found]
        from torch.distributed import all_gather_object

        everybody: list[Any] = [None] * self.world
        all_gather_object(everybody, found)
        return everybody

    def by_first(self, make: Callable[[], T]) -> T:
        """What the first process makes, on all of them; its UsageError too."""
        if self.world == 1:
            return make()
        from torch.distributed import broadcast_object_list

        held: list[Any] = [None]
        if self.rank == 0:
            try:
                held = [make()]
            except UsageError as error:
                held = [error]
        broadcast_object_list(held, src=0)
        if isinstance(held[0], UsageError):
            raise held[0]
        made: T = held[0]
        return made
