"""DINOv2 features from a tiny random checkpoint in a folder."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel, Dinov2Config, Dinov2Model

from pilotage.errors import UsageError
from pilotage.evaluation import Extractor, open_features
from pilotage.evaluation.features.dinov2 import positions_for
from pilotage.evaluation.features.extractor import weights_hash

MEAN, DEVIATION = (torch.tensor(v)[:, None, None] for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))


@pytest.fixture(autouse=True)
def _few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pilotage.evaluation.features.extractor.ROWS", 4)


@pytest.fixture(scope="module")
def network() -> Dinov2Model:
    """Patches of 14, positions stored for 5 x 5 of them, features of 16."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = Dinov2Config(
            hidden_size=16, num_hidden_layers=2, num_attention_heads=2, mlp_ratio=2, patch_size=14, image_size=70
        )
        model = Dinov2Model(config).eval().requires_grad_(False)
        for value in model.parameters():
            value.add_(torch.randn(value.shape) * 0.1)
    return model


@pytest.fixture(scope="module")
def folder(network: Dinov2Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("dinov2")
    network.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def pictures() -> Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (6, 3, 48, 40), dtype=np.uint8))


def opened(folder: Path, *settings: str) -> Extractor:
    return open_features(",".join([f"dinov2:model={folder}", *settings]))


def class_tokens(network: Dinov2Model, values: Tensor) -> Tensor:
    """Of values 0..1 at the size that the positions are stored for."""
    return network(pixel_values=(values - MEAN) / DEVIATION).last_hidden_state[:, 0]


def test_edm2_is_transformers_on_torch_resized_floats(network: Dinov2Model, folder: Path, pictures: Tensor) -> None:
    values = nn.functional.interpolate(pictures.float(), (70, 70), mode="bicubic", antialias=True) / 255
    found = opened(folder, "side=70", "preset=edm2")(pictures)
    assert found.shape == (6, 16) and found.dtype == torch.float32
    torch.testing.assert_close(found, class_tokens(network, values), rtol=1e-4, atol=1e-5)


def test_dgm_eval_is_transformers_on_pillows_bytes(network: Dinov2Model, folder: Path, pictures: Tensor) -> None:
    images = [
        Image.fromarray(p).resize((70, 70), Image.Resampling.BICUBIC) for p in pictures.permute(0, 2, 3, 1).numpy()
    ]
    values = torch.from_numpy(np.stack([np.asarray(i) for i in images])).permute(0, 3, 1, 2) / 255
    found = opened(folder, "side=70")(pictures)
    torch.testing.assert_close(found, class_tokens(network, values), rtol=1e-4, atol=1e-5)
    assert (found - opened(folder, "side=70", "preset=edm2")(pictures)).abs().max() > 1e-3


def test_without_the_offset_positions_are_those_of_transformers(
    network: Dinov2Model, folder: Path, pictures: Tensor
) -> None:
    """42 pixels are 3 x 3 patches, 5 x 5 are stored. The offset of the original code moves the features."""
    values = nn.functional.interpolate(pictures.float(), (42, 42), mode="bicubic", antialias=True) / 255
    plain = opened(folder, "side=42", "preset=edm2", "offset=0")(pictures)
    torch.testing.assert_close(plain, class_tokens(network, values), rtol=1e-4, atol=1e-5)
    original = opened(folder, "side=42", "preset=edm2")(pictures)
    assert (original - plain).abs().max() > 1e-3


def test_positions_by_a_loop() -> None:
    """Bicubic with a = -3/4 at src = (dst + 1/2) n / (grid + 0.1) - 1/2, edges repeated, in float64."""
    stored, grid, width = 7, 4, 3
    table = torch.randn(1, 1 + stored**2, width, generator=torch.Generator().manual_seed(0))

    def weight(distance: float) -> float:
        a, t = -0.75, abs(distance)
        if t <= 1:
            return (a + 2) * t**3 - (a + 3) * t**2 + 1
        return a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a if t < 2 else 0.0

    along = np.zeros((grid, stored))
    for i in range(grid):
        source = (i + 0.5) * stored / (grid + 0.1) - 0.5
        for j in range(int(np.floor(source)) - 1, int(np.floor(source)) + 3):
            along[i, min(max(j, 0), stored - 1)] += weight(source - j)
    image = table[0, 1:].double().numpy().reshape(stored, stored, width)
    wanted = np.einsum("ia,jb,abc->ijc", along, along, image).reshape(-1, width)
    found = positions_for(table, grid)
    assert torch.equal(found[:, 0], table[:, 0])
    np.testing.assert_allclose(found[0, 1:].numpy(), wanted, atol=1e-5)
    assert positions_for(table, stored) is table


def test_the_usual_size_and_offset(folder: Path, pictures: Tensor) -> None:
    """37 x 37 stored patches at 224 pixels become 16 x 16, as with the published checkpoints."""
    assert positions_for(torch.zeros(1, 1 + 37**2, 2), 16).shape == (1, 257, 2)
    extractor = opened(folder)
    assert extractor.side == 224 and extractor(pictures[:1]).shape == (1, 16)


def test_who_it_is(network: Dinov2Model, folder: Path) -> None:
    extractor, other = opened(folder, "side=70"), opened(folder, "side=70", "preset=edm2")
    assert extractor.weights == weights_hash(network) == opened(folder, "side=42").weights
    assert extractor.dim == 16 and extractor.name == "dinov2" and extractor.distance == "fd_dinov2"
    a, b = extractor.preprocessing_fields, other.preprocessing_fields
    assert {name for name in a if a[name] != b[name]} == {"rounding", "preset"}
    assert json.loads(json.dumps(a)) == a  # as it is read back from a file
    assert len({opened(folder, s).preprocessing_id for s in ("side=70", "side=42", "offset=0")}) == 3


def test_batching_does_not_matter(folder: Path, pictures: Tensor) -> None:
    extractor = opened(folder, "side=70")
    whole = extractor(pictures)
    assert torch.equal(torch.cat([extractor(picture[None]) for picture in pictures]), whole)


def test_bfloat16(folder: Path, pictures: Tensor) -> None:
    exact, half = opened(folder, "side=70"), opened(folder, "side=70", "dtype=bfloat16")
    assert half.extractor_id.endswith("cls-bfloat16") and half.extractor_id != exact.extractor_id
    rough = half(pictures)
    assert rough.dtype == torch.float32 and not torch.equal(rough, exact(pictures))
    assert nn.functional.cosine_similarity(rough, exact(pictures)).min() > 0.99


def test_nothing_is_drawn_from_the_global_generator(folder: Path) -> None:
    before = torch.random.get_rng_state()
    opened(folder, "side=42")
    assert torch.equal(torch.random.get_rng_state(), before)


def test_bad_models_are_refused(network: Dinov2Model, folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    vision, holes, empty = tmp_path / "vision", tmp_path / "holes", tmp_path / "empty"
    CLIPVisionModel(
        CLIPVisionConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, image_size=32)
    ).save_pretrained(vision)
    network.save_pretrained(holes)
    state = load_file(holes / "model.safetensors")
    save_file(
        {k: v for k, v in state.items() if "layernorm.weight" not in k}, holes / "model.safetensors", {"format": "pt"}
    )
    empty.mkdir()
    for line, said in {
        f"model={vision}": "not dinov2",
        f"model={holes}": r"lacks 1 weights, such as layernorm\.weight",
        f"model={empty}": "no config.json",
        "model=nowhere": "a folder with a config.json, or a hub id",
        "model=nobody/nothing-of-this-name": "not in the local cache; add allow_download=true",
        f"model={folder},side=50": "no multiple of the patches of 14; use 42",
        f"model={folder},offset=3": "use 0 or 0.1",
        f"model={folder},preset=clean": "known: dgm-eval, edm2",
    }.items():
        with pytest.raises(UsageError, match=said) as caught:
            open_features(f"dinov2:{line}")
        assert "\n" not in str(caught.value)
