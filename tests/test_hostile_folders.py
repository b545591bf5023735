"""Folders and files of strangers: models, data, statistics, fits, runs. Nothing in them is executed or downloaded, and
what they name stays within them."""

from __future__ import annotations

import json
import pickle  # noqa: TID251, what a stranger would send
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from generation_tools import pilotage, tiny_folder, tiny_settings
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from pilotage.distill.data import _captions, _fitted
from pilotage.errors import UsageError
from pilotage.evaluation import reference
from pilotage.evaluation.report_page import render
from pilotage.evaluation.results import Report, Result
from pilotage.evaluation.statistics import read_statistics, write_statistics
from pilotage.finetune.ranking.drawing import Drawing
from pilotage.finetune.ranking.files import STATE, Ranking, Stop, Wish, _opened, read_state, write_state
from pilotage.generation import RunSpec, generate, load
from pilotage.generation.manifest import finished_items, hash_of
from pilotage.generation.prompts import read_prompts
from pilotage.generation.recommended import FILE, base_of, recommended, write_recommended
from pilotage.generation.status import status_of
from pilotage.guidance.modifiers.linear import LinearCoefficients
from pilotage.samplers.fit_grid import FittedGrid
from pilotage.samplers.teleport import GaussianMap
from pilotage.training import run_folder
from pilotage.training.page import write_page

MARK = "executed-by-a-stranger"


class Evil:
    """Unpickled, it writes a file."""

    def __reduce__(self) -> Any:
        return (exec, (f"open({MARK!r}, 'w')",))


@pytest.fixture(autouse=True)
def _nothing_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    yield
    assert not (tmp_path / "work" / MARK).exists() and MARK not in sys.modules


def refused(act: Callable[[], Any], *words: str) -> str:
    with pytest.raises(UsageError) as told:
        act()
    said = str(told.value)
    assert said.isprintable() and len(said) <= 4000 and all(word in said for word in words)
    return said


# -- models ---------------------------------------------------------------------------------------------------


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_folder(), tmp_path / "model"))


def changed_json(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    found = json.loads(path.read_text())
    change(found)
    path.write_text(json.dumps(found))


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_pickled_weights_are_not_opened(model: Path, part: str) -> None:
    """Neither the old names of diffusers and transformers, nor a pickle under the name of safetensors."""
    (weights,) = (model / part).glob("*.safetensors")
    evil = pickle.dumps(Evil())
    weights.write_bytes(evil)
    refused(lambda: load(str(model)), "cannot load the model")
    weights.unlink()
    for name in ("diffusion_pytorch_model.bin", "pytorch_model.bin", "model.pt"):
        (model / part / name).write_bytes(evil)
    refused(lambda: load(str(model)), "cannot load the model")


def test_weak_networks_and_loras_are_not_unpickled(tmp_path: Path) -> None:
    weak = Path(shutil.copytree(Path(tiny_folder()).parent / "weak", tmp_path / "weak"))
    (weights,) = weak.glob("*.safetensors")
    torch.save(load_file(weights), weak / "diffusion_pytorch_model.bin")
    weights.unlink()
    spec = RunSpec(**tiny_settings(guidance="autoguidance:scale=2", weak=str(weak)))
    refused(lambda: list(generate(spec)), "cannot load a weak")
    (tmp_path / "lora").mkdir()
    for name in ("pytorch_lora_weights.bin", "pytorch_lora_weights.safetensors"):
        (tmp_path / "lora" / name).write_bytes(pickle.dumps(Evil()))
        refused(lambda: list(generate(RunSpec(**tiny_settings(lora=str(tmp_path / "lora"))))), "cannot use the LoRA")
        file = str(tmp_path / "lora" / name)
        refused(lambda file=file: list(generate(RunSpec(**tiny_settings(lora=file)))), "cannot use the LoRA")


CODE = f"open({MARK!r}, 'w')\nclass Pipeline: pass\nclass UNet2DConditionModel: pass\n"
INDEX: dict[str, Callable[[dict[str, Any]], Any]] = {
    "a pipeline of its own": lambda index: index.update(_class_name=[MARK, "Pipeline"]),
    "a component of its own": lambda index: index.update(unet=[MARK, "UNet2DConditionModel"]),
    "a module of Python": lambda index: index.update(unet=["os", "system"]),
    "a program": lambda index: index.update(unet=["subprocess", "Popen"]),
    "a builtin": lambda index: index.update(unet=["builtins", "exec"]),
    "a path": lambda index: index.update(unet=["../" + MARK, "Pipeline"]),
    "no class": lambda index: index.update(_class_name="NoPipelineOfThisName"),
    "a class that is no pipeline": lambda index: index.update(_class_name="DDIMScheduler"),
}


@pytest.mark.parametrize("name", INDEX)
def test_code_in_a_model_folder_is_not_run(model: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for place in (model, model / "unet", model.parent):
        (place / f"{MARK}.py").write_text(CODE)
    changed_json(model / "model_index.json", INDEX[name])
    refused(lambda: load(str(model)))


def test_code_that_a_text_encoder_asks_for_is_not_run(model: Path) -> None:
    for part in ("text_encoder", "tokenizer"):
        (model / part / f"{MARK}.py").write_text(CODE)
        for config in (model / part).glob("*config.json"):
            changed_json(config, lambda found: found.update(auto_map={"AutoModel": f"{MARK}.Pipeline"}))
    load(str(model))


@pytest.mark.parametrize(
    "text",
    ["{", "[]", "null", '{"settings": {}}', '{"base": 3, "settings": {}}', '{"base": null, "settings": []}',
     '{"base": null, "settings": {"allow_download": true}}', '{"base": null, "settings": {"output": "/"}}', "[" * 10**5,
     '{"base": null, "settings": {"lora": "/x"}}', " " * 2**21, "\0",
     '{"base": null, "settings": {"steps": ' + "9" * 5000 + "}}"],
)  # fmt: skip
def test_a_recommendation_that_asks_for_more_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE).write_text(text)
    refused(lambda: recommended(str(tmp_path)), "take it away")
    refused(lambda: RunSpec(prompts=["x"], model=str(tmp_path)), "take it away")


@pytest.mark.parametrize(
    "asked",
    [{"steps": 10**9}, {"steps": "x"}, {"guidance": "x"}, {"guidance": 3}, {"sampler": "heun:order=" + "9" * 300},
     {"grid": ["a"]}, {"call": 3}, {"guidance": "\x1b[2J"}],
)  # fmt: skip
def test_what_a_model_recommends_is_checked_as_if_it_were_given(tmp_path: Path, asked: dict[str, Any]) -> None:
    write_recommended(tmp_path, asked)
    refused(lambda: RunSpec(prompts=["x"], model=str(tmp_path)))


def test_students_that_rest_on_themselves_end(tmp_path: Path) -> None:
    for name, base in (("a", "b"), ("b", "a"), ("self", "self")):
        (tmp_path / name).mkdir()
        write_recommended(tmp_path / name, {}, str(tmp_path / base))
    for name in ("a", "self"):
        refused(lambda name=name: base_of(str(tmp_path / name)), "or on itself")
        refused(lambda name=name: load(str(tmp_path / name)), "or on itself")


def test_names_that_no_disk_can_hold() -> None:
    for name in ("a" * 5000, "a/" * 3000, "\0", "~nobody-of-that-name/x", "owner/../../etc", "//host/share"):
        refused(lambda name=name: load(name))


# -- statistics and fits -----------------------------------------------------------------------------------------


def test_statistics_that_unpack_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pilotage.evaluation.statistics.TOTAL_BYTES", 2**22)
    path = tmp_path / "x.npz"
    np.savez_compressed(path, mu=np.zeros(2**21), sigma=np.eye(3))
    assert path.stat().st_size < 2**16
    refused(lambda: read_statistics(path, assume="clean"), f"unpacks to {2**24 + 328}: a bomb")


@pytest.mark.parametrize("suffix", [".npz", ".pt", ".pkl"])
def test_pickles_as_statistics(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x{suffix}"
    path.write_bytes(pickle.dumps(Evil()))
    refused(lambda: read_statistics(path, assume="clean"))
    np.savez(tmp_path / "y.npz", mu=np.array([Evil()], dtype=object), sigma=np.eye(1))
    refused(lambda: read_statistics(tmp_path / "y.npz", assume="clean"))


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.floats(0, 1), new=st.binary(min_size=1, max_size=6), cut=st.booleans())
def test_damaged_statistics_are_read_or_refused(tmp_path: Path, at: float, new: bytes, cut: bool) -> None:
    path = tmp_path / "x.npz"
    np.savez_compressed(path, mu=np.zeros(3), sigma=np.eye(3))
    content = path.read_bytes()
    place = int(at * len(content))
    path.write_bytes(content[:place] if cut else content[:place] + new + content[place + len(new) :])
    try:
        read_statistics(path, assume="clean")
    except UsageError as error:
        assert str(error).isprintable()


@pytest.mark.parametrize(
    "arrays",
    [{"mu": b""}, {"mu": "x"}, {"mu": ["x", "y", "z"]}, {"sigma": b"x"}, {"mu": [np.nan] * 3},
     {"mu": 3.0}, {"feats": "x"}, {"feats": 3.0}, {"feats": [["x"]]}],
    ids=str,
)  # fmt: skip
def test_statistics_of_other_kinds_are_refused(tmp_path: Path, arrays: dict[str, Any]) -> None:
    usual = {"mu": np.zeros(3), "sigma": np.eye(3)}
    np.savez(tmp_path / "x.npz", **usual)
    read_statistics(tmp_path / "x.npz", assume="clean")
    np.savez(tmp_path / "x.npz", **{name: np.array(value) for name, value in (usual | arrays).items()})
    refused(lambda: read_statistics(tmp_path / "x.npz", assume="clean"))


READERS: dict[str, Callable[[Path], Any]] = {"grid": FittedGrid.load, "linear": LinearCoefficients.load}


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize(
    "text",
    [b"", b"[]", b"{}", b"3", b"[" * 10**5, b"\xff", b"\0", b'{"rhos": [1e999]}', b'{"rhos": [' + b"9" * 400 + b"]}",
     b'{"rhos": 3}', b'{"rhos": ["x"]}', b'{"rhos": [NaN], "x": 1}', b'{"rhos": [2, 3]}'],
)  # fmt: skip
def test_fits_of_strangers(tmp_path: Path, name: str, text: bytes) -> None:
    (tmp_path / "x.json").write_bytes(text)
    refused(lambda: READERS[name](tmp_path / "x.json"))


def test_safetensors_of_strangers(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    heads: list[dict[str, str] | None] = [
        None,
        {},
        {"format": "pilotage gaussian"},
        {"ranking": "[" * 10**5},
        {"ranking": "{"},
    ]
    for head in heads:
        save_file({"mean": torch.zeros(1)}, path, metadata=head)
        refused(lambda: GaussianMap.load(path))
        refused(lambda: _opened(path))
    for content in (b"", b"\xff" * 8, (2**62).to_bytes(8, "little") + b"{}", pickle.dumps(Evil())):
        path.write_bytes(content)
        refused(lambda: GaussianMap.load(path))
        refused(lambda: _opened(path))


# -- data with captions --------------------------------------------------------------------------------------------


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    Image.new("RGB", (8, 8)).save(folder / "a.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "outside.png")
    (tmp_path / "outside.txt").write_text("a secret")
    return folder


@pytest.mark.parametrize(
    "line",
    ['{"file_name": "../outside.png", "text": "x"}', '{"file_name": "/etc/passwd", "text": "x"}',
     '{"file_name": "link.png", "text": "x"}', '{"file_name": "folder/../../outside.png", "text": "x"}',
     '{"file_name": "a\\u0000.png", "text": "x"}', '{"file_name": "loop", "text": "x"}', "3", "[]", "{}", "[" * 10**5,
     '{"file_name": "", "text": "x"}', '{"file_name": "gone.png", "text": "x"}', '{"file_name": "a.png"}',
     '{"file_name": "a.png", "text": ' + "9" * 5000 + "}"],
)  # fmt: skip
def test_a_list_of_captions_names_pictures_of_its_folder_alone(data: Path, line: str) -> None:
    (data / "link.png").symlink_to(data.parent / "outside.png")
    (data / "loop").symlink_to(data / "loop")
    (data / "metadata.jsonl").write_text(line + "\n")
    refused(lambda: _captions(data))


def test_links_out_of_a_folder_are_not_followed(data: Path) -> None:
    (data / "a.txt").symlink_to(data.parent / "outside.txt")
    assert "secret" not in refused(lambda: _captions(data), "a.txt", "lies outside")
    (data / "a.txt").unlink()
    (data / "a.txt").write_text("a star")
    assert _captions(data) == {"a.png": "a star"}
    (data / "b.png").symlink_to(data.parent / "outside.png")
    (data / "b.txt").write_text("x")
    refused(lambda: _captions(data), "b.png", "lies outside")


def test_long_lines_and_many(data: Path) -> None:
    lines = [json.dumps({"file_name": "a.png", "text": "x" * 10**6}) for _ in range(20)]
    (data / "metadata.jsonl").write_text("\n".join(lines))
    assert len(_captions(data)["a.png"]) == 10**6


@pytest.mark.parametrize(
    "content", [b"", b"no picture", b"%!PS-Adobe-3.0 EPSF-3.0\n", b"\x89PNG\r\n\x1a\n", pickle.dumps(Evil())]
)
def test_what_is_no_picture_is_taken_out(data: Path, content: bytes) -> None:
    (data / "a.png").write_bytes(content)
    refused(lambda: _fitted(data / "a.png", (8, 8)), "take it out of the data")


# -- pages of runs ---------------------------------------------------------------------------------------------------

SCRIPT = "</title></svg><script>alert(1)</script><img src=x onerror=alert(1)>\"'"


def test_what_a_run_says_is_text_on_its_page(tmp_path: Path) -> None:
    """Names of series, notices, settings and the folder itself."""
    folder = tmp_path / "<script>alert(1)<"
    folder.mkdir()
    lines: list[Any] = [
        {"update": update, "seconds": 1.0, "pictures": 2, SCRIPT: float(update), "held_out": {SCRIPT: update * 2.0}}
        | {"notices": [SCRIPT, 3, None]}
        for update in range(4)
    ]  # fmt: skip
    lines += [[], 3, {"update": "x"}, {"update": 5, "reward": 10**400, "seconds": "x", "notices": {"a": 1}}]
    text = "\n".join(json.dumps(line) for line in lines)
    (folder / run_folder.LOG).write_text(text + "\n" + "[" * 10**5 + "\n{\n")
    (folder / run_folder.RUN).write_text(
        json.dumps({"spec": {"method": SCRIPT, "prompts": [SCRIPT], "limits": SCRIPT}})
    )
    (folder / run_folder.SHEETS).mkdir()
    (folder / run_folder.SHEETS / "000001.png").write_bytes(b"<script>")
    page = write_page(folder).read_text()
    assert "&lt;script&gt;alert(1)" in page
    for mark in ("<script", "onerror=alert(1)>", "<img src=x"):
        assert mark not in page.replace("&lt;", "")


@pytest.mark.parametrize(
    "spec", ["[" * 10**5, "!!python/object/apply:os.system [x]", "\x00", "- 1", "a: &a [*a]", "spec: [1]"]
)
def test_a_page_whose_settings_are_hostile(tmp_path: Path, spec: str) -> None:
    (tmp_path / run_folder.LOG).write_text('{"update": 1, "seconds": 1.0, "pictures": 2, "reward": 0.5}\n')
    (tmp_path / run_folder.RUN).write_text(spec)
    assert "reward" in write_page(tmp_path).read_text()


def test_a_run_folder_of_a_stranger_is_not_gone_on_with(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for text in ("[" * 10**5, "!!python/object/apply:os.system [x]", "spec: 3", "spec: {self: 1}", "- 1", "\x00"):
        (tmp_path / run_folder.RUN).write_text(text)
        assert pilotage("finetune", "a star", "-r", "saturation", "-o", str(tmp_path)) == 2
        told = capsys.readouterr().err
        assert "is of no training run; choose another output" in told and "Traceback" not in told


LINES = (
    "3", "[]", "null", "{}", "[" * 10**5, "{", "\x00", "9" * 5000, '{"index": [1]}',
    '{"index": 0, "file": "../../outside.png"}',
    '{"index": 0, "file": "/etc/passwd", "bytes": 1, "sha256": "x"}', '{"index": 0, "seconds": "x"}', '{"index": -1}',
    '{"index": 0, "file": "000000.png", "bytes": 1, "sha256": 3, "seconds": 1e999}', '{"event": [], "time": {}}',
)  # fmt: skip


def test_manifests_and_logs_of_strangers_are_passed_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    flags = ["--steps", "1", "--seeds", "0", "--threads", "1", "-o", str(folder)]
    assert pilotage("generate", "a star", *flags) == 0
    good = (folder / "000000.png").read_bytes()
    for name in ("manifest.jsonl", "log.jsonl"):
        with (folder / name).open("a", encoding="utf-8") as file:
            file.write("\n".join(LINES) + "\n")
    assert pilotage("status", str(folder)) == 0 and "Traceback" not in capsys.readouterr().err
    assert pilotage("generate", "a star", *flags) == 0 and (folder / "000000.png").read_bytes() == good
    for text in ("[" * 10**5, "!!python/object/apply:os.system [x]", "!!int x", "- 1", "\x00", "spec: [1]", "&a [*a]"):
        (folder / "run.yaml").write_text(text)
        for command in (["status", str(folder)], ["generate", "a star", *flags]):
            assert pilotage(*command) == 2
            told = capsys.readouterr().err
            assert "Traceback" not in told and "run.yaml" in told


# -- numbers and kinds that make no sense ------------------------------------------------------------------------------

NUMBERS = (True, -1, 10**299, 1e308, float("nan"), float("inf"))
HOSTILE: tuple[Any, ...] = (*NUMBERS, None, "\x1b[2J", "\ud800", [], {}, [[3]])
TOLD = {"event": "failed", "time": "", "finished": 1, "of": 2, "processes": 1, "note": "x", "why": "y", "seconds": 2.0}
UPDATE = {"update": 1, "seconds": 1.0, "pictures": 2, "reward": 0.5, "notices": ["low"], "held_out": {"reward": 0.5}}


@pytest.mark.parametrize("updates", [None, 4, "x", [4]])
def test_the_state_of_any_run_is_told_in_one_line(tmp_path: Path, updates: Any) -> None:
    """Speeds of infinite or negative time, notices that are none, terminal codes in any place."""
    spec = {"prompts": ["a"]} | ({} if updates is None else {"updates": updates})
    (tmp_path / run_folder.RUN).write_text(json.dumps({"spec": spec}))
    first = UPDATE if updates else TOLD | {"event": "begin", "finished": 0, "seconds": 0.0}
    usual = UPDATE | {"update": 2} if updates else TOLD
    for key in usual:
        for value in HOSTILE:
            (tmp_path / run_folder.LOG).write_text(
                "\n".join(json.dumps(line) for line in (first, usual | {key: value}))
            )
            (tmp_path / "manifest.jsonl").write_text(json.dumps({"index": 0, "seconds": value}))
            (tmp_path / "run.lock").write_text(json.dumps({"pid": value, "host": value}))
            found = status_of(tmp_path)
            assert found.line().isprintable()
            json.loads(json.dumps(found.plain(), allow_nan=False))


def test_half_a_surrogate_pair_in_a_log_comes_onto_the_page(tmp_path: Path) -> None:
    (tmp_path / run_folder.LOG).write_text('{"update": 1, "reward": 1, "notices": ["\\ud800"], "\\udfff": 2}\n')
    assert "\\ud800" in write_page(tmp_path).read_text(encoding="utf-8")


def test_a_manifest_whose_costs_make_no_sense_names_no_pictures(tmp_path: Path) -> None:
    """Its pictures are made again, so that what a page says of their cost is right."""
    (tmp_path / "a.png").write_bytes(b"x")
    item = {
        "index": 0,
        "file": "a.png",
        "bytes": 1,
        "sha256": hash_of(tmp_path / "a.png"),
        "seconds": 1,
        "evaluations": {},
    }

    def found(**changes: Any) -> bool:
        (tmp_path / "manifest.jsonl").write_text(json.dumps(item | changes) + "\n")
        return bool(finished_items(tmp_path, 1))

    assert found() and found(evaluations={"cond": 2.5})
    for value in HOSTILE:
        assert not found(seconds=value) and not found(evaluations={"cond": value})
        assert not found(evaluations=value) or value == {}
        assert not found(file=value)
    assert not found(file=".", bytes=tmp_path.stat().st_size, changed=tmp_path.stat().st_mtime_ns)


@pytest.mark.parametrize(
    ("key", "value"),
    [("results", 3), ("results", [3]), ("results", [{}]), ("warnings", 3), ("sources", {"real": "x"}), ("other", 1),
     ("skipped", []), ("environment", "x"), ("results.value", "x"), ("results.interval", [1]), ("results.name", 3),
     ("results.interval", ["a", "b"]), ("results.details", []), ("results.provenance", 3), ("results.n_real", "x"),
     ("results.higher_is_better", 3), ("results.cautions", 3), ("results.other", 3), ("results.null", "[" * 99)],
)  # fmt: skip
def test_a_report_of_other_kinds_is_refused(tmp_path: Path, key: str, value: Any) -> None:
    Report((Result("fid", 2.0, (1.0, 3.0), real=0.5),), {"kid": "few"}, ("w",), {"real": {"name": "x"}}).write(tmp_path)
    assert Report.read(tmp_path)["fid"].interval == (1.0, 3.0)
    block, _, inner = key.partition(".")
    changed_json(
        tmp_path / "metrics.json", lambda found: (found[block][0] if inner else found).update({inner or key: value})
    )
    refused(lambda: Report.read(tmp_path), "is no report of pilotage")


def test_a_report_of_brackets_is_refused_and_one_of_odd_facts_is_shown(tmp_path: Path) -> None:
    (tmp_path / "metrics.json").write_text("[" * 10**5)
    refused(lambda: Report.read(tmp_path), "is no report of pilotage")
    odd = Report(
        (Result("fid", 2.0, provenance={"extractor": [1], "preprocessing": {}}),), environment={"seconds": "x"}
    )
    odd.write(tmp_path)
    read = Report.read(tmp_path)
    assert "fid" in render({"one": read, "other": read})


@pytest.mark.parametrize(
    "numbers",
    [{"tau": "x"}, {"tau": -1}, {"mode": "other"}, {"round": 1.5}, {"way": 3}, {"way": [[0, None, 1]]}, {"way": []},
     {"way": [["x", None]]}, {"way": [[0, "x"]]}, {"drawn": None}, {"drawn": 10**30}, {"other": 1}, {"seed": []}],
)  # fmt: skip
def test_the_state_of_a_ranking_of_other_kinds_is_refused(tmp_path: Path, numbers: dict[str, Any]) -> None:
    wish, latent = Wish(Drawing("a star")), torch.zeros(1, 2, 2)
    write_state(tmp_path, wish, Ranking(wish.method.begin(latent), (Stop(latent, 0),), 1))
    assert read_state(tmp_path, wish) is not None
    path = tmp_path / STATE
    told = json.loads(safe_open(path, "pt").metadata()["ranking"])

    def with_head(told: Any) -> None:
        save_file(load_file(path), path, metadata={"ranking": json.dumps(told)})
        refused(lambda: read_state(tmp_path, wish), "choose another output")

    with_head(told | {"numbers": told["numbers"] | numbers})
    for other in ([], 3, told | {"numbers": 3}, told | {"wish": 3}, {"format": 1}):
        with_head(other)


def test_a_table_of_prompts_with_an_open_quote_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text('prompt\n"' + "x" * 200_000)
    refused(lambda: read_prompts(path), "a quote may be open")


@pytest.mark.parametrize("value", [float("inf"), 10**200, "x", None, [], {}])
@pytest.mark.parametrize("key", ["n", "side", "sizes", "outputs"])
def test_statistics_that_say_odd_things_of_themselves(tmp_path: Path, key: str, value: Any) -> None:
    path = tmp_path / "x.npz"
    pictures = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), np.uint8)
    write_statistics(reference(pictures, features="pixels"), path)
    read_statistics(path)
    with np.load(path) as opened:
        arrays = {name: opened[name] for name in opened.files}
    np.savez(path, **{**arrays, "meta": np.array(json.dumps(json.loads(str(arrays["meta"])) | {key: value}))})
    if (key, value) not in (("sizes", {}), ("outputs", []), ("outputs", {}), ("outputs", "x"), ("side", 10**200)):
        refused(lambda: read_statistics(path), "damaged")
