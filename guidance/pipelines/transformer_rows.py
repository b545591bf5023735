"""Rows of pipelines that draw single pictures with a transformer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import replace
from functools import lru_cache
from typing import Any

from torch import Tensor

from ...samplers.prediction import SAMPLE
from ..packing import Packing, packing_of_ids
from .adapter import DISTILLED, Adapter, Arguments, local_flag, local_of
from .prompts import class_number, flux, stable_diffusion_3

_WHOLE_CONTROLNET = "the ControlNet itself still sees every row"
_RENORMALISED = "the pipeline gives its guided prediction the norm of the conditional one; a rule replaces that too"


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


def _scale_above_one(pipe: Any, arguments: Arguments) -> bool:
    """Bria Fibo looks at the scale that its call was given."""
    return bool(local_of(pipe, "guidance_scale") > 1)


def _last_tokens(pipe: Any, tensor: Tensor) -> Tensor:
    """The tokens of x; Ideogram puts room for the text before them, Qwen-Image 2.1 the given pictures."""
    return tensor[:, tensor.shape[1] - local_of(pipe, "latents").shape[1] :]


def _second_axis(*names: str) -> Callable[[Arguments, Sequence[int], int], Arguments]:
    """Picks the rows of tensors that have one entry a layer first."""
    return lambda arguments, rows, count: {name: arguments[name][:, list(rows)] for name in names}


def _copied(arguments: Arguments) -> Arguments:
    """Flux and its kin exchange the IP-Adapter's pictures in one dictionary between the calls of a step."""
    return {name: dict(value) if isinstance(value, dict) else value for name, value in arguments.items()}


def _uncached(arguments: Arguments) -> Arguments:
    """Qwen-Image 2.1 fills a cache of keys and values at the first step: it lacks the branches that a rule skipped."""
    return {**arguments, "kv_cache": None, "kv_cache_mode": None}


def _own_cache(arguments: Arguments) -> Arguments:
    """GLM-Image switches one cache between reading it and not, for one branch and the other."""
    cache = copy(arguments["kv_caches"])
    cache.caches = [copy(layer) for layer in cache.caches]
    return {**arguments, "kv_caches": cache}


def _cache_rows(arguments: Arguments, rows: Sequence[int], count: int) -> Arguments:
    """One entry a prompt, or one for all of them."""
    cache = _own_cache(arguments)["kv_caches"]
    for layer in cache.caches:
        if len(layer.k_caches) > 1:
            each = count // len(layer.k_caches)  # pictures a prompt
            layer.k_caches = [layer.k_caches[row // each] for row in rows]
            layer.v_caches = [layer.v_caches[row // each] for row in rows]
    return {"kv_caches": cache}


def _omnigen_branches(pipe: Any, arguments: Arguments) -> tuple[str, ...]:
    """It always guides, by text and, if it is given pictures, by them."""
    return ("cond", "uncond", "image")[: local_of(pipe, "num_cfg") + 1]


def _omnigen_pictures(arguments: Arguments, rows: Sequence[int], count: int) -> Arguments:
    """Pictures lie in one list, their places in a dictionary by row; and every row has the positions of the first."""
    places, latents = arguments["input_image_sizes"], iter(arguments["input_img_latents"])
    pictures = {row: [next(latents) for _ in found] for row, found in places.items()}
    kept = {new: old for new, old in enumerate(rows) if old in places}
    return {
        "input_image_sizes": {new: places[old] for new, old in kept.items()},
        "input_img_latents": [picture for old in kept.values() for picture in pictures[old]],
        "position_ids": arguments["position_ids"][:1].expand(len(rows), -1),
    }


def _shapes(arguments: Arguments, rows: Sequence[int], count: int) -> Arguments:
    """JoyImage has a list of shapes a row."""
    return {"shape_list": [arguments["shape_list"][row] for row in rows]}


def _fills_cache(arguments: Arguments) -> bool:
    """GLM-Image shows the network the pictures to edit before the first step, to keep their keys and values."""
    caches = arguments.get("kv_caches")
    return caches is not None and caches[0].mode == "write"


def _bounded_flow(pipe: Any, flow: Tensor) -> Tensor:
    """PRX Pixel makes (x - denoised) / max(t, 0.05) of the denoised picture, not the flow (x - denoised) / t."""
    time = float(local_of(pipe, "t")) / pipe.scheduler.config.num_train_timesteps
    return flow if time >= 0.05 else flow * (time / 0.05)


def _tokens(pipe: Any, tensor: Tensor) -> int:
    """How many tokens are of x; those of given pictures come after them."""
    return int(local_of(pipe, "latents").shape[1])


def _features(pipe: Any, tensor: Tensor) -> int:
    """How many numbers of each token are of x."""
    return int(local_of(pipe, "latents").shape[2])


def _packing(pipe: Any, arguments: Arguments, tokens: int) -> Packing | None:
    """Flux and its kin tell the network the row and column of each token."""
    ids = arguments.get("img_ids")
    return None if ids is None else packing_of_ids(ids, tokens)


_ROW = Adapter(sample="hidden_states", network="transformer")

_SD3 = replace(
    _ROW,
    batched=(
        "hidden_states",
        "timestep",
        "encoder_hidden_states",
        "pooled_projections",
        "block_controlnet_hidden_states",
        "joint_attention_kwargs",
    ),
    conditioned_by=("encoder_hidden_states", "pooled_projections"),
    encode=stable_diffusion_3,
)

_STACKED = replace(
    _ROW,
    batched=(
        "hidden_states",
        "timestep",
        "guidance",
        "encoder_hidden_states",
        "encoder_attention_mask",
        "attention_mask",
        "added_cond_kwargs",
        "attention_kwargs",
        "controlnet_block_samples",
    ),
)
_PIXART = replace(_STACKED, guides=local_flag, notes="learned sigma: only the prediction is guided")
_HUNYUAN_DIT = replace(
    _STACKED,
    batched=(
        *_STACKED.batched,
        "text_embedding_mask",
        "encoder_hidden_states_t5",
        "text_embedding_mask_t5",
        "image_meta_size",
        "style",
    ),
    conditioned_by=("encoder_hidden_states", "encoder_hidden_states_t5"),
)
_BRIA = replace(
    _ROW,
    batched=(
        "hidden_states",
        "timestep",
        "encoder_hidden_states",
        "text_encoder_layers",
        "attention_kwargs",
        "joint_attention_kwargs",
    ),
    conditioned_by=("encoder_hidden_states", "text_encoder_layers"),
)

# One call a branch, and time from 0 to 1: most pipelines that came after Flux.
_IN_TURN = replace(
    _ROW,
    layout="in turn",
    branches=("cond", "uncond"),
    batched=(
        "hidden_states",
        "timestep",
        "guidance",
        "encoder_hidden_states",
        "pooled_projections",
        "attention_mask",
        "encoder_attention_mask",
        "encoder_hidden_states_mask",
        "joint_attention_kwargs",
        "attention_kwargs",
        "controlnet_block_samples",
        "controlnet_single_block_samples",
    ),
    network_time=lambda t: t / 1000,
    packing=_packing,
    kept=_copied,
)
_FLUX = replace(
    _IN_TURN,
    conditioned_by=("encoder_hidden_states", "pooled_projections"),
    encode=flux,
    on="true_cfg_scale above 1 (its value has no effect) and a negative_prompt, which may be empty",
    on_settings=(("true_cfg_scale", 2.0), ("negative_prompt", "")),
)
_FLUX_DISTILLED = replace(_FLUX, branches=("cond",), on="nothing", on_settings=(), notes=DISTILLED)
_FLUX_BESIDE = replace(_FLUX_DISTILLED, channels=_features, channel_axis=2)  # given pictures lie beside x in its tokens
_QWEN = replace(
    _FLUX,
    batched=(*_IN_TURN.batched, "additional_t_cond"),
    conditioned_by=("encoder_hidden_states",),
    encode=None,
    notes=_RENORMALISED,
)
_QWEN_EDIT = replace(_QWEN, channels=_tokens)
# Position tables with a row a sample.
_FLUX_2 = replace(_IN_TURN, batched=(*_IN_TURN.batched, "txt_ids", "img_ids"), channels=_tokens)

_PRX = replace(
    _STACKED, network_time=lambda t: t / 1000, notes="while it guides, the pipeline takes one picture at a time"
)
_COGVIEW_4 = replace(
    _IN_TURN, batched=(*_IN_TURN.batched, "original_size", "target_size", "crop_coords"), network_time=float
)
_KANDINSKY_5 = replace(
    _IN_TURN,
    conditioned_by=("encoder_hidden_states", "pooled_projections"),
    network_time=float,
    channels=lambda pipe, tensor: int(pipe.transformer.config.out_visual_dim),
    channel_axis=4,
)
_HUNYUAN_IMAGE = replace(
    _IN_TURN,
    batched=(*_IN_TURN.batched, "timestep_r", "encoder_hidden_states_2", "encoder_attention_mask_2"),
    conditioned_by=("encoder_hidden_states", "encoder_hidden_states_2"),
    network_time=float,
    on="nothing, but give the pipeline a guider with two conditions, such as ClassifierFreeGuidance()",
    on_settings=(),
    notes="the diffusers guider is overruled",
)
_Z_IMAGE = Adapter(
    layout="listed",
    branches=("cond", "uncond"),
    batched=("x", "t", "cap_feats", "siglip_feats", "image_noise_mask", "controlnet_block_samples"),
    conditioned_by=("cap_feats",),
    sample="x",
    time="t",
    network_time=lambda t: (1000 - t) / 1000,
    network="transformer",
    guides=_not_truncated,
    on="guidance_scale above 0 (its value has no effect)",
    on_settings=(("guidance_scale", 2.0),),
    flip=True,
)

TRANSFORMERS: dict[str, Adapter] = {
    "DiTPipeline": replace(
        _ROW,
        branches=("cond", "uncond"),
        batched=("hidden_states", "timestep", "class_labels"),
        conditioned_by=("class_labels",),
        guides=_null_class,
        encode=class_number,
        notes="learned sigma: the conditional half is kept",
    ),
    "StableDiffusion3Pipeline": _SD3,
    "StableDiffusion3Img2ImgPipeline": _SD3,
    "StableDiffusion3InpaintPipeline": _SD3,
    "StableDiffusion3ControlNetPipeline": replace(_SD3, notes=_WHOLE_CONTROLNET),
    "StableDiffusion3ControlNetInpaintingPipeline": replace(_SD3, notes=_WHOLE_CONTROLNET),
    "FluxPipeline": _FLUX,
    "FluxImg2ImgPipeline": _FLUX,
    "FluxInpaintPipeline": _FLUX,
    "FluxControlNetPipeline": _FLUX,
    "FluxKontextPipeline": replace(_FLUX, channels=_tokens),
    "FluxKontextInpaintPipeline": replace(_FLUX, channels=_tokens),
    "FluxControlPipeline": _FLUX_BESIDE,
    "FluxControlImg2ImgPipeline": _FLUX_BESIDE,
    "FluxControlInpaintPipeline": _FLUX_BESIDE,
    "FluxControlNetImg2ImgPipeline": _FLUX_DISTILLED,
    "FluxControlNetInpaintPipeline": _FLUX_DISTILLED,
    "FluxFillPipeline": _FLUX_BESIDE,
    "VisualClozeGenerationPipeline": replace(_FLUX_BESIDE, encode=None),
    "Flux2Pipeline": replace(_FLUX_2, branches=("cond",), on="nothing", on_settings=(), notes=DISTILLED),
    "Flux2KleinPipeline": _FLUX_2,
    "Flux2KleinInpaintPipeline": _FLUX_2,
    "ChromaPipeline": _IN_TURN,
    "ChromaImg2ImgPipeline": _IN_TURN,
    "ChromaInpaintPipeline": _IN_TURN,
    "QwenImagePipeline": _QWEN,
    "QwenImageImg2ImgPipeline": _QWEN,
    "QwenImageInpaintPipeline": _QWEN,
    "QwenImageControlNetPipeline": _QWEN,
    "QwenImageControlNetInpaintPipeline": _QWEN,
    "QwenImageEditPipeline": _QWEN_EDIT,
    "QwenImageEditInpaintPipeline": _QWEN_EDIT,
    "QwenImageEditPlusPipeline": _QWEN_EDIT,
    "QwenImageLayeredPipeline": _QWEN_EDIT,
    "BriaPipeline": _BRIA,
    "BriaFiboPipeline": replace(_BRIA, guides=_scale_above_one),
    "BriaFiboEditPipeline": replace(_BRIA, guides=_scale_above_one, channels=_tokens),
    "BriaFibo2Pipeline": replace(_IN_TURN, batched=(*_IN_TURN.batched, "context_latents")),
    "OvisImagePipeline": _IN_TURN,
    "LongCatImagePipeline": replace(_IN_TURN, notes=f"with enable_cfg_renorm {_RENORMALISED}"),
    "LongCatImageEditPipeline": replace(_IN_TURN, channels=_tokens),
    "Krea2Pipeline": replace(
        _IN_TURN, on="guidance_scale above 0 (its value has no effect)", on_settings=(("guidance_scale", 2.0),)
    ),
    "NucleusMoEImagePipeline": replace(_IN_TURN, flip=True, notes=_RENORMALISED),
    "Ideogram4Pipeline": replace(
        _IN_TURN,
        batched=(*_IN_TURN.batched, "position_ids", "segment_ids", "indicator"),
        experts=("unconditional_transformer",),
        network_time=lambda t: 1 - t / 1000,
        part=_last_tokens,
        flip=True,
        on="nothing: it always guides",
        on_settings=(),
        notes="the unconditional branch is a network of its own",
    ),
    "PixArtAlphaPipeline": _PIXART,
    "PixArtSigmaPipeline": _PIXART,
    "HunyuanDiTPipeline": _HUNYUAN_DIT,
    "HunyuanDiTControlNetPipeline": replace(_HUNYUAN_DIT, notes=_WHOLE_CONTROLNET),
    "SanaPipeline": _STACKED,
    "SanaControlNetPipeline": replace(_STACKED, notes=_WHOLE_CONTROLNET),
    "AuraFlowPipeline": replace(_STACKED, guides=local_flag, network_time=lambda t: t / 1000),
    "LuminaPipeline": replace(
        _STACKED,
        branches=("cond", "uncond"),
        batched=(*_STACKED.batched, "encoder_mask"),
        guides=local_flag,
        network_time=lambda t: 1 - t / 1000,
        flip=True,
        notes="the pipeline guides the first three channels only, a rule guides all",
    ),
    "Lumina2Pipeline": replace(
        _IN_TURN, network_time=lambda t: 1 - t / 1000, flip=True, notes=f"with cfg_normalization {_RENORMALISED}"
    ),
    "CogView3PlusPipeline": replace(
        _STACKED, batched=(*_STACKED.batched, "original_size", "target_size", "crop_coords")
    ),
    "CogView4Pipeline": _COGVIEW_4,
    "CogView4ControlPipeline": _COGVIEW_4,
    "HiDreamImagePipeline": replace(
        _STACKED,
        batched=("hidden_states", "timesteps", "encoder_hidden_states_t5", "pooled_embeds"),
        picked=_second_axis("encoder_hidden_states_llama3"),
        conditioned_by=("encoder_hidden_states_t5", "pooled_embeds"),  # an edit expects a row a sample first
        time="timesteps",
        flip=True,
    ),
    "Kandinsky5T2IPipeline": _KANDINSKY_5,
    "Kandinsky5I2IPipeline": _KANDINSKY_5,
    "PRXPipeline": _PRX,
    "PRXPixelPipeline": replace(_PRX, kind=SAMPLE, handed=_bounded_flow),
    "ErnieImagePipeline": replace(
        _STACKED,
        batched=("hidden_states", "timestep", "text_bth", "text_lens"),
        conditioned_by=("text_bth",),
    ),
    "GlmImagePipeline": replace(
        _IN_TURN,
        batched=(*_IN_TURN.batched, "prior_token_id", "prior_token_drop", "target_size", "crop_coords"),
        network_time=lambda t: t - 1,
        aside=_fills_cache,
        kept=_own_cache,
        picked=_cache_rows,
    ),
    "HunyuanImagePipeline": _HUNYUAN_IMAGE,
    "HunyuanImageRefinerPipeline": _HUNYUAN_IMAGE,
    "OmniGenPipeline": replace(
        _STACKED,
        branches=("cond", "uncond", "image"),
        batched=("hidden_states", "timestep", "input_ids", "attention_mask"),
        conditioned_by=("input_ids",),
        picked=_omnigen_pictures,
        guides=_omnigen_branches,
        on="nothing: it always guides by text; pass input_images for the image branch",
        on_settings=(),
    ),
    "JoyImageEditPipeline": replace(_IN_TURN, network_time=float, channel_axis=2, notes=_RENORMALISED),
    "JoyImageEditPlusPipeline": replace(
        _STACKED,
        batched=(*_STACKED.batched, "encoder_hidden_states_mask"),
        picked=_shapes,
        channel_axis=2,
        notes=_RENORMALISED,
    ),
    "QwenImage21Pipeline": replace(
        _QWEN,
        batched=(*_IN_TURN.batched, "img_mask"),
        part=_last_tokens,
        kept=_uncached,
        notes="its cache of keys and values is not used",
    ),
    "ZImagePipeline": _Z_IMAGE,
    "ZImageImg2ImgPipeline": _Z_IMAGE,
    "ZImageInpaintPipeline": _Z_IMAGE,
    "ZImageControlNetPipeline": replace(_Z_IMAGE, notes=_WHOLE_CONTROLNET),
    "ZImageControlNetInpaintPipeline": replace(_Z_IMAGE, notes=_WHOLE_CONTROLNET),
    "ZImageOmniPipeline": _Z_IMAGE,
}

_PAG = 'does PAG itself; attach {} with "cfg + pag" instead'

REFUSED: dict[str, str] = {
    "VisualClozePipeline": "runs two pipelines; attach the rule to one of them, pipe.generation_pipe or "
    "pipe.upsampling_pipe",
    "HunyuanDiTPAGPipeline": _PAG.format("HunyuanDiTPipeline"),
    "PixArtSigmaPAGPipeline": _PAG.format("PixArtSigmaPipeline"),
    "SanaPAGPipeline": _PAG.format("SanaPipeline"),
    "StableDiffusion3PAGPipeline": _PAG.format("StableDiffusion3Pipeline"),
    "StableDiffusion3PAGImg2ImgPipeline": _PAG.format("StableDiffusion3Img2ImgPipeline"),
}

# Pipelines that do guidance themselves and have no row yet: why.
UNPROVEN: dict[str, str] = {}
