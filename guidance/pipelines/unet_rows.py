"""Rows of pipelines around a UNet, and of the priors that go with them."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from torch import Tensor

from ...samplers.prediction import V_PREDICTION
from ...samplers.schedule import Level
from .adapter import DISTILLED, Adapter, Arguments, local_flag, local_of, one_flag
from .prompts import stable_diffusion, stable_diffusion_xl

_WHOLE_CONTROLNET = "the ControlNet itself still sees every row, and the prompts of the call"
_VARIANCE = "learned variance: that of the conditional rows is passed on"


def _channels_of_latents(pipe: Any, tensor: Tensor) -> int:
    """Of x alone: the network's input and output have further ones."""
    return int(local_of(pipe, "latents").shape[1])


def _channels_of_pixels(pipe: Any, tensor: Tensor) -> int:
    return 3


def _channels_of_embeddings(pipe: Any, tensor: Tensor) -> int:
    return int(pipe.prior.config.embedding_dim)


def _columns_of_latents(pipe: Any, tensor: Tensor) -> int:
    """The picture that is drawn stands left of the given one."""
    return int(local_of(pipe, "latents").shape[3])


def _two_or_three(pipe: Any, arguments: Arguments) -> tuple[str, ...]:
    """Only an edit has a branch that sees the picture without the text."""
    return ("uncond", "cond") if local_of(pipe, "task") == "generate" else ("uncond", "image", "cond")


def _unless_scale_one(pipe: Any, arguments: Arguments) -> bool:
    return local_of(pipe, "guidance_scale") != 1.0


def _log_rho(level: Level) -> float:
    """EDM's time."""
    return math.log(level.rho) / 4


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
    encode=stable_diffusion,
)
_CONTROLNET = replace(_UNET, notes=_WHOLE_CONTROLNET)
_SDXL = replace(_UNET, conditioned_by=("encoder_hidden_states", "added_cond_kwargs"), encode=stable_diffusion_xl)
_SDXL_CONTROLNET = replace(_SDXL, notes=_WHOLE_CONTROLNET)
_LOCAL = replace(_UNET, guides=local_flag)
_UNCLIP = replace(_LOCAL, conditioned_by=("encoder_hidden_states", "class_labels"), encode=None)
_PIX2PIX = replace(
    _UNET,
    encode=None,
    branches=("cond", "image", "uncond"),
    on="guidance_scale above 1 and image_guidance_scale of at least 1 (their values have no effect)",
    on_settings=(("guidance_scale", 2.0), ("image_guidance_scale", 1.5)),
)

_CONSISTENCY = replace(
    _UNET,
    branches=("cond",),
    on_settings=(),
    notes=DISTILLED,
)
_KANDINSKY = replace(
    _UNET,
    conditioned_by=("encoder_hidden_states", "added_cond_kwargs"),
    encode=None,
    guides=local_flag,
    channels=_channels_of_latents,
    notes=_VARIANCE,
)
_KANDINSKY_22 = replace(_KANDINSKY, conditioned_by=("added_cond_kwargs",), guides=one_flag)
_KANDINSKY_22_HINTED = replace(_KANDINSKY_22, guides=local_flag)
_KANDINSKY_3 = replace(
    _UNET, encode=None, notes="the pipeline writes c + s (c - u): its scale is one less than a rule's"
)
_FLOYD = replace(_LOCAL, encode=None, channels=_channels_of_pixels, notes=_VARIANCE)
_PRIOR = Adapter(
    batched=("hidden_states", "timestep", "proj_embedding", "encoder_hidden_states", "attention_mask"),
    conditioned_by=("proj_embedding", "encoder_hidden_states"),
    sample="hidden_states",
    network="prior",
    guides=local_flag,
    answer="predicted_image_embedding",
)
_SHAPE = replace(_PRIOR, conditioned_by=("proj_embedding",), channels=_channels_of_embeddings, channel_axis=2)
# Videos of one picture a frame; what is told of a prompt stands there once a frame.
_MOTION = replace(
    _UNET,
    folded=("encoder_hidden_states", "down_block_additional_residuals", "mid_block_additional_residual"),
    frames=2,
)
_MOTION_CONTROLNET = replace(_MOTION, notes=_WHOLE_CONTROLNET)

UNETS: dict[str, Adapter] = {
    "StableDiffusionPipeline": _UNET,
    "StableDiffusionImg2ImgPipeline": _UNET,
    "StableDiffusionInpaintPipeline": _UNET,
    "StableDiffusionControlNetPipeline": _CONTROLNET,
    "StableDiffusionControlNetImg2ImgPipeline": _CONTROLNET,
    "StableDiffusionControlNetInpaintPipeline": _CONTROLNET,
    "StableDiffusionAdapterPipeline": _UNET,
    "StableDiffusionDepth2ImgPipeline": _UNET,
    "StableDiffusionImageVariationPipeline": replace(_LOCAL, encode=None),
    "StableDiffusionUpscalePipeline": _LOCAL,
    "StableDiffusionLatentUpscalePipeline": replace(
        _LOCAL,
        conditioned_by=("encoder_hidden_states", "timestep_cond"),
        encode=None,
        channels=_channels_of_latents,
        kind=V_PREDICTION,
        flip=True,
        level_time=_log_rho,
    ),
    "StableUnCLIPPipeline": replace(_UNCLIP, notes="the prior keeps its own guidance"),
    "StableUnCLIPImg2ImgPipeline": _UNCLIP,
    "StableDiffusionInstructPix2PixPipeline": _PIX2PIX,
    "StableDiffusionXLPipeline": _SDXL,
    "StableDiffusionXLImg2ImgPipeline": _SDXL,
    "StableDiffusionXLInpaintPipeline": _SDXL,
    "StableDiffusionXLControlNetPipeline": _SDXL_CONTROLNET,
    "StableDiffusionXLControlNetImg2ImgPipeline": _SDXL_CONTROLNET,
    "StableDiffusionXLControlNetInpaintPipeline": _SDXL_CONTROLNET,
    "StableDiffusionXLControlNetUnionPipeline": _SDXL_CONTROLNET,
    "StableDiffusionXLControlNetUnionImg2ImgPipeline": _SDXL_CONTROLNET,
    "StableDiffusionXLControlNetUnionInpaintPipeline": _SDXL_CONTROLNET,
    "StableDiffusionXLAdapterPipeline": _SDXL,
    "StableDiffusionXLInstructPix2PixPipeline": replace(
        _PIX2PIX, guides=local_flag, conditioned_by=("encoder_hidden_states", "added_cond_kwargs")
    ),
    "KolorsPipeline": replace(_SDXL, encode=None),
    "KolorsImg2ImgPipeline": replace(_SDXL, encode=None),
    "LatentConsistencyModelPipeline": _CONSISTENCY,
    "LatentConsistencyModelImg2ImgPipeline": _CONSISTENCY,
    "KandinskyPipeline": _KANDINSKY,
    "KandinskyImg2ImgPipeline": _KANDINSKY,
    "KandinskyInpaintPipeline": _KANDINSKY,
    "KandinskyPriorPipeline": _PRIOR,
    "KandinskyV22Pipeline": _KANDINSKY_22,
    "KandinskyV22Img2ImgPipeline": _KANDINSKY_22,
    "KandinskyV22InpaintPipeline": _KANDINSKY_22,
    "KandinskyV22ControlnetPipeline": _KANDINSKY_22_HINTED,
    "KandinskyV22ControlnetImg2ImgPipeline": _KANDINSKY_22_HINTED,
    "KandinskyV22PriorPipeline": replace(_PRIOR, guides=one_flag),
    "KandinskyV22PriorEmb2EmbPipeline": _PRIOR,
    "Kandinsky3Pipeline": _KANDINSKY_3,
    "Kandinsky3Img2ImgPipeline": _KANDINSKY_3,
    "IFPipeline": _FLOYD,
    "IFImg2ImgPipeline": _FLOYD,
    "IFInpaintingPipeline": _FLOYD,
    "IFSuperResolutionPipeline": _FLOYD,
    "IFImg2ImgSuperResolutionPipeline": _FLOYD,
    "IFInpaintingSuperResolutionPipeline": _FLOYD,
    "ShapEPipeline": _SHAPE,
    "ShapEImg2ImgPipeline": _SHAPE,
    "DreamLitePipeline": replace(
        _UNET,
        branches=("uncond", "image", "cond"),
        guides=_two_or_three,
        encode=None,
        channels=_columns_of_latents,
        channel_axis=3,
        on="nothing: it always guides",
        on_settings=(),
    ),
    "DreamLiteMobilePipeline": replace(
        _UNET,
        branches=("cond",),
        guides=lambda pipe, arguments: True,
        encode=None,
        channels=_columns_of_latents,
        channel_axis=3,
        on="nothing",
        on_settings=(),
        notes="distilled to few steps, without a negative branch",
    ),
    "AnimateDiffPipeline": _MOTION,
    "AnimateDiffControlNetPipeline": _MOTION_CONTROLNET,
    "AnimateDiffSparseControlNetPipeline": _MOTION_CONTROLNET,
    "AnimateDiffVideoToVideoPipeline": _MOTION,
    "AnimateDiffVideoToVideoControlNetPipeline": _MOTION_CONTROLNET,
    "AnimateDiffSDXLPipeline": replace(_MOTION, conditioned_by=_SDXL.conditioned_by, encode=stable_diffusion_xl),
    "StableVideoDiffusionPipeline": replace(
        _UNET,
        batched=("sample", "timestep", "encoder_hidden_states", "added_time_ids"),
        encode=None,
        channel_axis=2,
        frames=1,
        on="max_guidance_scale above 1 (its value has no effect)",
        on_settings=(("max_guidance_scale", 2.0),),
        notes="the pipeline's scale rises from frame to frame, as frame-cfg's does; other rules have one for all",
    ),
    "AudioLDM2Pipeline": replace(
        _LOCAL,
        batched=(*_UNET.batched, "encoder_hidden_states_1", "encoder_attention_mask_1"),
        conditioned_by=("encoder_hidden_states", "encoder_hidden_states_1"),
        encode=None,
    ),
    "LDMTextToImagePipeline": replace(
        _UNET, guides=_unless_scale_one, encode=None, on="guidance_scale other than 1 (its value has no effect)"
    ),
}

_PAG = 'does PAG itself; attach {} with "cfg + pag" instead'
_COMBINED = "two pipelines in one, each with its own guidance; attach to its decoder_pipe or prior_pipe, then call it"
_EDITS = "its guidance is its own, of one branch an edit with masks found on the way; attach {} with the rule 'sega'"

REFUSED: dict[str, str] = {
    "StableDiffusionPAGPipeline": _PAG.format("StableDiffusionPipeline"),
    "StableDiffusionPAGImg2ImgPipeline": _PAG.format("StableDiffusionImg2ImgPipeline"),
    "StableDiffusionPAGInpaintPipeline": _PAG.format("StableDiffusionInpaintPipeline"),
    "StableDiffusionControlNetPAGPipeline": _PAG.format("StableDiffusionControlNetPipeline"),
    "StableDiffusionControlNetPAGInpaintPipeline": _PAG.format("StableDiffusionControlNetInpaintPipeline"),
    "StableDiffusionXLPAGPipeline": _PAG.format("StableDiffusionXLPipeline"),
    "StableDiffusionXLPAGImg2ImgPipeline": _PAG.format("StableDiffusionXLImg2ImgPipeline"),
    "StableDiffusionXLPAGInpaintPipeline": _PAG.format("StableDiffusionXLInpaintPipeline"),
    "StableDiffusionXLControlNetPAGPipeline": _PAG.format("StableDiffusionXLControlNetPipeline"),
    "StableDiffusionXLControlNetPAGImg2ImgPipeline": _PAG.format("StableDiffusionXLControlNetImg2ImgPipeline"),
    "KolorsPAGPipeline": _PAG.format("KolorsPipeline"),
    "AnimateDiffPAGPipeline": _PAG.format("AnimateDiffPipeline"),
    "KandinskyCombinedPipeline": _COMBINED,
    "KandinskyImg2ImgCombinedPipeline": _COMBINED,
    "KandinskyInpaintCombinedPipeline": _COMBINED,
    "KandinskyV22CombinedPipeline": _COMBINED,
    "KandinskyV22Img2ImgCombinedPipeline": _COMBINED,
    "KandinskyV22InpaintCombinedPipeline": _COMBINED,
    "LEditsPPPipelineStableDiffusion": _EDITS.format("StableDiffusionPipeline"),
    "LEditsPPPipelineStableDiffusionXL": _EDITS.format("StableDiffusionXLPipeline"),
}

# Pipelines that do guidance themselves and have no row yet: why.
UNPROVEN: dict[str, str] = {}
