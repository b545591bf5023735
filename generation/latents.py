"""Pictures to a pipeline's latents and back, as tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..errors import UsageError


def encoded(pipe: Any, pictures: Tensor) -> Tensor:
    """Pictures (B, 3, H, W) in [0, 1] as float32 latents (B, C, h, w) in the scaling that the network sees: the mode of
    the VAE's posterior, so that nothing is random. Raises UsageError for pipelines without such a VAE."""
    vae, config = _autoencoder(pipe)
    with torch.no_grad():
        found = vae.encode((2 * pictures - 1).to(vae.device, vae.dtype))
    latents: Tensor = found.latent_dist.mode() if hasattr(found, "latent_dist") else found.latents
    return (latents.float() - (getattr(config, "shift_factor", None) or 0.0)) * config.scaling_factor


def decoded(pipe: Any, latents: Tensor) -> Tensor:
    """Latents (B, C, h, w) as pictures (B, 3, H, W) in [0, 1], float32."""
    vae, config = _autoencoder(pipe)
    scaled = latents / config.scaling_factor + (getattr(config, "shift_factor", None) or 0.0)
    with torch.no_grad():
        pictures: Tensor = vae.decode(scaled.to(vae.device, vae.dtype)).sample
    return (pictures.float() / 2 + 0.5).clamp(0, 1)


def _autoencoder(pipe: Any) -> tuple[Any, Any]:
    vae = getattr(pipe, "vae", None)
    config = getattr(vae, "config", None)
    if vae is None or getattr(config, "scaling_factor", None) is None:
        raise UsageError(
            f"{type(pipe).__name__} has no autoencoder with a scaling_factor; use Stable Diffusion or SDXL"
        )
    if getattr(config, "latents_mean", None) is not None:
        raise UsageError(
            f"the autoencoder of this {type(pipe).__name__} normalises its channels one by one; use another"
        )
    return vae, config
