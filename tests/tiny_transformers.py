"""Tiny pipelines whose transformer is given latents as pictures (B, C, H, W), and every case of `tiny_tokens`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import reduce
from types import SimpleNamespace
from typing import Any

import diffusers as D
import numpy as np
import tiny_tokens
import torch
from diffusers.guiders import ClassifierFreeGuidance
from diffusers.pipelines.omnigen import pipeline_omnigen, processor_omnigen
from tiny_parts import (
    LATENT,
    MASK,
    PICTURE,
    TWO_PROMPTS,
    Case,
    clip_text,
    clip_tokenizer,
    ddim,
    quiet,
    redraw_zeros,
    t5_text,
    t5_tokenizer,
    vae,
)
from tiny_tokens import FLOW, Renormalised, embeddings, flux, told, two_of_each

from pilotage.guidance import CFG, ImageCFG

__all__ = ["CASES", "dit", "flux", "stable_diffusion_3", "z_image"]

_OFF = dict(guidance_scale=1.0)
SIGNS = ("", "negative_")


def flow_case(pipe: Any, guided: dict[str, Any], **settings: Any) -> Case:
    return Case(quiet(pipe), {"guidance_scale": 5.0, **guided}, _OFF, scheduler_kinds=("flow",), **settings)


def masked(length: int, *shape: int) -> dict[str, Any]:
    """Embeddings (2, length, *shape) of two prompts and of their negatives, with attention masks."""
    given = two_of_each(length, *shape)
    return given | {f"{sign}prompt_attention_mask": torch.ones(2, length, dtype=torch.long) for sign in SIGNS}


def deep_vae() -> Any:
    """Of pipelines that count on eight pixels a latent."""
    torch.manual_seed(0)
    return D.AutoencoderKL(
        block_out_channels=[4] * 4, norm_num_groups=2, latent_channels=4, down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
    ).eval()  # fmt: skip


# -- DiT, PixArt, Hunyuan-DiT -----------------------------------------------------------------------------------------

_DIT_NETWORK: dict[str, Any] = dict(
    sample_size=8, num_layers=2, patch_size=2, attention_head_dim=8, num_attention_heads=2, in_channels=4,
    out_channels=8, attention_bias=True, activation_fn="gelu-approximate", num_embeds_ada_norm=1000,
    norm_elementwise_affine=False,
)  # fmt: skip


def dit() -> Case:
    torch.manual_seed(0)
    network = D.DiTTransformer2DModel(**_DIT_NETWORK, norm_type="ada_norm_zero").eval()
    pipe = D.DiTPipeline(transformer=redraw_zeros(network), vae=vae(), scheduler=ddim())
    # DiT knows no output_type="latent"; its pixels go through the decoder alone.
    return Case(quiet(pipe), dict(class_labels=[3, 7], guidance_scale=5.0, output_type="np"), _OFF)


def pixart(cls: Any = D.PixArtSigmaPipeline) -> Case:
    torch.manual_seed(0)
    network = D.PixArtTransformer2DModel(
        **{**_DIT_NETWORK, "attention_head_dim": 8, "num_attention_heads": 3}, caption_channels=32, norm_eps=1e-6,
        cross_attention_dim=24, norm_type="ada_norm_single", use_additional_conditions=False,
    ).eval()  # fmt: skip
    pipe = cls(
        transformer=redraw_zeros(network), vae=vae(), scheduler=ddim(), text_encoder=t5_text(), tokenizer=t5_tokenizer()
    )
    call = dict(prompt=TWO_PROMPTS, guidance_scale=5.0, max_sequence_length=16, **LATENT)
    return Case(quiet(pipe), {**call, "use_resolution_binning": False, "clean_caption": False}, _OFF)


def pixart_alpha() -> Case:
    return pixart(D.PixArtAlphaPipeline)


_HUNYUAN_NETWORK: dict[str, Any] = dict(
    sample_size=8, patch_size=2, in_channels=4, num_attention_heads=2, attention_head_dim=8, hidden_size=16,
    cross_attention_dim=16, cross_attention_dim_t5=16, pooled_projection_dim=8, text_len=5, text_len_t5=5,
)  # fmt: skip


def hunyuan_dit(cls: Any = D.HunyuanDiTPipeline, parts: Any = (), **call: Any) -> Case:
    torch.manual_seed(0)
    network = D.HunyuanDiT2DModel(**_HUNYUAN_NETWORK, num_layers=2, activation_fn="gelu-approximate").eval()
    pipe = cls(
        transformer=redraw_zeros(network), vae=vae(), scheduler=ddim(), text_encoder=None, tokenizer=None,
        text_encoder_2=None, tokenizer_2=None, safety_checker=None, feature_extractor=None,
        requires_safety_checker=False, **dict(parts),
    )  # fmt: skip
    first = masked(5, 16)
    second = {f"{name}_2": value.flip(0) for name, value in first.items()}
    guided = dict(**first, **second, guidance_scale=5.0, use_resolution_binning=False, **LATENT)
    return Case(quiet(pipe), {**guided, **call}, _OFF)


def hunyuan_dit_controlnet() -> Case:
    torch.manual_seed(0)
    control = D.HunyuanDiT2DControlNetModel(**_HUNYUAN_NETWORK, transformer_num_layers=2).eval()
    pictures = dict(control_image=[PICTURE] * 2)
    return hunyuan_dit(D.HunyuanDiTControlNetPipeline, dict(controlnet=redraw_zeros(control)), **pictures)


# -- Stable Diffusion 3 -----------------------------------------------------------------------------------------------


def _sd3_settings(channels: int) -> dict[str, Any]:
    return dict(
        sample_size=8, patch_size=1, in_channels=channels, num_layers=2, attention_head_dim=8, num_attention_heads=4,
        caption_projection_dim=32, joint_attention_dim=32, pooled_projection_dim=64, out_channels=channels,
        pos_embed_max_size=96,
    )  # fmt: skip


def stable_diffusion_3(cls: Any = D.StableDiffusion3Pipeline, channels: int = 4, parts: Any = (), **call: Any) -> Case:
    torch.manual_seed(0)
    network = D.SD3Transformer2DModel(**_sd3_settings(channels)).eval()
    pipe = cls(
        transformer=redraw_zeros(network), vae=vae(channels, shift_factor=0.06), scheduler=FLOW(shift=3.0),
        text_encoder=clip_text(projection=True), tokenizer=clip_tokenizer(),
        text_encoder_2=clip_text(1, projection=True), tokenizer_2=clip_tokenizer(),
        text_encoder_3=t5_text(), tokenizer_3=t5_tokenizer(), **dict(parts),
    )  # fmt: skip
    return flow_case(pipe, dict(prompt=TWO_PROMPTS, max_sequence_length=16, **LATENT, **call))


def sd3_image_to_image() -> Case:
    return stable_diffusion_3(D.StableDiffusion3Img2ImgPipeline, image=[PICTURE] * 2, strength=0.75)


def sd3_inpaint() -> Case:
    pictures = dict(image=[PICTURE] * 2, mask_image=[MASK] * 2, strength=0.75)
    return stable_diffusion_3(D.StableDiffusion3InpaintPipeline, 16, **pictures)


def sd3_controlnet() -> Case:
    torch.manual_seed(0)
    parts = dict(controlnet=redraw_zeros(D.SD3ControlNetModel(**_sd3_settings(4)).eval()))
    case = stable_diffusion_3(D.StableDiffusion3ControlNetPipeline, 4, parts, control_image=[PICTURE] * 2)
    return replace(case, off={})  # the control picture is encoded with other noise when guidance is off


def sd3_controlnet_inpaint() -> Case:
    torch.manual_seed(0)
    control = D.SD3ControlNetModel(**_sd3_settings(4), extra_conditioning_channels=1).eval()
    pictures = dict(control_image=PICTURE, control_mask=MASK)
    cls = D.StableDiffusion3ControlNetInpaintingPipeline
    return stable_diffusion_3(cls, 4, dict(controlnet=redraw_zeros(control)), **pictures)


# -- Sana, AuraFlow, Lumina -------------------------------------------------------------------------------------------


def sana(cls: Any = D.SanaPipeline, parts: Any = (), **call: Any) -> Case:
    torch.manual_seed(0)
    network = D.SanaTransformer2DModel(**_SANA_NETWORK).eval()
    pipe = cls(
        transformer=redraw_zeros(network), scheduler=FLOW(shift=3.0), text_encoder=None, tokenizer=None,
        **{"vae": None, **dict(parts)},
    )  # fmt: skip
    size = dict(height=128, width=128, output_type="latent", use_resolution_binning=False)
    return flow_case(pipe, {**masked(5, 8), **size, "negative_prompt": None, **call})


_SANA_NETWORK: dict[str, Any] = dict(
    patch_size=1, in_channels=4, out_channels=4, num_layers=2, num_attention_heads=2, attention_head_dim=4,
    num_cross_attention_heads=2, cross_attention_head_dim=4, cross_attention_dim=8, caption_channels=8, sample_size=32,
)  # fmt: skip


def sana_controlnet() -> Case:
    torch.manual_seed(0)
    control = redraw_zeros(D.SanaControlNetModel(**{**_SANA_NETWORK, "num_layers": 1}).eval())
    torch.manual_seed(0)
    autoencoder = D.AutoencoderDC(
        in_channels=3, latent_channels=4, attention_head_dim=2, encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8), encoder_block_types="ResBlock", decoder_block_types="ResBlock",
        encoder_qkv_multiscales=((), ()), decoder_qkv_multiscales=((), ()), encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1), downsample_block_type="conv", upsample_block_type="interpolate",
    ).eval()  # fmt: skip
    parts = dict(controlnet=control, vae=autoencoder)
    return sana(D.SanaControlNetPipeline, parts, control_image=[PICTURE] * 2, height=32, width=32)


def aura_flow() -> Case:
    torch.manual_seed(0)
    network = D.AuraFlowTransformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, num_mmdit_layers=1, num_single_dit_layers=1, attention_head_dim=8,
        num_attention_heads=2, joint_attention_dim=16, caption_projection_dim=16, pos_embed_max_size=64,
    ).eval()  # fmt: skip
    pipe = D.AuraFlowPipeline(
        transformer=redraw_zeros(network), vae=vae(), scheduler=FLOW(), text_encoder=None, tokenizer=None
    )
    for parameter in network.parameters():  # else the text is hardly heard
        parameter.data *= 1.7 if parameter.dim() == 2 else 1
    return flow_case(pipe, {**masked(5, 16), **LATENT})


def lumina() -> Case:
    """Three channels, because the pipeline guides only the first three; and pairs of prompts, of which the first half
    of the batch is the prompt."""
    torch.manual_seed(0)
    network = D.LuminaNextDiT2DModel(
        sample_size=8, patch_size=2, in_channels=3, hidden_size=24, num_layers=2, num_attention_heads=3,
        num_kv_heads=1, multiple_of=16, ffn_dim_multiplier=None, cross_attention_dim=16, scaling_factor=1.0,
    ).eval()  # fmt: skip
    pipe = D.LuminaPipeline(
        transformer=redraw_zeros(network), vae=None, scheduler=FLOW(), text_encoder=None, tokenizer=None
    )
    return flow_case(pipe, {**masked(5, 16), "height": 64, "width": 64, "output_type": "latent"})


def lumina_2() -> Case:
    torch.manual_seed(0)
    network = D.Lumina2Transformer2DModel(
        sample_size=4, patch_size=2, in_channels=4, hidden_size=8, num_layers=2, num_attention_heads=1, num_kv_heads=1,
        multiple_of=16, axes_dim_rope=[4, 2, 2], cap_feat_dim=8,
    ).eval()  # fmt: skip
    pipe = D.Lumina2Pipeline(
        transformer=redraw_zeros(network), vae=None, scheduler=FLOW(), text_encoder=None, tokenizer=None
    )
    size = dict(height=32, width=32, output_type="latent", cfg_normalization=False)
    return flow_case(pipe, {**masked(6, 8), **size})


# -- CogView ----------------------------------------------------------------------------------------------------------

_COGVIEW_NETWORK: dict[str, Any] = dict(
    patch_size=2, in_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=2, out_channels=4,
    text_embed_dim=16, time_embed_dim=8, condition_dim=4, sample_size=8,
)  # fmt: skip


def cogview_3_plus() -> Case:
    torch.manual_seed(0)
    network = D.CogView3PlusTransformer2DModel(**_COGVIEW_NETWORK, pos_embed_max_size=16).eval()
    scheduler = D.CogVideoXDDIMScheduler(prediction_type="v_prediction")
    pipe = D.CogView3PlusPipeline(
        transformer=redraw_zeros(network), vae=vae(), scheduler=scheduler, text_encoder=None, tokenizer=None
    )
    return Case(quiet(pipe), dict(**two_of_each(5, 16), guidance_scale=5.0, **LATENT), _OFF)


def cogview_4(cls: Any = D.CogView4Pipeline, **call: Any) -> Case:
    torch.manual_seed(0)
    channels = 8 if call else 4
    settings = {**_COGVIEW_NETWORK, "in_channels": channels, "rope_axes_dim": (8, 8), "pos_embed_max_size": 16}
    network = D.CogView4Transformer2DModel(**settings).eval()
    pipe = cls(
        transformer=redraw_zeros(network), vae=vae(shift_factor=0.06), scheduler=FLOW(), text_encoder=None,
        tokenizer=None,
    )  # fmt: skip
    return flow_case(pipe, {**two_of_each(5, 16), **LATENT, **call})


def cogview_4_control() -> Case:
    return cogview_4(D.CogView4ControlPipeline, control_image=PICTURE)


# -- HiDream, Kandinsky 5, PRX, Ernie-Image, GLM-Image ----------------------------------------------------------------


def hidream() -> Case:
    torch.manual_seed(0)
    network = D.HiDreamImageTransformer2DModel(
        patch_size=2, in_channels=4, out_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=8,
        num_attention_heads=2, caption_channels=[16, 16], text_emb_dim=16, num_routed_experts=2,
        num_activated_experts=1, axes_dims_rope=(2, 2, 4), max_resolution=(8, 8), llama_layers=[0, 1],
        force_inference_output=True,
    ).eval()  # fmt: skip
    pipe = D.HiDreamImagePipeline(
        transformer=redraw_zeros(network), vae=vae(shift_factor=0.06), scheduler=FLOW(),
        **{f"text_encoder{n}": None for n in ("", "_2", "_3", "_4")},
        **{f"tokenizer{n}": None for n in ("", "_2", "_3", "_4")},
    )  # fmt: skip
    pipe.default_sample_size = 8
    given: dict[str, Any] = {}
    for seed, sign in enumerate(("", "negative_")):
        given[f"{sign}prompt_embeds_t5"] = embeddings(2, 5, 16, seed=seed)
        given[f"{sign}prompt_embeds_llama3"] = embeddings(2, 2, 5, 16, seed=seed + 2)
        given[f"{sign}pooled_prompt_embeds"] = embeddings(2, 16, seed=seed + 4)
    return flow_case(pipe, {**given, **LATENT})


def kandinsky_5(cls: Any = D.Kandinsky5T2IPipeline, **call: Any) -> Case:
    torch.manual_seed(0)
    network = D.Kandinsky5Transformer3DModel(
        in_visual_dim=4, out_visual_dim=4, in_text_dim=16, in_text_dim2=16, time_dim=16, model_dim=16, ff_dim=32,
        num_text_blocks=1, num_visual_blocks=1, axes_dims=(4, 2, 2), visual_cond=bool(call),
    ).eval()  # fmt: skip
    pipe = cls(
        transformer=redraw_zeros(network), vae=deep_vae(), scheduler=FLOW(shift=3.0), text_encoder=None, tokenizer=None,
        text_encoder_2=None, tokenizer_2=None,
    )  # fmt: skip
    pipe.resolutions = [(16, 16)]
    given: dict[str, Any] = {"prompt": None}
    for seed, sign in enumerate(("", "negative_")):
        given[f"{sign}prompt_embeds_qwen"] = embeddings(2, 5, 16, seed=seed)
        given[f"{sign}prompt_embeds_clip"] = embeddings(2, 16, seed=seed + 2)
        given[f"{sign}prompt_cu_seqlens"] = torch.tensor([0, 5, 10], dtype=torch.int32)
    return flow_case(pipe, {**given, **LATENT, **call})


def kandinsky_5_image_to_image() -> Case:
    return kandinsky_5(D.Kandinsky5I2IPipeline, image=[PICTURE] * 2)


_PRX_NETWORK: dict[str, Any] = dict(
    in_channels=4, patch_size=2, context_in_dim=16, hidden_size=16, mlp_ratio=2.0, num_heads=2, depth=2,
    axes_dim=[4, 4],
)  # fmt: skip


def one_prompt(length: int, dim: int) -> dict[str, Any]:
    """Of a pipeline whose time has one row a branch, so that it takes one picture at a time."""
    given = {name: value[:1] for name, value in masked(length, dim).items()}
    return given | {f"{sign}prompt_attention_mask": torch.ones(1, length, dtype=torch.bool) for sign in SIGNS}


def prx() -> Case:
    torch.manual_seed(0)
    network = D.PRXTransformer2DModel(**_PRX_NETWORK).eval()
    pipe = D.PRXPipeline(
        transformer=redraw_zeros(network), scheduler=FLOW(shift=3.0), text_encoder=None, tokenizer=None, vae=vae()
    )
    return flow_case(pipe, {**one_prompt(5, 16), **LATENT, "use_resolution_binning": False}, seeds=(1,))


def prx_pixel() -> Case:
    """The network predicts pixels; what the pipeline makes of them and we of the flow differ in the last bits."""
    torch.manual_seed(0)
    network = D.PRXTransformer2DModel(**{**_PRX_NETWORK, "in_channels": 3}).eval()
    pipe = D.PRXPixelPipeline(
        transformer=redraw_zeros(network), scheduler=FLOW(shift=3.0), text_encoder=None, tokenizer=None
    )
    size = dict(height=16, width=16, output_type="pt", use_resolution_binning=False)
    return flow_case(pipe, {**one_prompt(5, 16), **size}, seeds=(1,), tolerance=1e-5)


def ernie() -> Case:
    torch.manual_seed(0)
    network = D.ErnieImageTransformer2DModel(
        hidden_size=16, num_attention_heads=2, num_layers=2, ffn_hidden_size=32, in_channels=16, out_channels=16,
        text_in_dim=16, rope_axes_dim=(4, 2, 2),
    ).eval()  # fmt: skip
    pipe = D.ErnieImagePipeline(
        transformer=redraw_zeros(network), vae=None, scheduler=FLOW(), text_encoder=None, tokenizer=None
    )
    embeds = {name: list(value) for name, value in two_of_each(5, 16).items()}
    return flow_case(pipe, {**embeds, "height": 64, "width": 64, "output_type": "latent"})


def glm_image(**call: Any) -> Case:
    torch.manual_seed(0)
    network = D.GlmImageTransformer2DModel(
        patch_size=2, in_channels=4, out_channels=4, num_layers=1, attention_head_dim=8, num_attention_heads=2,
        text_embed_dim=16, time_embed_dim=8, condition_dim=4, prior_vq_quantizer_codebook_size=32,
    ).eval()  # fmt: skip
    autoencoder = vae(latents_mean=[0.0] * 4, latents_std=[1.0] * 4)
    pipe = D.GlmImagePipeline(
        transformer=redraw_zeros(network), vae=autoencoder, scheduler=FLOW(), text_encoder=None, tokenizer=None,
        processor=None, vision_language_encoder=None,
    )  # fmt: skip
    tokens = torch.arange(16).reshape(1, 16).repeat(2, 1)
    return flow_case(pipe, {**two_of_each(5, 16), **LATENT, "prior_token_ids": tokens, **call})


def glm_image_edit() -> Case:
    grid = [torch.tensor([[1, 4, 4]])] * 2
    return glm_image(image=[[PICTURE]] * 2, prior_token_image_ids=[torch.arange(16)] * 2, source_image_grid_thw=grid)


def omnigen(**call: Any) -> Case:
    """Its processor wants torchvision for three steps, given here."""
    processor_omnigen.transforms = SimpleNamespace(
        Compose=lambda steps: lambda picture: reduce(lambda value, step: step(value), steps, picture),
        Lambda=lambda function: function,
        ToTensor=lambda: lambda picture: torch.tensor(np.asarray(picture)).permute(2, 0, 1) / 255,
        Normalize=lambda mean, std, inplace: lambda value: (value - 0.5) / 0.5,
    )
    pipeline_omnigen.OmniGenMultiModalProcessor = processor_omnigen.OmniGenMultiModalProcessor
    torch.manual_seed(0)
    network = D.OmniGenTransformer2DModel(
        in_channels=4, hidden_size=16, num_attention_heads=2, num_key_value_heads=2, intermediate_size=32,
        num_layers=1, pad_token_id=0, vocab_size=64, pos_embed_max_size=8, time_step_dim=16,
        max_position_embeddings=512, original_max_position_embeddings=512,
        rope_scaling={"short_factor": [1.0] * 4, "long_factor": [1.0] * 4},
    ).eval()  # fmt: skip
    pipe = D.OmniGenPipeline(
        transformer=redraw_zeros(network), vae=deep_vae(), scheduler=FLOW(), tokenizer=t5_tokenizer()
    )
    guided = dict(prompt=TWO_PROMPTS, guidance_scale=5.0, height=64, width=64, output_type="latent", **call)
    return Case(quiet(pipe), guided, {}, scheduler_kinds=("flow",))


def omnigen_with_pictures() -> Case:
    """It adds the two differences in another order than the rule."""
    pictures = [[PICTURE.resize((32, 32))], [PICTURE.resize((48, 32))]]
    prompts = [f"<img><|image_1|></img> {prompt}" for prompt in TWO_PROMPTS]
    case = omnigen(input_images=pictures, img_guidance_scale=1.6)
    case.call["prompt"] = prompts
    return replace(case, rule=ImageCFG(5.0, 1.6), tolerance=1e-5)


def joy_image(**call: Any) -> Case:
    torch.manual_seed(0)
    network = D.JoyImageEditTransformer3DModel(**_JOY_NETWORK).eval()
    pipe = D.JoyImageEditPipeline(
        transformer=redraw_zeros(network), vae=wan_vae(), scheduler=FLOW(), text_encoder=None, tokenizer=None,
        processor=None,
    )  # fmt: skip
    pipe.vae_image_processor.get_default_height_width = lambda image, height, width: (32, 32)
    pipe.encode_prompt_multiple_images = lambda prompt_embeds, prompt_embeds_mask, **_: (
        prompt_embeds,
        prompt_embeds_mask,
    )
    masks = {f"{sign}prompt_embeds_mask": torch.ones(2, 5, dtype=torch.long) for sign in SIGNS}
    size = dict(height=32, width=32, output_type="latent")
    return flow_case(pipe, {**two_of_each(5, 16), **masks, **size, **call}, rule=Renormalised(axis=2))


def joy_image_edit() -> Case:
    return joy_image(image=PICTURE)


def wan_vae() -> Any:
    torch.manual_seed(0)
    return D.AutoencoderKLWan(
        base_dim=4, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True],
        latents_mean=[0.0] * 4, latents_std=[1.0] * 4,
    ).eval()  # fmt: skip


_JOY_NETWORK: dict[str, Any] = dict(
    in_channels=4, hidden_size=24, num_attention_heads=2, text_dim=16, num_layers=1, rope_dim_list=[4, 4, 4],
)  # fmt: skip


def joy_image_plus() -> Case:
    """The second prompt has a picture more than the first, so the rows have shapes of their own."""
    torch.manual_seed(0)
    network = D.JoyImageEditPlusTransformer3DModel(**_JOY_NETWORK).eval()
    pipe = D.JoyImageEditPlusPipeline(
        transformer=redraw_zeros(network), vae=wan_vae(), scheduler=FLOW(), text_encoder=None, tokenizer=None,
        processor=None,
    )  # fmt: skip
    pipe.encode_prompt_multiple_images = lambda prompt, **_: (told(prompt, 5, 16), torch.ones(len(prompt), 5))
    pipe.image_processor.get_default_height_width = lambda image, *size: (32, 32)
    size = dict(height=32, width=32, output_type="latent")
    pictures = [[PICTURE], [PICTURE, PICTURE.rotate(90)]]
    return flow_case(pipe, {"prompt": TWO_PROMPTS, "images": pictures, **size}, rule=Renormalised(axis=2))


def hunyuan_image(cls: Any = D.HunyuanImagePipeline, parts: Any = (), **call: Any) -> Case:
    """Its guider has the scale; the one of the call is for distilled networks."""
    torch.manual_seed(0)
    network = D.HunyuanImageTransformer2DModel(
        in_channels=8 if call else 4, out_channels=4, num_attention_heads=2, attention_head_dim=8, num_layers=1,
        num_single_layers=1, num_refiner_layers=1, patch_size=(1, 1, 1) if call else (1, 1), text_embed_dim=16,
        text_embed_2_dim=None if call else 16, rope_axes_dim=(2, 2, 4) if call else (4, 4), guidance_embeds=bool(call),
    ).eval()  # fmt: skip
    pipe = cls(
        transformer=redraw_zeros(network), vae=None, scheduler=FLOW(), text_encoder=None, tokenizer=None,
        guider=ClassifierFreeGuidance(guidance_scale=5.0), **dict(parts),
    )  # fmt: skip
    first = two_of_each(5, 16, mask=True)
    second = {} if call else {f"{name}_2": value for name, value in first.items()}
    guided = {**first, **second, "distilled_guidance_scale": 5.0, "height": 64, "width": 64, "output_type": "latent"}
    return Case(quiet(pipe), {**guided, **call}, {}, "distilled_guidance_scale", ("flow",))


def hunyuan_image_base() -> Case:
    return hunyuan_image(parts=dict(text_encoder_2=None, tokenizer_2=None))


def hunyuan_image_refiner() -> Case:
    """The scale of its call is an input of the network."""
    case = hunyuan_image(D.HunyuanImageRefinerPipeline, image=embeddings(2, 64, 1, 4, 4)[:, :4])
    return replace(case, other={})


# -- Z-Image ----------------------------------------------------------------------------------------------------------


def z_image(cls: Any = D.ZImagePipeline, parts: Any = (), settings: Any = (), **call: Any) -> Case:
    """It writes c + s (c - u), which is CFG at s + 1 with other roundings."""
    torch.manual_seed(0)
    network = D.ZImageTransformer2DModel(**_Z_NETWORK, **dict(settings)).eval()
    redraw_zeros(network)
    torch.manual_seed(6)
    for token in (network.x_pad_token, network.cap_pad_token):  # uninitialised memory as shipped
        token.data = torch.randn_like(token)
    pipe = cls(
        transformer=network, vae=vae(shift_factor=0.06), text_encoder=None, tokenizer=None, scheduler=FLOW(shift=3.0),
        **dict(parts),
    )  # fmt: skip
    generator = torch.Generator().manual_seed(9)
    embeds = [torch.randn(n, 16, generator=generator) for n in (6, 5, 4, 3)]
    guided = dict(prompt_embeds=embeds[:2], negative_prompt_embeds=embeds[2:], guidance_scale=4.0)
    guided |= dict(height=32, width=32, output_type="latent", **call)
    return Case(quiet(pipe), guided, dict(guidance_scale=0.0), scheduler_kinds=("flow",), rule=CFG(5.0), tolerance=1e-5)


_Z_NETWORK: dict[str, Any] = dict(
    all_patch_size=(2,), all_f_patch_size=(1,), in_channels=4, dim=32, n_layers=2, n_refiner_layers=1, n_heads=2,
    n_kv_heads=2, cap_feat_dim=16, axes_dims=[8, 4, 4], axes_lens=[256, 32, 32],
)  # fmt: skip


LARGER = PICTURE.resize((32, 32))


def z_image_to_image() -> Case:
    return z_image(D.ZImageImg2ImgPipeline, image=[LARGER] * 2, strength=0.75)


def z_inpaint() -> Case:
    return z_image(D.ZImageInpaintPipeline, image=[LARGER] * 2, mask_image=[MASK] * 2, strength=0.75)


def _z_control(channels: int) -> dict[str, Any]:
    torch.manual_seed(0)
    control = D.ZImageControlNetModel(
        control_layers_places=[0], control_refiner_layers_places=[0], control_in_dim=channels, dim=32,
        n_refiner_layers=1, n_heads=2, n_kv_heads=2, add_control_noise_refiner="control_layers",
    ).eval()  # fmt: skip
    return dict(controlnet=redraw_zeros(control))


def z_controlnet() -> Case:
    return z_image(D.ZImageControlNetPipeline, _z_control(4), control_image=PICTURE)


def z_controlnet_inpaint() -> Case:
    pictures = dict(control_image=[LARGER] * 2, image=[LARGER] * 2, mask_image=[MASK] * 2)
    return z_image(D.ZImageControlNetInpaintPipeline, _z_control(9), **pictures)


def z_omni() -> Case:
    case = z_image(D.ZImageOmniPipeline, dict(siglip=None, siglip_processor=None))
    for name in ("prompt_embeds", "negative_prompt_embeds"):
        case.call[name] = [[text] for text in case.call[name]]
    return case


CASES: dict[str, Callable[[], Case]] = {
    "DiTPipeline": dit,
    "PixArtAlphaPipeline": pixart_alpha,
    "PixArtSigmaPipeline": pixart,
    "HunyuanDiTPipeline": hunyuan_dit,
    "HunyuanDiTControlNetPipeline": hunyuan_dit_controlnet,
    "StableDiffusion3Pipeline": stable_diffusion_3,
    "StableDiffusion3Img2ImgPipeline": sd3_image_to_image,
    "StableDiffusion3InpaintPipeline": sd3_inpaint,
    "StableDiffusion3ControlNetPipeline": sd3_controlnet,
    "StableDiffusion3ControlNetInpaintingPipeline": sd3_controlnet_inpaint,
    "SanaPipeline": sana,
    "SanaControlNetPipeline": sana_controlnet,
    "AuraFlowPipeline": aura_flow,
    "LuminaPipeline": lumina,
    "Lumina2Pipeline": lumina_2,
    "CogView3PlusPipeline": cogview_3_plus,
    "CogView4Pipeline": cogview_4,
    "CogView4ControlPipeline": cogview_4_control,
    "HiDreamImagePipeline": hidream,
    "Kandinsky5T2IPipeline": kandinsky_5,
    "Kandinsky5I2IPipeline": kandinsky_5_image_to_image,
    "PRXPipeline": prx,
    "PRXPixelPipeline": prx_pixel,
    "ErnieImagePipeline": ernie,
    "GlmImagePipeline": glm_image,
    "OmniGenPipeline": omnigen,
    "OmniGenPipeline (pictures)": omnigen_with_pictures,
    "JoyImageEditPipeline": joy_image_edit,
    "JoyImageEditPipeline (no picture)": joy_image,
    "JoyImageEditPlusPipeline": joy_image_plus,
    "HunyuanImagePipeline": hunyuan_image_base,
    "HunyuanImageRefinerPipeline": hunyuan_image_refiner,
    "ZImagePipeline": z_image,
    "ZImageImg2ImgPipeline": z_image_to_image,
    "ZImageInpaintPipeline": z_inpaint,
    "ZImageControlNetPipeline": z_controlnet,
    "ZImageControlNetInpaintPipeline": z_controlnet_inpaint,
    "ZImageOmniPipeline": z_omni,
    **tiny_tokens.CASES,
}
