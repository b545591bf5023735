"""Which process makes which batch: the next one that nobody has taken, so that a slow process takes fewer.

A batch is always made of the same pictures, so that it does not matter who makes it, nor how many there are. The count
stands in a store of torch.distributed that the first process serves. A process that fails says so there, and the others
end with it before their next batch; they wait for one that hangs only so long.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any

from ..errors import UsageError
from ..evaluation.processes import Processes

_TAKEN, _PICTURES, _BATCHES, _FAILED, _ENDED = "taken", "pictures", "batches", "failed", "ended"
_GONE = "the first process has gone; the same command does what is left"


class OthersEnded(UsageError):
    """Another process has ended without having done its part."""


class Dealer:
    """Of these processes. Every process makes one at the same time, with the same batches.

    patience: seconds that a process without work waits for the others while none of them finishes a batch; without it
    twenty times the slowest batch of its own, and ten minutes at least.
    """

    def __init__(self, processes: Processes, batches: Sequence[int], patience: float | None = None):
        self.processes, self.batches, self.patience = processes, batches, patience
        self.slowest = 0.0
        self._alone = dict.fromkeys((_TAKEN, _PICTURES, _BATCHES), 0)
        self._store: Any = _store_of(processes) if processes.world > 1 else None

    def __iter__(self) -> Iterator[int]:
        """The batches of this process, one by one as it asks for them. UsageError when another process has failed."""
        while True:
            self._fail_with_others()
            place = self._add(_TAKEN, 1) - 1
            if place >= len(self.batches):
                return
            begun = time.monotonic()
            yield self.batches[place]
            self.slowest = max(self.slowest, time.monotonic() - begun)

    def made(self, pictures: int) -> int:
        """A batch with so many new pictures is finished: how many there are, of all processes."""
        self._add(_BATCHES, 1)
        return self._add(_PICTURES, pictures)

    def pictures(self) -> int:
        """New pictures of all processes so far."""
        return self._add(_PICTURES, 0)

    def wait(self, told: Callable[[int], None] = lambda pictures: None) -> None:
        """Until every batch is finished. told(pictures) meanwhile. UsageError when another process fails or hangs."""
        limit = self.patience or max(600.0, 20 * self.slowest)
        seen, since = -1, time.monotonic()
        while (finished := self._add(_BATCHES, 0)) < len(self.batches):
            self._fail_with_others()
            told(self.pictures())
            if finished != seen:
                seen, since = finished, time.monotonic()
            if time.monotonic() - since > limit:
                raise UsageError(f"{len(self.batches) - finished} batches that other processes took have not moved for "
                                 f"{limit:.0f} s; stop them, then the same command does what is left")  # fmt: skip
            time.sleep(0.1)
        told(self.pictures())

    def fail(self, why: str) -> None:
        """Tell the others that this process ends without having done its part. The first one, who serves them, stays
        for a batch, so that they learn it from him."""
        if self._store is None:
            return
        try:
            if not self._store.check([_FAILED]):
                self._store.set(_FAILED, f"process {self.processes.rank}: {why}")
            ended = self._store.add(_ENDED, 1)
            limit = time.monotonic() + max(5.0, 2 * self.slowest)
            while self.processes.rank == 0 and ended < self.processes.world and time.monotonic() < limit:
                time.sleep(0.05)
                ended = self._store.add(_ENDED, 0)
        except RuntimeError:
            return

    def _fail_with_others(self) -> None:
        if self._store is None:
            return
        try:
            failed = self._store.check([_FAILED]) and self._store.get(_FAILED).decode()
        except RuntimeError:
            raise OthersEnded(_GONE) from None
        if failed:
            raise OthersEnded(f"another process failed ({failed}); the same command does what is left")

    def _add(self, name: str, count: int) -> int:
        if self._store is None:
            self._alone[name] += count
            return self._alone[name]
        try:
            return int(self._store.add(name, count))
        except RuntimeError:
            raise OthersEnded(_GONE) from None


def _store_of(processes: Processes) -> Any:
    """A store that the first process serves, on a port of its own."""
    from torch.distributed import TCPStore

    host, limit = os.environ["MASTER_ADDR"], timedelta(seconds=60)
    served: list[Any] = []

    def serve() -> int:
        served.append(TCPStore(host, 0, is_master=True, wait_for_workers=False, timeout=limit))
        return int(served[0].port)

    port = processes.by_first(serve)
    return served[0] if served else TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=limit)
