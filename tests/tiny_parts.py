"""Building blocks of tiny random-weight diffusers pipelines, built in memory: no hub, no downloads."""

from __future__ import annotations

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
    off: dict[str, Any]  # what switches guidance off; empty where nothing does
    scale: str = "guidance_scale"
    scheduler_kinds: tuple[str, ...] = field(default=("vp",))
    rule: Any = None  # what equals the stock pipeline; None is CFG at the call's scale
    tolerance: float = 0.0  # of that equality, absolute; the case says where the roundings come from
    seeds: tuple[int, ...] = (1, 2)  # one a sample
    other: dict[str, Any] | None = None  # another setting of the pipeline's own scale; None is 2
    off_tolerance: float = 1e-5  # of guidance off, where text encoders and ControlNets see fewer rows


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


LATENT = dict(height=16, width=16, output_type="latent")
MASK = Image.linear_gradient("L").resize((16, 16))
PICTURE = Image.radial_gradient("L").resize((16, 16)).convert("RGB")


def quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe


def run(case: Case, steps: int = 4, **changes: Any) -> torch.Tensor:
    """One seeded call: latents (or pixels, for DiT) as a tensor (2, ...)."""
    torch.manual_seed(0)  # some pipelines encode their pictures with the global generator
    generators = [torch.Generator().manual_seed(s) for s in case.seeds]
    generator = generators if len(generators) > 1 else generators[0]
    out = case.pipe(**{**case.call, **changes}, num_inference_steps=steps, generator=generator, return_dict=False)[0]
    return torch.as_tensor(out)
