"""Several processes that read one set of pictures: who reads which, and how what they found comes together.

Started with `accelerate launch` on GPUs, with `torchrun --nproc-per-node 4 -m pilotage score ...` on any machine (or
any launcher that sets the variables of torch.distributed), alone otherwise. `accelerate launch --cpu` starts one
process, whatever number it is given.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Sequence
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

    def of_each(self, make: Callable[[], T]) -> list[T]:
        """What every process makes, by rank. If one fails, all do: the mates would wait for it forever."""
        if self.world == 1:
            return [make()]
        made, error = _attempted(make)
        everybody = self.gathered((made, _told(error)))
        self._fail_together(error, [told for _, told in everybody])
        return [found for found, _ in everybody]

    def by_first(self, make: Callable[[], T]) -> T:
        """What the first process makes, on all of them. If it fails, all do."""
        if self.world == 1:
            return make()
        from torch.distributed import broadcast_object_list

        made, error = _attempted(make) if self.rank == 0 else (None, None)
        held: list[Any] = [(made, _told(error))]
        broadcast_object_list(held, src=0)
        found, told = held[0]
        self._fail_together(error, [told])
        return found

    def _fail_together(self, own: Exception | None, told: Sequence[str]) -> None:
        """The process that failed raises what it met; its mates, and those of a user's mistake, what they were told."""
        first = next(filter(None, told), "")
        if own is not None and not isinstance(own, UsageError):
            raise own
        if first:
            raise UsageError(first)


def _attempted(make: Callable[[], T]) -> tuple[Any, Exception | None]:
    try:
        return make(), None
    except Exception as error:
        return None, error


def _told(error: Exception | None) -> str:
    if error is None or isinstance(error, UsageError):
        return str(error or "")
    return f"another process failed ({type(error).__name__}: {error}); its own message says where"
