"""Groups of processes that run commands of ours, for tests that stop and kill some of them.

A program of its own imports everything once and then forks the workers of each group.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

LIMIT = 120.0  # seconds, after which a test has failed


class Group:
    """Workers that run one command line, as a launcher would start them. Said on stderr: `<out>.<rank>.err`.

    prepare(rank): called in each worker before the command.
    """

    def __init__(
        self, command: Sequence[str], world: int, out: Path, patience: float | None = None,
        prepare: Callable[[int], None] = lambda rank: None,
    ):  # fmt: skip
        self.out, self.world = out, world
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        self.pids = [self._fork(rank, port, command, patience, prepare) for rank in range(world)]
        self.codes: dict[int, int] = {}

    def _fork(
        self, rank: int, port: int, command: Sequence[str], patience: float | None, prepare: Callable[[int], None]
    ) -> int:
        pid = os.fork()
        if pid:
            return pid
        code = 99
        try:
            for stream, kind in ((1, "out"), (2, "err")):
                os.dup2(os.open(f"{self.out}.{rank}.{kind}", os.O_CREAT | os.O_WRONLY | os.O_TRUNC), stream)
            if self.world > 1:
                ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": self.world, "LOCAL_WORLD_SIZE": self.world}
                where = {"MASTER_ADDR": "localhost", "MASTER_PORT": port, "ACCELERATE_USE_CPU": "true"}
                os.environ.update({name: str(value) for name, value in (ranks | where).items()})
            if patience is not None:
                os.environ["PILOTAGE_PATIENCE"] = str(patience)
            prepare(rank)
            code = _command(command)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def stop(self, rank: int) -> None:
        if not self.ended(rank):
            os.kill(self.pids[rank], signal.SIGSTOP)

    def kill(self, rank: int) -> None:
        if rank not in self.codes:
            os.kill(self.pids[rank], signal.SIGKILL)

    def ended(self, rank: int) -> bool:
        """Has it? Its exit code is in `codes` then, a signal as a negative number."""
        if rank not in self.codes:
            found, status = os.waitpid(self.pids[rank], os.WNOHANG)
            if found:
                self.codes[rank] = os.waitstatus_to_exitcode(status)
        return rank in self.codes

    def code(self, rank: int) -> int:
        until(lambda: self.ended(rank))
        return self.codes[rank]

    def all_codes(self) -> list[int]:
        return [self.code(rank) for rank in range(self.world)]

    def said(self, rank: int, kind: str = "err") -> list[str]:
        return Path(f"{self.out}.{rank}.{kind}").read_text().splitlines()


def _command(command: Sequence[str]) -> int:
    """As an interpreter would run it and end."""
    import atexit

    from pilotage.cli.main import run

    try:
        code = run(list(command))
    except BaseException:
        traceback.print_exc()
        code = 1
    atexit._run_exitfuncs()
    return code


def until(happened: Callable[[], bool], limit: float = LIMIT) -> float:
    """Seconds that it took."""
    begun = time.monotonic()
    while not happened():
        if time.monotonic() - begun > limit:
            raise AssertionError("it did not happen")
        time.sleep(0.005)
    return time.monotonic() - begun


def marks(place: Path, name: str, pause: float = 0.0) -> Callable[[Callable[..., object]], Callable[..., object]]:
    """A function that first leaves a file `<place>.<name>.<pid>` of as many bytes as it was called, and rests."""

    def around(real: Callable[..., object]) -> Callable[..., object]:
        def called(*given: object, **more: object) -> object:
            with Path(f"{place}.{name}.{os.getpid()}").open("ab") as file:
                file.write(b".")
            time.sleep(pause)
            return real(*given, **more)

        return called

    return around


def calls(place: Path, name: str, pid: int) -> int:
    """How often that process has called what `marks` marks."""
    found = Path(f"{place}.{name}.{pid}")
    return found.stat().st_size if found.exists() else 0
