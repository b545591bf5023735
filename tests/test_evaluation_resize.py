"""Resizing, preset by preset, against Pillow, torch, torchmetrics and a loop over TensorFlow 1's definition."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from pilotage.errors import UsageError
from pilotage.evaluation.features.resize import CHUNK, PRESETS, bilinear_of_corners, centre_square, preset_named

BICUBIC = Image.Resampling.BICUBIC


def noise(n: int = 2, height: int = 64, width: int | None = None, seed: int = 0) -> Tensor:
    shape = (n, 3, height, width or height)
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


def pillow_float(pictures: Tensor, size: tuple[int, int]) -> Tensor:
    """Pillow's bicubic on 32-bit floats, channel by channel; size (width, height)."""
    channels = [np.asarray(Image.fromarray(c).resize(size, BICUBIC)) for c in pictures.float().flatten(0, 1).numpy()]
    return torch.from_numpy(np.stack(channels)).unflatten(0, (-1, 3))


def pillow_bytes(pictures: Tensor, size: tuple[int, int]) -> Tensor:
    images = [np.asarray(Image.fromarray(p).resize(size, BICUBIC)) for p in pictures.permute(0, 2, 3, 1).numpy()]
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float()


def test_the_presets_differ_in_their_fields() -> None:
    fields = [tuple(map(str, preset.fields(299).values())) for preset in PRESETS.values()]
    assert len(set(fields)) == len(PRESETS)
    assert PRESETS["clean"].fields(299)["clip"] == [0, 255] and PRESETS["clean"].fields(299)["size"] == 299


@pytest.mark.parametrize("inputs", [32, 64, 256, 512])
def test_clean_is_pillow_on_floats_then_clipped(inputs: int) -> None:
    pictures = (noise(1, inputs) > 127) * torch.tensor(255, dtype=torch.uint8)  # black and white: the hardest
    raw, wanted = PRESETS["edm2"](pictures, 299), pillow_float(pictures, (299, 299))
    assert wanted.min() < 0 and wanted.max() > 255  # bicubic overshoots, so the clip is seen
    assert (PRESETS["clean"](pictures, 299) - wanted.clip(0, 255)).abs().max() < 0.01
    assert (raw - wanted).abs().max() < 0.01 and raw.max() > 255  # and edm2 does not clip


def test_clean_of_other_shapes() -> None:
    pictures = noise(1, 50, 90)
    assert (PRESETS["clean"](pictures, 40) - pillow_float(pictures, (40, 40)).clip(0, 255)).abs().max() < 0.01


def test_bytes_are_pillows_own() -> None:
    pictures = noise(3, 100, 60)
    found = PRESETS["dgm-eval"](pictures, 224)
    assert found.dtype == torch.float32 and torch.equal(found, pillow_bytes(pictures, (224, 224)))
    assert (found - PRESETS["edm2"](pictures, 224).clip(0, 255)).abs().max() > 0.4  # rounding is seen


def loop_of_tensorflow_1(channel: np.ndarray, side: int) -> np.ndarray:
    """resize_bilinear with align_corners=False and no half-pixel centres, in float64."""
    height, width = channel.shape
    found = np.zeros((side, side))
    for i in range(side):
        for j in range(side):
            y, x = i * height / side, j * width / side
            top, left = int(y), int(x)
            bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
            upper = channel[top, left] + (channel[top, right] - channel[top, left]) * (x - left)
            lower = channel[bottom, left] + (channel[bottom, right] - channel[bottom, left]) * (x - left)
            found[i, j] = upper + (lower - upper) * (y - top)
    return found


@pytest.mark.parametrize(("shape", "side"), [((32, 32), 75), ((40, 17), 29), ((9, 50), 12), ((7, 7), 7)])
def test_legacy_tf_is_the_loop(shape: tuple[int, int], side: int) -> None:
    pictures = noise(1, *shape)
    found = PRESETS["legacy-tf"](pictures, side)
    wanted = np.stack([loop_of_tensorflow_1(c.astype(np.float64), side) for c in pictures[0].numpy()])
    np.testing.assert_allclose(found[0].numpy(), wanted, atol=2e-3)  # float32 coordinates


def test_legacy_tf_by_hand() -> None:
    """Two pixels to four: src = 0, 1/2, 1, 3/2, the last repeated. Half-pixel centres would give 0, 64, 191, 255."""
    row = torch.tensor([0.0, 255.0]).expand(1, 1, 2, 2)
    assert bilinear_of_corners(row, 4)[0, 0, 0].tolist() == [0, 127.5, 255, 255]


@pytest.mark.parametrize("inputs", [32, 500])
def test_legacy_torch_is_torch_on_the_unit_scale(inputs: int) -> None:
    pictures = noise(1, inputs)
    wanted = nn.functional.interpolate(pictures / 255, (299, 299), mode="bilinear", align_corners=False)
    assert (PRESETS["legacy-torch"](pictures, 299) / 255 - wanted).abs().max() < 1e-6


@pytest.mark.parametrize("inputs", [32, 400])
def test_torchmetrics_resizes_so(inputs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    fid = pytest.importorskip("torchmetrics.image.fid")
    monkeypatch.setattr(fid, "vassert", lambda truth, message: None)  # comes from a package that is not needed
    seen: list[Tensor] = []

    def first_layer(x: Tensor) -> Tensor:
        seen.append(x)
        return x

    network = SimpleNamespace(
        features_list=["64"], use_antialias=True, INPUT_IMAGE_SIZE=299, Conv2d_1a_3x3=first_layer,
        Conv2d_2a_3x3=nn.Identity(), Conv2d_2b_3x3=nn.Identity(), MaxPool_1=nn.Identity(),
    )  # fmt: skip
    pictures = noise(1, inputs)
    fid.NoTrainInceptionV3._torch_fidelity_forward(network, pictures)
    assert torch.equal((PRESETS["torchmetrics-aa"](pictures, 299) - 128) / 128, seen[0])


def test_cmmd_ref_is_torch_without_antialias() -> None:
    pictures = noise(1, 128)
    wanted = nn.functional.interpolate(pictures / 255, (48, 48), mode="bicubic")
    assert (PRESETS["cmmd-ref"](pictures, 48) / 255 - wanted).abs().max() < 1e-5


def test_cmmd_files_crops_the_centre_then_resizes() -> None:
    pictures = noise(1, 60, 101)
    assert torch.equal(PRESETS["cmmd-files"](pictures, 48), pillow_bytes(pictures[..., 20:80], (48, 48)))


@pytest.mark.parametrize("shape", [(60, 101), (90, 50), (64, 64)])
def test_clip_is_the_processor_of_transformers(shape: tuple[int, int]) -> None:
    module = pytest.importorskip("transformers.models.clip.image_processing_pil_clip")
    processor = module.CLIPImageProcessorPil(
        size={"shortest_edge": 48}, crop_size={"height": 48, "width": 48}, do_rescale=False, do_normalize=False
    )
    pictures = noise(1, *shape)
    image = Image.fromarray(pictures[0].permute(1, 2, 0).numpy())
    wanted = torch.as_tensor(np.asarray(processor(images=image, return_tensors="pt")["pixel_values"]))
    assert torch.equal(PRESETS["clip"](pictures, 48), wanted.float())


@pytest.mark.parametrize("name", PRESETS)
def test_pictures_of_the_right_size_stay(name: str) -> None:
    pictures = noise(2, 30)
    assert torch.equal(PRESETS[name](pictures, 30), pictures.float())


@pytest.mark.parametrize("name", PRESETS)
def test_chunks_do_not_matter(name: str) -> None:
    pictures = noise(CHUNK + 3, 20, 24)
    whole = PRESETS[name](pictures, 28)
    assert whole.shape == (CHUNK + 3, 3, 28, 28) and whole.dtype == torch.float32
    assert torch.equal(whole, torch.cat([PRESETS[name](picture[None], 28) for picture in pictures]))


def test_presets_are_far_apart() -> None:
    """None can stand in for another: on noise that shrinks they differ by many levels."""
    pictures = noise(1, 512)
    found = {name: PRESETS[name](pictures, 299) for name in ("clean", "legacy-tf", "legacy-torch", "torchmetrics-aa")}
    names = list(found)
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            assert (found[a] - found[b]).abs().mean() > 5


def test_centre_and_unknown_presets() -> None:
    assert centre_square(torch.arange(5.0).expand(1, 1, 5, 5), 2)[0, 0, 0].tolist() == [1, 2]
    with pytest.raises(UsageError, match="did you mean clean"):
        preset_named("claen", ("clean", "legacy-tf"))
    with pytest.raises(UsageError, match="known"):
        preset_named("edm2", ("clean", "legacy-tf"))
