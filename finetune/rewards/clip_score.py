"""Rewards that are a cosine of CLIP: the plain one, and those of CLIP models tuned on what people prefer."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from ...errors import UsageError
from .clip_tower import ClipTower, clip_tower
from .open_clip import fill_from_open_clip
from .reward import Reward, Scores

VIT_H = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"  # what PickScore and HPSv2 were tuned from


def clip_score(
    model: str = "openai/clip-vit-large-patch14",
    prefix: str = "",
    allow_download: bool = False,
    device: torch.device | str = "cpu",
) -> Reward:
    """The cosine of picture and prompt, -1..1 (Hessel et al. 2021, 2104.08718, without its factor 2.5 and cut at 0).

    model: a CLIP checkpoint of transformers, a folder or a hub id. prefix: before each prompt; the paper's is "A photo
    depicts ".
    """
    tower = clip_tower(model, device, allow_download)

    def scores(pictures: Tensor, prompts: Sequence[str]) -> Tensor:
        return tower.cosines(pictures, [prefix + prompt for prompt in prompts])

    return _reward("clip-score", tower, scores, "usually .15 to .35, cosine", "of the checkpoint; OpenAI's CLIP: MIT")


def pickscore(
    model: str = "yuvalkirstain/PickScore_v1",
    tokenizer: str = VIT_H,
    allow_download: bool = False,
    device: torch.device | str = "cpu",
) -> Reward:
    """PickScore (Kirstain et al. 2023, 2305.01569): exp(logit scale) times the cosine.

    tokenizer: where it is; a folder with model and tokenizer may be given twice.
    """
    tower = clip_tower(model, device, allow_download, tokenizer)

    def scores(pictures: Tensor, prompts: Sequence[str]) -> Tensor:
        return tower.network.logit_scale.exp() * tower.cosines(pictures, prompts)

    return _reward("pickscore", tower, scores, "usually 18 to 24", "see the checkpoint's page")


def hpsv2(
    weights: str = "", model: str = "", allow_download: bool = False, device: torch.device | str = "cpu"
) -> Reward:
    """HPSv2.0 (Wu et al. 2023, 2306.09341): the cosine, without a logit scale. Scores of different prompts are not
    comparable, nor those of 2.0 and 2.1.

    weights: the published open_clip file, HPS_v2_compressed.pt; model: the CLIP ViT-H/14 of transformers that it goes
    into. Without weights, model is a folder or a hub id that has them already.
    """
    return _preference("hpsv2", "HPS_v2_compressed.pt", weights, model, allow_download, device)


def hpsv2_1(
    weights: str = "", model: str = "", allow_download: bool = False, device: torch.device | str = "cpu"
) -> Reward:
    """HPSv2.1: as `hpsv2`, with the weights HPS_v2.1_compressed.pt."""
    return _preference("hpsv2.1", "HPS_v2.1_compressed.pt", weights, model, allow_download, device)


def _preference(
    name: str, file: str, weights: str, model: str, allow_download: bool, device: torch.device | str
) -> Reward:
    if not weights and not model:
        raise UsageError(
            f"{name} needs its weights: give {name}:weights={file} (xswu/HPSv2 on the hub) or model=FOLDER"
        )
    put = partial(fill_from_open_clip, file=weights) if weights else None
    tower = clip_tower(model or VIT_H, device, allow_download, fit="pad", weights=put)
    return _reward(name, tower, tower.cosines, "usually .2 to .35, cosine (published: 100 times it)", "Apache-2.0")


def _reward(name: str, tower: ClipTower, scores: Scores, span: str, licence: str) -> Reward:
    return Reward(
        name,
        scores,
        range=span,
        needs_prompt=True,
        licence=licence,
        model=f"clip-{tower.identity[:16]}",
        preprocessing=tower.sight.said,
    )
