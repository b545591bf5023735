"""Runs on a tiny pipeline: pictures, folders, resume, reruns."""

from __future__ import annotations

import errno
import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from forking_tools import forked
from generation_tools import tiny_folder, tiny_settings, tiny_spec
from PIL import Image

from pilotage.errors import UsageError
from pilotage.generation import generate, read_png, rerun, run
from pilotage.generation.folder import default_folder
from pilotage.generation.models import Loaded, open_model
from pilotage.generation.pictures import Watch


@pytest.fixture(scope="module")
def model() -> Loaded:
    return open_model(tiny_spec())


@pytest.fixture(scope="module")
def finished(model: Loaded, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    assert run(tiny_spec(output=str(folder)), model=model).made == 6
    return folder


def held(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.png"))}


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image)


# -- pictures ------------------------------------------------------------------------------------------------


def test_the_same_as_stock_diffusers(model: Loaded) -> None:
    import torch

    spec = tiny_spec(sampler="stock", batch_size=2, seeds="4", guidance="cfg:scale=5")
    ours = [sample.image for sample in generate(spec, model=model)]
    pipe = model.pipe
    pipe.scheduler = type(model.scheduler).from_config(model.scheduler.config)
    generators = [torch.Generator("cpu").manual_seed(4) for _ in range(2)]
    stock = pipe(
        list(spec.prompts), num_inference_steps=3, guidance_scale=5.0, width=16, height=16, generator=generators
    )
    assert all(np.array_equal(pixels(a), pixels(b)) for a, b in zip(ours, stock.images, strict=True))


def test_evaluations_are_shared_among_pictures(model: Loaded) -> None:
    samples = list(generate(tiny_spec(guidance="cfg:scale=5"), model=model))
    assert [s.index for s in samples] == list(range(6))
    assert all(s.evaluations == {"cond": 3, "uncond": 3} for s in samples)
    assert [s.batch.pictures for s in samples] == [4, 4, 4, 4, 2, 2]
    assert [s.batch.rows_per_call for s in samples] == [8, 8, 8, 8, 4, 4]
    (first, *_) = generate(tiny_spec(guidance="none"), model=model)
    assert first.evaluations == {"cond": 3}


@pytest.mark.parametrize("guidance", ["cfg:scale=5", "cfg:scale=5 + adaptive:threshold=0.9", "none"])
@pytest.mark.parametrize("sampler", ["dpmpp-2m", "euler-ancestral"])
def test_exact_pictures_are_the_same_alone_and_in_company(model: Loaded, guidance: str, sampler: str) -> None:
    together = list(generate(tiny_spec(exact=True, guidance=guidance, sampler=sampler), model=model))
    spec = tiny_spec(exact=True, guidance=guidance, sampler=sampler, prompts=["two blue rings"], seeds="1")
    (alone,) = generate(spec, model=model)
    assert np.array_equal(pixels(alone.image), pixels(together[4].image))


def test_seeds_and_repeats_differ(model: Loaded) -> None:
    samples = list(generate(tiny_spec(prompts=["x"], seeds="3,3:1,4"), model=model))
    assert [s.seed for s in samples] == [3, "3:1", 4]
    assert len({s.image.tobytes() for s in samples}) == 3


def test_weak_network_from_a_folder(model: Loaded) -> None:
    weak = str(Path(tiny_folder()).parent / "weak")
    spec = tiny_spec(guidance="autoguidance:scale=2", prompts=["x"], seeds="0")
    (sample,) = generate(spec.changed(weak=weak), model=model)
    assert sample.evaluations == {"cond": 3, "weak": 3}
    with pytest.raises(UsageError, match="weaker network"):
        generate(spec, model=Loaded(model.key, model.pipe, model.scheduler, model.revision))
    with pytest.raises(UsageError, match="no folder"):
        generate(spec.changed(weak="nowhere"), model=model)


def test_previews_and_steps_change_nothing(model: Loaded) -> None:
    seen: list[Any] = []
    steps: list[tuple[int, int]] = []
    watch = Watch(step=lambda done, of: steps.append((done, of)), preview=seen.append)
    watched = list(generate(tiny_spec(preview_every=2), model=model, watch=watch))
    plain = list(generate(tiny_spec(), model=model))
    assert [a.image.tobytes() for a in watched] == [b.image.tobytes() for b in plain]
    assert [len(pictures) for pictures in seen] == [4, 2]  # after step 2 of 3, in each batch
    assert steps[:3] == [(1, 3), (2, 3), (3, 3)]


def test_from_a_picture_and_with_a_mask(tmp_path: Path) -> None:
    Image.radial_gradient("L").save(tmp_path / "in.png")
    Image.linear_gradient("L").save(tmp_path / "mask.png")
    spec = tiny_spec(image=str(tmp_path / "in.png"), strength=0.7, prompts=["x"], seeds="0")
    (changed,) = generate(spec)
    assert changed.image.size == (16, 16) and changed.evaluations == {"cond": 2, "uncond": 2}
    (painted,) = generate(spec.changed(mask=str(tmp_path / "mask.png")))
    assert painted.image.tobytes() != changed.image.tobytes()


# -- the folder ----------------------------------------------------------------------------------------------


def test_a_run_folder(finished: Path) -> None:
    head = yaml.safe_load((finished / "run.yaml").read_text())
    assert head["spec"]["seeds"] == "0-2" and head["threads"] == 1 and "torch" in head["versions"]
    items = [json.loads(line) for line in (finished / "manifest.jsonl").read_text().splitlines()]
    assert [item["file"] for item in items] == [f"{i:06d}.png" for i in range(6)]
    assert not list(finished.glob("*.part"))


def test_a_png_says_how_it_was_made(finished: Path) -> None:
    record, picture = read_png(finished / "000004.png")
    assert (record.prompt, record.seed, record.index) == ("two blue rings", 1, 4)
    assert record.spec.pictures() == [("two blue rings", 1)] and record.spec.output is None
    assert record.evaluations == {"cond": 3, "uncond": 3} and record.batch.rows_per_call == 4
    assert record.run["threads"] == 1 and record.run["device"] == "cpu"
    with Image.open(finished / "000004.png") as opened:
        line = opened.text["parameters"]
    assert line.startswith(
        "two blue rings\nSteps: 3, Sampler: dpmpp-2m, CFG scale: 5, Seed: 1, Size: 16x16, Model: model"
    )
    assert picture.size == (16, 16)


def test_rerun_gives_the_same_pixels(finished: Path, tmp_path: Path) -> None:
    for index in (1, 4):  # from a full batch, and from a smaller one
        again = rerun(finished / f"{index:06d}.png", output=tmp_path / "again.png", trust=True)
        assert (again.largest, again.notes) == (0, [])
        assert rerun(tmp_path / "again.png", output=tmp_path / "third.png", trust=True).largest == 0


def test_rerun_says_what_is_not_as_it_was(finished: Path, tmp_path: Path) -> None:
    from pilotage.generation.metadata import png_info

    record, picture = read_png(finished / "000001.png")
    record.run["versions"]["torch"], record.run["revision"] = "1.0", "other"
    picture.save(tmp_path / "old.png", pnginfo=png_info(record, picture.size))
    said = " ".join(rerun(tmp_path / "old.png", trust=True).notes)
    assert "torch 1.0 then" in said and "weights" in said


def test_a_rerun_that_may_download_is_no_variation(finished: Path, tmp_path: Path) -> None:
    allowed = {"allow_download": True}
    assert rerun(finished / "000001.png", allowed, tmp_path / "again.png", trust=True).largest == 0


def test_rerun_with_changes_is_a_variation(finished: Path, tmp_path: Path) -> None:
    again = rerun(finished / "000001.png", {"guidance": "apg"}, tmp_path / "v.png", trust=True)
    assert again.largest is None
    assert read_png(tmp_path / "v.png")[0].spec.guidance == "apg"


def test_the_same_command_again_makes_nothing_new(finished: Path, model: Loaded) -> None:
    before = held(finished)
    assert run(tiny_spec(output=str(finished)), model=model).made == 0
    assert held(finished) == before


def test_damaged_and_missing_pictures_are_made_again(finished: Path, model: Loaded, tmp_path: Path) -> None:
    import shutil

    folder = tmp_path / "copy"
    shutil.copytree(finished, folder)
    (folder / "000002.png").unlink()
    (folder / "000005.png").write_bytes(b"half")
    with (folder / "manifest.jsonl").open("a") as file:
        file.write('{"index": 3, "fi')  # as a kill leaves it
    assert run(tiny_spec(output=str(folder)), model=model).made == 2
    assert held(folder) == held(finished)
    assert run(tiny_spec(output=str(folder)), model=model).made == 0


@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
def test_killed_and_resumed_is_the_same(finished: Path, model: Loaded, tmp_path: Path) -> None:
    """Killed at the worst moment: pictures are on the disk and the manifest does not know them."""
    code = """
import os, signal, sys, json
from pilotage.generation import RunSpec, folder, manifest
real = manifest.append_line
def append(path, line):
    if '"index": 4' in line:
        os.kill(os.getpid(), signal.SIGKILL)
    real(path, line)
manifest.append_line = append
folder.run(RunSpec(**json.loads(sys.argv[1])))
"""
    settings = tiny_settings(output=str(tmp_path / "killed"))
    assert forked(code, json.dumps(settings))[0] == -signal.SIGKILL
    assert len(held(tmp_path / "killed")) == 6
    assert run(tiny_spec(output=settings["output"]), model=model).made == 2
    assert held(tmp_path / "killed") == held(finished)


def test_another_spec_in_the_same_folder_is_refused(finished: Path, model: Loaded) -> None:
    with pytest.raises(UsageError, match=r"another run: .*steps is 3 there and 4 here") as raised:
        run(tiny_spec(output=str(finished), steps=4, guidance="apg"), model=model)
    assert "guidance is 'cfg:scale=5' there and 'apg' here" in str(raised.value)


def test_a_folder_with_foreign_pictures_is_refused(tmp_path: Path, model: Loaded) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "holiday.png")
    with pytest.raises(UsageError, match=r"holds pictures but no run\.yaml"):
        run(tiny_spec(output=str(tmp_path)), model=model)


@pytest.mark.parametrize("existed", [False, True])
def test_a_refusal_at_the_first_network_call_leaves_the_folder_free(
    tmp_path: Path, model: Loaded, existed: bool
) -> None:
    """Layers are looked up when the network is called; the mended command may go into the same folder."""
    folder, spec = tmp_path / "run", tiny_spec(output=str(tmp_path / "run"), prompts=["x"], seeds="0-1", batch_size=1)
    if existed:
        folder.mkdir()
    with pytest.raises(UsageError, match="no layer"):
        run(spec.changed(guidance="pag:layers=nowhere"), model=model)
    assert folder.exists() == existed and (not existed or not list(folder.iterdir()))
    assert run(spec, model=model).made == 2


def test_a_refusal_after_pictures_leaves_them(tmp_path: Path, model: Loaded) -> None:
    def refuse(sample: Any) -> None:
        raise UsageError("enough")

    spec = tiny_spec(output=str(tmp_path / "run"), prompts=["x"], seeds="0-1", batch_size=1)
    with pytest.raises(UsageError, match="enough"):
        run(spec, model=model, told=refuse)
    assert len(held(tmp_path / "run")) == 1 and run(spec, model=model).made == 1
    (tmp_path / "run" / "000001.png").unlink()
    with pytest.raises(UsageError, match="enough"):
        run(spec, model=model, told=refuse)
    assert (tmp_path / "run" / "run.yaml").is_file()


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path, model: Loaded) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="not a folder"):
        run(tiny_spec(output=str(tmp_path / "file")), model=model)


def test_a_disk_that_fills_up(tmp_path: Path, model: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second batch does not fit: the first is whole, nothing is half there, and the run can go on."""
    real, calls = os.fsync, []

    def full(handle: int) -> None:
        calls.append(handle)
        if len(list(tmp_path.glob("run/0*.part"))) and len(list(tmp_path.glob("run/0*.png"))) == 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    monkeypatch.setattr(os, "fsync", full)
    spec = tiny_spec(output=str(tmp_path / "run"))
    with pytest.raises(UsageError, match="is full; free some space, then give the same command again"):
        run(spec, model=model)
    assert len(held(tmp_path / "run")) == 4 and not list((tmp_path / "run").glob("*.part"))
    assert len((tmp_path / "run" / "manifest.jsonl").read_text().splitlines()) == 4
    monkeypatch.setattr(os, "fsync", real)
    assert run(spec, model=model).made == 2


def test_a_disk_too_small_is_said_before_the_first_picture(
    tmp_path: Path, model: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil
    from collections import namedtuple

    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(10, 10, 1000))
    with pytest.raises(UsageError, match="MB left and this run may need"):
        run(tiny_spec(output=str(tmp_path / "run")), model=model)
    assert not held(tmp_path / "run")


def test_the_default_folder_belongs_to_the_spec() -> None:
    one, two = tiny_spec(), tiny_spec(steps=4)
    assert default_folder(one) == default_folder(tiny_spec(preview_every=1)) != default_folder(two)
    assert default_folder(one).parent == Path("runs") and default_folder(one).name.startswith("a-red-star-")


@pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n half"])
def test_unreadable_pngs(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(UsageError, match="no PNG that can be read"):
        read_png(tmp_path / "x.png")


def test_foreign_and_damaged_metadata(tmp_path: Path) -> None:
    from PIL import PngImagePlugin

    for text, message in (
        (None, "not written by pilotage"),
        ("{", "damaged"),
        ('{"format": 99}', "newer"),
        ("[]", "damaged"),
    ):
        info = PngImagePlugin.PngInfo()
        if text is not None:
            info.add_text("pilotage", text)
        Image.new("RGB", (8, 8)).save(tmp_path / "x.png", pnginfo=info)
        with pytest.raises(UsageError, match=message):
            read_png(tmp_path / "x.png")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": "nowhere"}, "there is no model"),
        ({"model": "owner/name"}, "not in the local cache"),
        ({"image": "nowhere.png"}, "there is no picture"),
        ({"call": {"nonsense": 1}}, "takes no 'nonsense'"),
        ({"lora": "./nowhere.safetensors"}, "no LoRA"),
        ({"device": "cuda:7"}, "cuda"),
    ],
)
def test_refused_before_anything_is_made(settings: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        list(generate(tiny_spec(**settings)))


def test_a_folder_that_is_no_pipeline(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no model_index\.json"):
        generate(tiny_spec(model=str(tmp_path)))
    (tmp_path / "model_index.json").write_text("{")
    with pytest.raises(UsageError, match="cannot load the model"):
        generate(tiny_spec(model=str(tmp_path)))
