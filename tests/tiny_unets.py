"""Tiny pipelines around UNets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers as D
import torch
from diffusers.pipelines.kolors.pipeline_kolors import KolorsPipeline  # its tokenizer needs sentencepiece; not here
from diffusers.pipelines.kolors.pipeline_kolors_img2img import KolorsImg2ImgPipeline
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
    stable_diffusion,
    unet,
    vae,
)
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel, CLIPVisionModelWithProjection

OFF = dict(guidance_scale=1.0)
PICTURES = dict(image=[PICTURE] * 2)
FILM = [PICTURE, PICTURE.rotate(90), PICTURE.rotate(180)]
SIZE = dict(height=16, width=16)
MASKED = dict(**PICTURES, mask_image=[MASK] * 2)


def random(*shape: int, seed: int = 9) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def made(cls: Any, seed: int = 0, **settings: Any) -> Any:
    """A network with random weights, none of them zero."""
    torch.manual_seed(seed)
    return redraw_zeros(cls(**settings).eval())


def guided(pipe: Any, **call: Any) -> Case:
    """A case with two prompts, whose guidance is switched off by its scale."""
    given = {"prompt": TWO_PROMPTS, "guidance_scale": 5.0, "output_type": "latent", **call}
    return Case(quiet(pipe), {k: v for k, v in given.items() if v is not None}, OFF)


def single(case: Case) -> Case:
    """The same with one prompt, for pipelines that take one picture or film."""
    case.seeds = (1,)
    if "prompt" in case.call:
        case.call["prompt"] = TWO_PROMPTS[0]
    return case


# -- Stable Diffusion -------------------------------------------------------------------------------------------------


def text_to_image() -> Case:
    return guided(stable_diffusion(), **LATENT)


def image_to_image() -> Case:
    return guided(stable_diffusion(D.StableDiffusionImg2ImgPipeline), **PICTURES, strength=0.75)


def inpaint() -> Case:
    return guided(stable_diffusion(D.StableDiffusionInpaintPipeline, unet(9)), **MASKED, **LATENT)


def instruct_pix2pix() -> Case:
    pipe = stable_diffusion(D.StableDiffusionInstructPix2PixPipeline, unet(8))
    return guided(pipe, **PICTURES, image_guidance_scale=1.5)


def control(cls: Any = D.ControlNetModel, **settings: Any) -> Any:
    base: dict[str, Any] = dict(
        block_out_channels=(8, 16), layers_per_block=1, in_channels=4, conditioning_embedding_out_channels=(2, 4),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), cross_attention_dim=32, norm_num_groups=2,
        attention_head_dim=2,
    )  # fmt: skip
    return made(cls, **{**base, **settings})


def controlnet() -> Case:
    pipe = stable_diffusion(D.StableDiffusionControlNetPipeline, controlnet=control())
    return guided(pipe, **PICTURES, **LATENT)


def controlnet_image_to_image() -> Case:
    pipe = stable_diffusion(D.StableDiffusionControlNetImg2ImgPipeline, controlnet=control())
    return guided(pipe, **PICTURES, control_image=[PICTURE] * 2, strength=0.75)


def controlnet_inpaint() -> Case:
    pipe = stable_diffusion(D.StableDiffusionControlNetInpaintPipeline, unet(9), controlnet=control())
    return guided(pipe, **MASKED, control_image=[PICTURE] * 2, **LATENT)


# An adapter's last features come before the last downsampling, so that this block must have attention.
TYPES = ("CrossAttnDownBlock2D", "DownBlock2D"), ("UpBlock2D", "CrossAttnUpBlock2D")


def adapter(kind: str, downscale: int) -> Any:
    return made(D.T2IAdapter, channels=[8, 16], num_res_blocks=1, downscale_factor=downscale, adapter_type=kind)


def t2i_adapter() -> Case:
    network = unet(down_block_types=TYPES[0], up_block_types=TYPES[1])
    pipe = stable_diffusion(D.StableDiffusionAdapterPipeline, network, adapter=adapter("full_adapter", 2))
    return guided(pipe, **PICTURES, **LATENT)


def depth_to_image() -> Case:
    pipe = D.StableDiffusionDepth2ImgPipeline(
        vae=vae(), text_encoder=clip_text(), tokenizer=clip_tokenizer(), unet=unet(5), scheduler=ddim(),
        depth_estimator=None, feature_extractor=None,
    )  # fmt: skip
    return guided(pipe, **PICTURES, depth_map=random(2, 16, 16), strength=0.75)


def eye(size: int = 8) -> dict[str, Any]:
    """An image encoder with projections (B, 32), and what prepares its pictures."""
    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=16, projection_dim=32, num_hidden_layers=1, num_attention_heads=2, image_size=size,
        patch_size=size // 2, intermediate_size=8,
    )  # fmt: skip
    processor = CLIPImageProcessor(crop_size=size, size={"shortest_edge": size})
    return dict(image_encoder=CLIPVisionModelWithProjection(config).eval(), feature_extractor=processor)


def image_variation() -> Case:
    pipe = D.StableDiffusionImageVariationPipeline(
        vae=vae(), unet=unet(), scheduler=ddim(), safety_checker=None, requires_safety_checker=False, **eye()
    )
    return guided(pipe, prompt=None, **PICTURES, **LATENT)


def upscale() -> Case:
    pipe = D.StableDiffusionUpscalePipeline(
        vae=vae(), text_encoder=clip_text(), tokenizer=clip_tokenizer(), unet=unet(7, num_class_embeds=1000),
        low_res_scheduler=D.DDPMScheduler(), scheduler=ddim(prediction_type="v_prediction"), max_noise_level=350,
    )  # fmt: skip
    return guided(pipe, **PICTURES)


def latent_upscale() -> Case:
    """The pipeline converts what its network predicts, and does so before it combines the branches."""
    network = made(
        D.UNet2DConditionModel, act_fn="gelu", attention_head_dim=8, norm_num_groups=None,
        block_out_channels=[32, 32, 64, 64], time_cond_proj_dim=160,
        conv_in_kernel=1, conv_out_kernel=1, cross_attention_dim=32, in_channels=8,
        down_block_types=("KDownBlock2D", *["KCrossAttnDownBlock2D"] * 3), layers_per_block=1, mid_block_type=None,
        only_cross_attention=False, out_channels=5, resnet_time_scale_shift="scale_shift",
        time_embedding_type="fourier", timestep_post_act="gelu",
        up_block_types=(*["KCrossAttnUpBlock2D"] * 3, "KUpBlock2D"),
    )  # fmt: skip
    pipe = D.StableDiffusionLatentUpscalePipeline(
        vae=vae(), text_encoder=clip_text(), tokenizer=clip_tokenizer(), unet=network,
        scheduler=D.EulerDiscreteScheduler(prediction_type="sample"),
    )  # fmt: skip
    case = guided(pipe, **PICTURES)
    case.tolerance = 1e-4
    return case


def unclip_parts() -> dict[str, Any]:
    from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import StableUnCLIPImageNormalizer

    network = unet(class_embed_type="projection", projection_class_embeddings_input_dim=64)
    return dict(
        image_normalizer=StableUnCLIPImageNormalizer(embedding_dim=32),
        image_noising_scheduler=D.DDPMScheduler(beta_schedule="squaredcos_cap_v2"), tokenizer=clip_tokenizer(),
        text_encoder=clip_text(), unet=network, scheduler=ddim(prediction_type="v_prediction"), vae=vae(),
    )  # fmt: skip


def prior_network(**settings: Any) -> Any:
    return made(
        D.PriorTransformer, num_attention_heads=2, attention_head_dim=8, embedding_dim=32, num_layers=1, **settings
    )


def stable_unclip() -> Case:
    pipe = D.StableUnCLIPPipeline(
        prior_tokenizer=clip_tokenizer(), prior_text_encoder=clip_text(projection=True), prior=prior_network(),
        prior_scheduler=D.DDPMScheduler(
            variance_type="fixed_small_log", prediction_type="sample", beta_schedule="squaredcos_cap_v2",
            clip_sample_range=5.0,
        ),
        **unclip_parts(),
    )  # fmt: skip
    return guided(pipe, prior_num_inference_steps=2, **LATENT)


def stable_unclip_image_to_image() -> Case:
    pipe = D.StableUnCLIPImg2ImgPipeline(**eye(), **unclip_parts())
    return guided(pipe, image_embeds=random(2, 32), **LATENT)


def latent_diffusion() -> Case:
    from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import LDMBertConfig, LDMBertModel

    torch.manual_seed(0)
    bert = LDMBertModel(
        LDMBertConfig(
            vocab_size=514, encoder_layers=1, encoder_ffn_dim=16, encoder_attention_heads=2, head_dim=8, d_model=32
        )
    ).eval()
    pipe = D.LDMTextToImagePipeline(vqvae=vae(), bert=bert, tokenizer=clip_tokenizer(), unet=unet(), scheduler=ddim())
    return guided(pipe, height=16, width=16, output_type="np")


def consistency(cls: Any = D.LatentConsistencyModelPipeline, **call: Any) -> Case:
    """Distilled: one branch, whose rule is none."""
    from diffusers import LCMScheduler

    scheduler = LCMScheduler.from_config(ddim().config)
    pipe = cls(
        vae=vae(), text_encoder=clip_text(), tokenizer=clip_tokenizer(), unet=unet(time_cond_proj_dim=8),
        scheduler=scheduler, safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    case = guided(pipe, **call)
    case.off, case.rule, case.other = {}, "none", {}
    return case


def consistency_text_to_image() -> Case:
    return consistency(**LATENT)


def consistency_image_to_image() -> Case:
    return consistency(D.LatentConsistencyModelImg2ImgPipeline, **PICTURES, strength=0.75)


# -- Stable Diffusion XL ----------------------------------------------------------------------------------------------


def xl_settings(vectors: int = 6) -> dict[str, Any]:
    return dict(
        use_linear_projection=True, addition_embed_type="text_time", addition_time_embed_dim=8,
        transformer_layers_per_block=(1, 1), projection_class_embeddings_input_dim=vectors * 8 + 32,
        cross_attention_dim=64,
    )  # fmt: skip


def xl(cls: Any = D.StableDiffusionXLPipeline, channels: int = 4, vectors: int = 6, **parts: Any) -> Any:
    """vectors: numbers beside the text, of which there are five where aesthetic scores are given."""
    if "Adapter" not in cls.__name__:
        parts["add_watermarker"] = False
    return cls(
        vae=vae(), text_encoder=clip_text(), text_encoder_2=clip_text(1, projection=True), tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(), unet=unet(channels, **xl_settings(vectors)), scheduler=ddim(), **parts,
    )  # fmt: skip


def stable_diffusion_xl() -> Case:
    return guided(xl(), **LATENT)


def xl_image_to_image() -> Case:
    return guided(
        xl(D.StableDiffusionXLImg2ImgPipeline, vectors=5, requires_aesthetics_score=True), **PICTURES, strength=0.75
    )


def xl_inpaint() -> Case:
    return guided(xl(D.StableDiffusionXLInpaintPipeline, 9), **MASKED, strength=1.0, **LATENT)


def xl_instruct_pix2pix() -> Case:
    pipe = xl(D.StableDiffusionXLInstructPix2PixPipeline, 8)
    return guided(pipe, **PICTURES, image_guidance_scale=1.5, **LATENT)


def xl_control(cls: Any = D.ControlNetModel, vectors: int = 6, **settings: Any) -> dict[str, Any]:
    return dict(controlnet=control(cls, **xl_settings(vectors), **settings))


def xl_controlnet() -> Case:
    return guided(xl(D.StableDiffusionXLControlNetPipeline, **xl_control()), **PICTURES, **LATENT)


def xl_controlnet_image_to_image() -> Case:
    pipe = xl(D.StableDiffusionXLControlNetImg2ImgPipeline, **xl_control())
    return guided(pipe, **PICTURES, control_image=[PICTURE] * 2, strength=0.75)


def xl_controlnet_inpaint() -> Case:
    pipe = xl(D.StableDiffusionXLControlNetInpaintPipeline, 9, **xl_control())
    return guided(pipe, **MASKED, control_image=[PICTURE] * 2, strength=1.0, **LATENT)


def union(vectors: int = 6) -> dict[str, Any]:
    return xl_control(
        D.ControlNetUnionModel, vectors, num_control_type=2, num_trans_channel=8, num_trans_head=2, num_trans_layer=1,
        num_proj_channel=8,
    )  # fmt: skip


def xl_union() -> Case:
    pipe = xl(D.StableDiffusionXLControlNetUnionPipeline, **union())
    return guided(pipe, control_image=[PICTURE], control_mode=[1], **LATENT)


def xl_union_image_to_image() -> Case:
    pipe = xl(D.StableDiffusionXLControlNetUnionImg2ImgPipeline, **union())
    return guided(pipe, **PICTURES, control_image=[PICTURE], control_mode=[1], strength=0.75)


def xl_union_inpaint() -> Case:
    pipe = xl(D.StableDiffusionXLControlNetUnionInpaintPipeline, **union())
    return guided(pipe, **MASKED, control_image=[PICTURE], control_mode=[1], strength=1.0, **LATENT)


def xl_t2i_adapter() -> Case:
    pipe = xl(D.StableDiffusionXLAdapterPipeline, adapter=adapter("full_adapter_xl", 4))
    return guided(pipe, **PICTURES, **LATENT)


# -- Kolors -----------------------------------------------------------------------------------------------------------


def embeds(width: int = 32, length: int = 8, count: int = 2) -> dict[str, torch.Tensor]:
    """Of two prompts and of their negatives."""
    return dict(
        prompt_embeds=random(count, length, width), negative_prompt_embeds=random(count, length, width, seed=10)
    )


def kolors(cls: Any, **call: Any) -> Case:
    network = unet(**xl_settings(), encoder_hid_dim=24, encoder_hid_dim_type="text_proj")
    pipe = cls(vae=vae(), text_encoder=None, tokenizer=None, unet=network, scheduler=ddim())
    told = (*embeds(24).values(), random(2, 32), random(2, 32, seed=10))
    pipe.encode_prompt = lambda *args, **settings: told  # one of the two pipelines loses the pooled embeddings
    return guided(pipe, **call)


def kolors_text_to_image() -> Case:
    return kolors(KolorsPipeline, **LATENT)


def kolors_image_to_image() -> Case:
    return kolors(KolorsImg2ImgPipeline, **PICTURES, strength=0.75)


# -- Kandinsky --------------------------------------------------------------------------------------------------------


def movq() -> Any:
    return made(
        D.VQModel, block_out_channels=[32, 32], down_block_types=["DownEncoderBlock2D"] * 2, norm_num_groups=8,
        norm_type="spatial", num_vq_embeddings=12, up_block_types=["AttnUpDecoderBlock2D", "UpDecoderBlock2D"],
        vq_embed_dim=4, latent_channels=4,
    )  # fmt: skip


def kandinsky_scheduler() -> Any:
    """Its steps use the variance that the network has learned."""
    return D.DDPMScheduler(variance_type="learned_range", beta_schedule="linear", clip_sample=False)


def kandinsky_21(cls: Any, channels: int = 4, scheduler: Any = None, **call: Any) -> Case:
    from diffusers.pipelines.kandinsky import MultilingualCLIP
    from diffusers.pipelines.kandinsky.text_encoder import MCLIPConfig

    torch.manual_seed(0)
    config = MCLIPConfig(
        vocab_size=514, transformerDimSize=16, imageDimSize=32, hidden_size=16, num_attention_heads=2,
        num_hidden_layers=1, intermediate_size=16, max_position_embeddings=100, pad_token_id=1,
    )  # fmt: skip
    network = unet(
        channels, out_channels=8, encoder_hid_dim=16, encoder_hid_dim_type="text_image_proj",
        addition_embed_type="text_image", cross_attention_dim=32,
    )  # fmt: skip
    pipe = cls(
        text_encoder=MultilingualCLIP(config).eval(), tokenizer=clip_tokenizer(), unet=network, movq=movq(),
        scheduler=scheduler or kandinsky_scheduler(),
    )  # fmt: skip
    return guided(pipe, **{**seen(), **SIZE, "output_type": "pt", **call})


def kandinsky_text_to_image() -> Case:
    return kandinsky_21(D.KandinskyPipeline)


def kandinsky_image_to_image() -> Case:
    scheduler = D.DDIMScheduler(beta_schedule="linear", clip_sample=False)
    return kandinsky_21(D.KandinskyImg2ImgPipeline, scheduler=scheduler, **PICTURES, strength=0.75)


def kandinsky_inpaint() -> Case:
    one = dict(image=PICTURE, mask_image=half_mask(), **seen(1))
    return single(kandinsky_21(D.KandinskyInpaintPipeline, 9, **one))


def seen(count: int = 2) -> dict[str, torch.Tensor]:
    """What the prior makes of prompts and of their negatives."""
    return dict(image_embeds=random(count, 32), negative_image_embeds=random(count, 32, seed=10))


def half_mask() -> Any:
    import numpy

    mask = numpy.zeros((16, 16), dtype=numpy.float32)
    mask[:8] = 1
    return mask


def kandinsky_22(cls: Any, channels: int = 4, hint: bool = False, scheduler: Any = None, **call: Any) -> Case:
    network = unet(
        channels, out_channels=8, encoder_hid_dim=32, encoder_hid_dim_type="image_proj",
        addition_embed_type="image_hint" if hint else "image",
    )  # fmt: skip
    pipe = cls(unet=network, movq=movq(), scheduler=scheduler or kandinsky_scheduler())
    hinted = dict(hint=random(2, 3, 64, 64)) if hint else {}
    return guided(pipe, **{"prompt": None, **seen(), **hinted, **SIZE, **call})


def kandinsky_22_text_to_image() -> Case:
    return kandinsky_22(D.KandinskyV22Pipeline)


def kandinsky_22_image_to_image() -> Case:
    return kandinsky_22(D.KandinskyV22Img2ImgPipeline, **PICTURES, strength=0.75)


def kandinsky_22_inpaint() -> Case:
    one = dict(image=PICTURE, mask_image=half_mask(), **seen(1))
    return single(kandinsky_22(D.KandinskyV22InpaintPipeline, 9, **one))


def kandinsky_22_controlnet() -> Case:
    return kandinsky_22(D.KandinskyV22ControlnetPipeline, 8, hint=True, output_type="pt")


def kandinsky_22_controlnet_image_to_image() -> Case:
    pictures = dict(PICTURES, output_type="pt")
    return kandinsky_22(D.KandinskyV22ControlnetImg2ImgPipeline, 8, hint=True, strength=0.75, **pictures)


def kandinsky_3(cls: Any, **call: Any) -> Case:
    """It writes (s + 1) c - s u, which is CFG at s + 1 with other roundings."""
    from pilotage.guidance import CFG

    network = made(
        D.Kandinsky3UNet, in_channels=4, time_embedding_dim=4, groups=2, attention_head_dim=4, layers_per_block=3,
        block_out_channels=(8, 16), cross_attention_dim=4, encoder_hid_dim=32,
    )  # fmt: skip
    pipe = cls(tokenizer=None, text_encoder=None, unet=network, scheduler=ddim(), movq=movq())
    masks = dict(attention_mask=torch.ones(2, 8), negative_attention_mask=torch.ones(2, 8))
    case = guided(pipe, prompt=None, **embeds(), **masks, **call)
    case.rule, case.tolerance = CFG(6.0), 1e-5
    return case


def kandinsky_3_text_to_image() -> Case:
    return kandinsky_3(D.Kandinsky3Pipeline, **LATENT)


def kandinsky_3_image_to_image() -> Case:
    return kandinsky_3(D.Kandinsky3Img2ImgPipeline, **PICTURES, strength=0.75)


# -- networks that predict embeddings ---------------------------------------------------------------------------------


def prior(cls: Any, **call: Any) -> Case:
    parts = eye()
    pipe = cls(
        prior=prior_network(), image_encoder=parts["image_encoder"], text_encoder=clip_text(projection=True),
        tokenizer=clip_tokenizer(), image_processor=parts["feature_extractor"],
        scheduler=D.UnCLIPScheduler(variance_type="fixed_small_log", prediction_type="sample", clip_sample_range=5.0),
    )  # fmt: skip
    return guided(pipe, output_type="pt", **call)


def kandinsky_prior() -> Case:
    return prior(D.KandinskyPriorPipeline)


def kandinsky_22_prior() -> Case:
    return prior(D.KandinskyV22PriorPipeline)


def kandinsky_22_prior_of_embeddings() -> Case:
    return prior(D.KandinskyV22PriorEmb2EmbPipeline, image=random(2, 32), strength=0.75)


def shap_e(cls: Any, parts: dict[str, Any], **call: Any) -> Case:
    network = made(
        D.PriorTransformer, num_attention_heads=2, attention_head_dim=8, embedding_dim=8, num_embeddings=4,
        additional_embeddings=0, num_layers=1, time_embed_act_fn="gelu", norm_in_type="layer",
        embedding_proj_norm_type=None, encoder_hid_proj_type=None, added_emb_type=None, embedding_proj_dim=32,
        time_embed_dim=32, clip_embed_dim=16,
    )  # fmt: skip
    scheduler = D.HeunDiscreteScheduler(
        beta_schedule="exp", prediction_type="sample", use_karras_sigmas=True, clip_sample=True, clip_sample_range=1.0
    )
    pipe = cls(prior=network, scheduler=scheduler, shap_e_renderer=None, **parts)
    return guided(pipe, **call)


def shap_e_of_text() -> Case:
    parts = dict(text_encoder=clip_text(projection=True), tokenizer=clip_tokenizer())
    return shap_e(D.ShapEPipeline, parts)


# -- DeepFloyd IF -----------------------------------------------------------------------------------------------------


def floyd(cls: Any, channels: int = 3, **call: Any) -> Case:
    further = dict(class_embed_type="timestep") if channels == 6 else {}
    scheduler = dict(
        variance_type="learned_range", beta_schedule="squaredcos_cap_v2", thresholding=True,
        dynamic_thresholding_ratio=0.95, sample_max_value=1.0,
    )  # fmt: skip
    parts: dict[str, Any] = dict(
        tokenizer=None, text_encoder=None, unet=unet(channels, out_channels=6, **further),
        scheduler=D.DDPMScheduler(**scheduler), safety_checker=None, feature_extractor=None, watermarker=None,
        requires_safety_checker=False,
    )  # fmt: skip
    if channels == 6:
        parts["image_noising_scheduler"] = D.DDPMScheduler(beta_schedule="squaredcos_cap_v2")
    return guided(cls(**parts), prompt=None, **embeds(), **{"output_type": "pt", **call})


def floyd_text_to_image() -> Case:
    return floyd(D.IFPipeline, **SIZE)


def floyd_image_to_image() -> Case:
    return floyd(D.IFImg2ImgPipeline, **PICTURES, strength=0.75)


def floyd_inpaint() -> Case:
    return floyd(D.IFInpaintingPipeline, **MASKED, strength=1.0)


def floyd_super() -> Case:
    return floyd(D.IFSuperResolutionPipeline, 6, **PICTURES, **SIZE)


def floyd_super_image_to_image() -> Case:
    return floyd(D.IFImg2ImgSuperResolutionPipeline, 6, **PICTURES, original_image=[PICTURE] * 2, strength=0.75)


def floyd_super_inpaint() -> Case:
    call = dict(**MASKED, original_image=[PICTURE] * 2, strength=1.0)
    return floyd(D.IFInpaintingSuperResolutionPipeline, 6, **call)


# -- videos and sounds ------------------------------------------------------------------------------------------------


def motion_network(**settings: Any) -> Any:
    base: dict[str, Any] = dict(
        block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=2, cross_attention_dim=32,
        num_attention_heads=2, motion_num_attention_heads=2, motion_max_seq_length=8, use_motion_mid_block=False,
        down_block_types=("DownBlockMotion", "CrossAttnDownBlockMotion"),
        up_block_types=("CrossAttnUpBlockMotion", "UpBlockMotion"),
    )  # fmt: skip
    return made(D.UNetMotionModel, **{**base, **settings})


def animate(cls: Any = D.AnimateDiffPipeline, **call: Any) -> Case:
    parts = call.pop("parts", {})
    pipe = cls(
        vae=vae(), text_encoder=clip_text(), tokenizer=clip_tokenizer(), unet=motion_network(), motion_adapter=None,
        scheduler=ddim(), **parts,
    )  # fmt: skip
    return guided(pipe, **{**LATENT, **call})


def animatediff() -> Case:
    return animate(num_frames=3)


def animatediff_controlnet() -> Case:
    parts = dict(controlnet=control())
    return single(animate(D.AnimateDiffControlNetPipeline, parts=parts, num_frames=3, conditioning_frames=FILM))


def animatediff_sparse() -> Case:
    network = made(
        D.SparseControlNetModel, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=2,
        cross_attention_dim=32, attention_head_dim=2, motion_num_attention_heads=2, motion_max_seq_length=8,
        down_block_types=("DownBlockMotion", "CrossAttnDownBlockMotion"), conditioning_channels=3,
        conditioning_embedding_out_channels=(2, 4), use_simplified_condition_embedding=False,
    )  # fmt: skip
    call = dict(parts=dict(controlnet=network), num_frames=3, conditioning_frames=[PICTURE])
    return single(animate(D.AnimateDiffSparseControlNetPipeline, **call))


def animatediff_video() -> Case:
    return single(animate(D.AnimateDiffVideoToVideoPipeline, video=FILM, strength=0.75))


def animatediff_video_controlnet() -> Case:
    call = dict(parts=dict(controlnet=control()), video=FILM, conditioning_frames=FILM, strength=0.75)
    return single(animate(D.AnimateDiffVideoToVideoControlNetPipeline, **call))


def animatediff_xl() -> Case:
    settings = {**xl_settings(), "transformer_layers_per_block": 1}
    pipe = D.AnimateDiffSDXLPipeline(
        vae=vae(), text_encoder=clip_text(), text_encoder_2=clip_text(1, projection=True), tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(), unet=motion_network(**settings), motion_adapter=None, scheduler=ddim(),
    )  # fmt: skip
    return guided(pipe, num_frames=3, **LATENT)


def stable_video_diffusion() -> Case:
    """The same scale for every frame, so that any rule can say it."""
    network = made(
        D.UNetSpatioTemporalConditionModel, sample_size=8, block_out_channels=(32, 64), addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=24, layers_per_block=1, cross_attention_dim=32, num_attention_heads=2,
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
    )  # fmt: skip
    autoencoder = made(
        D.AutoencoderKLTemporalDecoder, block_out_channels=[32, 32], down_block_types=["DownEncoderBlock2D"] * 2,
        latent_channels=4,
    )  # fmt: skip
    scheduler = D.EulerDiscreteScheduler(
        prediction_type="v_prediction", timestep_type="continuous", timestep_spacing="leading", steps_offset=1,
        interpolation_type="linear", use_karras_sigmas=True, sigma_min=0.002, sigma_max=700.0,
    )  # fmt: skip
    pipe = D.StableVideoDiffusionPipeline(vae=autoencoder, unet=network, scheduler=scheduler, **eye(224))
    same = dict(min_guidance_scale=3.0, max_guidance_scale=3.0)
    call = dict(PICTURES, num_frames=2, **LATENT, **same)
    return Case(quiet(pipe), call, dict(min_guidance_scale=1.0, max_guidance_scale=1.0), scale="max_guidance_scale")


def stable_video_diffusion_rising() -> Case:
    """Its own guidance: a scale that rises from frame to frame."""
    case = stable_video_diffusion()
    case.call |= dict(num_frames=3, min_guidance_scale=1.0, max_guidance_scale=3.0)
    case.rule = "frame-cfg:scale=3,first=1"
    return case


def audio_ldm2() -> Case:
    from transformers import ClapFeatureExtractor, GPT2Config, GPT2Model, SpeechT5HifiGan, SpeechT5HifiGanConfig

    network = made(
        D.AudioLDM2UNet2DConditionModel, sample_size=8, layers_per_block=1, block_out_channels=(8, 16), in_channels=4,
        out_channels=4, norm_num_groups=2, attention_head_dim=2, cross_attention_dim=((None, 16, 32),) * 2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    torch.manual_seed(0)
    voice = SpeechT5HifiGanConfig(
        model_in_dim=8, sampling_rate=16000, upsample_initial_channel=16, upsample_rates=[2, 2],
        upsample_kernel_sizes=[4, 4], resblock_kernel_sizes=[3], resblock_dilation_sizes=[[1]], normalize_before=False,
    )  # fmt: skip
    pipe = D.AudioLDM2Pipeline(
        vae=vae(), text_encoder=None, text_encoder_2=clip_text(), projection_model=None,
        language_model=GPT2Model(GPT2Config(n_embd=16, n_head=2, n_layer=1, vocab_size=16, n_positions=8)).eval(),
        tokenizer=None, tokenizer_2=None, feature_extractor=ClapFeatureExtractor(), unet=network, scheduler=ddim(),
        vocoder=SpeechT5HifiGan(voice).eval(),
    )  # fmt: skip
    told = dict(
        generated_prompt_embeds=random(2, 4, 16), negative_generated_prompt_embeds=random(2, 4, 16, seed=10),
        attention_mask=torch.ones(2, 8, dtype=torch.long), negative_attention_mask=torch.ones(2, 8, dtype=torch.long),
    )  # fmt: skip
    return guided(pipe, prompt=None, **embeds(), **told, audio_length_in_s=16 * 4 / 16000)


# -- others -----------------------------------------------------------------------------------------------------------


def shap_e_of_picture() -> Case:
    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=8, patch_size=4, intermediate_size=8
    )
    parts = dict(image_encoder=CLIPVisionModel(config).eval(), image_processor=None)
    return shap_e(D.ShapEImg2ImgPipeline, parts, prompt=None, image=[random(3, 8, 8), random(3, 8, 8, seed=10)])


def dream_lite(cls: Any = D.DreamLitePipeline, **call: Any) -> Case:
    """It always guides. The text encoder is left out: one embedding a prompt."""
    network = made(
        D.DreamLiteUNetModel, sample_size=8, in_channels=4, out_channels=4, layers_per_block=1,
        block_out_channels=(8, 16), norm_num_groups=2, cross_attention_dim=32, attention_head_dim=2,
        down_block_types=("DreamLiteCrossAttnNoSelfAttnDownBlock2D", "DreamLiteCrossAttnDownBlock2D"),
        up_block_types=("DreamLiteCrossAttnUpBlock2D", "DreamLiteUpBlock2D"),
    )  # fmt: skip
    autoencoder = made(
        D.AutoencoderTiny, encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1),
    )  # fmt: skip
    pipe = cls(
        text_encoder=clip_text(), tokenizer=None, processor=None, vae=autoencoder, unet=network,
        scheduler=D.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
    )  # fmt: skip
    table = {name: random(1, 6, 32, seed=n) for n, name in enumerate(("", TWO_PROMPTS[0]))}

    def encode(prompts: list[str], **settings: Any) -> Any:
        found = [table["" if prompt == "" else TWO_PROMPTS[0]] for prompt in prompts]
        return torch.cat(found), torch.ones(len(prompts), 6, dtype=torch.long)

    pipe.encode_prompt = encode
    case = single(guided(pipe, **LATENT, **call))
    case.off, case.scheduler_kinds = {}, ("flow",)
    return case


def dream_lite_edit() -> Case:
    return dream_lite(image=PICTURE, image_guidance_scale=1.5)


def dream_lite_mobile(**call: Any) -> Case:
    """Distilled: one branch."""
    case = dream_lite(D.DreamLiteMobilePipeline, **call)
    del case.call["guidance_scale"]
    case.rule, case.other = "none", {}
    return case


def dream_lite_mobile_edit() -> Case:
    return dream_lite_mobile(image=PICTURE)


CASES: dict[str, Callable[[], Case]] = {
    "StableDiffusionPipeline": text_to_image,
    "StableDiffusionImg2ImgPipeline": image_to_image,
    "StableDiffusionInpaintPipeline": inpaint,
    "StableDiffusionInstructPix2PixPipeline": instruct_pix2pix,
    "StableDiffusionControlNetPipeline": controlnet,
    "StableDiffusionControlNetImg2ImgPipeline": controlnet_image_to_image,
    "StableDiffusionControlNetInpaintPipeline": controlnet_inpaint,
    "StableDiffusionAdapterPipeline": t2i_adapter,
    "StableDiffusionDepth2ImgPipeline": depth_to_image,
    "StableDiffusionImageVariationPipeline": image_variation,
    "StableDiffusionUpscalePipeline": upscale,
    "StableDiffusionLatentUpscalePipeline": latent_upscale,
    "StableUnCLIPPipeline": stable_unclip,
    "StableUnCLIPImg2ImgPipeline": stable_unclip_image_to_image,
    "LDMTextToImagePipeline": latent_diffusion,
    "LatentConsistencyModelPipeline": consistency_text_to_image,
    "LatentConsistencyModelImg2ImgPipeline": consistency_image_to_image,
    "KandinskyPipeline": kandinsky_text_to_image,
    "KandinskyImg2ImgPipeline": kandinsky_image_to_image,
    "KandinskyInpaintPipeline": kandinsky_inpaint,
    "KandinskyPriorPipeline": kandinsky_prior,
    "KandinskyV22Pipeline": kandinsky_22_text_to_image,
    "KandinskyV22Img2ImgPipeline": kandinsky_22_image_to_image,
    "KandinskyV22InpaintPipeline": kandinsky_22_inpaint,
    "KandinskyV22ControlnetPipeline": kandinsky_22_controlnet,
    "KandinskyV22ControlnetImg2ImgPipeline": kandinsky_22_controlnet_image_to_image,
    "KandinskyV22PriorPipeline": kandinsky_22_prior,
    "KandinskyV22PriorEmb2EmbPipeline": kandinsky_22_prior_of_embeddings,
    "Kandinsky3Pipeline": kandinsky_3_text_to_image,
    "Kandinsky3Img2ImgPipeline": kandinsky_3_image_to_image,
    "IFPipeline": floyd_text_to_image,
    "IFImg2ImgPipeline": floyd_image_to_image,
    "IFInpaintingPipeline": floyd_inpaint,
    "IFSuperResolutionPipeline": floyd_super,
    "IFImg2ImgSuperResolutionPipeline": floyd_super_image_to_image,
    "IFInpaintingSuperResolutionPipeline": floyd_super_inpaint,
    "ShapEPipeline": shap_e_of_text,
    "ShapEImg2ImgPipeline": shap_e_of_picture,
    "DreamLiteMobilePipeline": dream_lite_mobile,
    "DreamLiteMobilePipeline (edit)": dream_lite_mobile_edit,
    "DreamLitePipeline": dream_lite,
    "DreamLitePipeline (edit)": dream_lite_edit,
    "AnimateDiffPipeline": animatediff,
    "AnimateDiffControlNetPipeline": animatediff_controlnet,
    "AnimateDiffSparseControlNetPipeline": animatediff_sparse,
    "AnimateDiffVideoToVideoPipeline": animatediff_video,
    "AnimateDiffVideoToVideoControlNetPipeline": animatediff_video_controlnet,
    "AnimateDiffSDXLPipeline": animatediff_xl,
    "AudioLDM2Pipeline": audio_ldm2,
    "StableVideoDiffusionPipeline": stable_video_diffusion,
    "StableVideoDiffusionPipeline (rising scale)": stable_video_diffusion_rising,
    "StableDiffusionXLPipeline": stable_diffusion_xl,
    "StableDiffusionXLImg2ImgPipeline": xl_image_to_image,
    "StableDiffusionXLInpaintPipeline": xl_inpaint,
    "StableDiffusionXLInstructPix2PixPipeline": xl_instruct_pix2pix,
    "StableDiffusionXLControlNetPipeline": xl_controlnet,
    "StableDiffusionXLControlNetImg2ImgPipeline": xl_controlnet_image_to_image,
    "StableDiffusionXLControlNetInpaintPipeline": xl_controlnet_inpaint,
    "StableDiffusionXLControlNetUnionPipeline": xl_union,
    "StableDiffusionXLControlNetUnionImg2ImgPipeline": xl_union_image_to_image,
    "StableDiffusionXLControlNetUnionInpaintPipeline": xl_union_inpaint,
    "StableDiffusionXLAdapterPipeline": xl_t2i_adapter,
    "KolorsPipeline": kolors_text_to_image,
    "KolorsImg2ImgPipeline": kolors_image_to_image,
}
