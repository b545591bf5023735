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
from typing import Any, TypeVar

from ..evaluation.meeting import OthersEnded, within
from ..evaluation.meeting import patience as usual
from ..evaluation.processes import Processes

_TAKEN, _PICTURES, _BATCHES, _FAILED, _ENDED = "taken", "pictures", "batches", "failed", "ended"
T = TypeVar("T")
SILENT = 600.0  # seconds, at least, that one waits for batches which do not come
_GONE = "the first process has gone; the same command does what is left"


class Dealer:
    """Of these processes. Every process makes one at the same time, with the same batches.

    patience: seconds that a process without work waits for the others while none of them finishes a batch, and that
    each waits for the first to answer; without it twenty times the slowest batch of its own, and at least
    PILOTAGE_PATIENCE, which is ten minutes here where it is not set.
    """

    def __init__(self, processes: Processes, batches: Sequence[int], patience: float | None = None):
        self.processes, self.batches, self.patience = processes, batches, patience
        self.least = usual(SILENT)
        self.slowest = 0.0
        self._lost = False  # the store does not answer, and is not asked again
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
        limit = self._limit
        seen, since = -1, time.monotonic()
        while (finished := self._add(_BATCHES, 0)) < len(self.batches):
            self._fail_with_others()
            told(self.pictures())
            if finished != seen:
                seen, since = finished, time.monotonic()
            if time.monotonic() - since > limit:
                raise OthersEnded(f"{len(self.batches) - finished} batches that other processes took have not moved "
                                  f"for {limit:.0f} s; stop them, then the same command does what is left")  # fmt: skip
            time.sleep(0.1)
        told(self.pictures())

    def fail(self, why: str) -> None:
        """Tell the others that this process ends without having done its part. The first one, who serves them, stays
        for a batch, so that they learn it from him."""
        store = self._store
        if store is None or self._lost:
            return
        try:
            if not self._asked(lambda: store.check([_FAILED])):
                self._asked(lambda: store.set(_FAILED, f"process {self.processes.rank}: {why}"))
            ended = self._add(_ENDED, 1)
            limit = time.monotonic() + max(5.0, 2 * self.slowest)
            while self.processes.rank == 0 and ended < self.processes.world and time.monotonic() < limit:
                time.sleep(0.05)
                ended = self._add(_ENDED, 0)
        except OthersEnded:
            return

    def _fail_with_others(self) -> None:
        store = self._store
        if store is None:
            return
        failed = self._asked(lambda: store.check([_FAILED]) and store.get(_FAILED).decode())
        if failed:
            raise OthersEnded(f"another process failed ({failed}); the same command does what is left")

    def _add(self, name: str, count: int) -> int:
        if self._store is None:
            self._alone[name] += count
            return self._alone[name]
        store = self._store
        return int(self._asked(lambda: store.add(name, count)))

    def _asked(self, question: Callable[[], T]) -> T:
        """What the store says. OthersEnded when the first process, who serves it, has ended or does not answer."""
        try:
            return within(self._limit, question, "the first process")
        except OthersEnded:
            self._lost = True
            raise
        except RuntimeError:
            self._lost = True
            raise OthersEnded(_GONE) from None

    @property
    def _limit(self) -> float:
        return self.patience or max(self.least, 20 * self.slowest)


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
