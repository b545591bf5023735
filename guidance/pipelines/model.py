"""A pipeline as a model that is told of prompts: its network, its conditions, its latents."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ...errors import UsageError
from ...samplers.denoiser import raw_output
from ...samplers.prediction import Parameterization, predicted_by
from ...samplers.schedule import NoiseSchedule
from .adapter import Adapter
from .arrangement import Tail, found_arrangement, found_tail
from .attach import adapter_of
from .capture import Call, Told, told
from .forms import FORM, Form, rows_and_shared, together, weights_of

KNOWN = {  # class -> does its network take SDXL's further conditioning?
    "StableDiffusionPipeline": False,
    "StableDiffusionImg2ImgPipeline": False,
    "StableDiffusionXLPipeline": True,
}
_DECODERS = ("vae", "movq", "vqvae")


class PipelineModel(ABC):
    """attribute: the pipeline's name of its network. shape: of one picture's latents, (C, H, W).

    Latents are in the network's scaling. Raises UsageError for pipelines that cannot be used so.
    """

    attribute: str
    shape: tuple[int, ...]

    def __init__(self, pipe: Any, size: tuple[int, int] | None):
        self.pipe, self.size = pipe, size

    @property
    def network(self) -> Any:
        return getattr(self.pipe, self.attribute)

    @property
    def schedule(self) -> NoiseSchedule:
        return NoiseSchedule.from_scheduler(self.pipe.scheduler)

    @property
    def kind(self) -> Parameterization:
        return predicted_by(self.pipe.scheduler)

    @property
    def vae(self) -> Any:
        """None where the latents are pixels."""
        found = (getattr(self.pipe, name, None) for name in _DECODERS)
        return next((part for part in found if part is not None), None)

    @abstractmethod
    def find_decoder(self) -> None:
        """Find out how latents are decoded, now and not at the first picture; the VAE as it will be used."""

    @abstractmethod
    def condition(self, text: str, negative: bool = False) -> dict[str, Any]:
        """What the network is told of a text, one row; negative: as the pipeline does a negative prompt."""

    def conditions(self, texts: Sequence[str], negative: bool = False) -> dict[str, Any]:
        """A row for each text, each encoded alone."""
        return together([self.condition(text, negative) for text in texts])

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """(B, *shape) -> pictures (B, 3, H, W) in [0, 1], float32, not clamped; of films (B, 3, F, H, W)."""

    @abstractmethod
    def encode(self, pictures: Tensor) -> Tensor:
        """The inverse: the mean of the VAE's posterior."""


def model_of(pipe: Any, size: tuple[int, int] | None = None, call: Mapping[str, Any] | None = None) -> PipelineModel:
    """size: (width, height) of the pictures, the pipeline's own by default. call: further arguments of the pipeline's
    call that say what its network is told, such as {"guidance_scale": 1.0} where that is an input of the network."""
    name = next((cls.__name__ for cls in type(pipe).__mro__ if cls.__name__ in KNOWN), None)
    if name is not None:
        return StableDiffusion(pipe, size, KNOWN[name])
    return Captured(pipe, size, call)


class StableDiffusion(PipelineModel):
    """Stable Diffusion and SDXL, also their image-to-image classes, whose calls want a picture."""

    attribute = "unet"

    def __init__(self, pipe: Any, size: tuple[int, int] | None, further: bool):
        super().__init__(pipe, size)
        self.further = further  # SDXL's conditioning
        config = pipe.unet.config
        if config.time_cond_proj_dim is not None:
            raise UsageError(
                "this UNet is guidance-distilled: its scale is an input, which a denoiser does not give it"
            )
        if config.in_channels != config.out_channels:
            raise UsageError(
                f"this UNet takes {config.in_channels} channels for {config.out_channels} of latents (inpainting or "
                "upscaling); load a text-to-image model"
            )

    @property
    def shape(self) -> tuple[int, int, int]:  # type: ignore[override]
        config, factor = self.pipe.unet.config, self.pipe.vae_scale_factor
        side = config.sample_size
        width, height = self.size or (side * factor, side * factor)
        if width % factor or height % factor:
            raise UsageError(f"{width}x{height} does not go: both must be multiples of {factor} for this model")
        return config.in_channels, height // factor, width // factor

    def condition(self, text: str, negative: bool = False) -> dict[str, Any]:
        return self.encoded([text], negative)

    def encoded(self, texts: Sequence[str], negative: bool = False) -> dict[str, Any]:
        """A row for each text, encoded together."""
        with torch.inference_mode(False), torch.no_grad():
            return self._sdxl(list(texts), negative) if self.further else self._stable_diffusion(list(texts))

    def _stable_diffusion(self, texts: list[str]) -> dict[str, Any]:
        embeds, _ = self.pipe.encode_prompt(texts, self.pipe._execution_device, 1, False)
        return {"encoder_hidden_states": embeds}

    def _sdxl(self, texts: list[str], negative: bool) -> dict[str, Any]:
        pipe, device = self.pipe, self.pipe._execution_device
        embeds, _, pooled, _ = pipe.encode_prompt(texts, device=device, do_classifier_free_guidance=False)
        if negative and not any(texts) and pipe.config.force_zeros_for_empty_prompt:
            embeds, pooled = torch.zeros_like(embeds), torch.zeros_like(pooled)
        side = pipe.default_sample_size * pipe.vae_scale_factor
        width, height = self.size or (side, side)
        encoder = pipe.text_encoder_2
        wide = pooled.shape[-1] if encoder is None else encoder.config.projection_dim
        shape = height, width
        ids = pipe._get_add_time_ids(shape, (0, 0), shape, dtype=embeds.dtype, text_encoder_projection_dim=wide)
        further = {"text_embeds": pooled, "time_ids": ids.to(embeds.device).repeat(len(embeds), 1)}
        return {"encoder_hidden_states": embeds, "added_cond_kwargs": further}

    def find_decoder(self) -> None:
        """The VAE's config says it."""

    def decode(self, latents: Tensor) -> Tensor:
        config = self.vae.config
        scaled = latents.float() / config.scaling_factor
        if (means := getattr(config, "latents_mean", None)) is not None:
            mean, deviation = (scaled.new_tensor(v).view(1, -1, 1, 1) for v in (means, config.latents_std))
            scaled = scaled * deviation + mean
        pictures: Tensor = self.vae.decode(scaled + (getattr(config, "shift_factor", None) or 0.0)).sample
        return pictures.float() / 2 + 0.5

    def encode(self, pictures: Tensor) -> Tensor:
        config = self.vae.config
        latents = _mean(self.vae, pictures) - (getattr(config, "shift_factor", None) or 0.0)
        if (means := getattr(config, "latents_mean", None)) is not None:
            mean, deviation = (latents.new_tensor(v).view(1, -1, 1, 1) for v in (means, config.latents_std))
            latents = (latents - mean) / deviation
        encoded: Tensor = latents * config.scaling_factor
        return encoded


class Captured(PipelineModel):
    """Any pipeline that draws pictures from a prompt and has an adapter row, read from its own call."""

    def __init__(self, pipe: Any, size: tuple[int, int] | None, call: Mapping[str, Any] | None = None):
        super().__init__(pipe, size)
        self.adapter = adapter_of(pipe)
        self.attribute = self.adapter.network
        self.call = Call(pipe, self.adapter, size, dict(call or {}))
        _refuse(pipe, self.adapter)
        self.arrangement, seen = found_arrangement(self.call)
        self.shape = self.arrangement.shape
        if len(self.shape) < 3:
            raise UsageError(
                f"{type(pipe).__name__} draws no pictures, its latents are {self.shape}; it is no denoiser of pictures"
            )
        if len({_key(rows_and_shared(found)[:2]) for found in seen}) > 1:
            raise UsageError(
                f"{type(pipe).__name__} tells its network what it computes of the noisy latents (a ControlNet); it "
                "cannot be used as a denoiser"
            )
        self._forms: dict[Any, Form] = {}

    @property
    def kind(self) -> Parameterization:
        return self.adapter.kind or super().kind

    def condition(self, text: str, negative: bool = False) -> dict[str, Any]:
        found = told(self.call, text, "uncond" if negative else "cond")
        rows, shared, listed = rows_and_shared(found)
        if not any(name in rows for name in self.adapter.conditioned_by):
            raise UsageError(f"{type(self.pipe).__name__} cannot be used as a denoiser: its prompt has no row a sample")
        return {**rows, FORM: self._form(found, rows, shared, listed)}

    def _form(self, found: Told, rows: Any, shared: Any, listed: tuple[str, ...]) -> Form:
        """One object for all conditions that share the same, so that they can be called together."""
        key = _key(shared), listed, _key({name: _shapes(row) for name, row in rows.items()})
        if key not in self._forms:
            self._forms[key] = Form(found, shared, listed, self.arrangement, weights_of(self.network))
        return self._forms[key]

    @cached_property
    def tail(self) -> Tail | None:
        """None where the latents are pixels."""
        if self.vae is None and self.shape[0] != 3:
            raise UsageError(f"this {type(self.pipe).__name__} has no VAE; load it with the pipeline")
        tail = None if self.vae is None else found_tail(self.call, self.vae, self.arrangement)
        height, width = (self.shape if tail is None else tail.arrangement.tokens)[-2:]
        if self.size is not None and (self.size[0] % width or self.size[1] % height):
            raise UsageError(
                f"{type(self.pipe).__name__} does not draw {self.size[0]}x{self.size[1]} but rounds it; give multiples "
                "of 32 for width and height"
            )
        return tail

    def find_decoder(self) -> None:
        _ = self.tail

    def decode(self, latents: Tensor) -> Tensor:
        if self.tail is None:
            return latents.float() / 2 + 0.5
        z = self.tail.into(latents.float())
        pictures = raw_output(self.vae.decode(z.to(weights_of(self.vae)), **self.tail.further)).float()
        if pictures.dim() == 5 and pictures.shape[2] == 1:  # a film of one picture
            pictures = pictures.squeeze(2)
        return pictures / 2 + 0.5

    def encode(self, pictures: Tensor) -> Tensor:
        if self.tail is None:
            return pictures.float() * 2 - 1
        if len(self.tail.arrangement.tokens) == 4 and pictures.dim() == 4:
            pictures = pictures.unsqueeze(2)
        return self.tail.back(_mean(self.vae, pictures))


def _refuse(pipe: Any, adapter: Adapter) -> None:
    """What a capture of one row cannot stand for."""
    name = type(pipe).__name__
    if any(getattr(pipe, expert, None) is not None for expert in adapter.experts):
        raise UsageError(
            f"{name} has several networks for different levels or branches; load it with {adapter.network} alone"
        )
    reasons = {
        "its network sees more than the latents that are drawn": adapter.part is not None,
        "some arguments of its network have no row a sample": adapter.picked is not None,
        "it edits the predictions of its network": adapter.handed is not None and adapter.kind is None,
        "its network is told of the frames of a film as rows": bool(adapter.folded),
        "its scheduler scales what the network sees": predicted_by(pipe.scheduler).name.startswith("edm"),
        "it is one of several stages that draw a picture together": any(map(_is_stage, type(pipe).__mro__)),
        "it draws sound": hasattr(pipe, "vocoder"),
    }
    why = next((reason for reason, holds in reasons.items() if holds), None)
    if why is not None:
        raise UsageError(f"{name} cannot be used as a denoiser of prompts: {why}")


def _is_stage(cls: type) -> bool:
    """DeepFloyd IF."""
    return cls.__name__.startswith("IF") and cls.__name__.endswith("Pipeline")


def _mean(vae: Any, pictures: Tensor) -> Tensor:
    """Of the posterior of pictures in [0, 1]."""
    encoded = vae.encode(pictures.float() * 2 - 1)
    posterior = getattr(encoded, "latent_dist", None)
    found: Tensor = encoded.latent if posterior is None else posterior.mode()
    return found


def _shapes(tree: Any) -> Any:
    if isinstance(tree, Tensor):
        return tuple(tree.shape), str(tree.dtype)
    if isinstance(tree, Mapping):
        return {name: _shapes(value) for name, value in tree.items()}
    return [_shapes(value) for value in tree] if isinstance(tree, (list, tuple)) else tree


def _key(tree: Any) -> Any:
    """A hashable value that two trees have in common where they are equal."""
    if isinstance(tree, Tensor):
        values = tree.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        return "tensor", str(tree.dtype), tuple(tree.shape), hashlib.sha256(values).hexdigest()
    if isinstance(tree, Mapping):
        return tuple((name, _key(value)) for name, value in tree.items())
    if isinstance(tree, (list, tuple)):
        return tuple(_key(value) for value in tree)
    return tree if isinstance(tree, (str, bool, int, float, type(None))) else ("object", id(tree))
