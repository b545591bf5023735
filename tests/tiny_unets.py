"""Tiny pipelines around UNets."""

from __future__ import annotations

from collections.abc import Callable

import diffusers as D
import torch
from PIL import Image
from tiny_parts import (
    LATENT,
    PICTURE,
    TWO_PROMPTS,
    Case,
    clip_text,
    clip_tokenizer,
    ddim,
    redraw_zeros,
    stable_diffusion,
    unet,
    vae,
)


def text_to_image() -> Case:
    return Case(stable_diffusion(), dict(prompt=TWO_PROMPTS, guidance_scale=5.0, **LATENT), dict(guidance_scale=1.0))


def image_to_image() -> Case:
    pipe = stable_diffusion(D.StableDiffusionImg2ImgPipeline)
    call = dict(prompt=TWO_PROMPTS, image=[PICTURE] * 2, strength=0.75, guidance_scale=5.0, output_type="latent")
    return Case(pipe, call, dict(guidance_scale=1.0))


def inpaint() -> Case:
    pipe = stable_diffusion(D.StableDiffusionInpaintPipeline, unet(9))
    mask = Image.linear_gradient("L").resize((16, 16))
    call = dict(prompt=TWO_PROMPTS, image=[PICTURE] * 2, mask_image=[mask] * 2, guidance_scale=5.0, **LATENT)
    return Case(pipe, call, dict(guidance_scale=1.0))


def instruct_pix2pix() -> Case:
    pipe = stable_diffusion(D.StableDiffusionInstructPix2PixPipeline, unet(8))
    call = dict(
        prompt=TWO_PROMPTS,
        image=[PICTURE] * 2,
        guidance_scale=5.0,
        image_guidance_scale=1.5,
        output_type="latent",
    )
    return Case(pipe, call, dict(guidance_scale=1.0))


def controlnet() -> Case:
    torch.manual_seed(0)
    control = D.ControlNetModel(
        block_out_channels=(8, 16), layers_per_block=1, in_channels=4, conditioning_embedding_out_channels=(2, 4),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), cross_attention_dim=32, norm_num_groups=2,
        attention_head_dim=2,
    ).eval()  # fmt: skip
    redraw_zeros(control)
    pipe = stable_diffusion(D.StableDiffusionControlNetPipeline, controlnet=control)
    return Case(
        pipe,
        dict(prompt=TWO_PROMPTS, image=[PICTURE] * 2, guidance_scale=5.0, **LATENT),
        dict(guidance_scale=1.0),
    )


def stable_diffusion_xl() -> Case:
    network = unet(
        use_linear_projection=True, addition_embed_type="text_time", addition_time_embed_dim=8,
        transformer_layers_per_block=(1, 1), projection_class_embeddings_input_dim=6 * 8 + 32, cross_attention_dim=64,
    )  # fmt: skip
    pipe = D.StableDiffusionXLPipeline(
        vae=vae(), text_encoder=clip_text(), text_encoder_2=clip_text(1, projection=True), tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(), unet=network, scheduler=ddim(), add_watermarker=False,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return Case(pipe, dict(prompt=TWO_PROMPTS, guidance_scale=5.0, **LATENT), dict(guidance_scale=1.0))


CASES: dict[str, Callable[[], Case]] = {
    "StableDiffusionPipeline": text_to_image,
    "StableDiffusionImg2ImgPipeline": image_to_image,
    "StableDiffusionInpaintPipeline": inpaint,
    "StableDiffusionInstructPix2PixPipeline": instruct_pix2pix,
    "StableDiffusionControlNetPipeline": controlnet,
    "StableDiffusionXLPipeline": stable_diffusion_xl,
}
