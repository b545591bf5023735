"""Tiny pipelines whose latents are packed into tokens (B, L, C) before the transformer sees them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any, ClassVar

import diffusers as D
import torch
from diffusers.pipelines.longcat_image import pipeline_longcat_image_edit
from diffusers.pipelines.qwenimage import (
    pipeline_qwenimage_edit,
    pipeline_qwenimage_edit_inpaint,
    pipeline_qwenimage_edit_plus,
    pipeline_qwenimage_layered,
)
from tiny_parts import (
    LATENT,
    MASK,
    PICTURE,
    TWO_PROMPTS,
    Case,
    clip_text,
    clip_tokenizer,
    quiet,
    redraw_zeros,
    t5_text,
    t5_tokenizer,
    vae,
)

from pilotage.guidance import CFG
from pilotage.guidance.rule import Ask, Context, Guide, Rule

FLOW = D.FlowMatchEulerDiscreteScheduler


def embeddings(*shape: int, seed: int = 9) -> torch.Tensor:
    """What a text encoder would say."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def two_of_each(*shape: int, mask: bool = False, **names: str) -> dict[str, Any]:
    """prompt_embeds and negative_prompt_embeds (2, *shape), and their masks if there are any."""
    found: dict[str, Any] = {
        "prompt_embeds": embeddings(2, *shape),
        "negative_prompt_embeds": embeddings(2, *shape, seed=10),
    }
    if mask:
        found |= {f"{name}_mask": torch.ones(2, shape[0], dtype=torch.long) for name in list(found)}
    return found


# -- Flux -------------------------------------------------------------------------------------------------------------

_FLUX_NETWORK: dict[str, Any] = dict(
    patch_size=1, in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
    joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=[4, 4, 8],
)  # fmt: skip


def flux(cls: Any = D.FluxPipeline, network: Any = (), **call: Any) -> Case:
    torch.manual_seed(0)
    transformer = redraw_zeros(D.FluxTransformer2DModel(**{**_FLUX_NETWORK, **dict(network)}).eval())
    pipe = cls(
        transformer=transformer, vae=vae(1, shift_factor=0.06), scheduler=FLOW(), text_encoder=clip_text(),
        tokenizer=clip_tokenizer(), text_encoder_2=t5_text(), tokenizer_2=t5_tokenizer(), **call.pop("parts", {}),
    )  # fmt: skip
    guided = dict(prompt=TWO_PROMPTS, negative_prompt=["", ""], true_cfg_scale=5.0, max_sequence_length=16, **LATENT)
    return Case(quiet(pipe), {**guided, **call}, dict(true_cfg_scale=1.0), "true_cfg_scale", ("flow",))


def flux_image_to_image() -> Case:
    return flux(D.FluxImg2ImgPipeline, image=[PICTURE] * 2, strength=0.75)


def flux_inpaint() -> Case:
    return flux(D.FluxInpaintPipeline, image=[PICTURE] * 2, mask_image=[MASK] * 2, strength=0.75)


def flux_kontext() -> Case:
    return flux(D.FluxKontextPipeline, image=[PICTURE] * 2, max_area=256, _auto_resize=False)


def flux_kontext_inpaint() -> Case:
    pictures = dict(image=[PICTURE] * 2, mask_image=[MASK] * 2, strength=0.75)
    return flux(D.FluxKontextInpaintPipeline, **pictures, max_area=256, _auto_resize=False)


def flux_controlnet() -> Case:
    torch.manual_seed(0)
    control = redraw_zeros(D.FluxControlNetModel(**_FLUX_NETWORK).eval())
    return flux(D.FluxControlNetPipeline, control_image=[PICTURE] * 2, parts=dict(controlnet=control))


# Distilled pipelines have one branch, and their own scale is an input of the network.


def distilled(case: Case, **call: Any) -> Case:
    """The rule that equals the stock pipeline is none."""
    left_out = ("negative_prompt", "negative_prompt_embeds", "true_cfg_scale")
    case.call = {**{name: value for name, value in case.call.items() if name not in left_out}, **call}
    case.off, case.scale, case.rule, case.other = {}, "guidance_scale", "none", {}
    return case


def flux_distilled(cls: Any, channels: int, **call: Any) -> Case:
    """channels: numbers in a token that the network is given, of which 4 are of x."""
    network = dict(in_channels=channels, out_channels=4, guidance_embeds=True)
    return distilled(flux(cls, network, parts=call.pop("parts", {})), guidance_scale=3.5, **call)


_IMAGE: dict[str, Any] = dict(image=[PICTURE] * 2, strength=0.75)
_MASKED: dict[str, Any] = dict(image=[PICTURE] * 2, mask_image=[MASK] * 2, strength=0.75)


def flux_fill() -> Case:
    return flux_distilled(D.FluxFillPipeline, 24, **{**_MASKED, "strength": 1.0})


def flux_control() -> Case:
    return flux_distilled(D.FluxControlPipeline, 8, control_image=[PICTURE] * 2)


def flux_control_image_to_image() -> Case:
    return flux_distilled(D.FluxControlImg2ImgPipeline, 8, control_image=[PICTURE] * 2, **_IMAGE)


def flux_control_inpaint() -> Case:
    return flux_distilled(D.FluxControlInpaintPipeline, 8, control_image=[PICTURE] * 2, **_MASKED)


def flux_controlnet_distilled(cls: Any, **call: Any) -> Case:
    torch.manual_seed(0)
    control = redraw_zeros(D.FluxControlNetModel(**_FLUX_NETWORK, guidance_embeds=True).eval())
    return flux_distilled(cls, 4, control_image=[PICTURE] * 2, parts=dict(controlnet=control), **call)


def flux_controlnet_image_to_image() -> Case:
    return flux_controlnet_distilled(D.FluxControlNetImg2ImgPipeline, **_IMAGE)


def flux_controlnet_inpaint() -> Case:
    return flux_controlnet_distilled(D.FluxControlNetInpaintPipeline, **_MASKED)


def visual_cloze() -> Case:
    """A picture and its answer as the example, and a picture whose answer is drawn."""
    case = flux_distilled(D.VisualClozeGenerationPipeline, 24, parts=dict(resolution=16))
    kept = ("max_sequence_length", "output_type", "guidance_scale")
    asked = dict(task_prompt="red to blue", content_prompt="a star", image=[[PICTURE, PICTURE], [PICTURE, None]])
    case.call = {**{name: case.call[name] for name in kept}, **asked}
    case.seeds = (1,)
    return case


# -- Flux 2 -----------------------------------------------------------------------------------------------------------


def flux_2_klein(cls: Any = D.Flux2KleinPipeline, own_scale: bool = False, **call: Any) -> Case:
    torch.manual_seed(0)
    network = D.Flux2Transformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=16, timestep_guidance_channels=16, axes_dims_rope=[4, 4, 4, 4], guidance_embeds=own_scale,
    ).eval()  # fmt: skip
    torch.manual_seed(0)
    autoencoder = D.AutoencoderKLFlux2(
        block_out_channels=[4, 8], norm_num_groups=2, latent_channels=4, down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
    ).eval()  # fmt: skip
    pipe = cls(
        transformer=redraw_zeros(network), vae=autoencoder, scheduler=FLOW(), text_encoder=None, tokenizer=None,
        **({} if own_scale else dict(is_distilled=False)),
    )  # fmt: skip
    guided = dict(**two_of_each(5, 16), guidance_scale=5.0, **LATENT)
    return Case(quiet(pipe), {**guided, **call}, dict(guidance_scale=1.0), scheduler_kinds=("flow",))


def flux_2_klein_edit() -> Case:
    return flux_2_klein(image=PICTURE.resize((64, 64)))


def flux_2_klein_inpaint() -> Case:
    return flux_2_klein(D.Flux2KleinInpaintPipeline, image=PICTURE, mask_image=MASK, strength=0.75)


def flux_2() -> Case:
    return distilled(flux_2_klein(D.Flux2Pipeline, own_scale=True))


def flux_2_edit() -> Case:
    return distilled(flux_2_klein(D.Flux2Pipeline, own_scale=True, image=PICTURE.resize((64, 64))))


# -- Chroma -----------------------------------------------------------------------------------------------------------


def chroma(cls: Any = D.ChromaPipeline, **call: Any) -> Case:
    torch.manual_seed(0)
    network: Any = D.ChromaTransformer2DModel(
        patch_size=1, in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, axes_dims_rope=[4, 4, 8], approximator_num_channels=8, approximator_hidden_dim=32,
        approximator_layers=1,
    ).eval()  # fmt: skip
    network.register_to_config(guidance_embeds=False)  # in the published config; the inpainting pipeline reads it
    pipe = cls(
        transformer=redraw_zeros(network), vae=vae(1, shift_factor=0.06), scheduler=FLOW(), text_encoder=t5_text(),
        tokenizer=t5_tokenizer(),
    )  # fmt: skip
    guided = dict(prompt=TWO_PROMPTS, guidance_scale=5.0, max_sequence_length=16, **LATENT)
    return Case(quiet(pipe), {**guided, **call}, dict(guidance_scale=1.0), scheduler_kinds=("flow",))


def chroma_image_to_image() -> Case:
    return chroma(D.ChromaImg2ImgPipeline, image=[PICTURE] * 2, strength=0.75)


def chroma_inpaint() -> Case:
    return chroma(D.ChromaInpaintPipeline, image=[PICTURE] * 2, mask_image=[MASK] * 2, strength=0.75)


# -- Qwen-Image -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Renormalised(Rule):
    """CFG as Qwen-Image and its relatives do it: the guided prediction gets the norm of the conditional one, |c| / |g|
    between `least` and `most`, along one axis."""

    scale: float = 5.0
    axis: int = -1
    least: float = 0.0
    most: float = float("inf")
    passes: ClassVar[int] = 0
    needs: ClassVar[tuple[str, ...]] = ("cond", "uncond")

    def guide(self, ctx: Context) -> Guide:
        cond, uncond = yield Ask(), Ask("uncond")
        guided = uncond.native + self.scale * (cond.native - uncond.native)
        ratio = cond.native.norm(dim=self.axis, keepdim=True) / guided.norm(dim=self.axis, keepdim=True)
        return cond.like(guided * ratio.clamp(self.least, self.most))


_QWEN_NETWORK: dict[str, Any] = dict(
    patch_size=2, in_channels=16, out_channels=4, num_layers=2, attention_head_dim=16, num_attention_heads=3,
    joint_attention_dim=16, axes_dims_rope=(8, 4, 4),
)  # fmt: skip


def small(area: float, ratio: float) -> tuple[int, int, None]:
    """In place of the megapixel to which the editing pipelines resize every picture."""
    return 16, 16, None


def qwen_image(cls: Any = D.QwenImagePipeline, parts: Any = (), settings: Any = (), **call: Any) -> Case:
    torch.manual_seed(0)
    network = D.QwenImageTransformer2DModel(**_QWEN_NETWORK, **dict(settings)).eval()
    torch.manual_seed(0)
    autoencoder = D.AutoencoderKLQwenImage(
        base_dim=8, z_dim=4, dim_mult=[1, 2, 4], num_res_blocks=1, temperal_downsample=[False, True],
        latents_mean=[0.0] * 4, latents_std=[1.0] * 4,
    ).eval()  # fmt: skip
    pipe = cls(
        transformer=redraw_zeros(network), vae=autoencoder, scheduler=FLOW(),
        **{"text_encoder": None, "tokenizer": None, **dict(parts)},
    )  # fmt: skip
    guided = dict(**two_of_each(5, 16, mask=True), true_cfg_scale=5.0, height=32, width=32, output_type="latent")
    guided = {name: value for name, value in {**guided, **call}.items() if value is not None}
    return Case(quiet(pipe), guided, dict(true_cfg_scale=1.0), "true_cfg_scale", ("flow",), rule=Renormalised())


def qwen_image_to_image() -> Case:
    return qwen_image(D.QwenImageImg2ImgPipeline, image=[PICTURE] * 2, strength=0.75)


def qwen_inpaint() -> Case:
    return qwen_image(D.QwenImageInpaintPipeline, image=[PICTURE] * 2, mask_image=[MASK] * 2, strength=0.75)


def qwen_controlnet() -> Case:
    torch.manual_seed(0)
    control = redraw_zeros(D.QwenImageControlNetModel(**_QWEN_NETWORK).eval())
    return qwen_image(D.QwenImageControlNetPipeline, dict(controlnet=control), control_image=[PICTURE] * 2)


def qwen_controlnet_inpaint() -> Case:
    torch.manual_seed(0)
    control = redraw_zeros(D.QwenImageControlNetModel(**_QWEN_NETWORK, extra_condition_channels=4).eval())
    pictures = dict(control_image=[PICTURE] * 2, control_mask=[MASK] * 2)
    return qwen_image(D.QwenImageControlNetInpaintPipeline, dict(controlnet=control), **pictures)


def qwen_edit() -> Case:
    pipeline_qwenimage_edit.calculate_dimensions = small
    return qwen_image(D.QwenImageEditPipeline, dict(processor=None), image=[PICTURE] * 2)


def qwen_edit_inpaint() -> Case:
    pipeline_qwenimage_edit_inpaint.calculate_dimensions = small
    pictures = dict(image=[PICTURE] * 2, mask_image=[MASK] * 2, strength=0.75)
    return qwen_image(D.QwenImageEditInpaintPipeline, dict(processor=None), **pictures)


def qwen_edit_plus() -> Case:
    """One prompt at a time is all that it takes: two pictures of it."""
    pipeline_qwenimage_edit_plus.calculate_dimensions = lambda area, ratio: (16, 16)
    one = {name: value[:1] for name, value in two_of_each(5, 16, mask=True).items()}
    return qwen_image(D.QwenImageEditPlusPipeline, dict(processor=None), image=PICTURE, num_images_per_prompt=2, **one)


def qwen_layered() -> Case:
    """One sample, and pixels: output_type="latent" ends in an UnboundLocalError in diffusers 0.42.1."""
    pipeline_qwenimage_layered.calculate_dimensions = lambda area, ratio: (16, 16)
    parts = dict(processor=None, text_encoder=clip_text())
    settings = dict(use_additional_t_cond=True, use_layer3d_rope=True)
    one: dict[str, Any] = {name: value[:1] for name, value in two_of_each(5, 16, mask=True).items()}
    one |= dict(height=None, width=None, layers=1, prompt=TWO_PROMPTS[0], output_type="np")
    case = qwen_image(D.QwenImageLayeredPipeline, parts, settings, image=PICTURE, **one)
    return replace(case, rule=None, seeds=(1,))


class NoVisionProcessor:
    """In place of one that prepares prompts and pictures for a text encoder."""

    tokenizer = SimpleNamespace(encode=lambda text: [0])

    def apply_chat_template(self, *args: Any, **settings: Any) -> list[list[int]]:
        return [[0]]


def qwen_image_21(**call: Any) -> Case:
    """Its cache of keys and values is off: with it, the last bits differ."""
    torch.manual_seed(0)
    network = D.QwenImage21Transformer2DModel(
        in_channels=64, out_channels=64, num_layers=2, attention_head_dim=16, num_attention_heads=2, context_in_dim=16,
        axes_dims_rope=(8, 4, 4),
    ).eval()  # fmt: skip
    pipe = D.QwenImage21Pipeline(
        transformer=redraw_zeros(network), vae=None, scheduler=FLOW(), text_encoder=None, processor=NoVisionProcessor()
    )

    def encode(image: Any, prompt: Any, **_: Any) -> Any:
        """A picture takes the place of the third token."""
        places = torch.arange(6).eq(2 if image is not None else -1).expand(len(prompt), 6)
        return told(prompt, 6, 16), None, places

    pipe.encode_prompt = encode
    pipe._encode_vae_image = lambda image, generator: embeddings(1, 64, 1, 2, 2)
    guided = dict(prompt=TWO_PROMPTS, negative_prompt=["", "bad"], true_cfg_scale=5.0, height=64, width=64)
    guided |= dict(output_type="latent", use_kv_cache=False)
    return Case(quiet(pipe), {**guided, **call}, dict(true_cfg_scale=1.0), "true_cfg_scale", ("flow",))


def qwen_image_21_edit() -> Case:
    return qwen_image_21(image=PICTURE, output_resolution=32)


def qwen_image_21_cached() -> Case:
    return replace(qwen_image_21(image=PICTURE, output_resolution=32, use_kv_cache=True), tolerance=1e-5)


# -- Bria -------------------------------------------------------------------------------------------------------------


def told(prompts: Any, length: int, dim: int) -> torch.Tensor:
    """(B, length, dim): what a text encoder that is too large to build here would say of each prompt."""
    return torch.cat([embeddings(1, length, dim, seed=sum(map(ord, prompt))) for prompt in prompts])


_GUIDED: dict[str, Any] = dict(prompt=TWO_PROMPTS, guidance_scale=5.0, **LATENT)
_OFF = dict(guidance_scale=1.0)


def bria() -> Case:
    torch.manual_seed(0)
    network = D.BriaTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=32, axes_dims_rope=[0, 4, 4],
    ).eval()  # fmt: skip
    pipe = D.BriaPipeline(
        transformer=redraw_zeros(network), vae=vae(), scheduler=FLOW(), text_encoder=t5_text(), tokenizer=t5_tokenizer()
    )
    return Case(quiet(pipe), {**_GUIDED, "max_sequence_length": 16}, _OFF, scheduler_kinds=("flow",))


def bria_fibo(cls: Any = D.BriaFiboPipeline, **call: Any) -> Case:
    torch.manual_seed(0)
    network = D.BriaFiboTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=64, axes_dims_rope=[0, 4, 4], text_encoder_dim=32,
    ).eval()  # fmt: skip
    torch.manual_seed(0)
    autoencoder = D.AutoencoderKLWan(
        base_dim=4, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True]
    ).eval()
    pipe = cls(
        transformer=redraw_zeros(network), vae=autoencoder, scheduler=FLOW(use_dynamic_shifting=True),
        text_encoder=clip_text(), tokenizer=clip_tokenizer(),
    )  # fmt: skip
    guided = {**_GUIDED, "negative_prompt": ["blurred", "bad"], "height": 64, "width": 64, "max_sequence_length": 16}
    return Case(quiet(pipe), {**guided, **call}, _OFF, scheduler_kinds=("flow",))


def bria_fibo_edit() -> Case:
    prompts = ['{"edit_instruction": "red"}', '{"edit_instruction": "blue"}']
    return bria_fibo(D.BriaFiboEditPipeline, image=PICTURE.resize((64, 64)), prompt=prompts, max_sequence_length=64)


def bria_fibo_2() -> Case:
    torch.manual_seed(0)
    network = D.BriaFibo2Transformer2DModel(
        in_channels=4, patch_size=2, dim=32, n_layers=2, n_refiner_layers=1, n_heads=2, cap_feat_dim=16,
        injection_layer_ids=(1,), perceiver_num_layers=1, min_num_gist_tokens=4, max_num_gist_tokens=4, gist_step=4,
        gist_min_text_len=4, gist_max_text_len=8, axes_dims=(8, 4, 4), axes_lens=(64, 32, 32),
    ).eval()  # fmt: skip
    pipe = D.BriaFibo2Pipeline(
        transformer=redraw_zeros(network), vae=None, scheduler=FLOW(), text_encoder=None, processor=None
    )
    masks = {f"{sign}prompt_embeds_mask": torch.ones(2, 5, dtype=torch.bool) for sign in ("", "negative_")}
    guided = dict(**two_of_each(2, 5, 16), **masks, guidance_scale=5.0, height=64, width=64, output_type="latent")
    return Case(quiet(pipe), guided, _OFF, scheduler_kinds=("flow",))


# -- other pipelines that call the network once a branch --------------------------------------------------------------


def ovis() -> Case:
    torch.manual_seed(0)
    network = D.OvisImageTransformer2DModel(
        patch_size=1, in_channels=4, out_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=16, axes_dims_rope=(4, 4, 8),
    ).eval()  # fmt: skip
    pipe = D.OvisImagePipeline(
        transformer=redraw_zeros(network), vae=vae(1, shift_factor=0.06), scheduler=FLOW(), text_encoder=None,
        tokenizer=None,
    )  # fmt: skip
    guided = dict(**two_of_each(5, 16), negative_prompt=None, guidance_scale=5.0, **LATENT)
    return Case(quiet(pipe), guided, _OFF, scheduler_kinds=("flow",))


class NoProcessor:
    """In place of one that prepares pictures for a text encoder."""

    image_processor = None


def longcat(cls: Any = D.LongCatImagePipeline, **call: Any) -> Case:
    """Its renormalisation never enlarges a prediction."""
    torch.manual_seed(0)
    network = D.LongCatImageTransformer2DModel(
        patch_size=1, in_channels=64, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=16, pooled_projection_dim=16, axes_dims_rope=[4, 4, 8],
    ).eval()  # fmt: skip
    pipe = cls(
        transformer=redraw_zeros(network), vae=vae(16, shift_factor=0.06), scheduler=FLOW(), text_encoder=None,
        tokenizer=None, text_processor=NoProcessor(),
    )  # fmt: skip
    pipe._encode_prompt = lambda prompt, image=None: told(prompt, 5, 16)
    guided = {**_GUIDED, "negative_prompt": ["", "bad"], **call}
    return Case(quiet(pipe), guided, _OFF, scheduler_kinds=("flow",))


def longcat_text_to_image() -> Case:
    return replace(longcat(enable_prompt_rewrite=False, cfg_renorm_min=0.5), rule=Renormalised(least=0.5, most=1.0))


def longcat_edit() -> Case:
    """One prompt at a time is all that it takes: two pictures of it."""
    pipeline_longcat_image_edit.calculate_dimensions = lambda area, ratio: (16, 16)
    one = dict(prompt=TWO_PROMPTS[0], negative_prompt="bad", num_images_per_prompt=2)
    case = longcat(D.LongCatImageEditPipeline, image=PICTURE, **one)
    del case.call["height"], case.call["width"]
    return case


def krea_2() -> Case:
    """It writes c + s (c - u), which is CFG at s + 1 with other roundings."""
    torch.manual_seed(0)
    network = D.Krea2Transformer2DModel(
        in_channels=16, num_layers=1, attention_head_dim=16, num_attention_heads=2, num_key_value_heads=2,
        intermediate_size=32, timestep_embed_dim=16, text_hidden_dim=16, num_text_layers=2, text_num_attention_heads=2,
        text_num_key_value_heads=2, text_intermediate_size=16, num_layerwise_text_blocks=1, num_refiner_text_blocks=1,
        axes_dims_rope=(4, 4, 8),
    ).eval()  # fmt: skip
    pipe = D.Krea2Pipeline(
        transformer=redraw_zeros(network), vae=None, scheduler=FLOW(), text_encoder=None, tokenizer=None
    )
    embeds = dict(prompt_embeds=embeddings(2, 5, 2, 16), negative_prompt_embeds=embeddings(2, 5, 2, 16, seed=10))
    masks = {f"{name}_mask": torch.ones(2, 5, dtype=torch.bool) for name in embeds}
    guided = dict(**embeds, **masks, guidance_scale=4.0, height=64, width=64, output_type="latent")
    return Case(quiet(pipe), guided, dict(guidance_scale=0.0), scheduler_kinds=("flow",), rule=CFG(5.0), tolerance=1e-5)


def nucleus() -> Case:
    torch.manual_seed(0)
    network = D.NucleusMoEImageTransformer2DModel(
        patch_size=2, in_channels=16, out_channels=4, num_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=16, axes_dims_rope=(8, 4, 4), moe_enabled=False, num_experts=2, moe_intermediate_dim=8,
    ).eval()  # fmt: skip
    pipe = D.NucleusMoEImagePipeline(
        transformer=redraw_zeros(network), vae=None, scheduler=FLOW(), text_encoder=None, processor=None
    )
    guided = dict(**two_of_each(5, 16, mask=True), guidance_scale=5.0, height=64, width=64, output_type="latent")
    return Case(quiet(pipe), guided, _OFF, scheduler_kinds=("flow",), rule=Renormalised())


def ideogram() -> Case:
    """It writes s c + (1 - s) u, with other roundings, and always guides."""
    settings: dict[str, Any] = dict(
        in_channels=16, num_layers=1, attention_head_dim=16, num_attention_heads=2, intermediate_size=32, adaln_dim=16,
        llm_features_dim=16, mrope_section=(4, 2, 2),
    )  # fmt: skip
    torch.manual_seed(0)
    networks = [redraw_zeros(D.Ideogram4Transformer2DModel(**settings).eval()) for _ in range(2)]
    pipe = D.Ideogram4Pipeline(
        transformer=networks[0], unconditional_transformer=networks[1], vae=None, scheduler=FLOW(), text_encoder=None,
        tokenizer=None,
    )  # fmt: skip

    def encode(prompt: Any, grid_h: int, grid_w: int, max_sequence_length: int, device: Any) -> Any:
        places = pipe._prepare_ids([5] * len(prompt), grid_h, grid_w, max_sequence_length, device)
        text = told(prompt, max_sequence_length, 16)
        return torch.cat([text, text.new_zeros(len(prompt), grid_h * grid_w, 16)], dim=1), *places

    pipe.encode_prompt = encode
    guided = {**_GUIDED, "height": 64, "width": 64, "guidance_schedule": None, "max_sequence_length": 6}
    return Case(quiet(pipe), guided, {}, scheduler_kinds=("flow",), tolerance=1e-5)


CASES: dict[str, Callable[[], Case]] = {
    "FluxFillPipeline": flux_fill,
    "FluxControlPipeline": flux_control,
    "FluxControlImg2ImgPipeline": flux_control_image_to_image,
    "FluxControlInpaintPipeline": flux_control_inpaint,
    "FluxControlNetImg2ImgPipeline": flux_controlnet_image_to_image,
    "FluxControlNetInpaintPipeline": flux_controlnet_inpaint,
    "VisualClozeGenerationPipeline": visual_cloze,
    "Flux2Pipeline": flux_2,
    "Flux2Pipeline (edit)": flux_2_edit,
    "FluxPipeline": flux,
    "FluxImg2ImgPipeline": flux_image_to_image,
    "FluxInpaintPipeline": flux_inpaint,
    "FluxKontextPipeline": flux_kontext,
    "FluxKontextInpaintPipeline": flux_kontext_inpaint,
    "FluxControlNetPipeline": flux_controlnet,
    "Flux2KleinPipeline": flux_2_klein,
    "Flux2KleinPipeline (edit)": flux_2_klein_edit,
    "Flux2KleinInpaintPipeline": flux_2_klein_inpaint,
    "ChromaPipeline": chroma,
    "ChromaImg2ImgPipeline": chroma_image_to_image,
    "ChromaInpaintPipeline": chroma_inpaint,
    "QwenImagePipeline": qwen_image,
    "QwenImageImg2ImgPipeline": qwen_image_to_image,
    "QwenImageInpaintPipeline": qwen_inpaint,
    "QwenImageControlNetPipeline": qwen_controlnet,
    "QwenImageControlNetInpaintPipeline": qwen_controlnet_inpaint,
    "QwenImageEditPipeline": qwen_edit,
    "QwenImageEditInpaintPipeline": qwen_edit_inpaint,
    "QwenImageEditPlusPipeline": qwen_edit_plus,
    "QwenImageLayeredPipeline": qwen_layered,
    "QwenImage21Pipeline": qwen_image_21,
    "QwenImage21Pipeline (edit)": qwen_image_21_edit,
    "QwenImage21Pipeline (cache)": qwen_image_21_cached,
    "BriaPipeline": bria,
    "BriaFiboPipeline": bria_fibo,
    "BriaFiboEditPipeline": bria_fibo_edit,
    "BriaFibo2Pipeline": bria_fibo_2,
    "OvisImagePipeline": ovis,
    "LongCatImagePipeline": longcat_text_to_image,
    "LongCatImageEditPipeline": longcat_edit,
    "Krea2Pipeline": krea_2,
    "NucleusMoEImagePipeline": nucleus,
    "Ideogram4Pipeline": ideogram,
}
