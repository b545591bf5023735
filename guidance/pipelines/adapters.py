"""One row for each pipeline class. To add one, copy the row of the nearest relative and add it to the test.

Facts to find in the pipeline's `__call__`: the order of the branches, which arguments of the network have a row a
sample, and which setting makes the pipeline prepare its negative branch.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import Any

from torch import Tensor

from .adapter import Adapter, Arguments

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


def _null_class(pipe: Any, arguments: Arguments) -> bool:
    """DiT keeps its flag in a local variable; the guided call ends with the null class."""
    labels = arguments["class_labels"]
    return len(labels) % 2 == 0 and _last(labels) == pipe.transformer.config.num_embeds_ada_norm


@lru_cache(maxsize=2)
def _last(labels: Tensor) -> int:
    """The last entry, read from the device once a run: every step brings the same tensor."""
    return int(labels[-1])


def _not_truncated(pipe: Any, arguments: Arguments) -> bool:
    """Z-Image stops guiding late in the run when `cfg_truncation` says so; its network is told 1 - t."""
    cut = getattr(pipe, "_cfg_truncation", None)
    truncated = cut is not None and float(cut) <= 1 and float(arguments["t"].reshape(-1)[0]) > float(cut)
    return bool(pipe.do_classifier_free_guidance) and not truncated


ADAPTERS: dict[str, Adapter] = {
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
    "DiTPipeline": Adapter(
        branches=("cond", "uncond"),
        batched=("hidden_states", "timestep", "class_labels"),
        conditioned_by=("class_labels",),
        sample="hidden_states",
        network="transformer",
        guides=_null_class,
        notes="learned sigma: the conditional half is kept",
    ),
    "StableDiffusion3Pipeline": Adapter(
        batched=("hidden_states", "timestep", "encoder_hidden_states", "pooled_projections"),
        conditioned_by=("encoder_hidden_states", "pooled_projections"),
        sample="hidden_states",
        network="transformer",
    ),
    "FluxPipeline": Adapter(
        layout="in turn",
        branches=("cond", "uncond"),
        batched=("hidden_states", "timestep", "guidance", "encoder_hidden_states", "pooled_projections"),
        conditioned_by=("encoder_hidden_states", "pooled_projections"),
        sample="hidden_states",
        network="transformer",
        network_time=lambda t: t / 1000,
        on="true_cfg_scale above 1 (its value has no effect) and a negative_prompt, which may be empty",
        on_settings=(("true_cfg_scale", 2.0), ("negative_prompt", "")),
    ),
    "ZImagePipeline": Adapter(
        layout="listed",
        branches=("cond", "uncond"),
        batched=("x", "t", "cap_feats"),
        conditioned_by=("cap_feats",),
        sample="x",
        time="t",
        network_time=lambda t: (1000 - t) / 1000,
        network="transformer",
        guides=_not_truncated,
        on="guidance_scale above 0 (its value has no effect)",
        on_settings=(("guidance_scale", 2.0),),
        flip=True,
    ),
}
