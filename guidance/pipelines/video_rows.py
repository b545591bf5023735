"""Rows of pipelines that draw videos or sounds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from ...errors import UsageError
from .adapter import Adapter, Arguments, local_flag, local_of

_WAN = Adapter(
    layout="in turn",
    branches=("cond", "uncond"),
    batched=(
        "hidden_states",
        "timestep",
        "encoder_hidden_states",
        "encoder_hidden_states_image",
        "control_hidden_states",
        "pose_hidden_states",
        "face_pixel_values",
    ),
    sample="hidden_states",
    network="transformer",
    frames=2,
)
_WAN22 = replace(
    _WAN,
    experts=("transformer_2",),
    notes="Wan 2.2's guidance_scale_2 is overruled too; give a rule two scales with `schedule`",
)

_STACKED = Adapter(
    batched=("hidden_states", "timestep", "encoder_hidden_states", "encoder_attention_mask", "attention_mask"),
    sample="hidden_states",
    network="transformer",
)
_COG = replace(
    _STACKED,
    guides=local_flag,
    channel_axis=2,
    frames=1,
    notes="its dynamic guidance scale is overruled",
)
_TEXT = ("encoder_hidden_states", "encoder_attention_mask")
_GUIDER = replace(
    _WAN,
    batched=("hidden_states", "timestep", "timestep_r", "image_embeds", *_TEXT, *(f"{name}_2" for name in _TEXT)),
    on="a guider of two branches: pipe.guider = ClassifierFreeGuidance(2.0) (its value has no effect)",
    on_settings=(),
    notes="its own guider is overruled; guiders of more than two branches are refused",
)
_HUNYUAN15 = replace(_GUIDER, conditioned_by=("encoder_hidden_states", "encoder_hidden_states_2"))
_EASY = replace(_STACKED, batched=(*_STACKED.batched, "control_latents", "inpaint_latents"))
_KANDINSKY = replace(
    _WAN,
    batched=("hidden_states", "timestep", "encoder_hidden_states", "pooled_projections"),
    conditioned_by=("encoder_hidden_states", "pooled_projections"),
    channels=lambda pipe, x: pipe.transformer.config.out_visual_dim,
    channel_axis=4,
    frames=1,
)
_HUNYUAN = replace(
    _WAN,
    batched=(
        *("hidden_states", "timestep", "guidance", "encoder_hidden_states", "encoder_attention_mask"),
        *("pooled_projections", "image_embeds", "latents_clean", "latents_history_2x", "latents_history_4x"),
    ),
    conditioned_by=("encoder_hidden_states", "pooled_projections"),
    on="true_cfg_scale above 1 (its value has no effect) and a negative_prompt, which may be empty",
    on_settings=(("true_cfg_scale", 2.0), ("negative_prompt", "")),
)


def _guided_now(pipe: Any, arguments: Arguments) -> bool:
    """ACE-Step guides within an interval of its own; a weak cover costs one more call a step."""
    if local_of(pipe, "non_cover_encoder_hidden_states") is not None:
        raise UsageError("AceStepPipeline mixes a second prediction into covers; pass audio_cover_strength=1.0")
    return bool(local_of(pipe, "apply_cfg"))


_SECTIONS = "every section of the film is a run of its own; the record is the last one's"


def _with_given_velocity(pipe: Any, native: Tensor) -> Tensor:
    """Cosmos 2.5 knows the velocity of its given frames, and masks the network's."""
    return local_of(pipe, "gt_velocity") + native * (1 - local_of(pipe, "cond_mask"))


def _later_frames(pipe: Any, x: Tensor) -> Tensor:
    """The first frame is given."""
    return x[:, :, 1:]


def _later_frames_if_replaced(pipe: Any, x: Tensor) -> Tensor:
    """HunyuanVideo's two kinds of picture conditioning: tokens replaced, or channels added."""
    return x[:, :, 1:] if pipe.transformer.config.image_condition_type == "token_replace" else x


def _later_tokens(pipe: Any, x: Tensor) -> Tensor:
    """LTX's tokens as (B, C, F, H, W) without the first frame; its patches are single pixels."""
    size = [local_of(pipe, f"latent_{name}") for name in ("num_frames", "height", "width")]
    return x.unflatten(1, size).permute(0, 4, 1, 2, 3)[:, :, 1:]


def _negated(pipe: Any, native: Tensor) -> Tensor:
    """With a time a token, the flow scheduler counts the other way."""
    return -native


_COSMOS_25 = replace(
    _WAN,
    batched=(
        *("hidden_states", "timestep", "encoder_hidden_states", "condition_mask", "padding_mask"),
        "block_controlnet_hidden_states",
    ),
    network_time=lambda t: t / 1000,
    level_time=lambda level: level.sigma,  # the scheduler's times are rounded
    handed=_with_given_velocity,
    notes="guidance_scale 6 is theirs for c + 6 (c - u): our scale is 7",
)


VIDEOS: dict[str, Adapter] = {
    "WanPipeline": _WAN22,
    "WanImageToVideoPipeline": _WAN22,
    "WanVACEPipeline": _WAN22,
    "LucyEditPipeline": _WAN22,
    "WanVideoToVideoPipeline": _WAN,
    "SkyReelsV2Pipeline": _WAN,
    "SkyReelsV2ImageToVideoPipeline": _WAN,
    "ChronoEditPipeline": _WAN,
    "CogVideoXPipeline": _COG,
    "CogVideoXImageToVideoPipeline": _COG,
    "CogVideoXVideoToVideoPipeline": _COG,
    "CogVideoXFunControlPipeline": _COG,
    "HunyuanVideoPipeline": _HUNYUAN,
    "HunyuanVideoImageToVideoPipeline": replace(_HUNYUAN, part=_later_frames_if_replaced),
    "HunyuanSkyreelsImageToVideoPipeline": _HUNYUAN,
    "LTXPipeline": _STACKED,
    "LTXImageToVideoPipeline": replace(_STACKED, part=_later_tokens),
    "LTXConditionPipeline": replace(
        _STACKED,
        batched=(*_STACKED.batched, "video_coords"),
        handed=_negated,
        notes="frames that are given to a part are guided at the level of the others",
    ),
    "MochiPipeline": _STACKED,
    "AllegroPipeline": replace(_STACKED, guides=local_flag),
    "LattePipeline": replace(_STACKED, guides=local_flag),
    "EasyAnimatePipeline": _EASY,
    "EasyAnimateInpaintPipeline": _EASY,
    "SanaVideoPipeline": _STACKED,
    "SanaImageToVideoPipeline": replace(_STACKED, part=_later_frames),
    "Kandinsky5T2VPipeline": _KANDINSKY,
    "Kandinsky5I2VPipeline": replace(_KANDINSKY, part=lambda pipe, x: x[:, 1:]),
    "AceStepPipeline": replace(
        _STACKED,
        branches=("cond", "uncond"),
        batched=("hidden_states", "timestep", "timestep_r", "encoder_hidden_states", "context_latents"),
        guides=_guided_now,
        on="guidance_scale above 1 (its value has no effect) and cfg_interval_start=0",
        notes="its own guidance is a kind of APG, and is overruled; its cfg_interval still holds",
    ),
    "HunyuanVideo15Pipeline": _HUNYUAN15,
    "HunyuanVideo15ImageToVideoPipeline": _HUNYUAN15,
    "MotifVideoPipeline": _GUIDER,
    "MotifVideoImage2VideoPipeline": _GUIDER,
    "HunyuanVideoFramepackPipeline": replace(_HUNYUAN, notes=_SECTIONS),
    "WanAnimatePipeline": replace(_WAN, notes=_SECTIONS),
    "HeliosPipeline": replace(
        _WAN,
        batched=(*_WAN.batched, *(f"latents_history_{length}" for length in ("short", "mid", "long"))),
        notes=_SECTIONS,
    ),
    "LTXI2VLongMultiPromptPipeline": replace(_STACKED, batched=(*_STACKED.batched, "video_coords"), notes=_SECTIONS),
    "Cosmos2_5_PredictBasePipeline": _COSMOS_25,
    "Cosmos2_5_TransferPipeline": replace(
        _COSMOS_25, notes=_COSMOS_25.notes + "; the ControlNet still sees every branch"
    ),
    "StableAudio3Pipeline": replace(
        _STACKED, batched=(*_STACKED.batched, "global_hidden_states"), conditioned_by=("encoder_hidden_states",)
    ),
    "LongCatAudioDiTPipeline": replace(
        _WAN,
        batched=("hidden_states", "timestep", *_TEXT, "attention_mask", "latent_cond"),
        conditioned_by=_TEXT,
        network_time=lambda t: t / 1000,
        frames=None,  # sounds
    ),
    "StableAudioPipeline": replace(
        _STACKED,
        batched=("hidden_states", "encoder_hidden_states", "global_hidden_states"),
        conditioned_by=("encoder_hidden_states", "global_hidden_states"),
        guides=local_flag,
    ),
}

_FORCING = "it steps every frame with a copy of the scheduler, where no rule can deliver; use {}"
_MEAN = (
    "its network predicts the mean velocity between two levels, from which no denoised picture follows; "
    "use its own guidance_scale, or WanPipeline"
)

REFUSED: dict[str, str] = {
    "SkyReelsV2DiffusionForcingPipeline": _FORCING.format("SkyReelsV2Pipeline"),
    "SkyReelsV2DiffusionForcingImageToVideoPipeline": _FORCING.format("SkyReelsV2ImageToVideoPipeline"),
    "SkyReelsV2DiffusionForcingVideoToVideoPipeline": _FORCING.format("WanVideoToVideoPipeline"),
    "AnyFlowPipeline": _MEAN,
    "AnyFlowFARPipeline": _MEAN,
    "HeliosPyramidPipeline": "its scheduler counts levels from 1 to 0 within each size, so that no rule knows where it "
    "is; use HeliosPipeline",
}

_TWO = (
    "the network predicts picture and sound, and each is stepped by a scheduler of its own, of which attach reaches one"
)
_TWICE = "its scheduler steps twice a step, first to convert what the network predicts"
_SCALED = "its network and its scheduler live in two scalings of x, which no field of a row says yet"

# No row yet: why.
UNPROVEN: dict[str, str] = {
    "ConsisIDPipeline": "the class needs OpenCV; CogVideoXImageToVideoPipeline is the same loop",
    "EasyAnimateControlPipeline": "its own call raises in diffusers 0.42.1 (encode_prompt lacks an argument)",
    "LTX2Pipeline": _TWO,
    "LTX2ConditionPipeline": _TWO,
    "LTX2ImageToVideoPipeline": _TWO,
    "LTX2InContextPipeline": _TWO,
    "LTX2HDRPipeline": _TWO,
    "Kandinsky6TI2VAPipeline": _TWO,
    "Cosmos3OmniPipeline": _TWO,
    "CosmosTextToWorldPipeline": _TWICE,
    "CosmosVideoToWorldPipeline": _TWICE,
    "Cosmos2TextToImagePipeline": _SCALED,
    "Cosmos2VideoToWorldPipeline": _SCALED,
    "SanaWMPipeline": "its camera inputs have no tiny stand-in yet; the loop is LTXConditionPipeline's",
}
