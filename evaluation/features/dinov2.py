"""DINOv2 (Oquab et al. 2023, 2304.07193): the network of FD-DINOv2 (Stein et al. 2023, 2306.04675)."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import UsageError
from .extractor import Extractor, dtype_named, weights_hash
from .pretrained import load_pretrained
from .resize import preset_named
from .standardise import standardised

PRESETS = ("dgm-eval", "edm2")
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, on the scale of 0..1
OFFSET = 0.1  # of patches, in the original code


def dinov2(
    device: torch.device | str = "cpu",
    model: str = "facebook/dinov2-large",
    preset: str = "dgm-eval",
    side: int = 224,
    offset: float = OFFSET,
    dtype: str = "float32",
    allow_download: bool = False,
) -> Extractor:
    """The class token after the last layer norm: 1024 features of ViT-L/14.

    model: a folder, or a hub id, which comes from the local cache unless allow_download. preset: dgm-eval (Pillow's
    bicubic on bytes) or edm2 (the same kernel without rounding or clipping). side: of the resized pictures, a multiple
    of the patch. offset: how the position embeddings are brought to this side, see `positions_for`.
    """
    from transformers import Dinov2Model

    resize, arithmetic, place = preset_named(preset, PRESETS), dtype_named(dtype), torch.device(device)
    network = load_pretrained(Dinov2Model, model, "dinov2", allow_download, attn_implementation="sdpa", dtype="float32")
    patch = network.config.patch_size
    if side < patch or side % patch:
        raise UsageError(f"side {side} is no multiple of the patches of {patch}; use {max(1, side // patch) * patch}")
    identity = weights_hash(network)
    embeddings = network.embeddings
    embeddings.position_embeddings = nn.Parameter(
        positions_for(embeddings.position_embeddings.data, side // patch, offset), requires_grad=False
    )
    return Extractor(
        "dinov2",
        partial(_class_token, network.to(place, arithmetic)),
        identity,
        {
            **resize.fields(side),
            "mapping": "(x / 255 - mean) / deviation",
            "mean": list(MEAN),
            "deviation": list(DEVIATION),
            "positions": f"bicubic, offset {float(offset)}",
            "attention": "sdpa",
            "preset": preset,
        },
        side=side,
        device=place,
        prepare=partial(standardised, resize=resize, side=side, mean=MEAN, deviation=DEVIATION, dtype=arithmetic),
        layer="cls",
        dtype=dtype,
        dim=network.config.hidden_size,
    )


def positions_for(table: Tensor, grid: int, offset: float = OFFSET) -> Tensor:
    """Position embeddings (1, 1 + n^2, D) of n x n patches, brought to grid x grid; that of the class token stays.

    Bicubic. The original code asks for (grid + 0.1)/n times the size, and the kernel is then sampled at
    (dst + 1/2) n/(grid + 0.1) - 1/2: the offset moves all features a little. 0 asks for the grid itself, as
    transformers does.
    """
    stored = round((table.shape[1] - 1) ** 0.5)
    if stored == grid:
        return table
    image = table[:, 1:].float().unflatten(1, (stored, stored)).movedim(-1, 1)
    wanted: dict[str, Any] = {"size": (grid, grid)}
    if offset:
        wanted = {"scale_factor": ((grid + offset) / stored,) * 2, "recompute_scale_factor": False}
    resized = nn.functional.interpolate(image, mode="bicubic", align_corners=False, **wanted)
    if resized.shape[-2:] != (grid, grid):
        raise UsageError(f"offset {offset} makes another number of patches than {grid}; use 0 or {OFFSET}")
    return torch.cat([table[:, :1], resized.movedim(1, -1).flatten(1, 2).to(table.dtype)], 1)


def _class_token(network: nn.Module, values: Tensor) -> Tensor:
    return network(pixel_values=values).last_hidden_state[:, 0]
