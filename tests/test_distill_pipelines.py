"""Students of other families than the embedded model, from `distill` to a picture; data for pictures that are no
squares."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import tiny_tokens
import torch
from PIL import Image
from test_distill_trainer import spec
from torch import Tensor

import pilotage
from pilotage.distill import Opened, open_run, train
from pilotage.distill.data import _fitted, items
from pilotage.distill.method import Pictures
from pilotage.errors import UsageError
from pilotage.generation.models import load
from pilotage.generation.notes import notes
from pilotage.generation.recommended import FILE

TEACHERS: dict[str, Callable[[], Any]] = {
    "sd": tiny.stable_diffusion,
    "sdxl": lambda: tiny.stable_diffusion_xl().pipe,
    "sd3": lambda: tiny.stable_diffusion_3().pipe,
}
SETTINGS: dict[str, Any] = {
    "prompts": ["a red star", "two blue rings"], "held_out": ["a moon"], "held_out_seeds": 2, "data": "teacher:4",
    "guidance": "cfg:scale=3", "sampler": "ddim", "steps": 2, "updates": 2, "batch": 2, "rows": 2,
    "learning_rate": 1e-3, "evaluate_every": 0, "sheet_every": 0, "features": None, "width": 24, "height": 16,
}  # fmt: skip


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The folders of tiny models."""
    folder = tmp_path_factory.mktemp("teachers")
    for name, make in TEACHERS.items():
        make().save_pretrained(folder / name)
    return {name: str(folder / name) for name in TEACHERS}


def drawn(model: str, prompt: str = "a red star", **changes: Any) -> tuple[Tensor, dict[str, float], Any]:
    """uint8 (3, H, W) of seed 0, its evaluations, and the spec."""
    told = pilotage.RunSpec(prompts=[prompt], seeds=[0], model=model, device="cpu", **changes)
    (sample,) = pilotage.generate(told)
    image = sample.image.convert("RGB")
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).reshape(image.height, image.width, 3)
    return pixels.permute(2, 0, 1).clone(), sample.evaluations, told


def as_learnt(opened: Opened, prompt: str = "a red star") -> Tensor:
    """The same by the method itself."""
    student = opened.roles.student
    with torch.no_grad():
        latents = opened.method.sample(student, Pictures([prompt], ["0"]), 1)
        return student.decode(latents).clamp(0, 1).mul(255).round().to(torch.uint8)[0]


F_DISTILL = "f-distill:critic_steps=1,strata=2,adversarial=0.1"


@pytest.mark.parametrize(
    ("family", "line", "kind"),
    [
        ("sdxl", F_DISTILL, "lora"),
        ("sdxl", F_DISTILL, "all"),
        ("sdxl", "lcm:steps=1,strata=2", "lora"),
        ("sdxl", "reflow:strata=2", "all"),
        ("sdxl", "lcm:steps=2,strata=2", "lora"),
        ("sd3", F_DISTILL, "lora"),
        ("sd3", F_DISTILL, "all"),
        ("sd3", "reflow:strata=2", "lora"),
        ("sd3", "lcm:steps=2,strata=2", "all"),
    ],
)
def test_a_student_of_another_family_draws_in_its_steps(
    tmp_path: Path, teachers: dict[str, str], family: str, line: str, kind: str
) -> None:
    made = spec(tmp_path / "run", **SETTINGS | {"model": teachers[family], "method": line, "train": kind})
    opened = open_run(made)
    done = train(made, opened=opened)
    assert done.updates == 2 and not done.stopped
    (pixels, evaluations, told) = drawn(str(tmp_path / "run"))
    assert pixels.shape == (3, 16, 24) and sum(evaluations.values()) == opened.method.steps
    assert (told.width, told.height, told.guidance) == (24, 16, "none") and notes(told) == []
    assert int((pixels.int() - as_learnt(opened).int()).abs().max()) <= 1
    assert type(load(str(done.result))).__name__ == type(opened.pipe).__name__
    if kind == "lora":
        asked = json.loads((done.result / FILE).read_text())
        by_hand = {**asked["settings"], **asked["by_hand"], "lora": str(tmp_path / "run")}
        again, _, told = drawn(teachers[family], **by_hand)
        assert int((again.int() - pixels.int()).abs().max()) <= 2 and notes(told) == []
        assert len(notes(told.changed(steps=4))) == 1


def test_a_student_at_its_models_own_size_recommends_none(tmp_path: Path, teachers: dict[str, str]) -> None:
    settings = SETTINGS | {"model": teachers["sd"], "method": "reflow:strata=1", "width": None, "height": None}
    done = train(spec(tmp_path / "run", **settings, train="lora"))
    assert not {"width", "height"} & json.loads((done.result / FILE).read_text())["settings"].keys()


def test_what_the_call_told_the_network_is_recommended(tmp_path: Path) -> None:
    """FLUX.1-dev's own scale is an input of its network; another than that of the training is another picture."""
    tiny_tokens.flux(network={"in_channels": 4, "guidance_embeds": True}).pipe.save_pretrained(tmp_path / "flux")
    told = {"guidance_scale": 1.0, "max_sequence_length": 16}
    settings = SETTINGS | {"model": str(tmp_path / "flux"), "method": "reflow:strata=1", "guidance": "none"}
    made = spec(tmp_path / "run", **settings | {"width": 64, "height": 32, "call": told}, train="lora")
    opened = open_run(made)
    train(made, opened=opened)
    pixels, _, asked = drawn(str(tmp_path / "run"))
    assert asked.call == told and notes(asked) == []
    assert int((pixels.int() - as_learnt(opened).int()).abs().max()) <= 1
    (note,) = notes(asked.changed(**{"call.guidance_scale": 3.5}))
    assert "call.guidance_scale 1, not with call.guidance_scale 3.5" in note


def test_the_range_of_scales_that_was_learnt_goes_with_the_student(tmp_path: Path, teachers: dict[str, str]) -> None:
    line = "lcm:steps=1,strata=1,scale_conditioned=true,scale_low=2,scale_high=9,scale=4"
    train(spec(tmp_path / "run", **SETTINGS | {"model": teachers["sdxl"], "method": line, "train": "all"}))
    model = str(tmp_path / "run")
    pixels, evaluations, told = drawn(model)
    assert told.call == {"guidance_scale": 4.0} and sum(evaluations.values()) == 1 and notes(told) == []
    assert notes(told.changed(**{"call.guidance_scale": 8})) == []
    (note,) = notes(told.changed(**{"call.guidance_scale": 12}))
    assert "scales from 2 to 9 and is told 12" in note
    assert pixels.shape == (3, 16, 24)
    card = (tmp_path / "run" / "student" / "README.md").read_text()
    assert "4 where it was looked at and 2 to 9 while it learnt" in card
    assert "num_inference_steps=1, guidance_scale=4, width=24, height=16)" in card


# -- data for pictures that are no squares ----------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(24, 16), (16, 24), (16, 16)])
def test_pictures_of_a_folder_are_fitted_to_width_and_height(
    tmp_path: Path, teachers: dict[str, str], size: tuple[int, int]
) -> None:
    """A white square of half the picture's height stays one, in the middle: nothing is stretched or turned."""
    made = spec(tmp_path / "run", **SETTINGS | {"model": teachers["sd"], "width": size[0], "height": size[1]})
    teacher = open_run(made).roles.teacher
    folder = tmp_path / "pictures"
    folder.mkdir()
    picture = Image.new("RGB", (96, 40))
    picture.paste((255, 255, 255), (38, 10, 58, 30))
    picture.save(folder / "a.png")
    (folder / "a.txt").write_text("a square")
    fitted = _fitted(folder / "a.png", size)
    assert fitted.shape == (size[1], size[0], 3)
    rows, columns = (fitted[..., 0] > 127).any(1).nonzero()[0], (fitted[..., 0] > 127).any(0).nonzero()[0]
    for found, length in ((rows, size[1]), (columns, size[0])):
        assert found.tolist() == list(range((length - size[1] // 2) // 2, (length + size[1] // 2) // 2))
    clean = items(str(folder), teacher, made.sampling, [], 4, 0).make([0])
    assert clean.shape == (1, 4, size[1] // 2, size[0] // 2)
    pixels = torch.tensor(fitted).permute(2, 0, 1)[None].float() / 255
    with torch.no_grad():
        assert torch.allclose(clean, teacher.encode(pixels), atol=1e-5)


def test_a_run_on_a_folder_of_pictures_that_are_no_squares(tmp_path: Path, teachers: dict[str, str]) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(3):
        Image.new("RGB", (30 + number, 20), (80 * number, 0, 0)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text("a picture")
    settings = SETTINGS | {"model": teachers["sd"], "data": str(folder), "method": "lcm:steps=1,strata=1"}
    assert train(spec(tmp_path / "run", **settings, train="lora")).updates == 2


def test_the_worlds_squares_are_no_data_for_others(tmp_path: Path, teachers: dict[str, str]) -> None:
    settings = SETTINGS | {"model": teachers["sd"], "data": "embedded:train:4", "method": "lcm:steps=1,strata=1"}
    with pytest.raises(UsageError, match="draws squares and this model 24x16") as told:
        train(spec(tmp_path / "run", **settings))
    assert "\n" not in str(told.value) and not (tmp_path / "run").exists()
    square = spec(tmp_path / "run", **settings | {"width": 16})
    teacher = open_run(square).roles.teacher
    assert items("embedded:train:4", teacher, square.sampling, [], 4, 0).make([0, 1]).shape == (2, 4, 8, 8)
