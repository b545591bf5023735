"""Work on threads, results in order. Pillow lets go of the interpreter while it decodes, so threads are enough.

Processes would have to send every decoded picture through a pipe: half as much work again as decoding a PNG, as much
again as a JPEG.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from ...errors import UsageError

Job = TypeVar("Job")
Result = TypeVar("Result")

CHUNK = 8  # jobs a thread takes at once: one thumbnail is less work than handing it over
AHEAD = 2  # chunks a thread may be ahead of the reader


def in_order(jobs: Iterable[Job], work: Callable[[Job], Result], workers: int = 1) -> Iterator[Result]:
    """work(job) for each job, in order. At most about AHEAD * CHUNK * workers results wait.

    workers: threads; with 1 the reading thread works itself. An error comes where its result would have come, also one
    of `jobs` itself.
    """
    if workers < 1:
        raise UsageError(f"workers must be 1 or more, got {workers}; 1 decodes without threads")
    if workers == 1:
        yield from map(work, jobs)
        return
    failed: list[Exception] = []
    chunks = batched(_until_failure(jobs, failed), CHUNK)
    waiting: deque[Future[list[Result | Exception]]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
    try:
        for chunk in chunks:
            waiting.append(pool.submit(_attempts, chunk, work))
            if len(waiting) > AHEAD * workers:
                yield from _unwrapped(waiting.popleft().result())
        while waiting:
            yield from _unwrapped(waiting.popleft().result())
        if failed:
            raise failed[0]
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def batched(things: Iterable[Job], size: int) -> Iterator[list[Job]]:
    """Lists of at most `size`."""
    rest = iter(things)
    while batch := list(itertools.islice(rest, size)):
        yield batch


def _until_failure(jobs: Iterable[Job], failed: list[Exception]) -> Iterator[Job]:
    """The jobs before the first error, which is kept until their results are out."""
    try:
        yield from jobs
    except Exception as error:
        failed.append(error)


def _attempts(jobs: list[Job], work: Callable[[Job], Result]) -> list[Result | Exception]:
    """The results up to the first error, and the error."""
    done: list[Result | Exception] = []
    for job in jobs:
        try:
            done.append(work(job))
        except Exception as error:
            done.append(error)
            break
    return done


def _unwrapped(results: list[Result | Exception]) -> Iterator[Result]:
    for result in results:
        if isinstance(result, Exception):
            raise result
        yield result
