"""A pipeline's network, prompts and a rule as one denoiser, for runs that the pipeline's own call cannot do: back to
noise, or with a gradient."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...errors import UsageError
from ...samplers.denoiser import NetworkDenoiser, raw_output
from ...samplers.prediction import predicted_by
from ...samplers.schedule import NoiseSchedule
from ..grammar import parse
from ..guided import Guided
from ..rule import Rule

KNOWN = {  # class -> does its network take SDXL's further conditioning?
    "StableDiffusionPipeline": False,
    "StableDiffusionImg2ImgPipeline": False,
    "StableDiffusionXLPipeline": True,
}


@dataclass(frozen=True, eq=False)
class _Network:
    """The UNet in its own dtype, whatever that of x."""

    network: Any

    def __call__(self, x: Tensor, time: Tensor, **condition: Any) -> Tensor:
        return raw_output(self.network(x.to(self.network.dtype), time, **condition))


def denoiser_of(
    pipe: Any,
    prompts: str | Sequence[str],
    rule: Rule | str = "none",
    *,
    negative: str = "",
    networks: Mapping[str, Any] | None = None,
    decode: Any = None,
    size: tuple[int, int] | None = None,
) -> Guided:
    """The guided denoiser that `pipe(prompts)` samples from, on latents (B, C, H, W) in the pipeline's scaling.

    prompts: one for all rows, or one a row. rule: a Rule or a line of the grammar. negative: the text of "uncond".
    networks: further UNets of the same conditioning by branch name, {"weak": unet2}. size: (width, height) of the
    pictures, which SDXL is told; its own by default. For another prompt pass `condition_of(...)` as the condition of a
    call. Stable Diffusion and SDXL only: a UsageError names what it cannot read.
    """
    _refuse_others(pipe)
    made = parse(rule) if isinstance(rule, str) else rule
    schedule, kind = NoiseSchedule.from_scheduler(pipe.scheduler), predicted_by(pipe.scheduler)
    nets = {"main": pipe.unet, **(networks or {})}
    conditions = {"cond": condition_of(pipe, prompts, size=size)}
    if "uncond" in made.needs:
        conditions["uncond"] = condition_of(pipe, negative, size=size, negative=True)
    return Guided(
        {name: NetworkDenoiser(_Network(net), schedule, kind) for name, net in nets.items()}, made, conditions, decode
    )


def condition_of(
    pipe: Any, prompts: str | Sequence[str], *, size: tuple[int, int] | None = None, negative: bool = False
) -> dict[str, Any]:
    """What the network is told of the prompts, one row each; a single text is one row that all pictures share.

    negative: encode as the pipeline does a negative prompt; SDXL makes an empty one zeros.
    """
    further = _refuse_others(pipe)
    texts = [prompts] if isinstance(prompts, str) else list(prompts)
    with torch.inference_mode(False), torch.no_grad():
        return (_sdxl if further else _stable_diffusion)(pipe, texts, size, negative)


def _stable_diffusion(pipe: Any, texts: list[str], size: Any, negative: bool) -> dict[str, Any]:
    embeds, _ = pipe.encode_prompt(texts, pipe._execution_device, 1, False)
    return {"encoder_hidden_states": embeds}


def _sdxl(pipe: Any, texts: list[str], size: tuple[int, int] | None, negative: bool) -> dict[str, Any]:
    embeds, _, pooled, _ = pipe.encode_prompt(texts, device=pipe._execution_device, do_classifier_free_guidance=False)
    if negative and not any(texts) and pipe.config.force_zeros_for_empty_prompt:
        embeds, pooled = torch.zeros_like(embeds), torch.zeros_like(pooled)
    side = pipe.default_sample_size * pipe.vae_scale_factor
    width, height = size or (side, side)
    encoder = pipe.text_encoder_2
    wide = pooled.shape[-1] if encoder is None else encoder.config.projection_dim
    shape = height, width
    ids = pipe._get_add_time_ids(shape, (0, 0), shape, dtype=embeds.dtype, text_encoder_projection_dim=wide)
    further = {"text_embeds": pooled, "time_ids": ids.to(embeds.device).repeat(len(embeds), 1)}
    return {"encoder_hidden_states": embeds, "added_cond_kwargs": further}


def _refuse_others(pipe: Any) -> bool:
    """Whether the pipeline is an SDXL one. A UsageError for pipelines whose call does more than this file knows."""
    name = next((cls.__name__ for cls in type(pipe).__mro__ if cls.__name__ in KNOWN), None)
    if name is None:
        raise UsageError(
            f"{type(pipe).__name__} cannot be used as a denoiser: only {', '.join(KNOWN)} can; for others build Guided "
            "from samplers.NetworkDenoiser and the network's conditions"
        )
    config = pipe.unet.config
    if config.time_cond_proj_dim is not None:
        raise UsageError("this UNet is guidance-distilled: its scale is an input, which a denoiser does not give it")
    if config.in_channels != config.out_channels:
        raise UsageError(
            f"this UNet takes {config.in_channels} channels for {config.out_channels} of latents (inpainting or "
            "upscaling); load a text-to-image model"
        )
    return KNOWN[name]
