"""Weights from files: tensors alone, nothing in a file is run."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import UsageError

HEAD = (0, 2, 4, 6, 7)  # the linear layers of a head among its layers; the others are dropout


def tensors_of(file: str | os.PathLike[str], what: str) -> dict[str, Tensor]:
    """The tensors of a .pt, .pth or .safetensors by name, float32. Those under "state_dict" where there is one.

    what: the weights of what, and where they are to be had, for the error.
    """
    path = Path(file).expanduser()
    if not str(file) or not path.is_file():
        raise UsageError(f"there is no file {str(file)!r} with {what}")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            found: Any = load_file(str(path))
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
        found = dict(found.get("state_dict", found))
        return {name: value.float() if value.is_floating_point() else value for name, value in found.items()}
    except Exception as error:  # torch.load and safetensors raise many kinds
        said = " ".join(str(error).split())[:160]
        if said.startswith("Weights only load failed"):  # torch's advice is to run what is in the file
            said = "it is no file of tensors alone"
        raise UsageError(f"{path} does not hold {what} ({said})") from None


def fill(network: nn.Module, tensors: Mapping[str, Tensor], what: str) -> None:
    """Load every weight. Errors: one that is missing, of another shape, or that the network does not have."""
    try:
        network.load_state_dict(dict(tensors), strict=True)
    except RuntimeError as error:
        raise UsageError(f"these are not the weights of {what} ({' '.join(str(error).split())[:200]})") from None


def linear_head(tensors: Mapping[str, Tensor], width: int, what: str) -> nn.Sequential:
    """D -> 1024 -> 128 -> 64 -> 16 -> 1 without activations: the head of LAION's aesthetic score and of ImageReward.

    tensors: "layers.0.weight", "layers.0.bias", "layers.2..." as published; widths are read from them. width: D.
    Errors: other layers, layers that do not fit one another.
    """
    names = {f"layers.{i}.{part}" for i in HEAD for part in ("weight", "bias")}
    if set(tensors) != names:
        found = ", ".join(sorted(tensors)[:4]) or "none"
        raise UsageError(
            f"these are not the weights of {what}: its layers are {HEAD}, found {found}; give another file"
        )
    layers = []
    for i in HEAD:
        weight = tensors[f"layers.{i}.weight"]
        if weight.dim() != 2 or weight.shape[1] != width:
            shape = tuple(weight.shape)
            raise UsageError(f"layer {i} of {what} is {shape}, on {width} values; give the model that it belongs to")
        layer = nn.Linear(width, len(weight), device="meta")  # without drawing weights that are replaced
        layer.load_state_dict({"weight": weight, "bias": tensors[f"layers.{i}.bias"]}, assign=True)
        layers.append(layer)
        width = len(weight)
    if width != 1:
        raise UsageError(f"the head of {what} ends in {width} values instead of 1; give another file")
    return nn.Sequential(*layers).requires_grad_(False).eval()


def file_hash(file: str | os.PathLike[str]) -> str:
    """SHA-256 of a file, the first 16 digits."""
    with Path(file).expanduser().open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()[:16]
