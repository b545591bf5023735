"""The commands: what they print, and that bad input is one line with exit code 2."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from generation_tools import ROOT, pilotage, process, tiny_flags, tiny_folder
from PIL import Image

from pilotage.generation import folder

RESOLVED = """\
prompts:
- two red stars on navy
negative: blue
seeds: 0-3,17:2
paired: false
strength: 0.8
model: embedded
lora_scale: 1.0
guidance: apg:scale=10,norm_threshold=1.55 + interval:low=0.3
sampler: heun
grid: karras
steps: 12
call:
  clip_skip: 1
batch_size: 32
exact: false
dtype: float32
device: auto
preview_every: 0
allow_download: false
"""


def test_help_is_quick_because_nothing_heavy_is_imported() -> None:
    code = """
import sys
from pilotage.cli.main import run
assert run(["--help"]) == 0 and run(["generate", "--help"]) == 0
heavy = {"torch", "diffusers", "transformers", "numpy", "PIL", "yaml", "jinja2"} & set(sys.modules)
assert not heavy, heavy
"""
    child = process(code)
    assert child.wait(300) == 0


def test_help_stands_as_it_was_written(capsys: pytest.CaptureFixture[str]) -> None:
    """No `:name:` is made a symbol, and no line ends where the source's does."""
    from pilotage.cli.main import app

    assert len(app.registered_commands) > 15
    for command in app.registered_commands:
        assert pilotage(command.name, "--help") == 0
        assert not [sign for sign in capsys.readouterr().out if ord(sign) > 0x2600], command.name
        assert command.help and "\n" not in command.help.replace("\n\n", ""), command.name


def test_dry_run_prints_the_resolved_spec(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("steps: 40\nsampler: heun\n")
    code = pilotage(
        "generate", "two red stars on navy", "--preset", "embedded", "--config", tmp_path / "run.yaml", "--steps", "12",
        "-g", "apg:scale=10 + interval:low=0.3", "--seeds", "0-3,17:2", "--negative", "blue", "--set", "grid=karras",
        "--set", "call.clip_skip=1", "--dry-run",
    )  # fmt: skip
    out, err = capsys.readouterr()
    assert (code, err) == (0, "")
    assert yaml.safe_load(out) == yaml.safe_load(RESOLVED)
    assert list(yaml.safe_load(out)) == list(yaml.safe_load(RESOLVED))


def test_generate_resume_and_rerun(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    output = tmp_path / "run"
    assert pilotage(*tiny_flags(output, "-g", "none", "--negative", "blue", "--preview-every", "2")) == 0
    out, err = capsys.readouterr()
    assert out.startswith(f"6 pictures in {output}: 3 cond evaluations and ")
    assert "note: the negative prompt has no effect" in err
    assert Image.open(output / "preview.png").width > 16
    assert pilotage(*tiny_flags(output, "-g", "none", "--negative", "blue")) == 0
    assert "all 6 pictures are in" in capsys.readouterr().out
    assert pilotage("rerun", str(output / "000003.png"), "--trust") == 0
    assert "the same pixels" in capsys.readouterr().out
    assert pilotage("rerun", str(output / "000003.png"), "--set", "guidance=cfg", "--dry-run", "--trust") == 0
    assert yaml.safe_load(capsys.readouterr().out)["guidance"].startswith("cfg")


def test_compare_writes_a_grid_and_a_self_contained_page(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    flags = [f for f in tiny_flags(tmp_path, "--title", "A <b>title</b>")][1:]
    axes = ["-x", "guidance=none|cfg:scale=3|apg", "-x", "steps=2|3"]
    assert pilotage("compare", *flags, *axes, "--show", "4") == 0
    out, _ = capsys.readouterr()
    assert "guidance none, steps 2" in out and "saturation" in out
    page = (tmp_path / "index.html").read_text()
    assert page.count("<img ") == page.count("data:image/png;base64,") == 6 * 4
    assert not re.search(r"""(src|href)=["'](?!data:)""", page) and "@import" not in page and "<script" not in page
    assert "A &lt;b&gt;title&lt;/b&gt;" in page
    assert "6 pictures each" in page and "3 cond + 3 uncond" in page
    sheet = Image.open(tmp_path / "grid.png")
    assert sheet.width > 4 * 128 and sheet.height > 6 * 128
    assert len(list((tmp_path / "cells").iterdir())) == 6
    assert pilotage("compare", *flags, *axes, "--show", "2", "--metrics", "none") == 0  # nothing is made again


def test_demo_is_compare_with_a_preset(capsys: pytest.CaptureFixture[str]) -> None:
    assert pilotage("demo", "--dry-run") == 0
    out, err = capsys.readouterr()
    resolved = yaml.safe_load(out)
    assert len(resolved["prompts"]) == 8 and len(resolved["axes"]["guidance"]) == 6
    assert resolved["output"] == "runs/demo" and "6 cells" in err


@pytest.mark.parametrize(
    "what", ["rules", "optimisers", "samplers", "grids", "metrics", "features", "presets", "models"]
)
def test_lists(capsys: pytest.CaptureFixture[str], what: str) -> None:
    assert pilotage("list", what) == 0
    assert len(capsys.readouterr().out.splitlines()) >= 4


def test_explain_is_complete_for_every_rule(capsys: pytest.CaptureFixture[str]) -> None:
    from pilotage.guidance.explanation import explain
    from pilotage.guidance.registry import RULES

    assert pilotage("explain", "interval:low=0.3 + apg") == 0
    out = capsys.readouterr().out
    assert "interval(apg)" in out and "2410.02416" in out and "norm_threshold" in out
    assert "2 a picture and step at most: cond, uncond" in out
    for name, spec in RULES.items():
        try:
            found = explain(name)
        except ValueError as error:  # a rule with a required setting says so
            assert name in str(error)
            continue
        assert found.parts[-1].summary in spec.summary and found.parts[-1].how


def test_explain_says_what_is_off() -> None:
    from pilotage.guidance.explanation import explain

    assert explain("cfg:scale=1").parts[0].is_off and not explain("cfg:scale=2").parts[0].is_off
    assert explain("cfg + rescale:phi=0.7").order == "rescale(cfg)"


@pytest.mark.parametrize("kind", range(5), ids=["divergences", "distillations", "methods", "rewards", "samplers"])
def test_explain_is_complete_for_what_has_a_spec(capsys: pytest.CaptureFixture[str], kind: int) -> None:
    from pilotage.cli.explain import _kinds

    told = _kinds()[kind]
    for name, spec in told.specs.items():
        assert pilotage("explain", name) == 0
        out = capsys.readouterr().out
        assert f"{name}, a {told.what}: {spec.summary}" in out and spec.paper in out and spec.notes in out
        assert all(f"  {setting} " in out for setting in spec.defaults if setting not in ("reward", "rewards")), name


def test_explain_says_what_a_divergence_trades(capsys: pytest.CaptureFixture[str]) -> None:
    assert pilotage("explain", "js") == 0
    out = capsys.readouterr().out
    assert "h = r/(1 + r)" in out and "2502.15681" in out
    assert re.search(r"trades +mode-seeking: medium; saturates: yes", out)
    assert pilotage("explain", "power:exponent=-1") == 0
    assert re.search(r"exponent +-1; below -2: more mode-seeking", capsys.readouterr().out)


def test_explain_tells_all_that_have_a_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert pilotage("explain", "clip-score") == 0
    out = capsys.readouterr().out
    assert "mean cosine of pictures" in out and "clip-score, a reward" in out


def test_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    assert pilotage("doctor") in (0, 1)
    out = capsys.readouterr().out
    assert "torch" in out and "embedded model" in out and ("trouble: " in out or "no known trouble" in out)


def test_doctor_finds_a_package_that_does_not_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pilotage.generation import health

    (tmp_path / "torch_fidelity.py").write_text("raise ImportError('built for another torch')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert any("torch_fidelity is installed and does not import" in trouble for trouble in health.troubles())


def test_score_a_run_folder(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for i in range(3):
        Image.new("RGB", (32, 32), (90 * i, 20, 30)).save(tmp_path / f"{i}.png")
    assert pilotage("score", tmp_path, "--metrics", "colour", "-o", tmp_path / "report.json") == 0
    assert "saturation" in capsys.readouterr().out and (tmp_path / "report.json").is_file()


# -- bad input -----------------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Things that can be wrong, by name."""
    (tmp_path / "bad.yaml").write_text("stpes: 3\n")
    (tmp_path / "broken.yaml").write_text("a: [\n")
    (tmp_path / "list.yaml").write_text("- 1\n")
    (tmp_path / "text.png").write_text("no picture")
    Image.new("RGB", (8, 8)).save(tmp_path / "foreign.png")
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "empty").mkdir()
    other = tmp_path / "other"
    other.mkdir()
    (other / "run.yaml").write_text(yaml.safe_dump({"spec": {"prompts": ["x"], "steps": 99}}))
    (tmp_path / "tuned").mkdir()
    (tmp_path / "tuned" / "run.yaml").write_text(yaml.safe_dump({"spec": {"prompts": ["x"], "updates": 2}}))
    return tmp_path


BAD = [
    ("generate x -g cfgg", "unknown guidance rule 'cfgg': did you mean cfg"),
    ("generate x -g cfg:scale=big", "cfg:scale must be a number"),
    ("generate x -g cfg:scal=2", "no setting 'scal': did you mean scale"),
    ("generate x --sampler eular", "unknown sampler 'eular': did you mean euler"),
    ("generate x --grid karas", "did you mean karras"),
    ("generate x --config {}/bad.yaml", "unknown key 'stpes': did you mean steps"),
    ("generate x --config {}/broken.yaml", "is no YAML"),
    ("generate x --config {}/list.yaml", "holds no settings"),
    ("generate x --config {}/nowhere.yaml", "there is no settings file"),
    ("generate x --set stpes=3", "unknown key 'stpes'"),
    ("generate x --preset sd51", "unknown preset 'sd51': did you mean sd15"),
    ("generate x --steps many", "--steps': input should be a valid integer"),
    ("generate x --stpes 3", "no such option"),
    ("generate x --seeds 5-1", "run backwards"),
    ("generate", "no prompt, so no pictures"),
    ("generate --prompts {}/empty.txt", "holds no prompts"),
    ("generate x --prompts {}/empty.txt", "not both"),
    ("generate x --model {}/nowhere", "there is no model"),
    ("generate x --model {}/empty", "has no model_index.json"),
    ("generate x --image {}/nowhere.png", "there is no picture"),
    ("generate x --image {}/text.png", "no picture that can be read"),
    ("generate x -o {}/other", "holds another run"),
    ("generate x -o {}/tuned", "holds a training; choose another output"),
    ("generate x -o {}/text.png", "is not a folder"),
    ("rerun {}/text.png", "no PNG that can be read"),
    ("rerun {}/foreign.png", "was not written by pilotage"),
    ("rerun {}/nowhere.png", "there is no file"),
    ("rerun {}/foreign.png -o x.jpg", "x.jpg must end in .png"),
    ("compare x", "nothing to compare"),
    ("compare x -x guidance", "cannot read --axis"),
    ("compare x -x stpes=1|2", "unknown axis 'stpes': did you mean steps"),
    ("compare x -x seeds=1|2", "cannot be an axis"),
    ("compare x -x steps=1|2 --metrics frechett", "did you mean frechet"),
    ("compare x -x guidance=cfg|cfgg", "unknown guidance rule 'cfgg'"),
    ("score {}/nowhere", "there is no folder"),
    ("score {}/empty", "holds no pictures"),
    ("list ruels", "there is no list of 'ruels': did you mean rules"),
    ("explain cfgg", "unknown guidance rule"),
    ("explain reverse-k1", "unknown name 'reverse-k1': did you mean reverse-kl"),
    ("explain power:expnent=2", "power has no setting 'expnent': did you mean exponent"),
    ("genrate x", "no such command"),
]


@pytest.mark.parametrize(("line", "message"), BAD, ids=[line for line, _ in BAD])
def test_bad_input_is_one_line_with_the_fix(
    capsys: pytest.CaptureFixture[str], files: Path, line: str, message: str
) -> None:
    before = sorted(path.relative_to(files) for path in files.rglob("*"))
    output = [] if " -o " in line or not line.startswith(("generate", "compare")) else ["-o", str(files / "out")]
    tiny = ["--model", tiny_folder()] if line.startswith("generate") and "--model" not in line else []
    capsys.readouterr()
    code = pilotage(*(word.format(files) for word in line.split()), *output, *tiny)
    out, err = capsys.readouterr()
    assert code == 2
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1
    assert message.lower() in err.lower()
    after = sorted(path.relative_to(files) for path in files.rglob("*"))
    assert after == before, "nothing half-written"


def test_stopped_by_the_keyboard(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*arguments: object, **settings: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(folder, "run", stop)
    assert pilotage(*tiny_flags(tmp_path)) == 130
    assert capsys.readouterr().err.strip().endswith("the same command resumes")


def test_a_full_disk_from_deep_inside_is_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno

    def full(*arguments: object, **settings: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(folder, "run", full)
    assert pilotage(*tiny_flags(tmp_path)) == 2
    assert capsys.readouterr().err == "error: No space left on device; the same command resumes\n"


def test_the_installed_command_is_the_same() -> None:
    import tomllib

    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts == {"pilotage": "pilotage.cli.main:main"}
