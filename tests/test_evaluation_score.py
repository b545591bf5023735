"""score: one pass, every result with interval and null value, what cannot be done is said, reports survive the disk."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin
from torch import Tensor, nn

from pilotage.errors import UsageError
from pilotage.evaluation import (
    METRICS,
    Extractor,
    Judge,
    Picture,
    Report,
    compare_adherence,
    frechet_distance,
    open_features,
    prdc,
    reference,
    score,
    wilson,
)
from pilotage.evaluation.features.clip import TextEmbeddings
from pilotage.evaluation.metrics.registry import GROUPS, MetricSpec
from pilotage.registry import Spec

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def pictures(n: int, seed: int = 0, size: int = 8, low: int = 0) -> np.ndarray:
    """Smooth enough to have structure."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(low, 256, (n, 2, 2, 3)).repeat(size // 2, 1).repeat(size // 2, 2)
    return (coarse + rng.integers(-9, 10, coarse.shape)).clip(0, 255).astype(np.uint8)


def brightest(batch: Tensor) -> dict[str, list[str]]:
    return {"channel": [("red", "green", "blue")[i] for i in batch.double().mean((2, 3)).argmax(1).tolist()]}


def parse(caption: str) -> dict[str, str]:
    if caption not in ("red", "green", "blue", "anything"):
        raise UsageError(f"caption {caption!r} is no colour")
    return {} if caption == "anything" else {"channel": caption}


JUDGE = Judge("brightest", brightest, parse, "abc")
SETTINGS: dict[str, Any] = {"features": "random", "judge": JUDGE}


def bound(name: str) -> Extractor:
    """Random features under the name of a network that metrics are bound to."""
    extractor = open_features("random")

    def network(batch: Tensor) -> dict[str, Tensor]:
        found = extractor.network(batch)
        return {"features": found, "logits": found[:, :10]}

    if name != "clip":
        return replace(extractor, name=name, network=network, called="fid" if name == "inception" else "")
    fields = {f.name: getattr(extractor, f.name) for f in dataclasses.fields(extractor)} | {"name": name}
    return Reading(**fields)


class Reading(Extractor):
    """Embeds captions by their first letter."""

    def encode_text(self, texts: list[str], prefix: str = "") -> TextEmbeddings:
        return TextEmbeddings(torch.stack([torch.full((64,), float(ord((prefix + t)[0]))) for t in texts]), 0)


BOUND = [bound(name) for name in dict.fromkeys(s.features for s in METRICS.values() if s.features)]
LINES = ["network-divergence:steps=20" if name == "network-divergence" else name for name in METRICS]


def captions_of(made: np.ndarray) -> list[str]:
    captions = brightest(torch.from_numpy(made).permute(0, 3, 1, 2))["channel"]
    captions[:40] = ["red"] * 20 + ["anything"] * 20
    return captions


@pytest.fixture(scope="module", name="report")
def _report() -> Report:
    made, settings = pictures(160, 1), {**SETTINGS, "features": ["random", *BOUND]}
    return score(generated=made, real=pictures(300, 2), train=pictures(180, 3), test=pictures(90, 4),
                 captions=captions_of(made), metrics=LINES, **settings)  # fmt: skip


@pytest.mark.parametrize("name", METRICS)
def test_every_registered_metric_is_measured(report: Report, name: str) -> None:
    result, spec = report[name], METRICS[name]
    assert not report.skipped and result.higher_is_better == spec.higher_is_better
    assert math.isfinite(result.value) or result.cautions
    assert result.n_generated == 160 and result.n_real == 300 and result.protocol
    space = spec.features or "random"
    assert result.provenance["extractor"].startswith(f"{space}-") and result.provenance["k"] == 5
    assert spec.summary and spec.load() is not None
    if result.interval is not None:
        assert result.interval[0] <= result.value <= result.interval[1]
    assert result.interval_kind and (result.null is None or result.null_kind)
    assert set(GROUPS["prdc"]) | set(GROUPS["colour"]) | set(GROUPS["full"]) <= set(METRICS)


def test_values_are_those_of_the_pure_functions(report: Report) -> None:
    extractor = open_features("random")
    real, made = extractor(pictures(300, 2)), extractor(pictures(160, 1))
    assert float(report["frechet"]) == frechet_distance(real=real, generated=made)
    balls = prdc(real=real, generated=made)
    for name in GROUPS["prdc"]:
        assert report[name].value == getattr(balls, name)
    assert report["coverage"].null == balls.expected_coverage and report["density"].null == 1
    assert report["precision"].interval == wilson(round(balls.precision * 160), 160)
    assert report["recall"].interval == wilson(round(balls.recall * 300), 300)
    assert "conditional" in report["density"].interval_kind and report["frechet"].interval is None


def test_adherence_counts_captions(report: Report) -> None:
    result = report["adherence"]
    assert result.details["stated"] == 140 and result.details["right"] >= 120
    assert report["adherence/channel"].value == result.value and result.real is None  # real ones have no captions
    both = score(
        generated=pictures(80, 1), real=reference(zip(pictures(60, 2), ["red"] * 60), **SETTINGS), metrics="adherence",
        captions=["red"] * 80, **SETTINGS,
    )  # fmt: skip
    assert both["adherence"].real is not None and 0 < both["adherence"].real < 1


def test_two_runs_are_compared_picture_by_picture() -> None:
    texts = ["red"] * 60 + ["anything"] * 20
    a = reference(zip(pictures(80, 1), texts), **SETTINGS)
    b = reference(
        (Picture(p, str(i), t) for i, (p, t) in reversed([*enumerate(zip(pictures(80, 3), texts))])), **SETTINGS
    )
    mean, low, high = compare_adherence(a, b)
    rates = [score(generated=side, metrics="adherence", **SETTINGS)["adherence"].value for side in (a, b)]
    assert mean == pytest.approx(rates[0] - rates[1]) and low < mean < high
    assert compare_adherence(a, a).mean == 0
    others = reference(zip(pictures(80, 1), ["blue"] * 80), **SETTINGS)
    with pytest.raises(UsageError, match="not of the same captions"):
        compare_adherence(a, others)
    with pytest.raises(UsageError, match="was not judged"):
        compare_adherence(a, reference(zip(pictures(80, 1), texts), features="random"))


def test_colour_is_told_beside_the_real_value(report: Report) -> None:
    result = report["saturation"]
    assert result.real is not None and result.higher_is_better is None
    assert result.details["difference"] == pytest.approx(result.value - result.real)
    low, high = result.details["difference_interval"]
    assert low < result.details["difference"] < high and result.details["wasserstein"] > 0


def test_null_of_frechet_foretells_what_equal_distributions_give() -> None:
    """From halves, brought to N and M by the 1/N law."""
    rng = np.random.default_rng(0)

    def normal(n: int) -> Tensor:
        return torch.from_numpy(rng.standard_normal((n, 16)))

    extractor = replace(open_features("pixels"), network=lambda batch: next(draws)[: len(batch)])
    values, nulls = [], []
    for _ in range(6):
        draws = iter([normal(64) for _ in range(20)])
        found = score(generated=pictures(256), real=pictures(512), metrics="frechet", features=extractor)["frechet"]
        values.append(found.value)
        nulls.append(found.null)
        assert "256 each, times" in found.null_kind
    assert np.mean(nulls) == pytest.approx(np.mean(values), rel=0.1)


def test_what_cannot_be_done_by_default_is_left_out_with_the_reason() -> None:
    found = score(generated=pictures(30), **SETTINGS)
    assert set(found.skipped) == {"frechet", "kernel-distance", "energy", *GROUPS["prdc"], "adherence"}
    assert "embedded:test:2000" in found.skipped["frechet"] and "has no caption" in found.skipped["adherence"]
    assert [r.name for r in found] == ["saturation", "contrast", "clipped"]
    with pytest.raises(UsageError, match="was left out: it needs real pictures"):
        found["frechet"]
    few = score(generated=pictures(3), real=pictures(30), **SETTINGS)
    assert "generated has 3 rows" in few.skipped["coverage"] and "frechet" in few
    strange = score(generated=pictures(30), captions=["red"] * 29 + ["mauve"], metrics=None, **SETTINGS)
    assert "'mauve'" in strange.skipped["adherence"]


def test_what_is_named_must_be_possible() -> None:
    for options, says in [
        ({"metrics": ["frechet"]}, "frechet: it needs real pictures"),
        ({"metrics": ["frchet"]}, "did you mean frechet"),
        ({"metrics": ["adherence"]}, "picture 0 has no caption"),
        ({"metrics": ["adherence"], "captions": ["mauve"] * 30}, "no colour"),
        ({"metrics": ["prdc"], "real": pictures(40), "features": "nothing"}, "unknown features"),
        ({"metrics": ["adherence"], "judge": "me"}, "unknown judge 'me'"),
        ({"device": "cuda"}, "no cuda"),
    ]:
        if options.get("device") == "cuda" and torch.cuda.is_available():
            continue
        with pytest.raises(UsageError, match=says) as caught:
            score(generated=pictures(30), **(SETTINGS | options))
        assert "\n" not in str(caught.value)


def test_groups_and_single_names() -> None:
    found = score(generated=pictures(30), real=pictures(30, 1), metrics=["prdc", "contrast"], **SETTINGS)
    assert [r.name for r in found] == [*GROUPS["prdc"], "contrast"]
    assert [r.name for r in score(generated=pictures(9), metrics="colour")] == list(GROUPS["colour"])


def test_a_metric_in_several_ways_is_called_by_its_lines() -> None:
    lines = ["precision", "precision:features=pixels", "energy:r=0.5", "saturation", "sid:order=1", "sid"]
    found = score(generated=pictures(60, 1), real=pictures(90), metrics=lines, features=["random", "pixels"])
    names = ["precision", "precision:features=pixels", "energy", "saturation", "sid:order=1", "sid", "sid/order -1"]
    assert [result.name for result in found] == names
    assert found["precision"].protocol != found["precision:features=pixels"].protocol
    assert "r=0.5" in found["energy"].protocol and found["sid:order=1"].value == found["sid"].value


def test_presets_and_a_chosen_k() -> None:
    real, made = pictures(90), pictures(70, 1)
    lines = ["precision:preset=adm-inception", "recall:preset=adm-inception", "precision", "coverage"]
    found = score(generated=made, real=real, metrics=lines, features="random", k="auto")
    extractor = open_features("random")
    rows = {"real": extractor(real), "generated": extractor(made)}
    wanted, chosen = prdc(**rows, k=3, closed=True), prdc(**rows, k="auto")
    assert found["precision:preset=adm-inception"].value == wanted.precision and "<=" in found[lines[0]].protocol
    assert found["recall"].value == wanted.recall and "k=3" in found["recall"].protocol
    assert found["coverage"].value == chosen.coverage and f"k={chosen.k}," in found["coverage"].protocol
    assert chosen.expected_coverage >= 0.95
    with pytest.raises(UsageError, match="unknown preset 'adm-incept': did you mean adm-inception"):
        score(generated=made, real=real, metrics="precision:preset=adm-incept", features="random")


def test_one_reference_serves_many_runs() -> None:
    real = reference(pictures(90, 2), features="random")
    first = score(generated=pictures(80, 1), real=real, metrics="prdc", **SETTINGS)
    radii = real.radii(5)
    again = score(generated=pictures(80, 1), real=pictures(90, 2), metrics="prdc", **SETTINGS)
    assert [r.value for r in first] == [r.value for r in again] and real.radii(5) is radii
    with pytest.raises(UsageError, match="collected with features random, not pixels"):
        score(generated=pictures(80, 1), real=real, metrics="prdc", features="pixels")


def test_order_and_batches_of_the_source_do_not_matter() -> None:
    made, real = pictures(100, 1), pictures(90, 2)
    whole = score(generated=made, real=real, **SETTINGS)
    parts = score(generated=(made[i : i + 7] for i in range(0, 100, 7)), real=real, **SETTINGS)
    assert [r.value for r in whole] == [r.value for r in parts]
    turned = score(generated=made[::-1].copy(), real=real, **SETTINGS)
    assert [r.value for r in turned] == pytest.approx([r.value for r in whole], rel=1e-10)


def test_a_metric_that_is_only_a_function_takes_part(monkeypatch: pytest.MonkeyPatch) -> None:
    def means(*, real: Tensor, generated: Tensor) -> float:
        return float((real.mean(0) - generated.mean(0)).norm())

    for spec in (Spec(means, "distance of the means"), MetricSpec(means, "distance", higher_is_better=False)):
        monkeypatch.setitem(METRICS, "means", spec)  # type: ignore[arg-type]
        found = score(generated=pictures(60, 1), real=pictures(80), metrics=["means"], **SETTINGS)["means"]
        assert found.value > 0 and found.null is not None and found.protocol == "means_random"
        with pytest.raises(UsageError, match="needs real pictures"):
            score(generated=pictures(60, 1), metrics=["means"], **SETTINGS)


# -- warnings -------------------------------------------------------------------------------------------------------


def said(report: Report, part: str) -> bool:
    return any(part in warning for warning in report.warnings)


def test_warnings() -> None:
    made = pictures(60, 1)
    made[5:8] = made[4]
    found = score(generated=made, real=pictures(50, 2), captions=["red"] * 60, guided_by="abc", **SETTINGS)
    assert said(found, "50 pictures for 64 features make a singular covariance")
    assert said(found, "3 of 60 generated pictures have the same features")
    assert said(found, "50 real and 60 generated") and said(found, "neighbours: 50 pictures are few")
    assert said(found, "8x8 were resized to 32x32") and said(found, "the judge is the classifier that guided")
    assert not any("\n" in warning for warning in found.warnings)
    other = score(generated=pictures(60), captions=["red"] * 60, guided_by=nn.Linear(2, 2), **SETTINGS)
    assert not said(other, "judge") and not said(other, "frechet")


def test_jpeg_on_one_side_only_is_said(tmp_path: Path) -> None:
    for i, picture in enumerate(pictures(12)):
        for kind in ("png", "jpg"):
            (tmp_path / kind).mkdir(exist_ok=True)
            Image.fromarray(picture).save(tmp_path / kind / f"{i}.{kind}")
    options: dict[str, Any] = {"metrics": "colour", **SETTINGS}
    assert said(score(generated=tmp_path / "png", real=tmp_path / "jpg", **options), "all JPEG")
    assert not said(score(generated=tmp_path / "png", real=tmp_path / "png", **options), "JPEG")


# -- reports --------------------------------------------------------------------------------------------------------


def test_report_survives_the_disk(report: Report, tmp_path: Path) -> None:
    path = report.write(tmp_path / "new")
    assert path == tmp_path / "new" / "metrics.json" and [p.name for p in path.parent.iterdir()] == ["metrics.json"]
    content = json.loads(path.read_text())
    assert content["schema"] == "pilotage.metrics/2" and content["sources"]["real"]["pictures"] == 300
    assert content["environment"]["torch"] == torch.__version__
    again = Report.read(tmp_path / "new")
    assert again.to_json() == report.to_json() and again["frechet"].value == report["frechet"].value


def test_a_failed_write_keeps_the_old_report(report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = report.write(tmp_path)
    before = path.read_text()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UsageError, match="is full; free some space"):
        replace(report, warnings=("another",)).write(tmp_path)
    assert path.read_text() == before and [p.name for p in tmp_path.iterdir()] == ["metrics.json"]


def test_unreadable_reports_are_refused(tmp_path: Path) -> None:
    for content, says in [("{}", "no report"), ('{"schema": "x/9"}', "another version"), ("[", "no report")]:
        (tmp_path / "metrics.json").write_text(content)
        with pytest.raises(UsageError, match=says):
            Report.read(tmp_path)
    with pytest.raises(UsageError, match="cannot be read"):
        Report.read(tmp_path / "gone")


def test_not_a_number_is_null_in_json() -> None:
    found = score(generated=pictures(8), captions=["anything"] * 8, metrics=["adherence"], **SETTINGS)
    assert math.isnan(found["adherence"].value)
    assert json.loads(found.to_json())["results"][0]["value"] is None
    found.table()


def test_table_shows_all_rows(report: Report) -> None:
    from rich.console import Console

    console = Console(width=140, record=True, file=open(os.devnull, "w"))  # noqa: SIM115, PTH123
    console.print(report.table())
    console.print(score(generated=pictures(9), **SETTINGS).table())
    text = " ".join(console.export_text().split())
    assert all(name in text for name in GROUPS["quick"]) and "left out" in text and "near real" in text


def test_progress_is_told(tmp_path: Path) -> None:
    told: list[tuple[str, int, int | None]] = []
    score(generated=iter(pictures(70)), metrics="colour", progress=lambda *step: told.append(step))
    assert told == [("an iterator", 64, None), ("an iterator", 70, None)]


# -- the whole way --------------------------------------------------------------------------------------------------


def test_a_folder_with_captions_in_its_pngs(tmp_path: Path) -> None:
    for i, picture in enumerate(pictures(20)):
        info = PngImagePlugin.PngInfo()
        info.add_text("pilotage", json.dumps({"prompt": "red", "seed": i}))
        Image.fromarray(picture).save(tmp_path / f"{i:06d}.png", pnginfo=info)
    found = score(generated=tmp_path, real=pictures(30, 5), **SETTINGS)
    assert not found.skipped and found["adherence"].details["stated"] == 20
    assert found.sources["generated"]["captions"] == 20


def test_embedded_instruments_when_their_weights_are_there() -> None:
    embedded = pytest.importorskip("pilotage.zoo.embedded")
    try:
        embedded.judge(), embedded.features()
    except UsageError as error:
        pytest.skip(str(error))
    found = score(generated="embedded:test:300", real="embedded:train:300")
    assert not found.skipped and found["adherence"].value > 0.8
    assert found["precision"].value > 0.5


ABSENT = ("torchvision", "torch_fidelity", "torchmetrics", "transformers", "diffusers", "scipy", "sklearn")
ALONE = f"""
import sys
for name in {ABSENT!r}:
    sys.modules[name] = None
import numpy as np
from pilotage import evaluation
pictures = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)
found = evaluation.score(generated=pictures, real=pictures[::-1].copy(), features="random")
print(sorted(r.name for r in found), set(found.skipped))
"""


def test_the_suite_runs_alone() -> None:
    done = subprocess.run([sys.executable, "-c", ALONE], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "'frechet'" in done.stdout and "{'adherence'}" in done.stdout


def test_importing_evaluation_is_light() -> None:
    code = "import sys, pilotage.evaluation; print([m for m in ('torch', 'torchmetrics', 'rich') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stderr[-2000:]
