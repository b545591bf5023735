"""Several processes that read one set of pictures: who reads which, and how what they found comes together.

Started with `accelerate launch` on GPUs, with `torchrun --nproc-per-node 4 -m pilotage score ...` on any machine (or
any launcher that sets the variables of torch.distributed), alone otherwise. `accelerate launch --cpu` starts one
process, whatever number it is given.

How long a process waits for one that has gone silent: `meeting.patience`.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import UsageError
from .meeting import answered, group, met, patience

if TYPE_CHECKING:
    import torch
    from torch import Tensor

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
        from torch.distributed import DistError

        on_cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("true", "1") or not cuda.is_available()
        try:  # it starts no group of processes on the CPU unless it is told so
            state = PartialState(cpu=on_cpu, timeout=timedelta(seconds=patience()))
        except DistError as error:
            raise UsageError(f"the processes do not find one another ({str(error).splitlines()[0]:.200}); check that "
                             "all were started, and MASTER_ADDR and MASTER_PORT") from None  # fmt: skip
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
        with answered():
            all_gather_object(everybody, found, group=group())
        return everybody

    def by_rank(self, found: T) -> list[T]:
        """What every process found, by rank, on the first process; nothing on the others, which keep only their own."""
        if self.world == 1:
            return [found]
        from torch.distributed import gather_object

        everybody: list[Any] = [None] * self.world if self.rank == 0 else []
        with answered():
            gather_object(found, everybody or None, dst=0, group=group())
        return everybody

    def send(self, rows: Tensor) -> None:
        """A tensor to the first process, which has to know its shape and kind."""
        from torch.distributed import send

        with answered():
            send(rows.contiguous(), dst=0, group=group())

    def received(self, rank: int, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """What a process sends to this one, the first."""
        import torch
        from torch.distributed import recv

        found = torch.empty(tuple(shape), dtype=dtype)
        with answered():
            recv(found, src=rank, group=group())
        return found

    def of_each(self, make: Callable[[], T]) -> list[T]:
        """What every process makes, by rank. If one fails, all do: the mates would wait for it forever."""
        if self.world == 1:
            return [make()]
        made = self.after_each(make)
        return self.gathered(made)

    def after_each(self, make: Callable[[], T]) -> T:
        """What this process makes, once all have made theirs. If one fails, all do."""
        if self.world == 1:
            return make()
        made, error = met(lambda: _attempted(make))
        self._fail_together(error, self.gathered(_told(error)))
        return made

    def by_first(self, make: Callable[[], T]) -> T:
        """What the first process makes, on all of them. If it fails, all do."""
        if self.world == 1:
            return make()
        from torch.distributed import broadcast_object_list

        made, error = met(lambda: _attempted(make) if self.rank == 0 else (None, None))
        held: list[Any] = [(made, _told(error))]
        with answered():
            broadcast_object_list(held, src=0, group=group())
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
