"""A worker that hangs, stopped for real: the others end with one line, and the same command goes on where they were."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from generation_tools import process

from pilotage.errors import UsageError
from pilotage.evaluation.meeting import PATIENCE, OthersEnded, answered, patience, within

SCRIPT = """
import json, os, shutil, signal, sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
import accelerate, diffusers, transformers
from worker_groups import Group, calls, marks, until
from pilotage.evaluation import collect
from pilotage.evaluation.processes import Processes
from pilotage.generation.pictures import Generation
from pilotage.training import trainer

out = Path(sys.argv[1])
PICTURES = ["generate", "a red star", "--seeds", "0-4", "--steps", "1", "--batch-size", "1", "--threads", "1", "-o"]
TRAINING = ["finetune", "embedded:train:4", "--updates", "8", "--batch", "4", "--rows", "2", "--set", "steps=2",
            "--set", "held_out=embedded:test:4", "--set", "threads=1", "-r", "saturation", "-o"]
SCORES = ["score", "embedded:heldout:130", "--real", "embedded:test:130", "--metrics", "frechet", "-o"]
def slowly(place, holder, name, pause):
    return lambda rank: setattr(holder, name, marks(place, name, pause)(getattr(holder, name)))

def begun(name, command, which, holder, method, pause):
    # a patience so short that a slow machine does not even begin within it is tried again with a longer one
    for patience in (1, 6, 36):
        place = out / name
        prepare = slowly(place, holder, method, pause)
        group = Group([*command, str(place)], 2, out / f"{name}-log", patience, prepare)
        until(lambda: calls(place, method, group.pids[which]) or group.ended(which))
        group.stop(which)
        if not group.ended(which):
            return group
        group.all_codes()
        shutil.rmtree(place, ignore_errors=True)
    raise AssertionError(f"{name} does not begin: {group.said(which)}")

def hung(name, command, which, holder, method, pause, then):
    place, group = out / name, begun(name, command, which, holder, method, pause)
    waited = until(lambda: group.ended(1 - which))
    told = {"code": group.code(1 - which), "said": group.said(1 - which), "waited": waited}
    if then == "goes on":
        os.kill(group.pids[which], signal.SIGCONT)
    else:
        again = Group([*command, str(place)], 1, out / f"{name}-again")
        told["meanwhile"] = [again.code(0), again.said(0)]
        group.kill(which)
    told |= {"other": group.code(which), "other said": group.said(which)}
    last = Group([*command, str(place)], 1, out / f"{name}-last")
    return told | {"last": last.code(0)}

def calm(name, command):
    return Group([*command, str(out / name)], 1, out / f"{name}-log").code(0)

def long_work(rank):
    processes = Processes.found()
    def late(who, pause):
        if processes.rank == who:
            time.sleep(pause)
        return processes.rank
    begun = time.monotonic()
    said = [processes.by_first(lambda: late(0, 6)), processes.of_each(lambda: late(1, 6)), processes.by_rank(rank)]
    json.dump([*said, time.monotonic() - begun], open(f"{out}/long.{rank}", "w"))

said = {
    "pictures": calm("pictures", PICTURES),
    "scores": calm("scores", SCORES),
    "training": calm("training", TRAINING),
    "second": hung("second", PICTURES, 1, Generation, "_made", 0.01, "goes on"),
    "first": hung("first", PICTURES, 0, Generation, "_made", 0.01, "is killed"),
    "reader": hung("reader", SCORES, 1, collect._Part, "take", 0.1, "goes on"),
    "measurer": hung("measurer", SCORES, 0, collect._Part, "take", 0.1, "is killed"),
    "learner": hung("learner", TRAINING, 1, trainer.Run, "_one", 0.01, "goes on"),
    "long": Group(["--version"], 2, out / "long-log", 2, long_work).all_codes(),
}
(out / "said").write_text(json.dumps(said))
"""


@pytest.fixture(scope="module", name="hostile")
def _hostile(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    if os.name != "posix":
        pytest.skip("signals of POSIX")
    out = tmp_path_factory.mktemp("hangs")
    child = process(SCRIPT, str(out), stderr=-1)
    error = child.communicate(timeout=300)[1]
    assert child.returncode == 0, error[-4000:]
    return out, json.loads((out / "said").read_text())


def pictures(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.png"))}


def values(folder: Path) -> list[tuple[str, float]]:
    return [(one["name"], one["value"]) for one in json.loads((folder / "metrics.json").read_text())["results"]]


@pytest.mark.parametrize("name", ["second", "first", "reader", "measurer", "learner"])
def test_the_others_end_with_one_line(hostile: tuple[Path, dict[str, Any]], name: str) -> None:
    told = hostile[1][name]
    said = [line for line in told["said"] if name != "learner" or not line.startswith(("memory", "after"))]
    assert told["code"] == 2 and len(said) == 1, told["said"]
    (line,) = said
    if name == "second":  # the first process looks at the batches, which it serves itself
        assert "batches that other processes took have not moved" in line
    else:
        assert "has not answered for" in line and PATIENCE in line and "the same command" in line
    assert told["waited"] < 110


@pytest.mark.parametrize("name", ["second", "reader", "learner"])
def test_one_that_goes_on_later_ends_too(hostile: tuple[Path, dict[str, Any]], name: str) -> None:
    told = hostile[1][name]
    said = told["other said"]  # torch may log the end of a connection, with addresses of its own code
    assert told["other"] == 2 and [line[:7] for line in said].count("error: ") == 1
    assert not any(line.startswith("Traceback") for line in said)


@pytest.mark.parametrize("name", ["first", "measurer"])
def test_while_it_is_there_it_holds_the_folder(hostile: tuple[Path, dict[str, Any]], name: str) -> None:
    told = hostile[1][name]
    code, said = told["meanwhile"]
    assert code == 2 and len(said) == 1 and "works in" in said[0] and "already" in said[0]
    assert told["other"] == -9


def test_the_same_command_ends_as_if_nothing_had_been(hostile: tuple[Path, dict[str, Any]]) -> None:
    out, said = hostile
    assert said["pictures"] == said["scores"] == 0 and len(pictures(out / "pictures")) == 5
    for name in ("second", "first"):
        assert said[name]["last"] == 0 and pictures(out / name) == pictures(out / "pictures")
    assert said["training"] == said["learner"]["last"] == 0
    ours, calm = (
        [json.loads(line) for line in (out / name / "log.jsonl").read_text().splitlines()]
        for name in ("learner", "training")
    )
    assert [line["update"] for line in ours] == list(range(9))
    assert ours[-1]["reward"] == pytest.approx(calm[-1]["reward"], rel=1e-4)
    for name in ("reader", "measurer"):
        assert said[name]["last"] == 0 and values(out / name) == values(out / "scores")
        assert not [path.name for path in (out / name).iterdir() if path.suffix in (".part", ".lock")]


def test_long_work_is_not_taken_for_a_hang(hostile: tuple[Path, dict[str, Any]]) -> None:
    """Three times as long as a silent process is waited for; what each, and only the first, gets to know."""
    out, said = hostile
    assert said["long"] == [0, 0]
    first, second = (json.loads((out / f"long.{rank}").read_text()) for rank in (0, 1))
    assert first[:3] == [0, [0, 1], [0, 1]] and second[:3] == [0, [0, 1], []]
    assert min(first[3], second[3]) > 11.9


# -- the parts ------------------------------------------------------------------------------------------------


def test_patience_is_said_in_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(PATIENCE, raising=False)
    assert patience() == 1800 and patience(600) == 600
    monkeypatch.setenv(PATIENCE, "90")
    assert patience() == patience(600) == 90
    for wrong in ("soon", "0", "-1", "nan", "inf"):
        monkeypatch.setenv(PATIENCE, wrong)
        with pytest.raises(UsageError, match=rf"{PATIENCE}='{wrong}' is no number of seconds"):
            patience()


def test_a_question_without_an_answer() -> None:
    import threading

    never = threading.Event()
    with pytest.raises(OthersEnded, match="the store has not answered for 0 s"):
        within(0.05, never.wait, "the store")
    never.set()
    assert within(5, lambda: 7, "the store") == 7
    with pytest.raises(RuntimeError, match="boom"):
        within(5, _boom, "the store")


def _boom() -> None:
    raise RuntimeError("boom")


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (RuntimeError("[x/third_party/gloo/gloo/buffer.cc:1] Timed out waiting 4000ms for send"), "has not answered"),
        (RuntimeError("[x/third_party/gloo/gloo/pair.cc:5] Connection closed by peer"), "another process has ended"),
        (torch.distributed.DistNetworkError("Connection reset by peer"), "another process has ended"),
        (torch.distributed.DistStoreError("wait timeout after 300ms"), "has not answered"),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), None),
    ],
)
def test_only_what_other_processes_did_is_said_of_them(error: RuntimeError, told: str | None) -> None:
    with pytest.raises(RuntimeError if told is None else OthersEnded, match=told), answered():
        raise error
