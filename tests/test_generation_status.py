"""What a folder says of its run, while it is made and after; and pictures that are read while others are made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from generation_tools import pilotage, tiny_spec

from pilotage.errors import UsageError
from pilotage.evaluation import open_source, score
from pilotage.evaluation.sources import listing
from pilotage.generation import run
from pilotage.generation.lock import Holder, locked
from pilotage.generation.manifest import MANIFEST
from pilotage.generation.models import Loaded, open_model
from pilotage.generation.run_log import RunLog, read_log
from pilotage.generation.status import spelled, status_of


@pytest.fixture(scope="module")
def model() -> Loaded:
    return open_model(tiny_spec())


# -- while it is made ---------------------------------------------------------------------------------------------


def test_a_run_is_seen_and_read_while_it_is_made(tmp_path: Path, model: Loaded) -> None:
    """After each picture: status knows who works and how far, and a reader gets the finished pictures, with prompts."""
    folder, seen, read, counted = tmp_path / "run", [], [], []

    def told(sample: Any) -> None:
        seen.append(status_of(folder))
        (folder / f"{sample.index + 1:06d}.png.part").write_bytes(b"half a picture")
        with (folder / MANIFEST).open("a") as manifest:  # the next line is being written
            manifest.write('{"index": 5, "file": "000005.png", "evaluations": {"cond": 3}')
        source = open_source(folder)
        read.append([(picture.key, picture.text) for picture in source])
        assert listing.MISSING not in source.notes
        if sample.index == 3:
            counted.append(score(generated=folder, metrics=["saturation"]).sources["generated"]["pictures"])
        (folder / f"{sample.index + 1:06d}.png.part").unlink()
        content = (folder / MANIFEST).read_bytes()
        (folder / MANIFEST).write_bytes(content[: content.rfind(b"\n") + 1])

    run(tiny_spec(output=str(folder), batch_size=1), model=model, told=told)
    assert [(s.state, s.done, s.of) for s in seen] == [("running", n, 6) for n in range(1, 7)]
    assert (
        seen[0].holder == str(Holder.here())
        and seen[0].rate
        and seen[0].seconds_left == pytest.approx(5 / seen[0].rate)
    )
    assert [len(pictures) for pictures in read] == [1, 2, 3, 4, 5, 6] and counted == [4]
    assert read[3] == [(f"{i:06d}.png", ("a red star", "two blue rings")[i // 3]) for i in range(4)]
    after = status_of(folder)
    assert (after.state, after.done, after.of, after.holder, after.notice) == ("finished", 6, 6, None, "")


def test_pictures_of_several_processes_are_read_while_they_work(tmp_path: Path, model: Loaded) -> None:
    run(tiny_spec(output=str(tmp_path)), model=model)
    lines = (tmp_path / MANIFEST).read_text().splitlines(keepends=True)
    (tmp_path / MANIFEST).write_text(lines[0] + lines[4])
    (tmp_path / "manifest-1.jsonl").write_text(lines[1] + lines[2][:30])
    (tmp_path / "manifest-12.jsonl").write_text(lines[5])
    assert [picture.key for picture in open_source(tmp_path)] == [f"{i:06d}.png" for i in (0, 1, 4, 5)]
    assert status_of(tmp_path).done == 4


def test_a_picture_that_appears_between_the_listing_and_the_manifest_is_not_missing(
    tmp_path: Path, model: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tiny_spec(output=str(tmp_path)), model=model)
    last, late = tmp_path / "000005.png", tmp_path / "late"
    last.rename(late)
    real = listing.Listing._manifested

    def appears(self: Any) -> Any:
        late.rename(last)
        return real(self)

    monkeypatch.setattr(listing.Listing, "_manifested", appears)
    source = open_source(tmp_path)
    assert len(list(source)) == 6 and listing.MISSING not in source.notes
    last.unlink()
    monkeypatch.setattr(listing.Listing, "_manifested", real)
    source = open_source(tmp_path)
    assert len(list(source)) == 5 and source.notes[listing.MISSING] == 1, "one that has gone is"


# -- each state ---------------------------------------------------------------------------------------------------


def test_stopped_failed_and_resumed(tmp_path: Path, model: Loaded) -> None:
    class Enough(Exception):
        pass

    def fail(sample: Any) -> None:
        if sample.index == 3:
            raise Enough("of this")

    folder = tmp_path / "run"
    with pytest.raises(Enough):
        run(tiny_spec(output=str(folder)), model=model, told=fail)
    found = status_of(folder)
    assert (found.state, found.done, found.notice) == ("stopped", 4, "failed: Enough: of this")
    assert found.line().startswith(f"{folder}: pictures, stopped: 4 of 6 pictures, ") and "\n" not in found.line()
    run(tiny_spec(output=str(folder)), model=model)
    assert [line["event"] for line in read_log(folder)] == ["begin", "failed", "resumed", "done"]
    assert status_of(folder).state == "finished"


def test_how_an_earlier_start_ended_is_no_news(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(yaml.safe_dump({"spec": tiny_spec(prompts=["x"], seeds="0-99").plain()}))
    log = [{"event": event, "seconds": 0.0, "finished": 8, "of": 100} for event in ("begin", "stopped", "resumed")]
    for lines, notice in (log[:2], "stopped"), (log, ""):
        (tmp_path / "log.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
        assert status_of(tmp_path).notice == notice


def test_rate_is_that_of_the_last_start(tmp_path: Path) -> None:
    spec = tiny_spec(prompts=["x"], seeds="0-99")
    (tmp_path / "run.yaml").write_text(yaml.safe_dump({"spec": spec.plain()}))
    log = [
        {"event": "begin", "seconds": 0.0, "finished": 0, "of": 100, "processes": 1},
        {"event": "progress", "seconds": 1000.0, "finished": 10, "of": 100},
        {"event": "resumed", "seconds": 0.0, "finished": 10, "of": 100, "processes": 2},
        {"event": "memory", "seconds": 5.0, "finished": 14, "of": 100, "note": "out of memory\nonce"},
        {"event": "progress", "seconds": 10.0, "finished": 30, "of": 100},
    ]
    (tmp_path / "log.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in log) + '{"event": "pro')
    (tmp_path / MANIFEST).write_text("".join(f'{{"index": {i}, "seconds": 7}}\n' for i in range(40)))
    assert status_of(tmp_path).state == "stopped"
    with locked(tmp_path):
        found = status_of(tmp_path)
    assert (found.state, found.done, found.of, found.rate) == ("running", 40, 100, 2.0)
    assert found.seconds_left == 30.0 and found.notice == "memory: out of memory\nonce"
    assert "40 of 100 pictures, 2 a second, 30 s left; memory: out of memory once" in found.line()
    (tmp_path / "log.jsonl").write_text(json.dumps(log[2]))
    with locked(tmp_path):
        assert status_of(tmp_path).rate == pytest.approx(2 / 7), "by the pictures of two processes, until the log says"


def test_a_training(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(yaml.safe_dump({"spec": {"updates": 200, "reward": "saturation"}}))
    assert (status_of(tmp_path).state, status_of(tmp_path).done, status_of(tmp_path).rate) == ("stopped", 0, None)
    log = [{"update": u, "seconds": 4.0 * u, "notices": ["update 7: fewer"] if u == 7 else []} for u in range(81)]
    (tmp_path / "log.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in log) + '{"upd')
    found = status_of(tmp_path)
    assert (found.kind, found.unit, found.done, found.of, found.notice) == (
        "training", "updates", 80, 200, "update 7: fewer"
    )  # fmt: skip
    assert found.rate == 0.25 and found.seconds_left is None and "last line 0 s ago" in found.line()
    with locked(tmp_path):
        assert status_of(tmp_path).state == "running" and status_of(tmp_path).seconds_left == 480
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora" / "README.md").write_text("# done")
    assert status_of(tmp_path).state == "finished" and status_of(tmp_path).seconds_left is None


def test_a_comparison_and_scores(tmp_path: Path, model: Loaded) -> None:
    for cell in ("a", "b"):
        run(tiny_spec(output=str(tmp_path / "cells" / cell)), model=model)
    found = status_of(tmp_path)
    assert (found.kind, found.state, found.done, found.of) == ("comparison", "stopped", 12, 12), "its page is missing"
    (tmp_path / "metrics.json").write_text("{}")
    assert status_of(tmp_path).state == "finished"
    scores = tmp_path / "scores"
    scores.mkdir()
    (scores / "metrics.json").write_text('{"results": [1, 2, 3]}')
    assert status_of(scores).line() == f"{scores}: scores, finished: 3 metrics"


@pytest.mark.parametrize("content", [b"", b"[]", b"spec: 5", b"\xff", b"spec: [", b"{a: {b"])
def test_a_damaged_folder_is_said(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(UsageError, match="no run folder"):
        status_of(tmp_path)
    (tmp_path / "run.yaml").write_bytes(content)
    with pytest.raises(UsageError, match="cannot be read"):
        status_of(tmp_path)


def test_the_command(tmp_path: Path, model: Loaded, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        run(tiny_spec(output=str(folder)), model=model)
    capsys.readouterr()
    assert pilotage("status", *map(str, folders)) == 0
    assert capsys.readouterr().out.splitlines() == [f"{f}: pictures, finished: 6 of 6 pictures" for f in folders]
    assert pilotage("status", str(folders[0]), "--json") == 0
    assert json.loads(capsys.readouterr().out)["done"] == 6
    assert pilotage("status", str(tmp_path / "nowhere")) == 2
    assert "check the path" in capsys.readouterr().err


def test_lines_of_progress_are_few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One in ten seconds, whatever the number of pictures."""
    clock = [0.0]
    monkeypatch.setattr("pilotage.generation.run_log.monotonic", lambda: clock[0])
    log = RunLog(tmp_path, 10_000, 0)
    log.begun = log.told = 0.0
    log.say("begin", processes=1)
    for finished in range(1, 10_001):
        clock[0] += 0.01
        log.progress(finished)
    log.say("done")
    lines = read_log(tmp_path)
    assert len(lines) <= 12 and lines[1]["finished"] == pytest.approx(1000, abs=2)
    assert np.all(np.diff([line["seconds"] for line in lines]) >= 0)


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.4, "0 s"), (99, "99 s"), (600, "10 min"), (18_000, "5.0 h"), (3e5, "3.5 days")]
)
def test_times_are_spelled(seconds: float, said: str) -> None:
    assert spelled(seconds) == said
