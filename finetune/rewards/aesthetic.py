"""LAION's aesthetic score, version 2: CLIP ViT-L/14 and a linear head (Schuhmann et al. 2022, 2210.08402)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from ...errors import UsageError
from .clip_tower import ClipTower, clip_tower
from .reward import Reward
from .weights import file_hash, linear_head, tensors_of

PLACE = "PILOTAGE_AESTHETIC"  # the environment variable with the file of the head
FILE = "sac+logos+ava1-l14-linearMSE.pth"


def aesthetic(
    weights: str | os.PathLike[str] = "",
    model: str = "openai/clip-vit-large-patch14",
    allow_download: bool = False,
    device: torch.device | str = "cpu",
) -> Reward:
    """About 1..10; natural pictures have 4.5 to 6.5. The embedding is L2-normalised before the head.

    weights: the file of the head, else the environment variable PILOTAGE_AESTHETIC says where it is. model: the CLIP
    ViT-L/14 that it was trained on, a folder or a hub id. Errors: no file, another head, a CLIP of another width.
    """
    file = str(weights or os.environ.get(PLACE, ""))
    if not file:
        raise UsageError(
            f"the head of the aesthetic score is not shipped: get {FILE} (on GitHub, in "
            f"christophschuhmann/improved-aesthetic-predictor), then give aesthetic:weights=FILE or set {PLACE}"
        )
    what = "LAION's aesthetic head"
    tensors = tensors_of(file, what)
    tower = clip_tower(model, device, allow_download)
    head = linear_head(tensors, tower.network.config.projection_dim, what).to(device)
    return Reward(
        "aesthetic",
        partial(_scores, tower, head),
        range="about 1..10",
        licence="Apache-2.0 (head), MIT (CLIP)",
        model=f"clip-{tower.identity[:16]}, head-{file_hash(file)}",
        preprocessing=tower.sight.said,
    )


def _scores(tower: ClipTower, head: nn.Module, pictures: Tensor, prompts: Sequence[str]) -> Tensor:
    scores: Tensor = head(tower.of_pictures(pictures))[:, 0]
    return scores
