"""Adherence: does an embedded picture show what its caption states, by the classifier that guides?

The judge of evaluation is another network, on clean pictures; it is never a reward.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import UsageError
from ...evaluation.features.extractor import weights_hash
from ...guidance.gradient.attributes import aim_of_captions, attribute_score, guide_at
from .reward import Reward
from .sight import shown


def adherence(device: torch.device | str = "cpu", least: float = 0.0) -> Reward:
    """sum over the stated attributes of log (p(attribute | picture) + least), by the guide at time 0 on the encoded
    picture.

    Usually -100..0: -.3 for the picture of the caption, -90 for another one. A caption that states more has more to
    lose. least: 0 is the log-probability; .02 says that a wrong attribute is not worse than log .02, so that a few
    pictures which are quite wrong do not drown the others. Captions outside the embedded world's grammar are a
    UsageError. Pictures that are not 32x32 are area-averaged.
    """
    if not 0 <= least < 1:
        raise UsageError(f"adherence least={least:g} is no probability; use 0 to 1, for example 0.02")
    from ...generation.models import load
    from ...zoo import embedded

    encoder = load("embedded", device=str(device)).vae.requires_grad_(False)
    guide = embedded.guide().to(device)
    return Reward(
        f"adherence:least={least:g}" if least else "adherence",
        partial(_stated, encoder, guide, least),
        range="usually -100..0, log p",
        needs_prompt=True,
        reads=aim_of_captions,
        licence="Apache-2.0",
        model=f"guide-{weights_hash(guide)[:16]}",
        preprocessing="cut to [0, 1], area to 32, the autoencoder's mode",
    )


def _stated(encoder: Any, guide: nn.Module, least: float, pictures: Tensor, prompts: Sequence[str]) -> Tensor:
    aim = aim_of_captions(prompts).to(pictures.device)
    pixels = shown(pictures.float())
    if pixels.shape[-2:] != (32, 32):
        pixels = nn.functional.interpolate(pixels, (32, 32), mode="area")
    latents = encoder.encode(2 * pixels - 1).latent_dist.mode() * encoder.config.scaling_factor
    return attribute_score(guide_at(latents, 0.0, guide), aim, least=least)
