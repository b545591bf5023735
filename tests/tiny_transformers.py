"""Tiny pipelines around transformers."""

from __future__ import annotations

from collections.abc import Callable

import diffusers as D
import torch
from tiny_parts import (
    LATENT,
    TWO_PROMPTS,
    Case,
    clip_text,
    clip_tokenizer,
    ddim,
    redraw_zeros,
    t5_text,
    t5_tokenizer,
    vae,
)


def dit() -> Case:
    torch.manual_seed(0)
    network = D.DiTTransformer2DModel(
        sample_size=8, num_layers=2, patch_size=2, attention_head_dim=8, num_attention_heads=2, in_channels=4,
        out_channels=8, attention_bias=True, activation_fn="gelu-approximate", num_embeds_ada_norm=1000,
        norm_type="ada_norm_zero", norm_elementwise_affine=False,
    ).eval()  # fmt: skip
    pipe = D.DiTPipeline(transformer=redraw_zeros(network), vae=vae(), scheduler=ddim())
    pipe.set_progress_bar_config(disable=True)
    # DiT knows no output_type="latent"; its pixels go through the decoder alone.
    return Case(pipe, dict(class_labels=[3, 7], guidance_scale=5.0, output_type="np"), dict(guidance_scale=1.0))


def stable_diffusion_3() -> Case:
    torch.manual_seed(0)
    network = D.SD3Transformer2DModel(
        sample_size=8, patch_size=1, in_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=4,
        caption_projection_dim=32, joint_attention_dim=32, pooled_projection_dim=64, out_channels=4,
        pos_embed_max_size=96,
    ).eval()  # fmt: skip
    pipe = D.StableDiffusion3Pipeline(
        transformer=redraw_zeros(network), vae=vae(shift_factor=0.06),
        scheduler=D.FlowMatchEulerDiscreteScheduler(shift=3.0),
        text_encoder=clip_text(projection=True), tokenizer=clip_tokenizer(),
        text_encoder_2=clip_text(1, projection=True), tokenizer_2=clip_tokenizer(),
        text_encoder_3=t5_text(), tokenizer_3=t5_tokenizer(),
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    call = dict(prompt=TWO_PROMPTS, guidance_scale=5.0, max_sequence_length=16, **LATENT)
    return Case(pipe, call, dict(guidance_scale=1.0), scheduler_kinds=("flow",))


def flux() -> Case:
    torch.manual_seed(0)
    network = D.FluxTransformer2DModel(
        patch_size=1, in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=[4, 4, 8],
    ).eval()  # fmt: skip
    pipe = D.FluxPipeline(
        transformer=redraw_zeros(network), vae=vae(1, shift_factor=0.06), scheduler=D.FlowMatchEulerDiscreteScheduler(),
        text_encoder=clip_text(), tokenizer=clip_tokenizer(), text_encoder_2=t5_text(), tokenizer_2=t5_tokenizer(),
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    call = dict(prompt=TWO_PROMPTS, negative_prompt=["", ""], true_cfg_scale=5.0, max_sequence_length=16, **LATENT)
    return Case(pipe, call, dict(true_cfg_scale=1.0), scale="true_cfg_scale", scheduler_kinds=("flow",))


def z_image() -> Case:
    torch.manual_seed(0)
    network = D.ZImageTransformer2DModel(
        all_patch_size=(2,), all_f_patch_size=(1,), in_channels=4, dim=32, n_layers=2, n_refiner_layers=1, n_heads=2,
        n_kv_heads=2, cap_feat_dim=16, axes_dims=[8, 4, 4], axes_lens=[256, 32, 32],
    ).eval()  # fmt: skip
    redraw_zeros(network)
    torch.manual_seed(6)
    for token in (network.x_pad_token, network.cap_pad_token):  # uninitialised memory as shipped
        token.data = torch.randn_like(token)
    pipe = D.ZImagePipeline(
        transformer=network, vae=vae(shift_factor=0.06), text_encoder=None, tokenizer=None,
        scheduler=D.FlowMatchEulerDiscreteScheduler(shift=3.0),
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(9)
    embeds = [torch.randn(n, 16, generator=generator) for n in (6, 5, 4, 3)]
    call = dict(
        prompt_embeds=embeds[:2], negative_prompt_embeds=embeds[2:], guidance_scale=4.0, height=32, width=32,
        output_type="latent",
    )  # fmt: skip
    return Case(pipe, call, dict(guidance_scale=0.0), scheduler_kinds=("flow",))


CASES: dict[str, Callable[[], Case]] = {
    "DiTPipeline": dit,
    "StableDiffusion3Pipeline": stable_diffusion_3,
    "FluxPipeline": flux,
    "ZImagePipeline": z_image,
}
