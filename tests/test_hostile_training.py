"""Trainings killed, interrupted, started twice or left without a disk: the same command ends as it would have."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from finetune_toys import ToyLearner, near
from forking_tools import forked

from pilotage.errors import UsageError
from pilotage.finetune import FinetuneSpec, Opened, train
from pilotage.finetune.methods.registry import make_method
from pilotage.generation.lock import LOCK, locked
from pilotage.storage import PART, disk_errors, make_folder
from pilotage.training import checkpoint, run_folder

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals and locks of POSIX")

SCRIPT = """
import json, os, random, resource, signal, sys, time
import torch
torch.set_num_threads(1)
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where a shell started the tests in the background
import pilotage.distill.trainer, pilotage.finetune.trainer, pilotage.training.page, pilotage.cli.progress
import peft
from pilotage.distill.methods.registry import make_method
from pilotage.finetune.rewards import open_rewards
from pilotage.generation import load
from pilotage.cli.main import run as command
from pilotage.training.trainer import Run

make_method("f-distill"), open_rewards("saturation"), load("embedded")  # what they import is imported once
out = sys.argv[1]
USUAL = ["a red star", "two rings", "--model", "embedded", "--batch", "2", "--rows", "2", "--steps", "2"]
USUAL += ["--updates", "3"]
for line in ("checkpoint_every=1", "evaluate_every=0", "sheet_every=3", "held_out=[a star]", "held_out_seeds=2",
             "threads=1"):
    USUAL += ["--set", line]
KINDS = {
    "finetune": ["finetune", *USUAL, "-r", "saturation"],
    "distill": ["distill", *USUAL, "-m", "f-distill:critic_steps=2", "--data", "teacher:4", "--train", "lora",
                "--set", "fake=lora"],
}

def forked(kind, name, before=lambda: None):
    child = os.fork()
    if child:
        return child
    os.dup2(os.open(f"{out}/{name}.err", os.O_CREAT | os.O_WRONLY | os.O_TRUNC), 2)
    os.dup2(2, 1)
    code = 99
    try:
        before()
        code = command([*KINDS[kind], "-o", f"{out}/{name}"])
    finally:
        sys.stderr.flush()
        os._exit(code)

def code_of(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

def told(name):
    return open(f"{out}/{name}.err").read()

def begun(name):
    log, first = f"{out}/{name}/log.jsonl", time.monotonic()
    while not (os.path.exists(log) and '"update": 1' in open(log).read()):
        assert time.monotonic() - first < 60, told(name)
        time.sleep(0.005)

def killed(kind, seed):  # each time after none or one more update, and a moment
    chance, codes, log = random.Random(seed), [], f"{out}/{kind}-killed/log.jsonl"
    lines = lambda: open(log, "rb").read().count(b"\\n") if os.path.exists(log) else 0
    for more in chance.sample((0, 1, 1), 3):
        wanted = lines() + more
        child = forked(kind, f"{kind}-killed")
        while lines() < wanted and not os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            time.sleep(0.002)
        time.sleep(chance.uniform(0, 0.3))
        os.kill(child, signal.SIGKILL)
        codes.append(code_of(child))
    return codes, code_of(forked(kind, f"{kind}-killed"))

def slow():
    real = Run._one
    def one(run):
        real(run)
        time.sleep(0.2)
    Run._one = one

def interrupted(kind):
    name = f"{kind}-interrupted"
    child = forked(kind, name, slow)
    begun(name)
    os.kill(child, signal.SIGINT)
    code, said = code_of(child), told(name)
    return code, said, code_of(forked(kind, name))

def two():
    child = forked("finetune", "two", slow)
    begun("two")
    shown = os.path.exists(f"{out}/two/run.lock")
    os.kill(child, signal.SIGSTOP)  # so that it is not done before the second one is there
    os.rename(f"{out}/two.err", f"{out}/first.err")
    code, said = code_of(forked("finetune", "two")), told("two")
    os.kill(child, signal.SIGKILL)
    code_of(child)
    return shown, child, code, said, code_of(forked("finetune", "two"))

def quota():
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))
    code, said = code_of(forked("finetune", "quota", limit)), told("quota")
    return code, said, code_of(forked("finetune", "quota"))

said = {}
for kind in KINDS:
    said[kind] = {"whole": code_of(forked(kind, kind)), "killed": killed(kind, 3)}
said["interrupted"], said["two"], said["quota"] = interrupted("finetune"), two(), quota()
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """All that needs processes, which one program forks, so that the libraries are imported once."""
    out = tmp_path_factory.mktemp("trainings")
    code, told, error = forked(SCRIPT, str(out))
    assert code == 0, error[-2000:]
    return out, json.loads(told.splitlines()[-1])


def outcome(folder: Path) -> dict[str, Any]:
    """All that was learnt, said, drawn and kept, without times and the folder's own name."""
    found: dict[str, Any] = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = path.relative_to(folder).as_posix()
        if path.parent.name == run_folder.CHECKPOINTS and path.name != run_folder.GOOD:
            kept = checkpoint.read(path)
            plain, tensors = checkpoint.flattened({key: value for key, value in kept.items() if key != "seconds"})
            found[name] = json.dumps(plain), {key: value.numpy().tobytes() for key, value in tensors.items()}
        elif name not in ("index.html", run_folder.LOG):
            found[name] = path.read_bytes().replace(str(folder).encode(), b"FOLDER")
    lines = (folder / run_folder.LOG).read_text().splitlines()
    found["log"] = [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]
    return found


def same(one: Path, other: Path) -> None:
    """Bitwise; named by file, so that a failure says where."""
    here, there = outcome(one), outcome(other)
    assert here.keys() == there.keys() and [name for name in here if here[name] != there[name]] == []


@pytest.mark.parametrize("kind", ["finetune", "distill"])
def test_killed_again_and_again_it_ends_as_if_it_had_not_been(hostile: tuple[Path, dict[str, Any]], kind: str) -> None:
    out, said = hostile
    codes, last = said[kind]["killed"]
    assert said[kind]["whole"] == last == 0 and -9 in codes
    same(out / kind, out / f"{kind}-killed")
    assert [line["update"] for line in outcome(out / f"{kind}-killed")["log"]] == [0, 1, 2, 3]
    left = [p for p in (out / f"{kind}-killed").rglob("*") if p.name == LOCK]
    assert not left, "and nothing stays locked"


def test_ctrl_c_says_that_the_same_command_resumes(hostile: tuple[Path, dict[str, Any]]) -> None:
    out, said = hostile
    code, told, again = said["interrupted"]
    assert code == 130 and again == 0 and "Traceback" not in told
    assert told.splitlines()[-1] == "stopped; the same command resumes"
    same(out / "finetune", out / "finetune-interrupted")


def test_a_second_training_in_one_folder_is_refused(hostile: tuple[Path, dict[str, Any]]) -> None:
    out, said = hostile
    shown, first, code, told, again = said["two"]
    assert shown and code == 2 and again == 0
    errors = [line for line in told.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and f"process {first} on " in errors[0] and "already; wait" in errors[0]
    same(out / "finetune", out / "two")


def test_a_disk_that_takes_no_more_is_told_in_one_line(hostile: tuple[Path, dict[str, Any]]) -> None:
    """For real: no file may grow beyond 60 kB."""
    out, said = hostile
    code, told, again = said["quota"]
    assert code == 2 and again == 0 and "Traceback" not in told
    errors = [line for line in told.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "File too large" in errors[0]
    same(out / "finetune", out / "quota")


# -- disks that refuse, in this process ------------------------------------------------------------------------


def toy() -> Opened:
    """Latents of three numbers are pictures of one pixel."""
    return Opened(ToyLearner(size=3), make_method("draft-k:truncation=2"), near(0.5, 0.2, 0.8))


def spec(folder: Path) -> FinetuneSpec:
    return FinetuneSpec(
        prompts=["a red star", "two rings"], held_out=["a green star"], held_out_seeds=2, features=None, steps=3,
        guidance="none", reward="brightness", updates=4, batch=2, rows=2, evaluate_every=2, sheet_every=4,
        checkpoint_every=1, output=str(folder), device="cpu", learning_rate=0.01, limits={"explosion": 1e9},
    )  # fmt: skip


class SafetensorError(Exception):
    """As the library's own: it is no OSError and says its number in its text."""


FULL: dict[str, tuple[Exception, str]] = {
    "full": (OSError(errno.ENOSPC, "No space left on device"), "the disk of .* is full; free some space"),
    "quota": (OSError(errno.EDQUOT, "Disk quota exceeded"), "the disk of .* is full; free some space"),
    "full, of safetensors": (SafetensorError("I/O error: No space left on device (os error 28)"), "disk of .* is full"),
    "read-only": (OSError(errno.EROFS, "Read-only file system"), "cannot be written to"),
    "not allowed": (PermissionError(errno.EACCES, "Permission denied"), "cannot be written to"),
    "broken": (OSError(errno.EIO, "Input/output error"), "cannot write to .*: Input/output error"),
}


@pytest.mark.parametrize("name", FULL)
def test_nothing_is_lost_when_a_checkpoint_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    error, message = FULL[name]
    train(spec(tmp_path / "whole"), opened=toy())
    real, calls = checkpoint.save_file, []

    def failing(tensors: Any, path: Path, **more: Any) -> None:
        calls.append(path)
        if len(calls) == 6:
            path.write_bytes(b"half of it")
            raise error
        real(tensors, path, **more)

    monkeypatch.setattr(checkpoint, "save_file", failing)
    with pytest.raises(UsageError, match=message) as told:
        train(spec(tmp_path / "full"), opened=toy())
    assert str(told.value).isprintable()
    left = [p.name for p in (tmp_path / "full").rglob("*") if p.name.endswith(PART) or p.name == LOCK]
    assert left == [] and checkpoint.last(tmp_path / "full" / run_folder.CHECKPOINTS)[0]["update"] >= 2
    monkeypatch.setattr(checkpoint, "save_file", real)
    train(spec(tmp_path / "full"), opened=toy())
    same(tmp_path / "whole", tmp_path / "full")


def test_what_is_no_trouble_of_the_disk_is_not_called_so(tmp_path: Path) -> None:
    for error in (SafetensorError("invalid header"), ValueError("(os error 28)"), KeyError("x")):
        with pytest.raises(type(error)), disk_errors(tmp_path):
            raise error


def test_a_file_where_the_checkpoints_belong(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    train(spec(tmp_path / "whole"), opened=toy())
    shutil.copy(tmp_path / "whole" / run_folder.RUN, tmp_path / "run")
    (tmp_path / "run" / run_folder.CHECKPOINTS).write_text("")
    with pytest.raises(UsageError, match="is not a folder; choose another output"):
        train(spec(tmp_path / "run"), opened=toy())


@pytest.mark.skipif(os.name == "posix" and os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir(mode=0o500)
    with pytest.raises(UsageError, match="cannot be written to"):
        train(spec(tmp_path / "run"), opened=toy())


def test_a_finished_training_writes_nothing_more(tmp_path: Path) -> None:
    """Not even a lock, so that it may lie in a folder that is read-only, or in use."""
    train(spec(tmp_path / "run"), opened=toy())
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    with locked(tmp_path / "run"):
        done = train(spec(tmp_path / "run"), opened=toy())
    assert done.made == 0 and {path: path.stat().st_mtime_ns for path in before if path.exists()} | {
        tmp_path / "run": before.get(tmp_path / "run")
    } == before | {tmp_path / "run": before.get(tmp_path / "run")}


def test_what_a_kill_leaves_before_the_first_file_is_no_other_run(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    for name in (LOCK, f".probe-1{PART}", f"{run_folder.RUN}{PART}"):
        (folder / name).write_text("")
    assert train(spec(folder), opened=toy()).made == 4
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "photo.png").write_text("")
    with pytest.raises(UsageError, match="is not empty and holds no training run"):
        train(spec(tmp_path / "other"), opened=toy())


def test_a_folder_is_tried_without_a_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when the one before was killed while it tried, and when this one is interrupted."""
    (tmp_path / f".probe-1{PART}").write_text("")
    make_folder(tmp_path)
    assert not list(tmp_path.iterdir())
    real = Path.write_bytes

    def interrupted(path: Path, content: bytes) -> int:
        real(path, content)
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_bytes", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make_folder(tmp_path)
    assert not list(tmp_path.iterdir())


# -- checkpoints that lie ------------------------------------------------------------------------------------------


def test_a_damaged_checkpoint_is_known_for_one_whatever_is_wrong(tmp_path: Path) -> None:
    """Any byte, any length: what comes back is what was written, or nothing."""
    path = tmp_path / "000001.safetensors"
    checkpoint.write(path, {"update": 1, "weights": [torch.arange(5.0)], "name": ("a", None)})
    content = path.read_bytes()
    generator = torch.Generator().manual_seed(0)
    for place in torch.randint(0, len(content), (120,), generator=generator).tolist():
        for damaged in (content[:place], content[:place] + bytes([content[place] ^ 0x41]) + content[place + 1 :]):
            path.write_bytes(damaged)
            try:
                found = checkpoint.read(path)
            except checkpoint.Damaged:
                continue
            assert checkpoint.same(found, {"update": 1, "weights": [torch.arange(5.0)], "name": ("a", None)})


def hostile_head(plain: Any, path: Path) -> None:
    """A file whose digest is right and whose content is not ours."""
    text = plain if isinstance(plain, str) else json.dumps(plain)
    head = json.dumps({"plain": text, "sha256": checkpoint._digest(text, {})})
    checkpoint.save_file({"none": torch.zeros(0)}, path, metadata={"state": head})


@pytest.mark.parametrize(
    "plain",
    [
        "[" * 100_000,
        {"tensor": "missing"},
        {"pairs": [[[1], 2]]},
        {"pairs": [1]},
        {"other": 1},
        "no json",
        {"tuple": 3},
    ],
)
def test_a_checkpoint_of_a_stranger_executes_nothing(tmp_path: Path, plain: Any) -> None:
    hostile_head(plain, tmp_path / "000001.safetensors")
    with pytest.raises(checkpoint.Damaged):
        checkpoint.read(tmp_path / "000001.safetensors")
    with pytest.raises(UsageError, match="delete that folder to begin again"):
        checkpoint.last(tmp_path)


def test_a_pickle_in_place_of_a_checkpoint_is_not_loaded(tmp_path: Path) -> None:
    from generation_tools import ROOT

    assert ROOT.is_dir()
    (tmp_path / "000001.safetensors").write_bytes(b"cos\nsystem\n(S'touch executed'\ntR.")
    torch.save({"x": torch.ones(1)}, tmp_path / "000002.safetensors")
    with pytest.raises(UsageError, match="can be read"):
        checkpoint.last(tmp_path)
    assert not Path("executed").exists()


LINES = (
    "[" * 100_000, "3", '{"update": "x"}', '{"update": true}', "{}", "null", '{"update": 1e999}', "9" * 5000, "\x00",
    '{"update": 5, "x": ' + "9" * 400 + "}",
)  # fmt: skip


@pytest.mark.parametrize("line", LINES)
def test_a_log_of_a_stranger_is_passed_over(tmp_path: Path, line: str) -> None:
    train(spec(tmp_path / "run"), opened=toy())
    with (tmp_path / "run" / run_folder.LOG).open("ab") as file:
        file.write(b"\xff\xfe" + b"\n" + line.encode() + b"\n")
    assert [entry["update"] for entry in run_folder.read_log(tmp_path / "run")][:5] == [0, 1, 2, 3, 4]
    shutil.rmtree(tmp_path / "run" / "lora")
    assert train(spec(tmp_path / "run"), opened=toy()).made == 0
    text = (tmp_path / "run" / run_folder.LOG).read_text()
    assert [json.loads(one)["update"] for one in text.splitlines()][:5] == [0, 1, 2, 3, 4]
