"""Tiny random-weight diffusers pipelines, built in memory: no hub, no downloads.

`CASES` maps a pipeline class name to a builder of a `Case`: the pipeline, the arguments of a call with guidance on, and
those that switch guidance off. Zero-initialised layers are re-drawn, so that guidance has an effect.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import diffusers as D
import torch
from PIL import Image
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

TWO_PROMPTS = ["a red star", "two blue rings"]


@dataclass
class Case:
    pipe: Any
    call: dict[str, Any]  # a guided call on two prompts; add num_inference_steps, generator
    off: dict[str, Any]  # what switches guidance off
    scale: str = "guidance_scale"
    scheduler_kinds: tuple[str, ...] = field(default=("vp",))


def clip_tokenizer() -> CLIPTokenizer:
    """514 entries: the 256 printable stand-ins of bytes, with and without </w>, and two specials."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in plain]
    letters = [chr(c) for c in [*plain, *(256 + i for i in range(len(others)))]]
    words = [*letters, *(c + "</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={w: i for i, w in enumerate(words)}, merges=[], model_max_length=77)


def t5_tokenizer() -> T5Tokenizer:
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -2.0)]
    pieces += [(c, -3.0) for c in "abcdefghijklmnopqrstuvwxyz0123456789.,-"]
    return T5Tokenizer(vocab=pieces + [(f"<extra_id_{i}>", 0.0) for i in range(4)], extra_ids=4, model_max_length=16)


def clip_text(seed: int = 0, projection: bool = False) -> Any:
    torch.manual_seed(seed)
    config = CLIPTextConfig(
        vocab_size=514, bos_token_id=512, eos_token_id=513, pad_token_id=513, hidden_size=32, projection_dim=32,
        intermediate_size=37, num_attention_heads=4, num_hidden_layers=2,
    )  # fmt: skip
    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config).eval()


def t5_text() -> T5EncoderModel:
    torch.manual_seed(0)
    return T5EncoderModel(
        T5Config(
            vocab_size=64, d_model=32, d_kv=8, d_ff=37, num_layers=1, num_heads=4, feed_forward_proj="gated-gelu",
            dropout_rate=0.0,
        )
    ).eval()  # fmt: skip


def vae(latent: int = 4, **settings: Any) -> D.AutoencoderKL:
    torch.manual_seed(0)
    return D.AutoencoderKL(
        block_out_channels=[4, 8], norm_num_groups=2, latent_channels=latent, in_channels=3, out_channels=3,
        down_block_types=["DownEncoderBlock2D"] * 2, up_block_types=["UpDecoderBlock2D"] * 2, **settings,
    ).eval()  # fmt: skip


def unet(channels: int = 4, seed: int = 0, **settings: Any) -> D.UNet2DConditionModel:
    torch.manual_seed(seed)
    base: dict[str, Any] = dict(
        sample_size=8, layers_per_block=1, block_out_channels=(8, 16), in_channels=channels, out_channels=4,
        cross_attention_dim=32, attention_head_dim=2, norm_num_groups=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    return D.UNet2DConditionModel(**{**base, **settings}).eval()


def ddim(**settings: Any) -> D.DDIMScheduler:
    return D.DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1, clip_sample=False,
        set_alpha_to_one=False, **settings,
    )  # fmt: skip


def stable_diffusion(cls: Any = D.StableDiffusionPipeline, network: Any = None, **parts: Any) -> Any:
    pipe = cls(
        vae=vae(), text_encoder=clip_text(), tokenizer=clip_tokenizer(), unet=network or unet(), safety_checker=None,
        feature_extractor=None, requires_safety_checker=False, scheduler=ddim(), **parts,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


def redraw_zeros(module: torch.nn.Module, scale: float = 0.2) -> Any:
    """Random values for parameters that are all zero, and for uninitialised ones."""
    torch.manual_seed(5)
    for parameter in module.parameters():
        if not bool(parameter.detach().abs().sum() > 0) or not bool(parameter.isfinite().all()):
            parameter.data = torch.randn_like(parameter) * scale
    return module


_LATENT = dict(height=16, width=16, output_type="latent")
_PICTURE = Image.radial_gradient("L").resize((16, 16)).convert("RGB")


def text_to_image() -> Case:
    return Case(stable_diffusion(), dict(prompt=TWO_PROMPTS, guidance_scale=5.0, **_LATENT), dict(guidance_scale=1.0))


def image_to_image() -> Case:
    pipe = stable_diffusion(D.StableDiffusionImg2ImgPipeline)
    call = dict(prompt=TWO_PROMPTS, image=[_PICTURE] * 2, strength=0.75, guidance_scale=5.0, output_type="latent")
    return Case(pipe, call, dict(guidance_scale=1.0))


def inpaint() -> Case:
    pipe = stable_diffusion(D.StableDiffusionInpaintPipeline, unet(9))
    mask = Image.linear_gradient("L").resize((16, 16))
    call = dict(prompt=TWO_PROMPTS, image=[_PICTURE] * 2, mask_image=[mask] * 2, guidance_scale=5.0, **_LATENT)
    return Case(pipe, call, dict(guidance_scale=1.0))


def instruct_pix2pix() -> Case:
    pipe = stable_diffusion(D.StableDiffusionInstructPix2PixPipeline, unet(8))
    call = dict(
        prompt=TWO_PROMPTS,
        image=[_PICTURE] * 2,
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
        dict(prompt=TWO_PROMPTS, image=[_PICTURE] * 2, guidance_scale=5.0, **_LATENT),
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
    return Case(pipe, dict(prompt=TWO_PROMPTS, guidance_scale=5.0, **_LATENT), dict(guidance_scale=1.0))


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
    call = dict(prompt=TWO_PROMPTS, guidance_scale=5.0, max_sequence_length=16, **_LATENT)
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
    call = dict(prompt=TWO_PROMPTS, negative_prompt=["", ""], true_cfg_scale=5.0, max_sequence_length=16, **_LATENT)
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
    "StableDiffusionPipeline": text_to_image,
    "StableDiffusionImg2ImgPipeline": image_to_image,
    "StableDiffusionInpaintPipeline": inpaint,
    "StableDiffusionInstructPix2PixPipeline": instruct_pix2pix,
    "StableDiffusionControlNetPipeline": controlnet,
    "StableDiffusionXLPipeline": stable_diffusion_xl,
    "DiTPipeline": dit,
    "StableDiffusion3Pipeline": stable_diffusion_3,
    "FluxPipeline": flux,
    "ZImagePipeline": z_image,
}


def run(case: Case, steps: int = 4, **changes: Any) -> torch.Tensor:
    """One seeded call: latents (or pixels, for DiT) as a tensor (2, ...)."""
    generator = [torch.Generator().manual_seed(s) for s in (1, 2)]
    out = case.pipe(**{**case.call, **changes}, num_inference_steps=steps, generator=generator, return_dict=False)[0]
    return torch.as_tensor(out)
