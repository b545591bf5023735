"""Inception-v3 as Google published it on 2015-12-05: the network of FID, KID and the Inception Score.

Not the Inception-v3 of image classification libraries. What is different here: 1008 outputs; average pools of mixed
blocks do not count the padding; the last mixed block takes a maximum instead; the scale of the input.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...errors import UsageError
from .extractor import Extractor, dtype_named, weights_hash
from .resize import Resize, preset_named

SIDE, DIM, CLASSES = 299, 2048, 1008
PLACE = "PILOTAGE_INCEPTION"  # the environment variable with the file of the weights
KNOWN = "6726825d"  # how the SHA-256 of pt_inception-2015-12-05-6726825d.pth begins
PRESETS = ("clean", "legacy-tf", "legacy-torch", "torchmetrics-aa")
MAPPINGS = {"(x - 128) / 128": (128.0, 128.0), "x / 127.5 - 1": (127.5, 127.5)}

Conv = tuple[str, int, int | tuple[int, int]]  # (name, outputs, kernel)
Piece = Conv | list[Conv] | Callable[[Tensor], Tensor]  # a convolution, several side by side, or a pool


def inception(
    device: torch.device | str = "cpu",
    weights: str | os.PathLike[str] | None = None,
    preset: str = "clean",
    dtype: str = "float32",
    check: bool = True,
) -> Extractor:
    """2048 features (the global average before the classifier) and 1008 logits without bias.

    weights: a file .pth or .safetensors, else the environment variable PILOTAGE_INCEPTION says where it is. Nothing is
    downloaded. preset: clean (Parmar et al. 2022, 2104.11222), legacy-tf, legacy-torch or torchmetrics-aa. check:
    the .pth must be the published one, by its SHA-256; without it distances are called fd_inception-<hash>, not FID.
    Errors: no file, another file, an unknown preset or dtype.
    """
    resize = preset_named(preset, PRESETS)
    mapping = "x / 127.5 - 1" if preset == "legacy-torch" else "(x - 128) / 128"
    arithmetic, place = dtype_named(dtype), torch.device(device)
    with torch.device("meta"):  # without drawing weights that are replaced
        network = Inception()
    read_weights(network, weights_file(weights), check)
    identity = weights_hash(network)
    network = network.eval().requires_grad_(False).to(place, arithmetic)
    return Extractor(
        "inception" if check else f"inception-{identity[:8]}",
        network,
        identity,
        {**resize.fields(SIDE), "mapping": mapping, "preset": preset},
        side=SIDE,
        device=place,
        prepare=partial(prepared, resize=resize, mapping=mapping, dtype=arithmetic),
        layer="pool3",
        dtype=dtype,
        dim=DIM,
        called="fid" if check else "",
    )


def prepared(pictures: Tensor, resize: Resize, mapping: str, dtype: torch.dtype) -> Tensor:
    """uint8 (N, 3, H, W) -> (N, 3, 299, 299), values of about -1..1."""
    offset, scale = MAPPINGS[mapping]
    return resize(pictures, SIDE).sub_(offset).div_(scale).to(dtype)


# -- the weights -----------------------------------------------------------------------------------------------


def weights_file(weights: str | os.PathLike[str] | None) -> Path:
    """The file that was named, or that the environment names."""
    named = weights or os.environ.get(PLACE)
    if not named:
        raise UsageError(
            f"the weights of Inception are not shipped: get pt_inception-2015-12-05-{KNOWN}.pth (a release file of "
            f"mseitzer/pytorch-fid on GitHub), then give inception:weights=FILE or set {PLACE}"
        )
    file = Path(named).expanduser()
    if not file.is_file():
        raise UsageError(f"there is no file {file} with the weights of Inception; give inception:weights=FILE")
    return file


def read_weights(network: Inception, file: Path, check: bool = True) -> None:
    """Load a .pth (tensors only, nothing in it is run) or a .safetensors into the network."""
    if check:
        _verify(file)
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            found = load_file(str(file))
        else:
            found = torch.load(file, map_location="cpu", weights_only=True)
        network.load_state_dict(found, assign=True)
    except Exception as error:  # torch.load, safetensors and load_state_dict raise many kinds
        said = " ".join(str(error).split())[:160]
        if said.startswith("Weights only load failed"):  # torch's advice is to run what is in the file
            said = "it is no file of tensors alone"
        raise UsageError(f"{file} does not hold the weights of Inception of 2015-12-05 ({said})") from None


def _verify(file: Path) -> None:
    if file.suffix == ".safetensors":
        raise UsageError(f"{file} has no published hash; give the .pth, or add check=false (then it is no FID)")
    with file.open("rb") as opened:
        begins = hashlib.file_digest(opened, "sha256").hexdigest()[: len(KNOWN)]
    if begins != KNOWN:
        raise UsageError(
            f"the SHA-256 of {file} begins with {begins}, not {KNOWN}: other weights, or half a file; fetch it again, "
            "or add check=false (then it is no FID)"
        )


# -- the network -----------------------------------------------------------------------------------------------

average = partial(functional.avg_pool2d, kernel_size=3, stride=1, padding=1, count_include_pad=False)
maximum = partial(functional.max_pool2d, kernel_size=3, stride=1, padding=1)
halve = partial(functional.max_pool2d, kernel_size=3, stride=2)


class Convolution(nn.Module):
    """Convolution without bias, batch normalisation with eps 1e-3, ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int | tuple[int, int], stride: int = 1, same: bool = True):
        super().__init__()
        height, width = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (height // 2, width // 2) if same else 0
        self.conv = nn.Conv2d(inputs, outputs, (height, width), stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.bn(self.conv(x)), inplace=True)


class Mixed(nn.Module):
    """Branches side by side, joined along the channels. stride 2: the last convolution of each branch halves the map.

    Every other convolution keeps the size of the map.
    """

    def __init__(self, inputs: int, branches: Sequence[Sequence[Piece]], stride: int = 1):
        super().__init__()
        self.branches = branches
        for branch in branches:
            width = inputs
            for piece in branch:
                last = stride > 1 and piece is branch[-1]
                side_by_side = [] if callable(piece) else piece if isinstance(piece, list) else [piece]
                for name, outputs, kernel in side_by_side:
                    self.add_module(name, Convolution(width, outputs, kernel, stride if last else 1, not last))
                width = sum(outputs for _, outputs, _ in side_by_side) or width

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self._along(branch, x) for branch in self.branches], 1)

    def _along(self, branch: Sequence[Piece], x: Tensor) -> Tensor:
        for piece in branch:
            if isinstance(piece, list):
                x = torch.cat([self.get_submodule(name)(x) for name, _, _ in piece], 1)
            elif callable(piece):
                x = piece(x)
            else:
                x = self.get_submodule(piece[0])(x)
        return x


def _five(inputs: int, pooled: int) -> Mixed:
    """Mixed_5: 35x35, (N, 224 + pooled)."""
    return Mixed(
        inputs,
        [
            [("branch1x1", 64, 1)],
            [("branch5x5_1", 48, 1), ("branch5x5_2", 64, 5)],
            [("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3), ("branch3x3dbl_3", 96, 3)],
            [average, ("branch_pool", pooled, 1)],
        ],
    )


def _five_to_six() -> Mixed:
    """Mixed_6a: 35x35 to 17x17."""
    return Mixed(
        288,
        [
            [("branch3x3", 384, 3)],
            [("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3), ("branch3x3dbl_3", 96, 3)],
            [halve],
        ],
        stride=2,
    )


def _six(width: int) -> Mixed:
    """Mixed_6: 17x17, 768 channels in and out."""
    row, column = (1, 7), (7, 1)
    return Mixed(
        768,
        [
            [("branch1x1", 192, 1)],
            [("branch7x7_1", width, 1), ("branch7x7_2", width, row), ("branch7x7_3", 192, column)],
            [
                ("branch7x7dbl_1", width, 1),
                ("branch7x7dbl_2", width, column),
                ("branch7x7dbl_3", width, row),
                ("branch7x7dbl_4", width, column),
                ("branch7x7dbl_5", 192, row),
            ],
            [average, ("branch_pool", 192, 1)],
        ],
    )


def _six_to_seven() -> Mixed:
    """Mixed_7a: 17x17 to 8x8."""
    return Mixed(
        768,
        [
            [("branch3x3_1", 192, 1), ("branch3x3_2", 320, 3)],
            [
                ("branch7x7x3_1", 192, 1),
                ("branch7x7x3_2", 192, (1, 7)),
                ("branch7x7x3_3", 192, (7, 1)),
                ("branch7x7x3_4", 192, 3),
            ],
            [halve],
        ],
        stride=2,
    )


def _seven(inputs: int, pool: Callable[[Tensor], Tensor]) -> Mixed:
    """Mixed_7: 8x8, 2048 channels out."""
    row, column = (1, 3), (3, 1)
    return Mixed(
        inputs,
        [
            [("branch1x1", 320, 1)],
            [("branch3x3_1", 384, 1), [("branch3x3_2a", 384, row), ("branch3x3_2b", 384, column)]],
            [
                ("branch3x3dbl_1", 448, 1),
                ("branch3x3dbl_2", 384, 3),
                [("branch3x3dbl_3a", 384, row), ("branch3x3dbl_3b", 384, column)],
            ],
            [pool, ("branch_pool", 192, 1)],
        ],
    )


class Inception(nn.Module):
    """(N, 3, 299, 299) of about -1..1 -> "features" (N, 2048) and "logits" (N, 1008) without the bias.

    Szegedy et al. 2015, 1512.00567, with the differences of the published graph. Its names are those of the weight
    files in circulation.
    """

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Convolution(3, 32, 3, 2, same=False)
        self.Conv2d_2a_3x3 = Convolution(32, 32, 3, same=False)
        self.Conv2d_2b_3x3 = Convolution(32, 64, 3)
        self.Conv2d_3b_1x1 = Convolution(64, 80, 1)
        self.Conv2d_4a_3x3 = Convolution(80, 192, 3, same=False)
        self.Mixed_5b = _five(192, 32)
        self.Mixed_5c = _five(256, 64)
        self.Mixed_5d = _five(288, 64)
        self.Mixed_6a = _five_to_six()
        self.Mixed_6b = _six(128)
        self.Mixed_6c = _six(160)
        self.Mixed_6d = _six(160)
        self.Mixed_6e = _six(192)
        self.Mixed_7a = _six_to_seven()
        self.Mixed_7b = _seven(1280, average)
        self.Mixed_7c = _seven(2048, maximum)
        self.fc = nn.Linear(DIM, CLASSES)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(halve(x)))
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(halve(x))))
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))))
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))
        features = x.mean((2, 3))
        return {"features": features, "logits": features @ self.fc.weight.T}
