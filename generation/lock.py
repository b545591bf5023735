"""One writer a run folder. The lock belongs to the process and goes with it, however it ends.

    run.lock    who works here: process, host, since when; there while somebody does

The kernel keeps the lock (`flock`), so that nothing has to be cleaned up after a kill. On file systems without locks,
and where there is no flock, the file is believed as long as its process lives, or when it is of another host.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..documents import plain_json
from ..errors import UsageError
from ..storage import disk_errors, make_folder

LOCK = "run.lock"
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


@dataclass(frozen=True)
class Holder:
    """A process that works in a folder."""

    pid: int
    host: str

    @classmethod
    def here(cls) -> Holder:
        return cls(os.getpid(), socket.gethostname())

    @property
    def may_live(self) -> bool:
        """Of another host nothing is known."""
        return self.host != socket.gethostname() or (self.pid != os.getpid() and _is_alive(self.pid))

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


@contextmanager
def locked(folder: Path, name: str = LOCK) -> Iterator[None]:
    """Hold the folder, which must be there, or what that lock in it stands for. UsageError where somebody else does."""
    with disk_errors(folder):
        handle = _acquired(folder / name)
    try:
        yield
    finally:
        with suppress(OSError):  # unlinked while it is held: whoever has it open already will see that it is gone
            (folder / name).unlink()
        os.close(handle)


@contextmanager
def claimed(folder: Path, name: str = LOCK) -> Iterator[None]:
    """Make the folder and hold it; a folder that is still empty at the end goes again, if it was made here."""
    existed = folder.exists()
    make_folder(folder)
    try:
        with locked(folder, name):
            yield
    finally:
        if not existed:
            with suppress(OSError):
                folder.rmdir()


def holder_of(folder: Path) -> Holder | None:
    """Who works in a folder now, if anybody does; nothing is changed."""
    try:
        handle = os.open(folder / LOCK, os.O_RDONLY)
    except OSError:
        return None
    try:
        held = _try(handle, shared=True)
        found = _read(handle)
    finally:
        os.close(handle)
    if held is None:
        return found if found and found.may_live else None
    return None if held else found or Holder(0, "an unknown host")


def _acquired(path: Path) -> int:
    tries = 5  # somebody who looks holds it for a moment
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            held, before = _try(handle), _read(handle)
            again = held is False and (tries := tries - 1) > 0
            if not again and (held is False or (held is None and before and before.may_live)):
                raise UsageError(
                    f"{before or 'another process'} works in {path.parent} already; wait, or choose another output"
                )
            if not again and _is_at(handle, path):
                _sign(handle, path)
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)  # the one who had it left while we came: its file is gone, the next try makes another
        if again:
            time.sleep(0.02)


def _sign(handle: int, path: Path) -> None:
    """Write down who holds it; on a full disk it goes again."""
    try:
        os.truncate(handle, 0)
        os.pwrite(handle, json.dumps(asdict(Holder.here())).encode(), 0)
    except OSError:
        path.unlink()
        raise


def _try(handle: int, shared: bool = False) -> bool | None:
    """Lock an open file. None where this system or file system knows no locks."""
    try:
        import fcntl
    except ImportError:
        return None
    try:
        fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return None
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        raise
    return True


def _is_at(handle: int, path: Path) -> bool:
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(handle), path.stat())
    return False


def _read(handle: int) -> Holder | None:
    try:
        found: Any = plain_json(os.pread(handle, 4096, 0))
        pid, host = found["pid"], found["host"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return Holder(pid, str(host)) if type(pid) is int and 0 < pid < 2**31 else None


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
