"""Norms of a denoiser's score at several levels: ten numbers that say how usual a picture is to a model.

    v_l = |noise predicted at (alpha_l x, level l)| / sqrt(d),  no noise added      Mahmood et al. 2021, 2010.13132

Guidance is off and the condition empty: the question is put to the model itself.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ...samplers.analysis import geometric_levels, score_norm_features
from ...samplers.denoiser import Denoiser, NetworkDenoiser
from ...samplers.schedule import Level, NoiseSchedule
from .extractor import Extractor, weights_hash
from .pretrained import quiet


def of_denoiser(
    denoiser: Denoiser,
    encode: Callable[[Tensor], Tensor],
    levels: Sequence[Level],
    *,
    condition: Callable[[int], Any] = lambda rows: None,
    preprocessing: Mapping[str, Any] | None = None,
    name: str = "score-norms",
    weights: str = "unknown",
    device: torch.device | str = "cpu",
) -> Extractor:
    """Any denoiser as an extractor of len(levels) features.

    encode: uint8 (n, 3, H, W) -> what the denoiser denoises, (n, ...). condition: rows -> its condition.
    preprocessing: what `encode` does, field by field, so that sets which were encoded otherwise are not compared.
    """

    def norms(clean: Tensor) -> Tensor:
        found = score_norm_features(denoiser, clean, levels, condition=condition(len(clean)))
        return found / clean[0].numel() ** 0.5

    before = {**(preprocessing or {}), "levels": [round(level.rho, 6) for level in levels]}
    return Extractor(name, norms, weights, before, device=torch.device(device), prepare=encode, dim=len(levels))


def score_norms(
    device: torch.device | str = "cpu", levels: int = 10, low: float = 0.04, high: float = 4.0
) -> Extractor:
    """Of the embedded model on its latents of 32x32 pictures. low, high: rho of the levels, in geometric steps."""
    zoo = importlib.import_module("pilotage.zoo.embedded")
    with quiet():
        pipe, nothing = zoo.load().to(device), zoo.text_embedding("").to(device)
    schedule = NoiseSchedule.from_scheduler(pipe.scheduler)
    denoiser = NetworkDenoiser(pipe.unet, schedule, str(pipe.scheduler.config.prediction_type))

    def latents(pictures: Tensor) -> Tensor:
        pixels = torch.nn.functional.interpolate(pictures.float(), (32, 32), mode="area")
        found: Tensor = pipe.vae.encode(pixels / 127.5 - 1).latent_dist.mode()
        return found

    def empty(rows: int) -> dict[str, Tensor]:
        return {"encoder_hidden_states": nothing.expand(rows, -1, -1)}

    return of_denoiser(
        denoiser,
        latents,
        geometric_levels(schedule, low, high, levels),
        condition=empty,
        preprocessing={"resize": "area", "size": 32, "mapping": "x / 127.5 - 1", "encoder": "mode of the autoencoder"},
        weights=weights_hash(pipe.unet),
        device=device,
    )
