"""The embedded model: an ordinary `StableDiffusionPipeline` for the embedded world, and its instruments.

Pictures are 32x32, latents 8x8x4 with zero mean and unit deviation in each channel (so the scaling factor is 1), the
prediction is v on Stable Diffusion's noise schedule. Nothing is downloaded; every file is checked against its hash.
"""

from __future__ import annotations

import hashlib
import json
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from safetensors.torch import load_file

from ..errors import UsageError
from .networks import FeatureNetwork, Guide, Judge

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline, UNet2DConditionModel

Network = TypeVar("Network", Judge, Guide, FeatureNetwork)

WEIGHTS = Path(__file__).parent / "weights"


@cache
def _hashes(folder: Path) -> dict[str, str]:
    path = folder / "hashes.json"
    if not path.is_file():
        raise UsageError(
            "the embedded model's weights are missing; reinstall, or run `python -m pilotage.zoo.training`"
        )
    hashes: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))
    return hashes


@cache
def _checked(folder: Path, prefixes: tuple[str, ...]) -> None:
    """Compare every file whose name starts with one of the prefixes with its recorded hash, once."""
    chosen = {name: value for name, value in _hashes(folder).items() if name.startswith(prefixes)}
    if not chosen:
        raise UsageError(f"the embedded model has no {prefixes[0]}; run `python -m pilotage.zoo.training export`")
    for name, value in chosen.items():
        path = folder / name
        if not path.is_file():
            raise UsageError(f"zoo/weights/{name} is missing; reinstall the package")
        if hashlib.sha256(path.read_bytes()).hexdigest() != value:
            raise UsageError(f"zoo/weights/{name} differs from its hash in hashes.json; reinstall the package")


def load(dtype: torch.dtype = torch.float32) -> StableDiffusionPipeline:
    """The text-to-picture pipeline: 32x32 pictures, DPM++ 2M in equal steps of log-SNR (25 are enough), on the CPU."""
    from diffusers import StableDiffusionPipeline

    _checked(WEIGHTS, ("model_index", "unet/", "vae/", "text_encoder/", "tokenizer/", "scheduler/"))
    pipe = StableDiffusionPipeline.from_pretrained(
        WEIGHTS, torch_dtype=dtype, local_files_only=True, safety_checker=None, requires_safety_checker=False
    )
    for part in (pipe.unet, pipe.vae, pipe.text_encoder):
        part.eval()
    return pipe


def load_weak(dtype: torch.dtype = torch.float32) -> UNet2DConditionModel:
    """The same UNet after 1,800 of its 6,797 steps, for autoguidance; it shares the pipeline's text encoder."""
    from diffusers import UNet2DConditionModel

    _checked(WEIGHTS, ("unet_weak/",))
    unet = UNet2DConditionModel.from_pretrained(WEIGHTS / "unet_weak", torch_dtype=dtype, local_files_only=True)
    return unet.eval()


def _filled(model: Network, name: str) -> Network:
    _checked(WEIGHTS, (f"{name}.safetensors",))
    state = {
        k: v.float() if v.is_floating_point() else v for k, v in load_file(WEIGHTS / f"{name}.safetensors").items()
    }
    model.load_state_dict(state)
    return model.eval().requires_grad_(False)


def judge() -> Judge:
    """The classifier that scores clean pictures."""
    return _filled(Judge(), "judge")


def guide() -> Guide:
    """The classifier that guides noisy latents."""
    return _filled(Guide(), "guide")


def features() -> FeatureNetwork:
    """The network for distances between sets of pictures."""
    return _filled(FeatureNetwork(), "features")


# The rules with a classifier take the guide, never the judge, which scores. Strengths: the best adherence of a few that
# were tried on 300 test captions in 25 steps.
_BY_THE_GUIDE: dict[str, dict[str, Any]] = {
    "classifier": {"classifier": "guide", "target": "caption", "weight": 3.0},
    "elucd": {"classifier": "guide", "target": "caption", "weight": 1.0, "others": 1.0, "form": "score"},
    "gfcg-reconstruction": {"classifier": "guide", "target": "caption", "scale": 3.0, "reads": "noisy"},
}


def guidance_defaults() -> dict[str, dict[str, Any]]:
    """Settings of guidance rules that suit this model, by rule name; for `guidance.parse(line, defaults)`."""
    path = WEIGHTS / "guidance.json"
    if not path.is_file():
        return _BY_THE_GUIDE
    _checked(WEIGHTS, ("guidance.json",))
    settings: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["defaults"]
    return {**_BY_THE_GUIDE, **settings}


@cache
def _text() -> tuple[Any, Any]:
    from transformers import CLIPTextModel, PreTrainedTokenizerFast

    _checked(WEIGHTS, ("text_encoder/", "tokenizer/"))
    tokenizer = PreTrainedTokenizerFast.from_pretrained(WEIGHTS / "tokenizer", local_files_only=True)
    encoder = CLIPTextModel.from_pretrained(WEIGHTS / "text_encoder", dtype=torch.float32, local_files_only=True)
    return tokenizer, encoder.eval().requires_grad_(False)


@lru_cache(maxsize=16384)
def text_embedding(caption: str) -> torch.Tensor:
    """What the pipeline's text encoder makes of one prompt, float32 (tokens, width). One at a time, so that the last
    bits depend on no other."""
    tokenizer, encoder = _text()
    length = tokenizer.model_max_length
    ids = tokenizer(caption, padding="max_length", max_length=length, truncation=True, return_tensors="pt").input_ids
    with torch.inference_mode(False), torch.no_grad():
        embedding: torch.Tensor = encoder(ids)[0][0]
    return embedding


def identity() -> str:
    """A short name of exactly these weights, for reports."""
    networks = {name: value for name, value in _hashes(WEIGHTS).items() if name.endswith(".safetensors")}
    return hashlib.sha256(json.dumps(networks, sort_keys=True).encode()).hexdigest()[:12]
