"""Several processes give the numbers of one: the same pictures, each read once, whatever their number."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from pilotage.evaluation import score
from pilotage.evaluation.joining import joined
from pilotage.evaluation.metrics.colour import colour_statistics
from pilotage.evaluation.processes import Processes

ROOT = Path(__file__).resolve().parent.parent
METRICS = ["frechet", "kernel-distance", "energy", "prdc", "colour", "vendi", "adherence"]
REAL = "embedded:test:131"

SCRIPT = """
import json, sys, torch
torch.set_num_threads(1)
from pilotage.errors import UsageError
from pilotage.evaluation import score
from pilotage.evaluation.processes import Processes
source, real, metrics, out = sys.argv[1], sys.argv[2], json.loads(sys.argv[3]), sys.argv[4]
rank = Processes.found().rank
try:
    report = score(generated=source, real=real, metrics=metrics)
    said = {"values": {r.name: r.value for r in report}, "nulls": {r.name: r.null for r in report},
            "sources": dict(report.sources), "processes": report.environment["processes"]}
except UsageError as error:
    said = {"error": str(error)}
open(f"{out}.{rank}", "w").write(json.dumps(said))
"""


FAILING = """
import json, sys
from pilotage.errors import UsageError
from pilotage.evaluation.processes import Processes
processes, out = Processes.found(), sys.argv[4]

def fail(rank, error):
    def make():
        if processes.rank == rank:
            raise error
        return processes.rank
    return make

said = {}
for name, together, rank, error in (
    ("each", processes.of_each, 1, RuntimeError("boom")),
    ("first", processes.by_first, 0, OSError("gone")),
    ("usage", processes.of_each, 1, UsageError("wrong")),
    ("fine", processes.of_each, 5, None),
):
    try:
        said[name] = together(fail(rank, error))
    except Exception as caught:
        said[name] = f"{type(caught).__name__}: {caught}"

import resource
from collections import Counter
import numpy as np, torch
from pilotage.evaluation.joining import joined
from pilotage.evaluation.metrics.colour import colour_statistics
from pilotage.evaluation.scoring import reference

count, block = 10_001, 64  # 82 MB of rows; the last block is not full
places = [i for i in range(count) if processes.mine(i, block)]
rows = torch.zeros(len(places), 2048)
rows[:, 0] = torch.tensor(places, dtype=torch.float32)
part = {name: [str(i) for i in places] for name in ("keys", "texts", "labels")} | {
    "positions": places, "rows": {("x", "features"): rows, ("x", "logits"): rows[:, :3] + 1}, "stated": None,
    "colour": colour_statistics(torch.zeros(len(places), 3, 1, 1, dtype=torch.uint8)), "seen": None,
    "unjudged": "nobody", "sizes": Counter({(1, 1): len(places)}), "notes": Counter(a=3), "opening": Counter(a=1),
}
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
whole = joined(part, processes)
said["grew"] = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1000  # MB
said["whole"] = whole and {
    "keys": whole["keys"] == [str(i) for i in range(count)],
    "sizes": whole["sizes"][1, 1],
    "notes": whole["notes"]["a"],
    "rows": bool((whole["rows"]["x", "features"][:, 0] == torch.arange(count)).all()),
    "logits": whole["rows"]["x", "logits"].shape == (count, 3),
}
real = reference("embedded:test:70")
said["reference"] = [len(real), real.sizes[32, 32], len(real.keys), real.space().has_rows]
try:
    said["features"] = len(real.space().features)
except UsageError as error:
    said["features"] = str(error)
open(f"{out}.{processes.rank}", "w").write(json.dumps(said))
"""


def by(world: int, folder: Path, source: Path, metrics: list[str], script: str = SCRIPT) -> list[dict[str, Any]]:
    """What each of `world` processes says."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    folder.mkdir()
    running = []
    for rank in range(world):
        ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
        where = {"MASTER_ADDR": "localhost", "MASTER_PORT": port, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": 1}
        environment = {**os.environ, **{name: str(value) for name, value in (ranks | where).items()}}
        arguments = [str(source), REAL, json.dumps(metrics), str(folder / "said")]
        running.append(
            subprocess.Popen(
                [sys.executable, "-c", script, *arguments], cwd=ROOT, env=environment, stderr=subprocess.PIPE
            )
        )
    errors = [process.communicate(timeout=240)[1].decode() for process in running]
    assert [process.returncode for process in running] == [0] * world, "".join(e[-2000:] for e in errors)
    return [json.loads((folder / f"said.{rank}").read_text()) for rank in range(world)]


@pytest.fixture(scope="module", name="made")
def _made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """149 pictures, two of them of another size and one with transparency, captioned."""
    from pilotage.zoo import world

    folder = tmp_path_factory.mktemp("made")
    for i, picture in enumerate(world.pictures(range(500, 649), "test", 32)):
        image = Image.fromarray(picture)
        image = image.resize((40, 40)) if i in (3, 70) else image.convert("L") if i == 9 else image
        image.save(folder / f"{i:04d}.png")
    (folder / "prompts.txt").write_text("\n".join(world.captions(range(500, 649), "test")))
    return folder


@pytest.mark.parametrize("number", [2, 3])
def test_as_many_processes_as_one_likes(number: int, made: Path, tmp_path: Path) -> None:
    alone = score(generated=made, real=REAL, metrics=METRICS)
    everybody = by(number, tmp_path / "out", made, METRICS)
    for said in everybody:
        assert said["processes"] == number
        assert said["values"] == pytest.approx({r.name: r.value for r in alone}, rel=1e-9, abs=1e-12)
        nulls = {r.name: r.null for r in alone if r.null is not None}
        assert {n: v for n, v in said["nulls"].items() if v is not None} == pytest.approx(nulls, rel=1e-9, abs=1e-12)
        assert said["sources"] == json.loads(json.dumps(alone.sources))


def test_an_error_of_one_process_is_that_of_all(made: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for i in range(70):
        (broken / f"{i:04d}.png").write_bytes((made / f"{i:04d}.png").read_bytes() if i != 1 else b"no picture")
    said = [one["error"] for one in by(2, tmp_path / "out", broken, ["frechet"])]
    assert said[0] == said[1] and "0001.png" in said[0]
    said = [one["error"] for one in by(2, tmp_path / "again", made.parent / "nowhere", ["frechet"])]
    assert said[0] == said[1] and "nowhere" in said[0]


@pytest.fixture(scope="module", name="pair")
def _pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, Any]]:
    folder = tmp_path_factory.mktemp("pair")
    first, second = by(2, folder / "out", folder, [], FAILING)
    return first, second


def test_rows_come_together_on_the_first_process_alone(pair: tuple[dict[str, Any], dict[str, Any]]) -> None:
    """In the order of the source, and the other holds no more than it held."""
    first, second = pair
    assert first["whole"] == {"keys": True, "sizes": 10_001, "notes": 5, "rows": True, "logits": True}
    assert second["whole"] == {} and second["grew"] < 20
    assert first["reference"] == [70, 70, 70, True] and second["reference"] == [70, 70, 0, False]
    assert first["features"] == 70 and "are with the first process" in second["features"]


def test_whatever_fails_on_one_process_ends_all_of_them(pair: tuple[dict[str, Any], dict[str, Any]]) -> None:
    first, second = pair
    assert first["each"].startswith("UsageError: another process failed (RuntimeError: boom)")
    assert second["each"] == "RuntimeError: boom"
    assert first["first"] == "OSError: gone" and second["first"].startswith(
        "UsageError: another process failed (OSError"
    )
    assert first["usage"] == second["usage"] == "UsageError: wrong" and first["fine"] == second["fine"] == [0, 1]


def test_alone_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert Processes.found() == Processes(0, 1)
    assert Processes().gathered(np.pi) == [np.pi] and Processes().by_first(lambda: 7) == 7


def test_rows_come_together_by_name_whatever_each_process_met_first() -> None:
    told: list[Any] = []
    sent: list[Tensor] = []

    def received(rank: int, shape: Any, dtype: Any) -> Tensor:
        assert tuple(sent[0].shape) == tuple(shape)
        return sent.pop(0)

    second = SimpleNamespace(rank=1, by_rank=told.append, send=sent.append)
    first = SimpleNamespace(rank=0, by_rank=lambda about: [about, told[0]], received=received)

    def part(positions: list[int], names: str) -> dict[str, Any]:
        count = len(positions)
        rows = {name: torch.tensor([[float(p + 100 * (name == "b"))] for p in positions]) for name in names}
        each = {key: [None] * count for key in ("texts", "labels", "stated")}
        return {
            "positions": positions, "keys": [str(p) for p in positions], **each, "rows": rows, "seen": {},
            "colour": colour_statistics(torch.zeros(count, 3, 4, 4, dtype=torch.uint8)), "unjudged": "",
            "sizes": Counter(), "notes": Counter(), "opening": Counter(),
        }  # fmt: skip

    assert joined(part([2, 3], "ba"), second) == {}
    found = joined(part([0, 1, 4], "ab"), first)
    assert found["rows"]["a"].flatten().tolist() == [0, 1, 2, 3, 4]
    assert found["rows"]["b"].flatten().tolist() == [100, 101, 102, 103, 104]
