"""Scores on hostile days: kills, two at once, disks that are full or read-only, clocks that jump."""

from __future__ import annotations

import io
import json
import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from generation_tools import process
from PIL import Image

from pilotage.errors import UsageError
from pilotage.generation.lock import claimed

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals and locks of POSIX")

SCRIPT = """
import itertools, json, os, random, resource, sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
import accelerate, diffusers, transformers
import pilotage.evaluation.galleries, pilotage.evaluation.report_page, pilotage.generation.page
from worker_groups import Group, calls, marks, until
from pilotage.evaluation import collect, scoring
from pilotage.generation import RunSpec, folder
from pilotage.generation.models import open_model

out, chance, rounds = Path(sys.argv[1]), random.Random(7), json.loads(sys.argv[2])
SIZE = ["--steps", "1", "--threads", "1", "--batch-size", "4"]
COMMANDS = {
    "score": ["score", "embedded:heldout:130", "--real", "embedded:test:130", "--metrics", "frechet,colour", "-o"],
    "stats": ["stats", "embedded:test:130", "-o"],
    "compare": ["compare", "a red star", "--seeds", "0-3", *SIZE, "-x", "guidance=none|cfg", "--metrics", "saturation",
                "-o"],
}
real_fsync = os.fsync
open_model(RunSpec(prompts=["a star"]))  # what it imports is imported once

def place_of(name, kind):
    return out / (f"{name}.npz" if kind == "stats" else name)

def timeless(rank, pause=0.0):
    scoring.environment = lambda *given: {}  # it holds the time that was taken
    def fsync(handle):
        time.sleep(pause)
        real_fsync(handle)
    os.fsync = fsync

def run(name, kind, world=1, prepare=timeless, command=None):
    return Group([*(command or COMMANDS[kind]), str(place_of(name, kind))], world, out / f"{name}-log", 60, prepare)

def killed(name, kind, world, seconds):
    # at any moment of a run, and often while a file waits for the disk
    kills, codes = 0, []
    for turn in range(rounds[kind]):
        group = run(name, kind, world, lambda rank: timeless(rank, 0.05 * (turn % 2)))
        time.sleep(chance.uniform(0.1, 0.9) * seconds)
        victims = [range(world), [0], [world - 1]][turn % 3] if world > 1 else [0]
        for rank in victims:
            group.kill(rank)
        began = time.monotonic()  # launchers end the others; one that has not found the first yet looks for long
        while not all([group.ended(rank) for rank in range(world)]) and time.monotonic() - began < 4:
            time.sleep(0.01)
        for rank in range(world):
            group.kill(rank)
        codes = group.all_codes()
        kills += -9 in codes
    left = sorted(path.name for path in out.rglob(f"{place_of(name, kind).name}*") if path.suffix == ".part")
    group = run(name, kind, world)
    return {"kills": kills, "code": group.all_codes(), "left": left, "survivors": codes}

def timed(name, kind, world=1):
    begun = time.monotonic()
    group = run(name, kind, world)
    assert group.all_codes() == [0] * world, (name, group.codes, [group.said(rank)[-12:] for rank in range(world)])
    return time.monotonic() - begun

def two_at_once(kind, holder, method):
    name = f"{kind}-both"
    slow = lambda rank: setattr(holder, method, marks(out / name, "busy", 0.5)(getattr(holder, method)))
    first = run(name, kind, prepare=slow)
    until(lambda: calls(out / name, "busy", first.pids[0]))
    second = Group([*COMMANDS[kind], str(place_of(name, kind))], 1, out / f"{name}-second")
    return [second.code(0), second.said(0), first.pids[0], first.code(0)]

def quota(kind, bytes_):
    name = f"{kind}-quota"
    def limit(rank):
        timeless(rank)
        resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_, bytes_))
    group = run(name, kind, prepare=limit)
    return [group.code(0), group.said(0), place_of(name, kind).exists()]

def jumping(rank):
    timeless(rank)
    jumps = itertools.cycle((0.0, 4e9, -5e8, 1e9, 1.0))
    real = time.time
    time.time = lambda: real() + next(jumps)
    def fsync(handle):  # what is written is of the next century, or of the last
        real_fsync(handle)
        os.utime(handle, (4e9, 4e9) if chance.random() < 0.5 else (1e8, 1e8))
    os.fsync = fsync

said = {"seconds": {}}
for kind in COMMANDS:
    said["seconds"][kind] = timed(kind, kind)
said["seconds"]["score2"], said["seconds"]["compare2"] = timed("score2", "score", 2), timed("compare2", "compare", 2)
said["told"] = {name: [Path(f"{out}/{name}-log.{which}").read_text() for which in ("0.out", "0.err", "1.out", "1.err")]
                for name in ("score2", "compare2")}
said["killed"] = {
    name: killed(f"{name}-killed", kind, world, said["seconds"][name])
    for name, kind, world in (("score", "score", 1), ("stats", "stats", 1), ("compare", "compare", 1),
                              ("score2", "score", 2))
}
said["both"] = {"score": two_at_once("score", collect._Part, "take"),
                "compare": two_at_once("compare", folder._Run, "_work")}
said["quota"] = {"score": quota("score", 3000), "stats": quota("stats", 3000)}
said["clock"] = [run("score-clock", "score", 2, jumping).all_codes(),
                 run("compare-clock", "compare", 1, jumping).code(0)]
(out / "said").write_text(json.dumps(said))
"""


def hostile_days(out: Path, rounds: dict[str, int]) -> dict[str, Any]:
    child = process(SCRIPT, str(out), json.dumps(rounds), stderr=-1)
    error = child.communicate(timeout=1800)[1]
    assert child.returncode == 0, error[-4000:]
    found: dict[str, Any] = json.loads((out / "said").read_text())
    return found


@pytest.fixture(scope="module", name="hostile")
def _hostile(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("hostile")
    return out, hostile_days(out, {"score": 3, "stats": 2, "compare": 2})


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def timeless(folder: Path) -> dict[str, Any]:
    """A comparison without the seconds that it took, which its sheet says too: pictures by name, and the numbers."""
    held = {name: content for name, content in files(folder).items() if name.endswith(".png")}
    Image.open(io.BytesIO(held.pop("grid.png"))).load()
    told = json.loads((folder / "metrics.json").read_text())
    for cell in told["cells"]:
        del cell["seconds"]
    del told["spec"]["output"]
    assert (folder / "index.html").read_text().rstrip().endswith("</html>")
    return {**held, "told": told}


def same_statistics(a: Path, b: Path) -> None:
    with np.load(a) as first, np.load(b) as second:
        assert first.files == second.files
        for name in first.files:
            assert np.array_equal(first[name], second[name]), name


def all_as_calm(out: Path, said: dict[str, Any]) -> None:
    for name, told in said["killed"].items():
        assert told["kills"] and set(told["code"]) == {0}, (name, told)
    assert files(out / "score-killed") == files(out / "score")
    assert files(out / "score2-killed") == files(out / "score2")
    assert set(files(out / "score")) == {"metrics.json", "report.html"}
    same_statistics(out / "stats-killed.npz", out / "stats.npz")
    assert timeless(out / "compare-killed") == timeless(out / "compare")
    assert not [path for path in out.rglob("*") if path.suffix in (".part", ".lock")]


def test_killed_at_random_moments_it_ends_as_if_nothing_had_been(hostile: tuple[Path, dict[str, Any]]) -> None:
    all_as_calm(*hostile)


@pytest.mark.full
def test_killed_many_times(tmp_path: Path) -> None:
    said = hostile_days(tmp_path, {"score": 25, "stats": 15, "compare": 25})
    all_as_calm(tmp_path, said)
    assert sum(told["kills"] for told in said["killed"].values()) > 30


def test_two_processes_write_and_speak_once(hostile: tuple[Path, dict[str, Any]]) -> None:
    out, said = hostile
    values = {name: {r["name"]: r["value"] for r in json.loads((out / name / "metrics.json").read_text())["results"]}
              for name in ("score", "score2")}  # fmt: skip
    assert values["score2"] == pytest.approx(values["score"], rel=1e-9)
    assert timeless(out / "compare2") == timeless(out / "compare")
    for name in ("score2", "compare2"):
        told, notes, other, other_notes = said["told"][name]
        assert f"{out / name}" in told and other == "", "the table and the files, by the first process"
        assert other_notes == "" and "error" not in notes


@pytest.mark.parametrize("kind", ["score", "compare"])
def test_two_at_once(hostile: tuple[Path, dict[str, Any]], kind: str) -> None:
    out, said = hostile
    code, told, pid, first = said["both"][kind]
    assert code == 2 and told == [
        f"error: process {pid} on {socket.gethostname()} works in {out / f'{kind}-both'} already; wait, or choose "
        "another output"
    ]
    assert first == 0 and (out / f"{kind}-both" / "metrics.json").is_file()


@pytest.mark.parametrize("kind", ["score", "stats"])
def test_files_that_may_not_grow(hostile: tuple[Path, dict[str, Any]], kind: str) -> None:
    out, said = hostile
    code, told, left = said["quota"][kind]
    assert code == 2 and not left and not [*out.glob("*.part"), *out.glob("*.lock")]
    assert [line for line in told if line.startswith("error: ")] == told[-1:] and told[-1].endswith("File too large")


def test_clocks_that_jump(hostile: tuple[Path, dict[str, Any]]) -> None:
    """Backwards and by a hundred years at every look, and files of other centuries."""
    out, said = hostile
    assert said["clock"] == [[0, 0], 0]
    assert files(out / "score-clock") == files(out / "score2")
    assert timeless(out / "compare-clock") == timeless(out / "compare")


# -- disks ----------------------------------------------------------------------------------------------------


@pytest.fixture(name="small_disk")
def _small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 kB, where this system lets us have one."""
    place = tmp_path / "disk"
    place.mkdir()
    if (
        os.geteuid()
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", place], check=False).returncode
    ):
        pytest.skip("mounting needs rights")
    yield place
    subprocess.run(["umount", place], check=True)


def _score(output: Path, *more: str) -> int:
    from generation_tools import pilotage

    return pilotage("score", "embedded:heldout:40", "--real", "embedded:test:40", "--metrics", "colour", "-o",
                    str(output), *more)  # fmt: skip


def test_a_full_disk(small_disk: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert _score(small_disk / "scores") == 0
    before = files(small_disk / "scores")
    filler = small_disk / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while file.write(b"x" * 512):
                pass
        except OSError:
            pass
    capfd.readouterr()
    assert _score(small_disk / "scores") == 2
    told = capfd.readouterr().err.splitlines()
    assert [line for line in told if line.startswith("error: ")] == told[-1:] and "is full; free some space" in told[-1]
    assert files(small_disk / "scores") == before, "the old files stay, and no half one is left"
    filler.unlink()
    assert _score(small_disk / "scores") == 0


def test_a_disk_that_is_read_only(small_disk: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert _score(small_disk / "scores") == 0
    before = files(small_disk)
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    capfd.readouterr()
    for output in (small_disk / "scores", small_disk / "new", small_disk / "one.json"):
        assert _score(output) == 2
        (told,) = capfd.readouterr().err.splitlines()
        assert told.startswith("error: ") and "cannot be written to (Read-only file system)" in told
    assert files(small_disk) == before


def test_a_folder_that_was_made_for_nothing_goes_again(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="boom"), claimed(tmp_path / "new"):
        assert [path.name for path in (tmp_path / "new").iterdir()] == ["run.lock"]
        raise UsageError("boom")
    assert not (tmp_path / "new").exists()
    (tmp_path / "old").mkdir()
    with claimed(tmp_path / "old"), claimed(tmp_path / "old", "a.json.lock"):
        with pytest.raises(UsageError, match="already"), claimed(tmp_path / "old", "a.json.lock"):
            pass
        (tmp_path / "new").mkdir()
    assert (tmp_path / "old").is_dir()
