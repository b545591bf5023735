"""Hostile days: kills, signals, two runs at once, full and lying disks, clocks that jump, too little memory."""

from __future__ import annotations

import errno
import json
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from forking_tools import forked
from generation_tools import process, tiny_settings, tiny_spec

from pilotage.errors import UsageError
from pilotage.generation import folder as run_folder
from pilotage.generation import manifest, read_png, run
from pilotage.generation.lock import LOCK, Holder, holder_of, locked
from pilotage.generation.models import Loaded, open_model
from pilotage.generation.pictures import Generation, Watch, generate, is_out_of_memory
from pilotage.generation.run_log import read_log

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals and locks of POSIX")


@pytest.fixture(scope="module")
def model() -> Loaded:
    return open_model(tiny_spec())


@pytest.fixture(scope="module")
def finished(model: Loaded, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    assert run(tiny_spec(output=str(folder)), model=model).made == 6
    return folder


@pytest.fixture(scope="module")
def by_one(model: Loaded) -> list[bytes]:
    """The pictures of a run whose batches have one picture each."""
    return [sample.image.tobytes() for sample in generate(tiny_spec(batch_size=1), model=model)]


def held(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.png"))}


def indices(folder: Path) -> list[int]:
    return [json.loads(line)["index"] for line in (folder / manifest.MANIFEST).read_text().splitlines()]


# -- kills and signals, in processes of their own -------------------------------------------------------------

SCRIPT = """
import json, os, random, resource, signal, sys, time
import torch
torch.set_num_threads(1)
from pilotage.cli.main import run as command
from pilotage.generation import RunSpec, folder
from pilotage.generation.models import open_model
from pilotage.generation.pictures import Generation

settings, out = json.loads(sys.argv[1]), sys.argv[2]
model = open_model(RunSpec(**settings))
real = Generation._made

def forked(work):
    child = os.fork()
    if child:
        return child
    try:
        code = work()
    except BaseException as error:
        print(type(error).__name__, error, file=sys.stderr)
        code = 1
    sys.stdout.flush()
    os._exit(code or 0)

def code_of(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

def slow(generation, part):
    for _ in range(40):
        time.sleep(0.02)
    return real(generation, part)

def until(happened, limit=30):
    begun = time.monotonic()
    while not happened():
        assert time.monotonic() - begun < limit
        time.sleep(0.005)

def killed_again_and_again(seed):  # each time after up to three more pictures and a moment
    spec = RunSpec(**settings | {"output": f"{out}/killed", "batch_size": 1, "seeds": "0-9"})
    chance, kills, manifest = random.Random(seed), 0, f"{out}/killed/manifest.jsonl"
    lines = lambda: open(manifest, "rb").read().count(b"\\n") if os.path.exists(manifest) else 0
    Generation._made = lambda generation, part: (time.sleep(0.02), real(generation, part))[1]
    while True:
        wanted = lines() + chance.randint(0, 3)
        child = forked(lambda: folder.run(spec, model=model) and 0)
        while lines() < wanted and not os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            time.sleep(0.001)
        time.sleep(chance.uniform(0, 0.03))
        os.kill(child, signal.SIGKILL)
        if code_of(child) == 0:
            Generation._made = real
            return kills
        kills += 1

def signalled(name, *signals):
    Generation._made = slow
    size = ["--width", "16", "--height", "16", "--threads", "1", "--steps", "2"]
    flags = [*size, "--batch-size", "1", "--seeds", "0-3", "-o", f"{out}/{name}"]
    def work():
        os.dup2(os.open(f"{out}/{name}.err", os.O_CREAT | os.O_WRONLY), 2)
        return command(["generate", "a red star", "--model", settings["model"], *flags])
    child = forked(work)
    until(lambda: os.path.exists(f"{out}/{name}/log.jsonl"))
    time.sleep(0.1)
    for number in signals:
        os.kill(child, number)
        time.sleep(0.1)
    code = code_of(child)
    Generation._made = real
    return code, open(f"{out}/{name}.err").read()

def quota():
    def work():
        resource.setrlimit(resource.RLIMIT_FSIZE, (1200, 1200))
        os.dup2(os.open(f"{out}/quota.err", os.O_CREAT | os.O_WRONLY), 2)
        return command(["generate", "a red star", "--model", settings["model"], "--steps", "1", "-o", f"{out}/quota"])
    return code_of(forked(work)), open(f"{out}/quota.err").read()

def two_at_once():
    Generation._made = slow
    spec = RunSpec(**settings | {"output": f"{out}/both"})
    first = forked(lambda: folder.run(spec, model=model) and 0)
    until(lambda: os.path.exists(f"{out}/both/log.jsonl"))
    try:
        folder.run(spec, model=model)
        told = "nothing"
    except Exception as error:
        told = f"{type(error).__name__}: {error}"
    os.kill(first, signal.SIGKILL)
    code_of(first)
    Generation._made = real
    left = os.path.exists(f"{out}/both/run.lock")
    return told, first, left, folder.run(spec, model=model).made

said = {
    "kills": killed_again_and_again(5),
    "both": two_at_once(),
    "once": signalled("once", signal.SIGINT),
    "term": signalled("term", signal.SIGTERM),
    "quota": quota(),
    "twice": signalled("twice", signal.SIGINT, signal.SIGINT),
}
open(f"{out}/said", "w").write(json.dumps(said))
"""


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("hostile")
    code, _, error = forked(SCRIPT, json.dumps(tiny_settings()), str(out))
    assert code == 0, error[-4000:]
    return out, json.loads((out / "said").read_text())


def test_killed_at_random_moments_it_ends_as_if_nothing_had_been(
    hostile: tuple[Path, dict[str, Any]], model: Loaded, tmp_path: Path
) -> None:
    out, said = hostile
    assert said["kills"] >= 3, "of twenty pictures, each kill lets six go by at the most"
    run(tiny_spec(output=str(tmp_path / "calm"), batch_size=1, seeds="0-9"), model=model)
    assert held(out / "killed") == held(tmp_path / "calm") and len(held(out / "killed")) == 20
    assert sorted(set(indices(out / "killed"))) == list(range(20))
    assert {path.suffix for path in (out / "killed").iterdir()} <= {".png", ".yaml", ".jsonl"}


def test_two_runs_in_one_folder(hostile: tuple[Path, dict[str, Any]]) -> None:
    out, said = hostile
    told, first, left, made = said["both"]
    assert told.startswith(f"UsageError: process {first} on {socket.gethostname()} works in {out / 'both'} already")
    assert left, "a killed process leaves its file"
    assert made == 6, "and it does not hold the folder"
    assert not (out / "both" / LOCK).exists()


@pytest.mark.parametrize("name", ["once", "term"])
def test_a_first_signal_lets_the_batch_end(hostile: tuple[Path, dict[str, Any]], name: str) -> None:
    out, said = hostile
    code, told = said[name]
    assert code == 130 and len(held(out / name)) == 1
    assert told.splitlines() == [
        "stopping after this batch; again to stop at once",
        "stopped; the same command resumes",
    ]
    assert [line["event"] for line in read_log(out / name)] == ["begin", "stopped"] and indices(out / name) == [0]


def test_a_second_signal_ends_at_once(hostile: tuple[Path, dict[str, Any]]) -> None:
    out, said = hostile
    code, told = said["twice"]
    assert code == 130 and "the same command resumes" in told
    assert not (out / "twice").exists(), "nothing was made, so nothing is left"


# -- the lock -------------------------------------------------------------------------------------------------


def test_a_lock_says_who_holds_it_and_goes_with_him(tmp_path: Path) -> None:
    assert holder_of(tmp_path) is None
    with locked(tmp_path):
        assert holder_of(tmp_path) == Holder.here()
        with pytest.raises(UsageError, match=rf"process {os.getpid()} on .* works in .* already"), locked(tmp_path):
            pass
        assert (tmp_path / LOCK).exists(), "who was refused takes nothing away"
    assert holder_of(tmp_path) is None and not (tmp_path / LOCK).exists()


def test_a_lock_that_is_given_up_while_one_takes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its file is gone when we hold it, and somebody may have made another: ours would lock nobody out."""
    from pilotage.generation import lock

    real, calls = lock._try, []

    def given_up(handle: int, shared: bool = False) -> bool | None:
        calls.append(handle)
        if len(calls) == 1:
            (tmp_path / LOCK).unlink()
        return real(handle, shared)

    monkeypatch.setattr(lock, "_try", given_up)
    with locked(tmp_path):
        assert len(calls) == 2 and holder_of(tmp_path) == Holder.here()


def test_what_another_run_finished_meanwhile_is_not_made_again(
    tmp_path: Path, model: Loaded, monkeypatch: pytest.MonkeyPatch, finished: Path
) -> None:
    """Between the first look and the lock."""
    folder, real = tmp_path / "run", run_folder.look_at

    def look(*given: Any) -> Any:
        found = real(*given)
        shutil.copytree(finished, folder)
        return found

    monkeypatch.setattr(run_folder, "look_at", look)
    done = run(tiny_spec(output=str(folder)), model=model)
    assert done.made == 0 and sorted(done.items) == list(range(6))


def _dead() -> int:
    child = process("", stdout=-3)
    child.wait(60)
    return child.pid


@pytest.mark.parametrize(
    ("holder", "free"),
    [
        (lambda: {"pid": _dead(), "host": socket.gethostname()}, True),
        (lambda: {"pid": os.getppid(), "host": socket.gethostname()}, False),
        (lambda: {"pid": 1, "host": "elsewhere"}, False),
        (lambda: "half a li", True),
    ],
)
def test_where_the_disk_knows_no_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, holder: Callable[[], Any], free: bool
) -> None:
    from pilotage.generation import lock

    monkeypatch.setattr(lock, "_try", lambda handle, shared=False: None)
    (tmp_path / LOCK).write_text(json.dumps(holder()))
    if free:
        with locked(tmp_path):
            assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
    else:
        assert holder_of(tmp_path) is not None
        with pytest.raises(UsageError, match="works in"), locked(tmp_path):
            pass


# -- disks ----------------------------------------------------------------------------------------------------


def test_no_room_for_lines(tmp_path: Path, model: Loaded, monkeypatch: pytest.MonkeyPatch, finished: Path) -> None:
    """Pictures fit and their lines do not: they are not said to be done, and are made again."""
    real, lines = os.fsync, tmp_path / "run" / manifest.MANIFEST

    def full(handle: int) -> None:
        if lines.exists() and os.path.samestat(os.fstat(handle), lines.stat()) and len(indices(tmp_path / "run")) == 6:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    monkeypatch.setattr(os, "fsync", full)
    spec = tiny_spec(output=str(tmp_path / "run"))
    with pytest.raises(UsageError, match="is full; free some space, then give the same command again"):
        run(spec, model=model)
    assert indices(tmp_path / "run") == [0, 1, 2, 3] and len(held(tmp_path / "run")) == 6
    last = read_log(tmp_path / "run")[-1]
    assert last["event"] == "failed" and "is full" in last["why"]
    monkeypatch.setattr(os, "fsync", real)
    assert run(spec, model=model).made == 2 and held(tmp_path / "run") == held(finished)


def test_a_file_that_may_not_grow(hostile: tuple[Path, dict[str, Any]], model: Loaded, finished: Path) -> None:
    """A quota: the system itself refuses the write."""
    out, said = hostile
    code, told = said["quota"]
    assert code == 2 and told.splitlines() == [f"error: cannot write to {out / 'quota'}: File too large"]
    assert not (out / "quota").exists()


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_a_folder_that_cannot_be_written_to(
    tmp_path: Path, model: Loaded, monkeypatch: pytest.MonkeyPatch, finished: Path, number: int
) -> None:
    def refuse(path: Path, content: bytes) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "write_bytes", refuse)
    with pytest.raises(UsageError, match=r"cannot be written to .*; choose another output"):
        run(tiny_spec(output=str(tmp_path)), model=model)
    assert not list(tmp_path.iterdir())
    assert run(tiny_spec(output=str(finished)), model=model).made == 0, "a finished run is only read"


def test_files_that_lie(tmp_path: Path, model: Loaded, finished: Path) -> None:
    """Each is found out or passed over; the run ends as if nothing had been."""
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    whole = held(folder)
    (folder / "000000.png").write_bytes(b"")  # empty
    written = (folder / "000001.png").stat().st_mtime_ns
    (folder / "000001.png").write_bytes(whole["000001.png"][:-40])  # half, with the time of the whole
    os.utime(folder / "000001.png", ns=(written, written))
    (folder / "000002.png").write_bytes(whole["000002.png"][:-40] + b"\0" * 40)  # zeros, as after a power cut
    (folder / "000003.png").write_bytes(whole["000004.png"])  # another's
    (folder / "000004.png.part").write_bytes(b"half")
    lines = [*(folder / manifest.MANIFEST).read_text().splitlines()]
    strange = ["", "{", "[]", "7", "null", '"x"', '{"index": "5"}', '{"index": -1}', '{"index": 99, "file": "x"}']
    strange += ['{"index": 4, "file": "../../etc/passwd", "bytes": 1, "sha256": "", "changed": 1}', "\ufeff\u2028"]
    (folder / manifest.MANIFEST).write_text("\n".join([*strange, *lines, '{"index": 5, "fi']))
    with (folder / manifest.MANIFEST).open("ab") as file:
        file.write(b"\xff\xfe\x00")
    assert sorted(manifest.finished_items(folder, 6)) == [4, 5]
    assert run(tiny_spec(output=str(folder)), model=model).made == 4
    assert held(folder) == whole and not list(folder.glob("*.part"))
    assert sorted(set(indices(folder))) == list(range(6)), "every line can be read again"


def test_nothing_depends_on_the_clock(tmp_path: Path, model: Loaded, finished: Path) -> None:
    """Pictures of the year 1980 and of 2100, touched or copied, are those that they were."""
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    for index, year in enumerate((1980, 2100, 1990, 2090, 2000, 2026)):
        os.utime(folder / f"{index:06d}.png", ((year - 1970) * 3.15e7,) * 2)
    assert run(tiny_spec(output=str(folder)), model=model).made == 0
    (folder / "000003.png").unlink()
    assert run(tiny_spec(output=str(folder)), model=model).made == 1 and held(folder) == held(finished)


def test_a_run_file_that_cannot_be_read_is_said(tmp_path: Path, model: Loaded, finished: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    for content in (b"\xff\xfe", b"spec: [", b"- 1", b"spec: 5", b""):
        (folder / "run.yaml").write_bytes(content)
        with pytest.raises(UsageError, match=r"run\.yaml cannot be read"):
            run(tiny_spec(output=str(folder)), model=model)


# -- memory ---------------------------------------------------------------------------------------------------


def _too_small(monkeypatch: pytest.MonkeyPatch, most: int, error: Exception) -> list[int]:
    """A device that holds so many pictures at once; what was tried."""
    tried: list[int] = []
    real = Generation._made

    def made(self: Generation, part: Any) -> Any:
        tried.append(len(part))
        if len(part) > most:
            raise error
        return real(self, part)

    monkeypatch.setattr(Generation, "_made", made)
    return tried


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried"),
    ],
)
def test_a_batch_that_does_not_fit_is_halved(
    tmp_path: Path, model: Loaded, by_one: list[bytes], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    tried = _too_small(monkeypatch, 1, error)
    done = run(tiny_spec(output=str(tmp_path / "run")), model=model)
    assert tried == [4, 2, 1, 1, 1, 1, 1, 1], "tried again with fewer, and remembered"
    assert [note.partition(",")[0] for note in done.notes] == [
        "out of memory with 4 pictures in a batch", "out of memory with 2 pictures in a batch"
    ]  # fmt: skip
    assert [line["event"] for line in read_log(tmp_path / "run")] == ["begin", "memory", "memory", "done"]
    record, picture = read_png(tmp_path / "run" / "000003.png")
    assert record.batch.pictures == 1, "each picture says with how many it was made"
    assert [read_png(file)[1].tobytes() for file in done.files] == by_one
    assert picture.tobytes() == by_one[3]


def test_a_batch_of_three_in_portions_of_two(model: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = _too_small(monkeypatch, 2, torch.OutOfMemoryError("out of memory"))
    said: list[str] = []
    samples = list(generate(tiny_spec(batch_size=5), model=model, only=[3, 4, 5], watch=Watch(said=said.append)))
    assert [s.index for s in samples] == [3, 4, 5] and len(said) == 1
    assert tried == [5, 2, 1, 1], "halves begin where the batch begins, and those that nobody wants are not made"


def test_what_cannot_be_halved_says_so(tmp_path: Path, model: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    _too_small(monkeypatch, 0, torch.OutOfMemoryError("out of memory"))
    with pytest.raises(UsageError, match=r"exact mode cannot halve it.*smaller batch_size"):
        run(tiny_spec(output=str(tmp_path / "exact"), exact=True), model=model)
    with pytest.raises(UsageError, match=r"a single picture; give --memory auto"):
        run(tiny_spec(output=str(tmp_path / "one")), model=model)
    assert not list(tmp_path.iterdir()), "nothing was made, so nothing is left"


def test_other_errors_are_not_taken_for_it(tmp_path: Path, model: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    _too_small(monkeypatch, 0, RuntimeError("shapes"))
    with pytest.raises(RuntimeError, match="shapes"):
        run(tiny_spec(output=str(tmp_path / "run")), model=model)


def test_a_picture_is_never_half(tmp_path: Path, model: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped at every single call that writes: what is named in the manifest is there, whole."""
    real = {name: getattr(os, name) for name in ("fsync", "replace", "rename")}
    for stop in range(1, 12):
        folder, calls = tmp_path / str(stop), [0]

        def stopped(name: str, stop: int = stop, calls: list[int] = calls) -> Callable[..., Any]:
            def call(*given: Any, **more: Any) -> Any:
                calls[0] += 1
                if calls[0] == stop:
                    raise KeyboardInterrupt
                return real[name](*given, **more)

            return call

        spec = tiny_spec(output=str(folder), prompts=["x"], seeds="0-2", steps=1)
        with monkeypatch.context() as patched:
            for name in real:
                patched.setattr(os, name, stopped(name))
            with pytest.raises(KeyboardInterrupt):
                run(spec, model=model)
        for item in manifest.finished_items(folder, 3).values():
            read_png(folder / item["file"])
        assert not list(folder.glob("*.part"))
        assert run(spec, model=model).made and len(held(folder)) == 3


def test_the_log_is_not_what_a_run_ends_with(tmp_path: Path, model: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the disk takes no line of the log any more, the error is still the one that ended the run."""

    def refuse(*given: Any, **more: Any) -> None:
        raise OSError(errno.ENOSPC, "full")

    def fail(*given: Any) -> None:
        monkeypatch.setattr("pilotage.generation.run_log.append_line", refuse)
        raise RuntimeError("boom")

    monkeypatch.setattr(run_folder, "save", fail)
    with pytest.raises(RuntimeError, match="boom"):
        run(tiny_spec(output=str(tmp_path / "run")), model=model)
