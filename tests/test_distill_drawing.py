"""What a student's folder says about drawing with it: sizes, scales, and notes where a run does otherwise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from generation_tools import pilotage

from pilotage.errors import UsageError
from pilotage.generation import RunSpec
from pilotage.generation.notes import notes
from pilotage.generation.recommended import FILE, Recommendation, recommendation, write_recommended

ONE_STEP = {"guidance": "none", "sampler": "stock", "steps": 1}


def student(folder: Path, settings: dict[str, Any] | None = None, **further: Any) -> str:
    folder.mkdir(exist_ok=True)
    write_recommended(folder, ONE_STEP if settings is None else settings, **further)
    return str(folder)


def said(**settings: Any) -> list[str]:
    return notes(RunSpec(prompts=["x"], **settings))


# -- otherwise than recommended --------------------------------------------------------------------------------------


def test_a_student_that_is_drawn_as_it_asks_gets_no_note(tmp_path: Path) -> None:
    name = student(tmp_path)
    assert said(model=name) == []
    assert said(model=name, guidance="none", steps=1, sampler="stock", grid=None, seeds="0-3", batch_size=2) == []
    assert said(model=str(tmp_path / "no-student")) == said() == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"guidance": "cfg:scale=5"}, ("guidance none", "guidance cfg:scale=5")),
        ({"guidance": "pag:weight=2"}, ("guidance none", "guidance pag:weight=2")),
        ({"steps": 30}, ("steps 1", "steps 30")),
        ({"sampler": "dpmpp-2m", "steps": 1}, ("sampler stock", "sampler dpmpp-2m")),
        (
            {"sampler": "ddim", "grid": "karras"},
            ("sampler stock, grid of its own", "grid karras", "sampler ddim"),
        ),
        (
            {"guidance": "cfg:scale=3", "steps": 4},
            ("guidance none, steps 1", "guidance cfg:scale=3, steps 4"),
        ),
    ],
)
def test_a_student_that_is_drawn_otherwise_is_said_in_one_line(
    tmp_path: Path, changes: dict[str, Any], words: tuple[str, ...]
) -> None:
    name = student(tmp_path)
    (note,) = said(model=name, **changes)
    wanted, _, given = note.partition(", not with ")
    assert note.startswith(f"the student {name} was made to be drawn with ") and "\n" not in note
    assert all(word in note for word in words) and words[0].split(", ")[0] in wanted
    assert all(f"{key} " in given for key in changes if key != "steps" or changes[key] != 1)


def test_a_negative_prompt_inside_the_attention_is_no_guidance(tmp_path: Path) -> None:
    name = student(tmp_path)
    for line in ("nasa:weight=0.5,branch=prompt:grey", "nag:branch=prompt:grey"):
        assert said(model=name, guidance=line) == []
    assert len(said(model=name, guidance="nasa:weight=0.5,branch=prompt:grey + cfg:scale=4")) == 1


def test_a_students_lora_on_a_pipeline(tmp_path: Path) -> None:
    """It brings no scheduler: by hand, what does the same is asked for."""
    name = student(tmp_path, base="embedded", by_hand={"sampler": "ddim", "grid": "trailing"})
    by_hand = {"lora": name, "guidance": "none", "sampler": "ddim", "grid": "trailing", "steps": 1}
    assert said(**by_hand) == []
    (note,) = said(lora=name)  # as the embedded model is drawn
    assert "drawn with guidance none, sampler ddim, grid trailing, steps 1, not with guidance cfg:scale=3" in note
    (note,) = said(**by_hand | {"sampler": "stock", "grid": None})
    assert "sampler ddim" in note and "not with" in note and "sampler stock" in note
    (note,) = said(**by_hand, lora_scale=0.5)
    assert "lora_scale 1" in note and "lora_scale 0.5" in note
    assert said(**by_hand, lora_scale=0.0) == ["the LoRA has no effect at lora_scale 0"]
    unknown = student(tmp_path, base="embedded")  # of an older student nothing is known
    assert said(lora=unknown, guidance="none", steps=1) == []
    (tmp_path / "run").mkdir()
    student(tmp_path / "run" / "student", base="embedded")
    (note,) = said(lora=str(tmp_path / "run"), guidance="none", steps=2)  # a run's folder
    assert "steps 1" in note and "steps 2" in note
    (tmp_path / "x.safetensors").write_bytes(b"")
    assert said(lora=str(tmp_path / "x.safetensors")) == said(lora="owner/name") == []


def test_the_note_goes_to_stderr(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = student(tmp_path)
    assert pilotage("generate", "a star", "--model", name, "--steps", "8", "--dry-run") == 0
    told = capsys.readouterr()
    assert "note: the student" in told.err and "steps 8" in told.err and "note:" not in told.out
    assert pilotage("generate", "a star", "--model", name, "--dry-run") == 0
    assert "note:" not in capsys.readouterr().err


# -- scales that are told --------------------------------------------------------------------------------------------


def test_a_scale_outside_of_what_was_learnt_is_said(tmp_path: Path) -> None:
    name = student(tmp_path, ONE_STEP | {"call": {"guidance_scale": 5.0}}, scales=(3.0, 8.0))
    for inside in (3, 4.5, 8):
        assert said(model=name, call={"guidance_scale": inside}) == []
    assert said(model=name) == []
    for outside, end in ((2.9, "3"), (15, "8")):
        (note,) = said(model=name, call={"guidance_scale": outside})
        assert f"scales from 3 to 8 and is told {outside:g}" in note and note.endswith(f"call.guidance_scale={end}")
    (note,) = said(model=name, call={})
    assert "is told 1" in note
    (note,) = said(lora=name, guidance="none", steps=1, call={"guidance_scale": 20})
    assert "is told 20" in note


def test_what_the_network_was_told_while_it_learnt_is_told_again(tmp_path: Path) -> None:
    """FLUX.1-dev's own scale, say; of other arguments of the call nothing is known."""
    name = student(tmp_path, ONE_STEP | {"call": {"guidance_scale": 1.0}})
    assert said(model=name) == said(model=name, call={"guidance_scale": 1.0, "max_sequence_length": 8}) == []
    (note,) = said(model=name, call={"guidance_scale": 3.5})
    assert "drawn with call.guidance_scale 1, not with call.guidance_scale 3.5" in note


# -- sizes -----------------------------------------------------------------------------------------------------------


def test_a_recommended_size_is_taken_unless_told_otherwise(tmp_path: Path) -> None:
    name = student(tmp_path, ONE_STEP | {"width": 64, "height": 32})
    spec = RunSpec(prompts=["x"], model=name)
    assert (spec.width, spec.height) == (64, 32) and notes(spec) == []
    told = RunSpec(prompts=["x"], model=name, width=128, height=128)
    assert (told.width, told.height) == (128, 128)
    (note,) = notes(told)
    assert "width 64, height 32" in note and "width 128, height 128" in note
    assert RunSpec(**told.plain()) == told  # what a picture's metadata holds


def test_a_picture_that_a_run_starts_from_keeps_its_size(tmp_path: Path) -> None:
    name = student(tmp_path, ONE_STEP | {"width": 64, "height": 32, "steps": 4})
    spec = RunSpec(prompts=["x"], model=name, image="somewhere.png")
    assert (spec.width, spec.height, spec.steps) == (None, None, 4) and notes(spec) == []


@pytest.mark.parametrize(
    "text",
    ['{"base": null, "settings": {"width": 64}}', '{"base": null, "settings": {"height": 64}}',
     '{"base": null, "settings": {}, "scales": 3}', '{"base": null, "settings": {}, "scales": [1]}',
     '{"base": null, "settings": {}, "scales": [3, 1]}', '{"base": null, "settings": {}, "scales": ["a", "b"]}',
     '{"base": null, "settings": {}, "scales": "ab"}', '{"base": null, "settings": {}, "scales": [1, NaN]}',
     '{"base": null, "settings": {}, "scales": null}', '{"base": null, "settings": {}, "scales": [true, 2]}',
     '{"base": null, "settings": {}, "scales": [1, ' + "9" * 400 + "]}",
     '{"base": null, "settings": {}, "by_hand": 3}', '{"base": null, "settings": {}, "by_hand": {"output": "/"}}',
     '{"base": null, "settings": {}, "by_hand": ["sampler"]}', '{"base": null, "settings": {}, "\\u001b[2J": 1}'],
)  # fmt: skip
def test_what_else_a_file_may_hold_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE).write_text(text)
    for act in (lambda: recommendation(str(tmp_path)), lambda: RunSpec(prompts=["x"], model=str(tmp_path))):
        with pytest.raises(UsageError, match="take it away") as told:
            act()
        assert str(told.value).isprintable()
    with pytest.raises(UsageError, match="take it away"):
        said(lora=str(tmp_path))


@pytest.mark.parametrize(
    "size", [(7, 8), (8, 4), (0, 64), (64, 63), (10**9, 64), ("x", 64), (None, [64]), (-8, 64), (64.5, 64), (True, 64)]
)
def test_a_size_is_checked_as_if_it_were_given(tmp_path: Path, size: tuple[Any, Any]) -> None:
    name = student(tmp_path, {"width": size[0], "height": size[1]})
    with pytest.raises(UsageError, match=r"width|height"):
        RunSpec(prompts=["x"], model=name)


def test_lines_of_a_lora_are_checked_as_if_they_were_given(tmp_path: Path) -> None:
    for by_hand in ({"sampler": "x"}, {"sampler": 3}, {"grid": ["a"]}, {"sampler": "\x1b[2J"}):
        name = student(tmp_path, base="embedded", by_hand=by_hand)
        with pytest.raises(UsageError):
            said(lora=name)


def test_a_file_says_no_more_than_it_has_to(tmp_path: Path) -> None:
    write_recommended(tmp_path, {"steps": 2})
    assert json.loads((tmp_path / FILE).read_text()) == {"base": None, "settings": {"steps": 2}}
    write_recommended(tmp_path, {}, "embedded", (1.0, 2.0), {"sampler": "lcm", "grid": None})
    assert recommendation(str(tmp_path)) == Recommendation({}, "embedded", (1.0, 2.0), {"sampler": "lcm", "grid": None})
