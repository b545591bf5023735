"""Several processes make the pictures of one: the same bytes, each picture once, whatever their number."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from forking_tools import forked

from pilotage.errors import UsageError
from pilotage.evaluation.processes import Processes
from pilotage.generation import RunSpec, run
from pilotage.generation.dealing import Dealer
from pilotage.generation.manifest import MANIFEST, finished_items, gather, manifests
from pilotage.generation.run_log import read_log

SETTINGS: dict[str, Any] = dict(
    prompts=["two red stars on navy", "a green ring"], seeds="0-6", steps=2, batch_size=3, threads=1, guidance="cfg"
)
SCRIPT = """
import json, os, socket, sys, torch
torch.set_num_threads(1)
import accelerate, diffusers, transformers
from diffusers import StableDiffusionPipeline
from pilotage.evaluation.processes import Processes
from pilotage.generation import RunSpec
from pilotage.generation import folder as place
from pilotage.generation.dealing import Dealer
from pilotage.generation.models import open_model

settings, world, out = json.loads(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
with socket.socket() as free:
    free.bind(("localhost", 0))
    port = free.getsockname()[1]
model, children = open_model(RunSpec(**settings)), []
for rank in range(world):  # forked, so that what was imported is imported once
    children.append(os.fork())
    if not children[-1]:
        break
else:
    sys.exit(max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0 for child in children))
ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
where = {"MASTER_ADDR": "localhost", "MASTER_PORT": port, "ACCELERATE_USE_CPU": "true"}
os.environ |= {name: str(value) for name, value in (ranks | where).items()}
processes, real, said = Processes.found(), place.save, {}

def attempt(name, folder, **changes):
    made = []
    try:
        spec = RunSpec(**settings | {"output": f"{out}/{folder}"} | changes)
        done = place.run(spec, model=model, told=lambda sample: made.append(sample.index))
        said[name] = {"made": made, "new": done.made, "notes": done.notes}
    except Exception as error:
        said[name] = {"made": made, "error": f"{type(error).__name__}: {error}"}

def broken(*given):
    if processes.rank == 1:
        raise OSError(5, "no more")
    return real(*given)

attempt("whole", "whole")
attempt("resumed", "partial")
if world == 3:
    open(f"{out}/said.{rank}", "w").write(json.dumps(said))
    sys.exit()

place.save = broken
attempt("broken", "broken")
place.save = real
attempt("mended", "broken")
attempt("refused", "whole", steps=5)

dealer = Dealer(processes, [0, 1, 2], patience=0.4)
mine = next(iter(dealer))
processes.gathered(None)
try:
    if processes.rank == 0:
        dealer.made(1)
        dealer.wait()
    said["hangs"] = "no"
except Exception as error:
    said["hangs"] = str(error)
processes.gathered(None)
open(f"{out}/said.{processes.rank}", "w").write(json.dumps(said))
"""


def launched(world: int, out: Path) -> list[dict[str, Any]]:
    """What each of so many processes says."""
    code, _, error = forked(SCRIPT, json.dumps(SETTINGS), str(world), str(out))
    assert code == 0, error[-4000:]
    return [json.loads((out / f"said.{rank}").read_text()) for rank in range(world)]


def held(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.png"))}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alone") / "run"
    assert run(RunSpec(**SETTINGS, output=str(folder))).made == 14
    return folder


@pytest.mark.parametrize("world", [2, 3])
def test_as_many_processes_as_one_likes(world: int, alone: Path, tmp_path: Path) -> None:
    partial = tmp_path / "partial"  # begun by one process, stopped after some pictures
    partial.mkdir()
    for name in ("run.yaml", "000000.png", "000001.png", "000007.png", "000013.png"):
        (partial / name).write_bytes((alone / name).read_bytes())
    lines = (alone / MANIFEST).read_text().splitlines(keepends=True)
    (partial / MANIFEST).write_text("".join(lines[i] for i in (0, 1)))
    (partial / "manifest-2.jsonl").write_text(lines[7] + lines[13][:40])  # a process was killed in the middle of a line
    said = launched(world, tmp_path)

    made = sorted(index for one in said for index in one["whole"]["made"])
    assert made == list(range(14)), "each picture once"
    assert all(one["whole"]["made"] for one in said), "everybody works"
    assert held(tmp_path / "whole") == held(alone)
    assert manifests(tmp_path / "whole") == [tmp_path / "whole" / MANIFEST]
    assert [json.loads(line)["index"] for line in (tmp_path / "whole" / MANIFEST).open()] == list(range(14))

    assert sorted(i for one in said for i in one["resumed"]["made"]) == [2, 3, 4, 5, 6, 8, 9, 10, 11, 12, 13]
    assert {one["resumed"]["new"] for one in said} == {11} and held(partial) == held(alone)
    assert [line["event"] for line in read_log(partial)] == ["resumed", "done"]
    if world == 2:
        _errors_end_all(said, alone, tmp_path)


def _errors_end_all(said: list[dict[str, Any]], alone: Path, tmp_path: Path) -> None:
    assert said[1]["broken"]["error"] == "OSError: [Errno 5] no more"
    assert "another process failed (process 1: OSError" in said[0]["broken"]["error"]
    assert read_log(tmp_path / "broken")[1]["event"] == "failed"
    assert not any("error" in one["mended"] for one in said) and held(tmp_path / "broken") == held(alone)
    assert not list((tmp_path / "broken").glob("*.lock")) and not list((tmp_path / "broken").glob("*.part"))
    assert len({one["refused"]["error"] for one in said}) == 1 and "steps is 2 there" in said[0]["refused"]["error"]
    assert "other processes took have not moved" in said[0]["hangs"]


def test_one_process_goes_on_where_three_stopped(alone: Path, tmp_path: Path) -> None:
    """Manifests of processes that were killed, one with a picture that is not there and one line twice."""
    lines = (alone / MANIFEST).read_text().splitlines(keepends=True)
    for name in ("run.yaml", *(f"{i:06d}.png" for i in (0, 3, 4, 9))):
        (tmp_path / name).write_bytes((alone / name).read_bytes())
    (tmp_path / MANIFEST).write_text(lines[0] + lines[4])
    (tmp_path / "manifest-1.jsonl").write_text(lines[3] + lines[4] + lines[8])
    (tmp_path / "manifest-2.jsonl").write_text(lines[9] + '{"index": 10, "fi')
    assert sorted(finished_items(tmp_path, 14)) == [0, 3, 4, 9]
    assert run(RunSpec(**SETTINGS, output=str(tmp_path))).made == 10
    assert held(tmp_path) == held(alone) and manifests(tmp_path) == [tmp_path / MANIFEST]


def test_manifests_are_gathered_or_as_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped between the new manifest and the end of the parts: every entry is still there, once."""
    rest = {"bytes": 1, "sha256": "", "changed": 0, "evaluations": {"cond": 2.0}, "seconds": 0.1}
    entries = {i: {"index": i, "file": f"{i:06d}.png", **rest} for i in range(4)}
    for i in entries:
        (tmp_path / f"{i:06d}.png").write_bytes(b"x")
        os.utime(tmp_path / f"{i:06d}.png", ns=(0, 0))
    for i, name in enumerate((MANIFEST, "manifest-1.jsonl", "manifest-2.jsonl")):
        (tmp_path / name).write_text(json.dumps(entries[i]) + "\n" + json.dumps(entries[3]) + "\n")

    def killed(*given: Any, **named: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Path, "unlink", killed)
        gather(tmp_path, finished_items(tmp_path, 4))
    assert len(manifests(tmp_path)) == 3 and finished_items(tmp_path, 4) == entries
    gather(tmp_path, finished_items(tmp_path, 4))
    assert len(manifests(tmp_path)) == 1 and finished_items(tmp_path, 4) == entries
    assert len((tmp_path / MANIFEST).read_text().splitlines()) == 4


def test_batches_are_dealt_in_order_to_one() -> None:
    dealer = Dealer(Processes(), [3, 5, 8])
    assert [(number, dealer.made(2)) for number in dealer] == [(3, 2), (5, 4), (8, 6)]
    dealer.wait()
    stuck = Dealer(Processes(), [1], patience=0.1)
    next(iter(stuck))
    with pytest.raises(UsageError, match="have not moved"):
        stuck.wait()
