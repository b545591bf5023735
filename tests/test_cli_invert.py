"""pilotage invert: what it writes and says, on the embedded model and a tiny one."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from generation_tools import pilotage, tiny_folder
from PIL import Image
from safetensors import safe_open

from pilotage import samplers
from pilotage.generation import models
from pilotage.generation.inversion import Wish, round_trip
from pilotage.generation.latents import decoded, encoded
from pilotage.guidance.pipelines.denoiser import denoiser_of
from pilotage.samplers.grids import make_grid
from pilotage.zoo import embedded, world

FISH = "a big red fish on navy"


@pytest.fixture
def fish(tmp_path: Path) -> str:
    index = next(i for i in range(100) if world.scene(i, "test").caption == FISH)
    Image.fromarray(world.scene(index, "test").draw()).save(tmp_path / "fish.png")
    return str(tmp_path / "fish.png")


def test_a_picture_comes_back_and_its_noise_is_kept(
    fish: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    assert pilotage("invert", fish, "--prompt", FISH, "--steps", "8", "-o", output) == 0
    out, err = capsys.readouterr()
    assert "note: the fixed point has not settled" in err  # in so few steps
    found = re.search(
        r"round trip ([\d.]+) dB PSNR, relative latent error ([\d.e-]+); from the noise alone ([\d.]+)", out
    )
    assert found, out
    assert float(found[1]) > 40 and float(found[2]) < 3e-2 and float(found[3]) > 40
    assert sorted(p.name for p in output.iterdir()) == ["noise.safetensors", "reconstruction.png", "sheet.png"]
    with safe_open(output / "noise.safetensors", "pt") as file:
        noise, wish = file.get_tensor("noise"), json.loads(file.metadata()["wish"])
    assert wish["prompt"] == FISH and wish["steps"] == 8 and "edit" not in wish

    # the file is all it takes: the sampler itself draws the picture from it
    pipe = embedded.load()
    net = denoiser_of(pipe, FISH)
    levels = make_grid(wish["grid"], net.schedule, wish["steps"])
    with torch.no_grad():
        end = decoded(pipe, samplers.sample(net, noise, sampler="ddim", grid=levels))
    written = torch.frombuffer(bytearray(Image.open(output / "reconstruction.png").tobytes()), dtype=torch.uint8)
    drawn = (end[0] * 255).round().permute(1, 2, 0).flatten()
    assert (drawn - written.float()).abs().max() <= 1


def test_an_edit_changes_what_the_prompt_changes(fish: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    new, output = "a big green fish on navy", tmp_path / "out"
    flags = ["--prompt", FISH, "--edit", new, "--steps", "10", "--method", "bdia", "-o", output]
    assert pilotage("invert", fish, *map(str, flags)) == 0
    assert "edited.png" in capsys.readouterr().out
    pictures = {}
    for name in ("edited", "reconstruction"):
        pixels = bytearray(Image.open(output / f"{name}.png").tobytes())
        pictures[name] = torch.frombuffer(pixels, dtype=torch.uint8).reshape(1, 32, 32, 3).permute(0, 3, 1, 2)
    judge = embedded.judge()
    assert judge.adherence(pictures["edited"], [new])["all"].all()
    assert judge.adherence(pictures["reconstruction"], [FISH])["all"].all()
    sheet = Image.open(output / "sheet.png")
    assert sheet.width > 4 * 128  # four pictures side by side
    with safe_open(output / "noise.safetensors", "pt") as file:
        assert {"noise", "carried.0", "carried.1"} == set(file.keys())


def test_less_strength_and_another_rule_on_the_way_to_the_edit(fish: str) -> None:
    pipe = embedded.load()
    wish = Wish(
        fish, FISH, "a big green fish on navy", method="bdia", edit_guidance="cfg:scale=2", steps=8, strength=0.5
    )
    trip = round_trip(pipe, wish)
    full = round_trip(pipe, Wish(**{**vars(wish), "strength": 1.0}))
    assert trip.edited is not None and full.edited is not None
    assert (trip.edited - trip.latents).norm() < (full.edited - full.latents).norm()
    assert torch.equal(trip.back, full.back)
    assert trip.latent_error < 1e-4 and trip.last_move is None


def test_a_folder_of_a_stable_diffusion_works_too(
    fish: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--model", tiny_folder(), "--steps", "3", "-g", "cfg:scale=2", "--method", "o-belm"]
    assert pilotage("invert", fish, *flags, "-o", str(tmp_path / "out")) == 0
    out, err = capsys.readouterr()
    assert "round trip" in out and "without --prompt" in err
    pipe = models.load(tiny_folder())
    side = pipe.unet.config.sample_size * pipe.vae_scale_factor
    assert Image.open(tmp_path / "out" / "reconstruction.png").size == (side, side)
    assert encoded(pipe, torch.rand(1, 3, side, side)).dtype == torch.float32


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--method", "edikt"], "did you mean edict"),
        (["--guidance", "cgf"], "unknown guidance rule"),
        (["--strength", "0"], "strength=0.0"),
        (["--steps", "0"], "at least 1"),
        (["--width", "33"], "multiples of"),
        (["--grid", "karas"], "did you mean karras"),
        (["-g", "apg:momentum=-0.5", "--steps", "2"], "remembers earlier steps"),
        (["-g", "autoguidance"], "'weak'"),
    ],
)
def test_what_cannot_work_is_said_in_one_line(
    fish: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    assert pilotage("invert", fish, *flags, "-o", str(tmp_path / "out")) == 2
    err = capsys.readouterr().err
    assert err.count("error:") == 1 and message in err
    assert not (tmp_path / "out").exists()


def test_no_picture_no_model_is_loaded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert pilotage("invert", str(tmp_path / "none.png"), "--model", "nowhere", "-o", str(tmp_path / "out")) == 2
    assert "there is no picture" in capsys.readouterr().err
