"""Rows of pipelines around a UNet."""

from __future__ import annotations

from dataclasses import replace

from .adapter import Adapter

_UNET = Adapter(
    batched=(
        "sample",
        "timestep",
        "encoder_hidden_states",
        "class_labels",
        "timestep_cond",
        "attention_mask",
        "encoder_attention_mask",
        "added_cond_kwargs",
        "cross_attention_kwargs",
        "down_block_additional_residuals",
        "mid_block_additional_residual",
        "down_intrablock_additional_residuals",
    ),
)
_SDXL = replace(_UNET, conditioned_by=("encoder_hidden_states", "added_cond_kwargs"))

UNETS: dict[str, Adapter] = {
    "StableDiffusionPipeline": _UNET,
    "StableDiffusionImg2ImgPipeline": _UNET,
    "StableDiffusionInpaintPipeline": _UNET,
    "StableDiffusionControlNetPipeline": replace(_UNET, notes="the ControlNet itself still sees every row"),
    "StableDiffusionControlNetImg2ImgPipeline": replace(_UNET, notes="the ControlNet itself still sees every row"),
    "StableDiffusionInstructPix2PixPipeline": replace(
        _UNET,
        branches=("cond", "image", "uncond"),
        on="guidance_scale above 1 and image_guidance_scale of at least 1 (their values have no effect)",
        on_settings=(("guidance_scale", 2.0), ("image_guidance_scale", 1.5)),
    ),
    "StableDiffusionXLPipeline": _SDXL,
    "StableDiffusionXLImg2ImgPipeline": _SDXL,
    "StableDiffusionXLInpaintPipeline": _SDXL,
    "StableDiffusionXLControlNetPipeline": replace(_SDXL, notes="the ControlNet itself still sees every row"),
}

REFUSED: dict[str, str] = {}
