"""Tiny pipelines that draw videos or sounds. Text encoders are left out: the prompts are random embeddings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import diffusers as D
import torch
from diffusers.guiders.adaptive_projected_guidance import MomentumBuffer, normalized_guidance
from diffusers.pipelines.ace_step import AceStepConditionEncoder
from diffusers.pipelines.stable_audio_3 import StableAudio3DurationEmbedder
from tiny_parts import PICTURE, TWO_PROMPTS, Case, quiet, redraw_zeros, t5_text, t5_tokenizer
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
    SiglipImageProcessor,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from pilotage.guidance import CFG
from pilotage.guidance.rule import Ask, Context, Guide, Rule

ONE = (1,)  # the seeds of a case with one sample: the pipeline takes no list of generators


def random(*shape: int, seed: int = 9) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def prompts(dim: int = 32, length: int = 8, count: int = 2) -> dict[str, torch.Tensor]:
    """Embeddings of two prompts and of their negatives."""
    return dict(prompt_embeds=random(count, length, dim), negative_prompt_embeds=random(count, length, dim, seed=10))


def made(cls: Any, seed: int = 0, **settings: Any) -> Any:
    """A network with random weights, none of them zero."""
    torch.manual_seed(seed)
    return redraw_zeros(cls(**settings).eval())


def single(case: Case) -> Case:
    case.seeds = ONE
    return case


FILM = [PICTURE, PICTURE.rotate(90), PICTURE.rotate(180), PICTURE.rotate(270), PICTURE.transpose(0)]
SMALL = dict(height=16, width=16, num_frames=5, output_type="latent", guidance_scale=5.0)
OFF = dict(guidance_scale=1.0)


# -- Wan and its relatives --------------------------------------------------------------------------------------------


def wan_vae() -> Any:
    return made(
        D.AutoencoderKLWan, base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1,
        temperal_downsample=[False, True, True],
    )  # fmt: skip


def wan_network(cls: Any = D.WanTransformer3DModel, channels: int = 16, seed: int = 0, **settings: Any) -> Any:
    return made(
        cls, seed, patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=channels,
        out_channels=16, text_dim=32, freq_dim=16, ffn_dim=32, num_layers=2, cross_attn_norm=True,
        qk_norm="rms_norm_across_heads", rope_max_seq_len=32, **settings,
    )  # fmt: skip


def unipc() -> Any:
    return D.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)


def wan(cls: Any = D.WanPipeline, network: Any = None, **parts: Any) -> Any:
    parts = {"vae": wan_vae(), "scheduler": D.FlowMatchEulerDiscreteScheduler(shift=3.0), **parts}
    network = network or wan_network()
    return quiet(cls(tokenizer=None, text_encoder=None, transformer=network, **parts))


def flow(pipe: Any, **call: Any) -> Case:
    return Case(pipe, {**prompts(), **SMALL, **call}, OFF, scheduler_kinds=("flow",))


def wan_text_to_video() -> Case:
    return flow(wan(vae=None))


def wan_image_to_video() -> Case:
    pipe = wan(D.WanImageToVideoPipeline, wan_network(channels=36))
    return flow(pipe, image=PICTURE)


def wan_video_to_video() -> Case:
    case = flow(wan(D.WanVideoToVideoPipeline, scheduler=unipc()), video=FILM, strength=0.75)
    del case.call["num_frames"]
    return case


def wan_vace() -> Case:
    network = wan_network(D.WanVACETransformer3DModel, vace_layers=[0], vace_in_channels=96)
    return single(flow(wan(D.WanVACEPipeline, network), video=FILM, mask=FILM[::-1], **prompts(count=1)))


def wan_two_experts() -> Case:
    """Wan 2.2: the second network takes over below the boundary."""
    return flow(wan(vae=None, transformer_2=wan_network(seed=1), boundary_ratio=0.8))


def lucy_edit() -> Case:
    return single(flow(wan(D.LucyEditPipeline, wan_network(channels=32)), video=FILM, **prompts(count=1)))


def sky_reels() -> Case:
    return flow(wan(D.SkyReelsV2Pipeline, wan_network(D.SkyReelsV2Transformer3DModel), scheduler=unipc()))


def seen(cls: Any) -> dict[str, Any]:
    """An image encoder, 5 tokens of 4 numbers."""
    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=4, projection_dim=4, num_hidden_layers=2, num_attention_heads=2, image_size=4, patch_size=2,
        intermediate_size=8,
    )  # fmt: skip
    size = {"height": 4, "width": 4}
    processor = CLIPImageProcessor(crop_size=4, size=size, do_center_crop=False)
    return dict(image_encoder=cls(config).eval(), image_processor=processor)


def sky_reels_image_to_video() -> Case:
    network = wan_network(D.SkyReelsV2Transformer3DModel, 36, image_dim=4, added_kv_proj_dim=24)
    parts = dict(seen(CLIPVisionModelWithProjection), scheduler=unipc())
    return flow(wan(D.SkyReelsV2ImageToVideoPipeline, network, **parts), image=PICTURE, **prompts(length=512))


def chrono_edit() -> Case:
    network = wan_network(D.ChronoEditTransformer3DModel, 36, image_dim=4, added_kv_proj_dim=24)
    pipe = wan(D.ChronoEditPipeline, network, **seen(CLIPVisionModel))
    return flow(pipe, image=PICTURE, **prompts(length=512))


# -- CogVideoX --------------------------------------------------------------------------------------------------------


def cog_vae() -> Any:
    return made(
        D.AutoencoderKLCogVideoX, block_out_channels=(8, 8, 8, 8), norm_num_groups=2, layers_per_block=1,
        latent_channels=4, temporal_compression_ratio=4,
    )  # fmt: skip


def cog_network(channels: int = 4, cls: Any = D.CogVideoXTransformer3DModel, **settings: Any) -> Any:
    return made(
        cls, num_attention_heads=2, attention_head_dim=16, in_channels=channels, out_channels=4, time_embed_dim=2,
        text_embed_dim=32, num_layers=1, sample_width=2, sample_height=2, sample_frames=5, max_text_seq_length=8,
        **settings,
    )  # fmt: skip


def cog(cls: Any = D.CogVideoXPipeline, network: Any = None, scheduler: Any = None) -> Any:
    return quiet(
        cls(
            tokenizer=None, text_encoder=None, vae=cog_vae(), transformer=network or cog_network(),
            scheduler=scheduler or D.CogVideoXDDIMScheduler(),
        )
    )  # fmt: skip


def cog_text_to_video() -> Case:
    return Case(cog(), {**prompts(), **SMALL}, OFF)


def cog_dpm() -> Case:
    """Its DPM scheduler's `step` has other arguments, in another order."""
    return Case(cog(scheduler=D.CogVideoXDPMScheduler()), {**prompts(), **SMALL}, OFF)


def cog_image_to_video() -> Case:
    network = cog_network(8, use_rotary_positional_embeddings=True, ofs_embed_dim=2)
    return Case(cog(D.CogVideoXImageToVideoPipeline, network), {**prompts(), **SMALL, "image": [PICTURE] * 2}, OFF)


def of_a_film(pipe: Any, **call: Any) -> Case:
    given = {**prompts(count=1), **SMALL, **call}
    del given["num_frames"]
    return single(Case(pipe, given, OFF))


def cog_video_to_video() -> Case:
    return of_a_film(cog(D.CogVideoXVideoToVideoPipeline), video=FILM, strength=0.75)


def cog_control() -> Case:
    return of_a_film(cog(D.CogVideoXFunControlPipeline, cog_network(8)), control_video=FILM)


# -- HunyuanVideo -----------------------------------------------------------------------------------------------------


def hunyuan_vae() -> Any:
    return made(
        D.AutoencoderKLHunyuanVideo, block_out_channels=(8, 8, 8, 8), latent_channels=4, layers_per_block=1,
        norm_num_groups=4,
    )  # fmt: skip


def hunyuan_network(channels: int = 4, cls: Any = D.HunyuanVideoTransformer3DModel, **settings: Any) -> Any:
    base = dict(
        in_channels=channels, out_channels=4, num_attention_heads=2, attention_head_dim=10, num_layers=1,
        num_single_layers=1, num_refiner_layers=1, patch_size=1, patch_size_t=1, guidance_embeds=True,
        text_embed_dim=32, pooled_projection_dim=8, rope_axes_dim=(2, 4, 4),
    )  # fmt: skip
    return made(cls, **{**base, **settings})


def hunyuan(cls: Any = D.HunyuanVideoPipeline, network: Any = None, **parts: Any) -> Any:
    return quiet(
        cls(
            text_encoder=None, tokenizer=None, transformer=network or hunyuan_network(), vae=hunyuan_vae(),
            scheduler=D.FlowMatchEulerDiscreteScheduler(shift=7.0), text_encoder_2=None, tokenizer_2=None, **parts,
        )
    )  # fmt: skip


def masks(count: int = 2, length: int = 8) -> dict[str, torch.Tensor]:
    """Of prompts whose last tokens are padding, two of the positive and one of the negative ones."""
    mask = torch.ones(count, length, dtype=torch.long)
    mask[:, -2:] = 0
    negative = torch.ones(count, length, dtype=torch.long)
    negative[:, -1:] = 0
    return dict(prompt_attention_mask=mask, negative_prompt_attention_mask=negative)


def true_cfg(pipe: Any, count: int = 2, **call: Any) -> Case:
    pooled = dict(pooled_prompt_embeds=random(count, 8), negative_pooled_prompt_embeds=random(count, 8, seed=10))
    given = {**prompts(count=count), **masks(count), **pooled, **SMALL, "true_cfg_scale": 5.0, **call}
    return Case(pipe, given, dict(true_cfg_scale=1.0), scale="true_cfg_scale", scheduler_kinds=("flow",))


def hunyuan_text_to_video() -> Case:
    return true_cfg(hunyuan())


def hunyuan_image_to_video() -> Case:
    """Its first frame is given, and the scheduler steps the others."""
    network = hunyuan_network(4, image_condition_type="token_replace")
    pipe = hunyuan(D.HunyuanVideoImageToVideoPipeline, network, image_processor=None)
    return single(true_cfg(pipe, 1, image=PICTURE, guidance_scale=6.0))


def sky_reels_of_hunyuan() -> Case:
    pipe = hunyuan(D.HunyuanSkyreelsImageToVideoPipeline, hunyuan_network(8))
    return true_cfg(pipe, image=[PICTURE] * 2)


# -- LTX --------------------------------------------------------------------------------------------------------------


def ltx(cls: Any = D.LTXPipeline, scheduler: Any = None) -> Any:
    network = made(
        D.LTXVideoTransformer3DModel, in_channels=8, out_channels=8, num_attention_heads=4, attention_head_dim=8,
        cross_attention_dim=32, num_layers=1, caption_channels=32,
    )  # fmt: skip
    vae = made(
        D.AutoencoderKLLTXVideo, latent_channels=8, block_out_channels=(8, 8, 8, 8), layers_per_block=(1,) * 5,
        decoder_block_out_channels=(8, 8, 8, 8), decoder_layers_per_block=(1,) * 5, patch_size=1,
        spatio_temporal_scaling=(True, True, False, False), decoder_spatio_temporal_scaling=(True, True, False, False),
    )  # fmt: skip
    vae.use_framewise_encoding = vae.use_framewise_decoding = False
    scheduler = scheduler or D.FlowMatchEulerDiscreteScheduler()
    return quiet(cls(scheduler=scheduler, vae=vae, text_encoder=None, tokenizer=None, transformer=network))


def ltx_text_to_video() -> Case:
    return flow(ltx(), height=32, width=32, **masks())


def ltx_image_to_video() -> Case:
    return flow(ltx(D.LTXImageToVideoPipeline), image=[PICTURE] * 2, height=32, width=32, **masks())


def ltx_condition() -> Case:
    """A picture at the first frame, which a lower time than the other tokens' marks as given."""
    return flow(ltx(D.LTXConditionPipeline), image=PICTURE, height=32, width=32, **masks())


# -- others -----------------------------------------------------------------------------------------------------------


def mochi() -> Case:
    network = made(
        D.MochiTransformer3DModel, num_attention_heads=2, attention_head_dim=8, num_layers=2, pooled_projection_dim=16,
        in_channels=12, text_embed_dim=32, time_embed_dim=4, max_sequence_length=16,
    )  # fmt: skip
    pipe = D.MochiPipeline(
        scheduler=D.FlowMatchEulerDiscreteScheduler(invert_sigmas=True), vae=None, text_encoder=None, tokenizer=None,
        transformer=network,
    )  # fmt: skip
    return flow(quiet(pipe), num_frames=7, **{k: v.bool() for k, v in masks().items()})


def allegro() -> Case:
    network = made(
        D.AllegroTransformer3DModel, num_attention_heads=2, attention_head_dim=12, num_layers=1, cross_attention_dim=24,
        sample_width=8, sample_height=8, sample_frames=8, caption_channels=32,
    )  # fmt: skip
    pipe = D.AllegroPipeline(None, None, None, network, D.DDIMScheduler(clip_sample=False))
    return Case(quiet(pipe), {**prompts(), **masks(), **SMALL, "num_frames": 8, "negative_prompt": None}, OFF)


def latte() -> Case:
    network = made(
        D.LatteTransformer3DModel, sample_size=2, num_layers=1, patch_size=2, attention_head_dim=8,
        num_attention_heads=3, caption_channels=32, in_channels=4, cross_attention_dim=24, out_channels=8,
        attention_bias=True, activation_fn="gelu-approximate", num_embeds_ada_norm=1000, norm_type="ada_norm_single",
        norm_elementwise_affine=False, norm_eps=1e-6, video_length=2,
    )  # fmt: skip
    pipe = D.LattePipeline(None, None, None, network, D.DDIMScheduler(clip_sample=False))
    call = {**prompts(), **SMALL, "video_length": 2, "clean_caption": False, "negative_prompt": None}
    del call["num_frames"]
    return Case(quiet(pipe), call, OFF)


def easy(cls: Any = D.EasyAnimatePipeline, channels: int = 4) -> Any:
    network = made(
        D.EasyAnimateTransformer3DModel, num_attention_heads=2, attention_head_dim=16, in_channels=channels,
        out_channels=4, time_embed_dim=2, text_embed_dim=32, num_layers=1, sample_width=16, sample_height=16,
        patch_size=2, resize_inpaint_mask_directly=False,
    )  # fmt: skip
    vae = made(
        D.AutoencoderKLMagvit, latent_channels=4, block_out_channels=(8, 8, 8, 8), layers_per_block=1,
        norm_num_groups=4,
    )  # fmt: skip
    return quiet(cls(vae, None, None, network, D.FlowMatchEulerDiscreteScheduler()))


def easy_animate() -> Case:
    return flow(easy(), **masks())


def easy_animate_inpaint() -> Case:
    film = torch.stack([torch.full((3, 16, 16), value) for value in (0.1, 0.4, 0.6, 0.8, 1.0)], 1)[None]
    mask = torch.zeros(1, 1, 5, 16, 16)
    mask[..., 8:] = 255
    call = dict(video=film, mask_video=mask, strength=0.75, **prompts(count=1), **masks(1))
    return single(flow(easy(D.EasyAnimateInpaintPipeline, 12), **call))


def sana(cls: Any = D.SanaVideoPipeline, scheduler: Any = None, **parts: Any) -> Any:
    network = made(
        D.SanaVideoTransformer3DModel, num_attention_heads=2, attention_head_dim=12, num_layers=2,
        num_cross_attention_heads=2, cross_attention_head_dim=12, cross_attention_dim=24, caption_channels=32,
        mlp_ratio=2.5, sample_size=2, rope_max_seq_len=32,
    )  # fmt: skip
    scheduler = scheduler or D.FlowMatchEulerDiscreteScheduler()
    return quiet(cls(None, None, wan_vae(), network, scheduler))


def sana_video() -> Case:
    solver = D.DPMSolverMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction")
    case = flow(sana(scheduler=solver), **masks(), **SANA)
    del case.call["num_frames"]
    return case


def sana_image_to_video() -> Case:
    case = flow(sana(D.SanaImageToVideoPipeline), image=PICTURE, **masks(), **SANA)
    del case.call["num_frames"]
    return case


SANA = dict(frames=5, negative_prompt=None, use_resolution_binning=False, height=32, width=32)


def kandinsky(cls: Any = D.Kandinsky5T2VPipeline) -> Any:
    network = made(
        D.Kandinsky5Transformer3DModel, in_visual_dim=4, out_visual_dim=4, in_text_dim=32, in_text_dim2=8, time_dim=16,
        model_dim=24, ff_dim=32, num_text_blocks=1, num_visual_blocks=1, axes_dims=(4, 4, 4), visual_cond=True,
        attention_type="regular",
    )  # fmt: skip
    scheduler = D.FlowMatchEulerDiscreteScheduler(shift=5.0)
    return quiet(cls(network, hunyuan_vae(), None, None, None, None, scheduler))


def kandinsky_case(pipe: Any, **call: Any) -> Case:
    embeds = {
        f"{side}prompt_{what}": value
        for n, side in enumerate(("", "negative_"))
        for what, value in (
            ("embeds_qwen", random(2, 8, 32, seed=9 + n)),
            ("embeds_clip", random(2, 8, seed=9 + n)),
            ("cu_seqlens", torch.tensor([0, 8, 16], dtype=torch.int32)),
        )
    }
    return Case(pipe, {**embeds, **SMALL, **call}, OFF, scheduler_kinds=("flow",))


def kandinsky_text_to_video() -> Case:
    return kandinsky_case(kandinsky())


def kandinsky_image_to_video() -> Case:
    return kandinsky_case(kandinsky(D.Kandinsky5I2VPipeline), image=PICTURE, num_frames=21)


# -- sounds -----------------------------------------------------------------------------------------------------------


def stable_audio() -> Case:
    network = made(
        D.StableAudioDiTModel, sample_size=4, in_channels=3, num_layers=2, attention_head_dim=4, num_attention_heads=2,
        num_key_value_attention_heads=2, out_channels=3, cross_attention_dim=4, time_proj_dim=8,
        global_states_input_dim=64, cross_attention_input_dim=32,
    )  # fmt: skip
    vae = made(
        D.AutoencoderOobleck, encoder_hidden_size=6, downsampling_ratios=[1, 2], decoder_channels=3,
        decoder_input_channels=3, audio_channels=2, channel_multiples=[2, 4], sampling_rate=4,
    )  # fmt: skip
    projection = made(D.StableAudioProjectionModel, text_encoder_dim=32, conditioning_dim=32, min_value=0, max_value=32)
    pipe = D.StableAudioPipeline(vae, None, projection, None, network, D.EDMDPMSolverMultistepScheduler(sigma_max=80))
    call = dict(audio_end_in_s=2.0, guidance_scale=5.0, output_type="latent")
    return Case(quiet(pipe), {**prompts(), **call}, OFF, scheduler_kinds=("edm",))


def stable_audio_3() -> Case:
    network = made(
        D.StableAudio3DiTModel, io_channels=4, embed_dim=16, depth=2, num_heads=2, cond_token_dim=32,
        global_cond_dim=32, local_add_cond_dim=5, timestep_features_dim=8, num_memory_tokens=2,
    )  # fmt: skip
    vae = made(
        D.AutoencoderSAME, patch_size=2, encoder_channels=8, encoder_c_mults=(2,), encoder_strides=(2,),
        encoder_transformer_depths=(1,), latent_dim=4, dim_heads=8, sampling_rate=8,
    )  # fmt: skip
    embedder = made(StableAudio3DurationEmbedder, output_dim=32, fourier_dim=8)
    scheduler = D.FlowMatchEulerDiscreteScheduler(num_train_timesteps=1)
    mask = masks()
    call = dict(
        encoder_attention_mask=mask["prompt_attention_mask"], duration=4.0, guidance_scale=5.0, output_type="latent",
        negative_encoder_attention_mask=mask["negative_prompt_attention_mask"], silence_padding_duration=0.0,
    )  # fmt: skip
    pipe = D.StableAudio3Pipeline(vae, None, None, embedder, network, scheduler)
    return Case(quiet(pipe), {**prompts(), **call}, OFF, scheduler_kinds=("flow",))


def long_cat_audio() -> Case:
    network = made(
        D.LongCatAudioDiTTransformer, dit_dim=32, dit_depth=2, dit_heads=2, dit_text_dim=32, latent_dim=4,
    )  # fmt: skip
    vae = made(
        D.LongCatAudioDiTVae, channels=8, c_mults=[1, 2], strides=[2], latent_dim=4, encoder_latent_dim=8,
        downsampling_ratio=2, sample_rate=8,
    )  # fmt: skip
    pipe = D.LongCatAudioDiTPipeline(vae, t5_text(), t5_tokenizer(), network)
    call = dict(prompt=TWO_PROMPTS, audio_duration_s=2.0, guidance_scale=5.0, output_type="latent")
    return Case(quiet(pipe), call, OFF, scheduler_kinds=("flow",))


# -- pipelines whose guidance is an object ----------------------------------------------------------------------------


class Guided:
    """A pipeline that takes its guider's scale with each call, as the others take theirs."""

    def __call__(self, *args: Any, guidance_scale: float, **kwargs: Any) -> Any:
        self.guider = D.ClassifierFreeGuidance(guidance_scale=guidance_scale)
        return super().__call__(*args, **kwargs)  # type: ignore[misc]


def looked(size: int = 8) -> dict[str, Any]:
    """An image encoder, 4 tokens."""
    torch.manual_seed(0)
    config = SiglipVisionConfig(
        hidden_size=size, num_hidden_layers=1, num_attention_heads=2, image_size=4, patch_size=2, intermediate_size=8
    )
    extractor = SiglipImageProcessor(size={"height": 4, "width": 4})
    return dict(image_encoder=SiglipVisionModel(config).eval(), feature_extractor=extractor)


def hunyuan_15(cls: Any, **parts: Any) -> Case:
    network = made(
        D.HunyuanVideo15Transformer3DModel, in_channels=9, out_channels=4, num_attention_heads=2,
        attention_head_dim=8, num_layers=2, num_refiner_layers=1, text_embed_dim=32, text_embed_2_dim=32,
        image_embed_dim=8, rope_axes_dim=(2, 2, 4), target_size=16,
    )  # fmt: skip
    vae = made(
        D.AutoencoderKLHunyuanVideo15, latent_channels=4, block_out_channels=(16, 16), layers_per_block=1,
        spatial_compression_ratio=4, temporal_compression_ratio=4, downsample_match_channel=False,
        upsample_match_channel=False,
    )  # fmt: skip
    scheduler = D.FlowMatchEulerDiscreteScheduler(shift=7.0)
    pipe = type(cls.__name__, (Guided, cls), {})(
        text_encoder=None, tokenizer=None, transformer=network, vae=vae, scheduler=scheduler, text_encoder_2=None,
        tokenizer_2=None, guider=D.ClassifierFreeGuidance(), **parts,
    )  # fmt: skip
    pipe.vision_num_semantic_tokens = 4
    embeds = {f"{k}{n}": v for n in ("", "_2") for k, v in prompts().items()}
    for n in ("", "_2"):
        embeds |= {f"{k.replace('attention_mask', 'embeds_mask')}{n}": v for k, v in masks().items()}
    return flow(quiet(pipe), **embeds)


def hunyuan_15_text_to_video() -> Case:
    return hunyuan_15(D.HunyuanVideo15Pipeline)


def hunyuan_15_image_to_video() -> Case:
    case = hunyuan_15(D.HunyuanVideo15ImageToVideoPipeline, **looked())
    del case.call["height"], case.call["width"]
    case.call["image"] = PICTURE
    return case


def motif(cls: Any, **call: Any) -> Case:
    network = made(
        D.MotifVideoTransformer3DModel, in_channels=33, out_channels=16, num_attention_heads=2, attention_head_dim=12,
        num_layers=1, num_single_layers=1, patch_size=2, text_embed_dim=32, rope_axes_dim=(4, 4, 4),
    )  # fmt: skip
    scheduler = D.FlowMatchEulerDiscreteScheduler()
    guider = D.ClassifierFreeGuidance()
    parts = dict(text_encoder=None, tokenizer=None, feature_extractor=None, guider=guider)
    pipe = type(cls.__name__, (Guided, cls), {})(scheduler=scheduler, vae=wan_vae(), transformer=network, **parts)
    return flow(quiet(pipe), **{**masks(), **call})


def motif_text_to_video() -> Case:
    return motif(D.MotifVideoPipeline)


def motif_image_to_video() -> Case:
    call = dict(image=PICTURE, prompt=None, **prompts(count=1))
    return single(motif(D.MotifVideoImage2VideoPipeline, **{**masks(1), **call}))


# -- films made in parts, each a run of its own -----------------------------------------------------------------------


def frame_pack() -> Case:
    network = hunyuan_network(
        4, D.HunyuanVideoFramepackTransformer3DModel, has_image_proj=True, image_proj_dim=8, has_clean_x_embedder=True,
        patch_size=2,
    )  # fmt: skip
    case = true_cfg(hunyuan(D.HunyuanVideoFramepackPipeline, network, **looked()), 1, image=PICTURE)
    # Latents come as a list of growing films.
    case.call |= dict(height=64, width=64, latent_window_size=2, output_type="pt")
    return single(case)


def wan_animate() -> Case:
    network = wan_network(
        D.WanAnimateTransformer3DModel, 36, latent_channels=16, image_dim=4, added_kv_proj_dim=24,
        motion_encoder_channel_sizes={"4": 16, "8": 16, "16": 16}, motion_encoder_size=16, motion_style_dim=8,
        motion_dim=4, motion_encoder_dim=16, face_encoder_hidden_dim=16, face_encoder_num_heads=2,
        inject_face_latents_blocks=2,
    )  # fmt: skip
    parts = dict(seen(CLIPVisionModel), scheduler=unipc())
    call = dict(image=PICTURE, pose_video=FILM, face_video=FILM[::-1], segment_frame_length=5, **prompts(length=512))
    case = flow(wan(D.WanAnimatePipeline, network, **parts), **call)
    del case.call["num_frames"]
    return case


def helios() -> Case:
    network = made(
        D.HeliosTransformer3DModel, num_attention_heads=2, attention_head_dim=12, text_dim=32, freq_dim=16, ffn_dim=32,
        num_layers=2, rope_dim=(4, 4, 4),
    )  # fmt: skip
    pipe = D.HeliosPipeline(None, None, wan_vae(), D.HeliosScheduler(stages=1), network)
    return flow(quiet(pipe), history_sizes=[4, 2, 1], num_latent_frames_per_chunk=2)


def ltx_long() -> Case:
    pipe = ltx(D.LTXI2VLongMultiPromptPipeline)
    pipe.text_encoder, pipe.tokenizer = t5_text(), t5_tokenizer()
    call = dict(prompt="a red star", cond_image=PICTURE, guidance_scale=5.0, max_sequence_length=16, seed=3)
    given = dict(call, height=32, width=32, num_frames=9, output_type="latent", skip_steps_sigma_threshold=None)
    given["sigmas"] = [1.0, 0.7, 0.4, 0.2]  # the last one is not sampled
    return single(Case(pipe, given, OFF, scheduler_kinds=("flow",)))


class Harmless:
    """In place of a safety checker that cannot be built in memory."""

    def to(self, device: Any) -> None: ...


_COSMOS: dict[str, Any] = dict(
    in_channels=17, out_channels=16, num_attention_heads=2, attention_head_dim=16, num_layers=2, text_embed_dim=32,
    adaln_lora_dim=4, max_size=(4, 32, 32), extra_pos_embed_type=None, concat_padding_mask=False,
)  # fmt: skip


def cosmos_25() -> Case:
    network = made(D.CosmosTransformer3DModel, **_COSMOS)
    pipe = D.Cosmos2_5_PredictBasePipeline(None, None, network, wan_vae(), unipc(), Harmless())
    case = single(flow(quiet(pipe), video=FILM, num_latent_conditional_frames=1, **prompts(count=1)))
    return replace(case, rule=CFG(6.0), tolerance=1e-5)  # theirs is c + 5 (c - u), with other roundings


class Controls(torch.nn.Module):
    """In place of Cosmos's ControlNet, which needs torchvision: residuals of each block that depend on the text too."""

    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.proj = torch.nn.Linear(16, 32)

    def forward(self, controls_latents: Any, latents: Any, encoder_hidden_states: Any, **others: Any) -> Any:
        seen = torch.nn.functional.avg_pool3d(controls_latents + latents, (1, 2, 2)).flatten(2).transpose(1, 2)
        residual = self.proj(seen) + encoder_hidden_states.mean(1, keepdim=True)
        return ([residual, 0.5 * residual],)


def cosmos_transfer() -> Case:
    """The same with a ControlNet, which the pipeline calls before each branch."""
    network = made(D.CosmosTransformer3DModel, controlnet_block_every_n=1, **_COSMOS)
    pipe = D.Cosmos2_5_TransferPipeline(None, None, network, wan_vae(), unipc(), Controls(), Harmless())
    case = single(flow(quiet(pipe), controls=FILM, num_frames_per_chunk=5, **prompts(count=1)))
    del case.call["num_frames"]
    return replace(case, rule=CFG(6.0), tolerance=1e-5)


@dataclass(frozen=True)
class TheirAPG(Rule):
    """ACE-Step's guidance: projected along time, its momentum's running average as state."""

    passes: ClassVar[int] = 0
    needs: ClassVar[tuple[str, ...]] = ("cond", "uncond")

    def guide(self, ctx: Context) -> Guide:
        c, u = yield Ask(), Ask("uncond")
        momentum = MomentumBuffer(-0.75)
        momentum.running_average = ctx.recall(self, 0)
        native = normalized_guidance(
            c.native, u.native, 4.0, momentum, 0.0, 2.5, use_original_formulation=True, norm_dim=(1,)
        )
        ctx.keep(self, momentum.running_average)
        return c.like(native)


def ace_step() -> Case:
    heads = dict(num_attention_heads=4, num_key_value_heads=2, head_dim=8)
    network = made(
        D.AceStepTransformer1DModel, hidden_size=32, intermediate_size=64, num_hidden_layers=2, in_channels=24,
        audio_acoustic_hidden_dim=8, sliding_window=16, **heads,
    )  # fmt: skip
    encoder = made(
        AceStepConditionEncoder, hidden_size=32, intermediate_size=64, text_hidden_dim=32, timbre_hidden_dim=8,
        num_lyric_encoder_hidden_layers=1, num_timbre_encoder_hidden_layers=1, sliding_window=16, **heads,
    )  # fmt: skip
    encoder.silence_latent = random(1, 128, 8)
    vae = made(
        D.AutoencoderOobleck, encoder_hidden_size=6, downsampling_ratios=[1, 2], decoder_channels=3,
        decoder_input_channels=8, audio_channels=2, channel_multiples=[2, 4], sampling_rate=8,
    )  # fmt: skip
    scheduler = D.FlowMatchEulerDiscreteScheduler(num_train_timesteps=1, shift=1.0)
    pipe = D.AceStepPipeline(vae, t5_text(), t5_tokenizer(), network, encoder, scheduler)
    call = dict(prompt=TWO_PROMPTS, lyrics=["la", "la"], audio_duration=2.0, guidance_scale=5.0, output_type="latent")
    return Case(quiet(pipe), call, OFF, scheduler_kinds=("flow",), rule=TheirAPG())


def wan_given_first_frame() -> Case:
    """Wan 2.2's smaller model: a time a token, zero on the given frame."""
    return flow(wan(D.WanImageToVideoPipeline, expand_timesteps=True), image=PICTURE)


CASES: dict[str, Callable[[], Case]] = {
    "StableAudio3Pipeline": stable_audio_3,
    "LongCatAudioDiTPipeline": long_cat_audio,
    "HunyuanVideo15Pipeline": hunyuan_15_text_to_video,
    "HunyuanVideo15ImageToVideoPipeline": hunyuan_15_image_to_video,
    "MotifVideoPipeline": motif_text_to_video,
    "MotifVideoImage2VideoPipeline": motif_image_to_video,
    "HunyuanVideoFramepackPipeline": frame_pack,
    "WanAnimatePipeline": wan_animate,
    "HeliosPipeline": helios,
    "LTXI2VLongMultiPromptPipeline": ltx_long,
    "Cosmos2_5_PredictBasePipeline": cosmos_25,
    "Cosmos2_5_TransferPipeline": cosmos_transfer,
    "AceStepPipeline": ace_step,
    "WanPipeline (two experts)": wan_two_experts,
    "WanImageToVideoPipeline (given first frame)": wan_given_first_frame,
    "CogVideoXPipeline (DPM)": cog_dpm,
    "EasyAnimateInpaintPipeline": easy_animate_inpaint,
    "SanaVideoPipeline": sana_video,
    "SanaImageToVideoPipeline": sana_image_to_video,
    "Kandinsky5T2VPipeline": kandinsky_text_to_video,
    "Kandinsky5I2VPipeline": kandinsky_image_to_video,
    "StableAudioPipeline": stable_audio,
    "CogVideoXPipeline": cog_text_to_video,
    "CogVideoXImageToVideoPipeline": cog_image_to_video,
    "CogVideoXVideoToVideoPipeline": cog_video_to_video,
    "CogVideoXFunControlPipeline": cog_control,
    "HunyuanVideoPipeline": hunyuan_text_to_video,
    "HunyuanVideoImageToVideoPipeline": hunyuan_image_to_video,
    "HunyuanSkyreelsImageToVideoPipeline": sky_reels_of_hunyuan,
    "LTXPipeline": ltx_text_to_video,
    "LTXImageToVideoPipeline": ltx_image_to_video,
    "LTXConditionPipeline": ltx_condition,
    "MochiPipeline": mochi,
    "AllegroPipeline": allegro,
    "LattePipeline": latte,
    "EasyAnimatePipeline": easy_animate,
    "WanPipeline": wan_text_to_video,
    "WanImageToVideoPipeline": wan_image_to_video,
    "WanVideoToVideoPipeline": wan_video_to_video,
    "WanVACEPipeline": wan_vace,
    "LucyEditPipeline": lucy_edit,
    "SkyReelsV2Pipeline": sky_reels,
    "SkyReelsV2ImageToVideoPipeline": sky_reels_image_to_video,
    "ChronoEditPipeline": chrono_edit,
}
