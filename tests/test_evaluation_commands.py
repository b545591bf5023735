"""score, stats, list and explain as a stranger types them: wrong names, statistics, what is left out, what is said."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from generation_tools import pilotage
from PIL import Image

from pilotage.cli.main import run
from pilotage.errors import UsageError
from pilotage.evaluation import METRICS, open_features, score
from pilotage.evaluation.environment import open_device
from pilotage.evaluation.metrics.duplicates import found_among
from pilotage.evaluation.metrics.explanation import everything_explained, explain, is_metric
from pilotage.evaluation.results import Report
from pilotage.zoo import world

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module", name="folders")
def _folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """ "mine" and "yours", 40 pictures each, five of them in both."""
    place = tmp_path_factory.mktemp("pictures")
    for name, first in (("mine", 0), ("yours", 35)):
        (place / name).mkdir()
        for number, picture in enumerate(world.pictures(range(first, first + 40), "test", 32)):
            Image.fromarray(picture).save(place / name / f"{number:03d}.png")
    return {name: str(place / name) for name in ("mine", "yours")}


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout, stderr with all white space as one blank."""
    code = run(arguments)
    out, error = capsys.readouterr()
    return code, " ".join(out.split()), error


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--metrics", ""], "no metric is named"),
        (["--metrics", ","], "no metric is named"),
        (["--features", "embeded"], "unknown features 'embeded': did you mean embedded"),
        (["--metrics", "full", "-f", "random", "-f", "dinov3"], "unknown features 'dinov3': did you mean dinov2"),
        (["--device", "cud"], "no device 'cud'"),
        (
            ["--metrics", "prdc", "-k", "40"],
            "40 pictures have no 40 neighbours each; give more pictures, or k=39 at most",
        ),
        (["--output", "scores.html"], "is no folder"),
        (["--metrics", "authenticity"], "(--train), for example embedded:train:2000"),
    ],
)
def test_what_is_named_must_be_there(
    options: list[str],
    why: str,
    folders: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, error = said(capsys, "score", folders["mine"], "--real", folders["yours"], *options)
    assert code == 2 and why in error and error.startswith("error: ") and error.count("\n") == 1, error
    assert not out and not list(tmp_path.iterdir())


def test_networks_that_only_a_suite_wants_are_left_out(folders: dict[str, str]) -> None:
    found = score(generated=folders["mine"], real=folders["yours"], metrics="standard", features="random")
    assert "fid" in found.skipped and "frechet" in found


def test_each_reason_is_said_once(folders: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = said(capsys, "score", folders["mine"], "--features", "random")
    assert out.count("it needs real pictures") == 1
    assert re.search(
        r"frechet, kernel-distance, energy, .* were left out: it needs real pictures; give real= \(--real", out
    )
    assert "adherence was left out:" in out


def test_pictures_in_both_sets_are_told(folders: dict[str, str]) -> None:
    for features in ("random", "embedded"):
        found = score(generated=folders["mine"], real=folders["yours"], metrics="frechet", features=features)
        assert any(note.startswith("5 of 40 generated pictures have the features of a real") for note in found.warnings)
    apart = score(generated=folders["mine"], real="embedded:train:30", metrics="frechet", features="random")
    assert not any("of a real one" in note for note in apart.warnings)


def test_rows_that_are_in_another_set() -> None:
    generator = torch.Generator().manual_seed(0)
    rows, others = (torch.randint(0, 3, (n, 4), generator=generator).float() for n in (600, 30))
    rows[0], others[0] = -0.0, 0.0  # equal, though not in their bits
    expected = [any(bool((row == other).all()) for other in others) for row in rows]
    assert found_among(rows, others).tolist() == expected and 0 < sum(expected) < 600
    assert found_among(rows, others[:1]).sum() == (rows == 0).all(1).sum()


def test_statistics_that_do_not_fit_say_what_would(
    folders: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moments, rows, foreign = (str(tmp_path / f"{name}.npz") for name in ("moments", "rows", "foreign"))
    assert said(capsys, "stats", folders["yours"], "-o", moments, "-f", "random", "--moments-only")[0] == 0
    assert said(capsys, "stats", folders["yours"], "-o", rows, "-f", "random") == (0, rows, "")
    code, _, note = said(capsys, "stats", folders["yours"], "-o", foreign, "-f", "random", "--format", "pytorch-fid")
    assert code == 0 and "note: pytorch-fid compares features of Inception, and these are random" in note
    code, _, error = said(capsys, "score", folders["mine"], "--real", moments, "-f", "random", "--metrics", "prdc")
    assert code == 2 and "without --moments-only" in error
    code, _, error = said(capsys, "score", folders["mine"], "--real", rows, "--metrics", "prdc")
    assert code == 2 and "with features random, not embedded; score with features random" in error


def test_every_metric_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    found = {one.name: one for one in everything_explained()}
    assert set(METRICS) <= set(found) and all(is_metric(name) for name in found)
    for one in found.values():
        assert one.definition and one.needs and one.better and "parameter" not in "".join(one.settings.values())
    assert found["kid"].needs == "real, features inception" and found["kid"].way == "↓"
    assert found["strangers"].needs == "real, features score-norms" and found["saturation"].needs == "pictures alone"
    assert explain("kid:estimator=subsets").settings["estimator"] == "subsets"
    assert not is_metric("apg") and not is_metric("kidd")
    code, out, _ = said(capsys, "explain", "vendi:order=2")
    assert code == 0 and "2210.02410" in out and "order 2" in out and "Rows are divided by their length" in out
    code, out, _ = said(capsys, "explain", "fid")
    assert code == 0 and "real, features inception" in out and "lower is better" in out
    assert said(capsys, "explain", "kid:estimatr=full")[2].startswith("error: kid has no setting 'estimatr'")
    assert "real, features clip" in said(capsys, "list", "metrics")[1]


def test_a_report_groups_reasons_in_order() -> None:
    report = Report((), {"a": "why", "b": "other", "c": "why"})
    caption = str(report.table().caption)
    assert caption.splitlines() == ["a, c were left out: why", "b was left out: other"]


def test_python_m_pilotage() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pilotage", "score", "--metrics"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stderr.startswith("error: ")


def test_devices() -> None:
    assert open_device("auto").type in ("cpu", "cuda") and open_device(torch.device("cpu")).type == "cpu"
    with pytest.raises(UsageError, match="it is auto, cpu or cuda"):
        open_device("gpu")


def test_networks_open_in_silence(capfd: pytest.CaptureFixture[str]) -> None:
    extractor = open_features("score-norms")
    assert extractor(np.zeros((1, 32, 32, 3), np.uint8)).shape == (1, 10)
    assert capfd.readouterr() == ("", "")


def test_a_run_that_is_scored_while_it_is_made(tmp_path: Path) -> None:
    """Its pictures are those that `generate` writes, and none is written."""
    (tmp_path / "run.yaml").write_text(
        yaml.safe_dump(
            {"prompts": ["two red stars on navy"], "seeds": "0-4", "steps": 2, "batch_size": 2, "exact": True}
        )
    )
    command = ["--metrics", "colour,adherence", "-o"]
    assert pilotage("score", tmp_path / "run.yaml", *command, tmp_path / "made.json") == 0
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["made.json", "run.yaml"]
    assert pilotage("generate", "--config", tmp_path / "run.yaml", "-o", tmp_path / "run") == 0
    assert pilotage("score", tmp_path / "run", *command, tmp_path / "written.json") == 0
    made, written = (Report.read(tmp_path / name) for name in ("made.json", "written.json"))
    assert [(r.name, r.value) for r in made] == [(r.name, r.value) for r in written] and len(made.results) > 3
