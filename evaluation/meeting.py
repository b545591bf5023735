"""Processes that wait for one another: however long somebody works, and only so long for one that has gone silent.

While a process works, a thread of it answers the others every few seconds. Work may take hours, then; a process that
is stopped, or whose machine has hung, stops answering, and one that has ended closes its connection. What is told here
goes through the computer's memory and not through a GPU's, by a group of connections of its own (gloo).
"""

from __future__ import annotations

import functools
import math
import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

from ..errors import UsageError

T = TypeVar("T")
PATIENCE = "PILOTAGE_PATIENCE"  # in the environment: seconds
USUAL = 1800.0
_EVERY = 2.0  # seconds between two answers of a process that works, at the most


class OthersEnded(UsageError):
    """Another process has ended, or gone silent, without having done its part."""


def patience(usual: float = USUAL) -> float:
    """Seconds that a silent process is waited for: PILOTAGE_PATIENCE where it is set. Errors: no number above 0."""
    said = os.environ.get(PATIENCE, "")
    if not said:
        return usual
    try:
        seconds = float(said)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < 1e8:
        raise UsageError(f"{PATIENCE}={said!r} is no number of seconds; write for example {PATIENCE}=600")
    return seconds


@functools.cache
def group() -> Any:
    """Of all processes. Every one of them makes it at the same time, by asking for the first time."""
    from torch.distributed import new_group

    with answered():
        return new_group(backend="gloo", timeout=timedelta(seconds=patience()))


@contextmanager
def answered() -> Iterator[None]:
    """Says in one line that another process did not answer, or has ended, where torch has a page for it."""
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if not isinstance(error, _errors_of_torch()) and "/gloo/" not in text:
            raise
        if "timed out" in text.lower() or "timeout" in text.lower():
            raise OthersEnded(silent("another process")) from None
        what = re.sub(r"^\[.*?\] ", "", text.splitlines()[0]).split(". ")[0]  # without the place in gloo's code
        raise OthersEnded("another process has ended, and its own message says why, if it was not killed; then give "
                          f"the same command again ({what:.200})") from None  # fmt: skip


def _errors_of_torch() -> type[Exception]:
    from torch.distributed import DistError

    return DistError


def within(seconds: float, ask: Callable[[], T], who: str) -> T:
    """What ask() gives. OthersEnded when it takes longer: a question to the store of a process that was stopped has no
    end of its own."""
    found: list[tuple[T | None, BaseException | None]] = []

    def go() -> None:
        try:
            found.append((ask(), None))
        except BaseException as error:
            found.append((None, error))

    thread = threading.Thread(target=go, name="pilotage-asks", daemon=True)
    thread.start()
    thread.join(seconds)
    if not found:
        raise OthersEnded(silent(who, seconds))
    answer, error = found[0]
    if error is not None:
        raise error
    return answer  # type: ignore[return-value]


def silent(who: str, seconds: float | None = None) -> str:
    """What is said of a process that does not answer."""
    return (f"{who} has not answered for {seconds or patience():.0f} s (set {PATIENCE}=SECONDS to wait longer); stop "
            "all of them, then give the same command again")  # fmt: skip


def met(make: Callable[[], T]) -> T:
    """What make() gives, once every process has come to the end of its own. OthersEnded when one is gone or silent."""
    done, stopped, failed = threading.Event(), threading.Event(), list[Exception]()
    every = min(_EVERY, patience() / 10)

    def answer() -> None:
        try:
            with answered():
                while not stopped.is_set() and not _all_are(done.is_set()):
                    done.wait(every)
        except Exception as error:
            failed.append(error)

    group()  # here, and not in the thread
    thread = threading.Thread(target=answer, name="pilotage-answers", daemon=True)
    thread.start()
    try:
        made = make()
        done.set()
        thread.join()
    except BaseException:  # such as Ctrl-C: one that has ended does not answer
        stopped.set()
        raise
    if failed:
        raise failed[0]
    return made


def _all_are(done: bool) -> bool:
    """Is that so on every process?"""
    import torch
    from torch.distributed import ReduceOp, all_reduce

    flag = torch.tensor([int(done)])
    all_reduce(flag, ReduceOp.MIN, group=group())
    return bool(flag)
