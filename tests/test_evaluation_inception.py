"""Inception of 2015-12-05, block by block against plain convolutions, and its weight files."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from pilotage.errors import UsageError
from pilotage.evaluation import open_features
from pilotage.evaluation.features import inception as module
from pilotage.evaluation.features.extractor import Extractor, weights_hash
from pilotage.evaluation.features.inception import Inception, Mixed

State = dict[str, Tensor]


@pytest.fixture(scope="module")
def network() -> Inception:
    """Random weights whose activations neither die nor explode, with running statistics that are not 0 and 1."""
    generator = torch.Generator().manual_seed(0)
    network = Inception().eval().requires_grad_(False)
    for name, value in network.state_dict().items():
        if name.endswith("conv.weight"):
            value.copy_(torch.randn(value.shape, generator=generator) * (2 / value[0].numel()) ** 0.5)
        elif name.endswith("running_var"):
            value.copy_(torch.rand(value.shape, generator=generator) + 0.5)
        elif name.endswith(("bn.bias", "running_mean", "fc.bias")):
            value.copy_(torch.randn(value.shape, generator=generator) * 0.1)
    return network


@pytest.fixture(scope="module")
def file(network: Inception, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "random.pth"
    torch.save(network.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def pictures() -> Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, 3, 64, 64), dtype=np.uint8))


def plain(state: State, name: str, x: Tensor, padding: tuple[int, int] = (0, 0), stride: int = 1) -> Tensor:
    """Convolution, (x - mean) / sqrt(var + 1e-3) weight + bias, ReLU, from the state dict alone."""
    y = F.conv2d(x, state[f"{name}.conv.weight"], None, stride, padding)
    mean, var, weight, bias = (
        state[f"{name}.bn.{part}"][:, None, None] for part in ("running_mean", "running_var", "weight", "bias")
    )
    return ((y - mean) / (var + 1e-3).sqrt() * weight + bias).clamp(min=0)


def average_inside(x: Tensor) -> Tensor:
    """3x3 mean over those neighbours that exist."""
    summed = F.avg_pool2d(x, 3, 1, 1, divisor_override=1)
    return summed / F.avg_pool2d(torch.ones_like(x), 3, 1, 1, divisor_override=1)


def five(s: State, x: Tensor) -> Tensor:
    double = plain(s, "branch3x3dbl_2", plain(s, "branch3x3dbl_1", x), (1, 1))
    return torch.cat(
        [
            plain(s, "branch1x1", x),
            plain(s, "branch5x5_2", plain(s, "branch5x5_1", x), (2, 2)),
            plain(s, "branch3x3dbl_3", double, (1, 1)),
            plain(s, "branch_pool", average_inside(x)),
        ],
        1,
    )


def five_to_six(s: State, x: Tensor) -> Tensor:
    double = plain(s, "branch3x3dbl_2", plain(s, "branch3x3dbl_1", x), (1, 1))
    narrow = [plain(s, "branch3x3", x, stride=2), plain(s, "branch3x3dbl_3", double, stride=2)]
    return torch.cat([*narrow, F.max_pool2d(x, 3, 2)], 1)


def six(s: State, x: Tensor) -> Tensor:
    row, column = (0, 3), (3, 0)
    once = plain(s, "branch7x7_2", plain(s, "branch7x7_1", x), row)
    twice = plain(s, "branch7x7dbl_1", x)
    for number, padding in ((2, column), (3, row), (4, column), (5, row)):
        twice = plain(s, f"branch7x7dbl_{number}", twice, padding)
    return torch.cat(
        [
            plain(s, "branch1x1", x),
            plain(s, "branch7x7_3", once, column),
            twice,
            plain(s, "branch_pool", average_inside(x)),
        ],
        1,
    )


def six_to_seven(s: State, x: Tensor) -> Tensor:
    wide = plain(s, "branch7x7x3_2", plain(s, "branch7x7x3_1", x), (0, 3))
    wide = plain(s, "branch7x7x3_4", plain(s, "branch7x7x3_3", wide, (3, 0)), stride=2)
    return torch.cat([plain(s, "branch3x3_2", plain(s, "branch3x3_1", x), stride=2), wide, F.max_pool2d(x, 3, 2)], 1)


def seven(s: State, x: Tensor, pool: Callable[[Tensor], Tensor]) -> Tensor:
    row, column = (0, 1), (1, 0)
    once = plain(s, "branch3x3_1", x)
    twice = plain(s, "branch3x3dbl_2", plain(s, "branch3x3dbl_1", x), (1, 1))
    return torch.cat(
        [
            plain(s, "branch1x1", x),
            plain(s, "branch3x3_2a", once, row),
            plain(s, "branch3x3_2b", once, column),
            plain(s, "branch3x3dbl_3a", twice, row),
            plain(s, "branch3x3dbl_3b", twice, column),
            plain(s, "branch_pool", pool(x)),
        ],
        1,
    )


BLOCKS: dict[str, tuple[int, Callable[[State, Tensor], Tensor], int]] = {
    "Mixed_5b": (192, five, 256),
    "Mixed_5d": (288, five, 288),
    "Mixed_6a": (288, five_to_six, 768),
    "Mixed_6b": (768, six, 768),
    "Mixed_6e": (768, six, 768),
    "Mixed_7a": (768, six_to_seven, 1280),
    "Mixed_7b": (1280, lambda s, x: seven(s, x, average_inside), 2048),
    "Mixed_7c": (2048, lambda s, x: seven(s, x, lambda y: F.max_pool2d(y, 3, 1, 1)), 2048),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_are_plain_convolutions(name: str, network: Inception) -> None:
    inputs, wanted, outputs = BLOCKS[name]
    block = network.get_submodule(name)
    assert isinstance(block, Mixed)
    x = torch.randn(1, inputs, 9, 9, generator=torch.Generator().manual_seed(1))
    found = block(x)
    assert found.shape[1] == outputs
    torch.testing.assert_close(found, wanted(block.state_dict(), x), rtol=1e-4, atol=1e-5)


def test_padding_is_not_averaged_and_the_last_pool_is_a_maximum(network: Inception) -> None:
    """The three differences from classification libraries change numbers, so the test above could fail."""
    x = torch.randn(1, 2048, 8, 8, generator=torch.Generator().manual_seed(2))
    state = network.Mixed_7c.state_dict()
    pools = [average_inside, lambda y: F.avg_pool2d(y, 3, 1, 1), lambda y: F.max_pool2d(y, 3, 1, 1)]
    a, b, c = (seven(state, x, pool) for pool in pools)
    assert (a - b).abs().max() > 0.01 and (a - c).abs().max() > 0.01
    assert torch.equal(a[..., 1:-1, 1:-1], b[..., 1:-1, 1:-1])  # only the border differs


def test_eps_and_the_number_of_parameters(network: Inception) -> None:
    """23 834 568 with 1000 classes and without the auxiliary head; 8 more classes of 2048 weights and a bias."""
    assert {m.eps for m in network.modules() if isinstance(m, nn.BatchNorm2d)} == {1e-3}
    assert sum(p.numel() for p in network.parameters()) == 23_834_568 + 8 * 2049
    assert network.fc.weight.shape == (1008, 2048)
    assert len([m for m in network.modules() if isinstance(m, nn.Conv2d)]) == 94


def test_names_are_those_of_the_files_in_circulation(network: Inception) -> None:
    names = set(network.state_dict())
    parts = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    some = ("Conv2d_1a_3x3", "Mixed_5b.branch1x1", "Mixed_6a.branch3x3dbl_3", "Mixed_6d.branch7x7dbl_5",
            "Mixed_7a.branch7x7x3_4", "Mixed_7c.branch3x3dbl_3b", "Mixed_7c.branch_pool")  # fmt: skip
    assert {f"{name}.bn.{part}" for name in some for part in parts} <= names
    assert {f"{name}.conv.weight" for name in some} | {"fc.weight", "fc.bias"} <= names
    assert len(names) == 94 * 6 + 2


def test_the_whole_network_as_torchmetrics_runs_it(
    network: Inception, file: Path, pictures: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The extractor on 64-pixel bytes, end to end, against torchmetrics' forward pass over the same modules."""
    fid = pytest.importorskip("torchmetrics.image.fid")
    monkeypatch.setattr(fid, "vassert", lambda truth, message: None)  # comes from a package that is not needed
    monkeypatch.setattr("pilotage.evaluation.features.extractor.ROWS", 1)
    pool = nn.MaxPool2d(3, 2)
    its = SimpleNamespace(
        features_list=["2048", "logits_unbiased"], use_antialias=True, INPUT_IMAGE_SIZE=299, MaxPool_1=pool,
        MaxPool_2=pool, AvgPool=nn.AdaptiveAvgPool2d(1), **dict(network.named_children()),
    )  # fmt: skip
    extractor = open_features(f"inception:weights={file},check=false,preset=torchmetrics-aa")
    found = extractor.outputs(pictures)
    features, logits = fid.NoTrainInceptionV3._torch_fidelity_forward(its, pictures)
    assert found["features"].shape == (1, 2048) and found["logits"].shape == (1, 1008)
    torch.testing.assert_close(found["features"], features, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found["logits"], logits, rtol=1e-4, atol=1e-5)
    assert features.std() > 0.01 and (network.fc.bias.abs() > 0.01).any()  # a bias would have been seen


@pytest.mark.parametrize("preset", module.PRESETS)
def test_values_before_the_network(preset: str, file: Path) -> None:
    """(x - 128) / 128, but pytorch-fid maps 0..255 to -1..1."""
    extractor = open_features(f"inception:weights={file},check=false,preset={preset}")
    black_and_white = torch.tensor([0, 128, 255], dtype=torch.uint8).reshape(3, 1, 1, 1).expand(3, 3, 5, 5)
    assert extractor.prepare is not None
    values = extractor.prepare(black_and_white)
    assert values.shape == (3, 3, 299, 299)
    offset, scale = (127.5, 127.5) if preset == "legacy-torch" else (128, 128)
    wanted = (torch.tensor([0.0, 128, 255]) - offset) / scale
    torch.testing.assert_close(values.mean((1, 2, 3)), wanted, rtol=0, atol=1e-4)
    torch.testing.assert_close(values.amax((1, 2, 3)), wanted, rtol=0, atol=1e-4)
    fields = extractor.preprocessing_fields
    assert fields["size"] == 299 and fields["preset"] == preset and fields["decoder"] == "pillow"


def test_presets_are_part_of_the_identity(file: Path) -> None:
    made = [open_features(f"inception:weights={file},check=false,preset={preset}") for preset in module.PRESETS]
    assert len({e.preprocessing_id for e in made}) == 4 and len({e.extractor_id for e in made}) == 1
    half = open_features(f"inception:weights={file},check=false,dtype=bfloat16")
    assert half.extractor_id.endswith("pool3-bfloat16") and made[0].extractor_id.endswith("pool3-float32")
    assert half.weights == made[0].weights and half.dim == made[0].dim == 2048


def test_bfloat16_is_near(network: Inception, file: Path, pictures: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pilotage.evaluation.features.extractor.ROWS", 1)
    exact, rough = (
        open_features(f"inception:weights={file},check=false,dtype={dtype}")(pictures)
        for dtype in ("float32", "bfloat16")
    )
    assert rough.dtype == torch.float32 and not torch.equal(exact, rough)
    assert F.cosine_similarity(exact, rough).item() > 0.99


def test_both_kinds_of_file(network: Inception, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same weights have the same identity, whatever the file; a file without batch counters will do, too."""
    state = network.state_dict()
    save_file(state, tmp_path / "a.safetensors")
    torch.save({k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}, tmp_path / "old.pth")
    before = torch.random.get_rng_state()
    made = [inception_of(path) for path in (file, tmp_path / "a.safetensors", tmp_path / "old.pth")]
    assert {e.weights for e in made} == {weights_hash(network)}
    assert torch.equal(torch.random.get_rng_state(), before)
    assert made[0].name == f"inception-{weights_hash(network)[:8]}" and made[0].distance == f"fd_{made[0].name}"
    monkeypatch.setenv("PILOTAGE_INCEPTION", str(file))
    assert open_features("inception:check=false").weights == made[0].weights


def inception_of(path: Path) -> Extractor:
    return open_features(f"inception:weights={path},check=false")


def test_only_the_published_file_is_called_fid(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, network: Inception
) -> None:
    with pytest.raises(UsageError, match=r"begins with .* not 6726825d.*check=false"):
        open_features(f"inception:weights={file}")
    monkeypatch.setattr(module, "KNOWN", hashlib.sha256(file.read_bytes()).hexdigest()[:8])
    extractor = open_features(f"inception:weights={file}")
    assert extractor.name == "inception" and extractor.distance == "fid"
    save_file(network.state_dict(), tmp_path / "a.safetensors")
    with pytest.raises(UsageError, match="no published hash"):
        open_features(f"inception:weights={tmp_path / 'a.safetensors'}")
    assert open_features(lambda batch: batch).distance == "fd_<lambda>"


def test_bad_weights_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, network: Inception) -> None:
    monkeypatch.delenv("PILOTAGE_INCEPTION", raising=False)
    other, junk, foreign = tmp_path / "other.pth", tmp_path / "junk.pth", tmp_path / "foreign.pth"
    state = network.state_dict()
    torch.save({**state, "fc.weight": torch.zeros(1000, 2048), "fc.bias": torch.zeros(1000)}, other)
    junk.write_bytes(b"not a file of tensors")
    torch.save({"run": SimpleNamespace(a=1)}, foreign)
    for line, said in {
        "inception": "not shipped.*PILOTAGE_INCEPTION",
        "inception:weights=nowhere.pth": "there is no file nowhere.pth",
        f"inception:weights={other},check=false": "does not hold the weights of Inception.*fc.weight",
        f"inception:weights={junk},check=false": "does not hold",
        f"inception:weights={foreign},check=false": "no file of tensors alone",  # nothing in it is run
        "inception:preset=claen": "did you mean clean",
        f"inception:weights={other},dtype=float15": "did you mean.*float32",
        "inception:wieghts=a": "did you mean weights",
    }.items():
        with pytest.raises(UsageError, match=said) as caught:
            open_features(line)
        assert "\n" not in str(caught.value)
