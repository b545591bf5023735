"""Writing so that a file is either whole or not there, and saying in one line when the disk will not have it."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from .errors import UsageError

_NUMBER = re.compile(r"\(os error (\d+)\)")  # safetensors has an error of its own, which says it in its text
PART = ".part"  # a file of this suffix is unfinished and may be deleted


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Turn the disk's refusals into usage errors."""
    try:
        yield
    except OSError as error:
        raise UsageError(_told(error, folder)) from error
    except Exception as error:
        found = _NUMBER.search(str(error))
        if found is None or type(error).__name__ != "SafetensorError":
            raise
        raise UsageError(_told(OSError(int(found[1]), os.strerror(int(found[1]))), folder)) from error


def _told(error: OSError, folder: Path) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk of {folder} is full; free some space, then give the same command again"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{folder} cannot be written to ({error.strerror}); choose another output"
    if error.errno in (errno.ENOTDIR, errno.EEXIST):
        return f"{folder} is not a folder; choose another output"
    return f"cannot write to {folder}: {error.strerror or error}"


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A temporary name to write to; on leaving, the file is on the disk under its own name. On an error it is gone."""
    with wholes([path]) as (part,):
        yield part


@contextmanager
def wholes(paths: Sequence[Path]) -> Iterator[list[Path]]:
    """The same for several files, which wait for the disk together. On an error none of the temporary ones is left."""
    parts = [path.with_name(path.name + PART) for path in paths]
    try:
        yield parts
        _sync(parts)
        for part, path in zip(parts, paths, strict=True):
            part.replace(path)
    except BaseException:
        for part in parts:
            part.unlink(missing_ok=True)
        raise
    for folder in {path.parent for path in paths}:
        _sync_folder(folder)


def _sync(files: Sequence[Path]) -> None:
    """Their content onto the disk. Side by side: a file system takes what waits together in one go."""

    def one(path: Path) -> None:
        with path.open("rb+") as file:
            os.fsync(file.fileno())

    if len(files) == 1:
        one(files[0])
    elif files:
        with ThreadPoolExecutor(min(8, len(files))) as pool:
            list(pool.map(one, files))


def _sync_folder(folder: Path) -> None:
    """The rename itself onto the disk, where the system can."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: Path, text: str) -> None:
    """As UTF-8. Half a surrogate pair, which JSON may hold and UTF-8 may not, is written as JSON writes it."""
    with disk_errors(path.parent), whole(path) as part:
        part.write_text(text, encoding="utf-8", errors="backslashreplace")


def append_line(path: Path, line: str) -> None:
    """A line at the end, on the disk when this returns. A line that did not fit is taken back."""
    with path.open("ab") as file:
        before = file.tell()
        try:
            file.write(line.encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        except OSError:
            os.truncate(path, before)
            raise


def make_folder(folder: Path) -> None:
    """The folder, with a check that it can be written to. A check that was interrupted or killed leaves nothing."""
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            (folder / f".probe-{os.getpid()}{PART}").write_bytes(b"")
        finally:
            for probe in folder.glob(f".probe-*{PART}"):  # processes come here together, and may take each other's
                probe.unlink(missing_ok=True)


def check_space(folder: Path, wanted: int) -> None:
    """Refuse when the disk has not `wanted` bytes left."""
    free = shutil.disk_usage(folder).free
    if free < wanted:
        raise UsageError(
            f"the disk of {folder} has {free / 1e6:.0f} MB left and this run may need {wanted / 1e6:.0f} MB; "
            "free some space, or choose another output"
        )
