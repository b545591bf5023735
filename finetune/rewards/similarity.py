"""Similarity to a reference picture: by pixels, or by the features of a network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...errors import UsageError, nearest
from ...evaluation.features.extractor import weights_hash
from ...generation.call import read_picture
from .clip_tower import clip_tower
from .reward import Reward
from .sight import shown

FEATURES = ("pixels", "embedded", "clip")
Embed = Callable[[Tensor], Tensor]


def similarity(
    reference: Any = "",
    features: str = "pixels",
    model: str = "openai/clip-vit-large-patch14",
    allow_download: bool = False,
    device: torch.device | str = "cpu",
) -> Reward:
    """To one picture: a file, or a tensor (3, H, W) in [0, 1].

    features "pixels": 1 - mean |x - reference| after the reference is resized to the pictures, 0..1; "embedded": the
    cosine of the embedded world's 64 features, -1..1; "clip": the cosine of CLIP's embeddings, -1..1, model: a folder
    or a hub id.
    """
    if features not in FEATURES:
        raise UsageError(f"similarity by {features!r} is not to be had: {nearest(str(features), FEATURES)}")
    wanted = picture_of(reference).to(device)
    name = "similarity" if isinstance(reference, Tensor) else f"similarity:reference={reference}"
    if features == "pixels":
        return Reward(name, lambda pictures, _: _of_pixels(wanted, pictures), range="0..1", preprocessing="none")
    embed, who, licence, preprocessing = _embedder(features, model, allow_download, device)
    with torch.inference_mode(False), torch.no_grad():
        aim = embed(wanted.clone())

    def scores(pictures: Tensor, prompts: Sequence[str]) -> Tensor:
        return nn.functional.cosine_similarity(embed(pictures.float()), aim, dim=1)

    return Reward(name, scores, range="-1..1, cosine", licence=licence, model=who, preprocessing=preprocessing)


def picture_of(reference: Any) -> Tensor:
    """A file or a tensor (3, H, W) -> float32 (1, 3, H, W) in [0, 1]."""
    if isinstance(reference, Tensor):
        if reference.dim() != 3 or len(reference) != 3 or not reference.is_floating_point():
            raise UsageError(
                f"a reference is float (3, H, W) in [0, 1], not {tuple(reference.shape)}; divide bytes by 255"
            )
        return reference.detach().float()[None]
    if not str(reference):
        raise UsageError("there is no picture ''; give similarity:reference=FILE")
    try:
        pixels = np.array(read_picture(str(reference)).convert("RGB"))
    except UsageError as error:
        raise UsageError(f"cannot read the picture of similarity:reference=FILE: {error}") from None
    return torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255


def _of_pixels(reference: Tensor, pictures: Tensor) -> Tensor:
    if reference.shape[-2:] != pictures.shape[-2:]:
        reference = nn.functional.interpolate(reference, pictures.shape[-2:], mode="bicubic", antialias=True).clamp(
            0, 1
        )
    return 1 - (shown(pictures) - reference.clamp(0, 1).to(pictures)).abs().flatten(1).mean(1)


def _embedder(features: str, model: str, allow_download: bool, device: Any) -> tuple[Embed, str, str, str]:
    """From pictures to features (B, D), the model, its licence, what comes before it."""
    if features == "clip":
        tower = clip_tower(model, device, allow_download)
        return tower.of_pictures, f"clip-{tower.identity[:16]}", "of the checkpoint", tower.sight.said
    from ...zoo import embedded

    network = embedded.features().to(device)

    def embed(pictures: Tensor) -> Tensor:
        return network.embed(2 * nn.functional.interpolate(shown(pictures), (32, 32), mode="area") - 1)

    return embed, f"features-{weights_hash(network)[:16]}", "Apache-2.0", "cut to [0, 1], area to 32"
