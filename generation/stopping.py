"""Ctrl-C once: finish the batch at hand. Twice: at once. SIGTERM, as schedulers send it, is as Ctrl-C."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_TOGETHER = 2.0  # seconds: launchers of several processes pass on the signal that the terminal has sent already


@contextmanager
def patient(several: bool = False) -> Iterator[Callable[[], bool]]:
    """Inside, a first signal is only remembered: the function that this gives says whether there was one. A second one
    raises KeyboardInterrupt. Outside the main thread signals are left as they are.

    several: signals that come within two seconds of the first are the same one.
    """
    first: list[float] = []

    def heard(number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not first:
            first.append(now)
            print("stopping after this batch; again to stop at once", file=sys.stderr, flush=True)
        elif not several or now - first[0] > _TOGETHER:
            raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before: dict[signal.Signals, Any] = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        for number in before:
            signal.signal(number, heard)
        yield lambda: bool(first)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
