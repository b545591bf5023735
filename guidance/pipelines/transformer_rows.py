"""Rows of pipelines that draw single pictures with a transformer."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from torch import Tensor

from .adapter import Adapter, Arguments


def _null_class(pipe: Any, arguments: Arguments) -> bool:
    """DiT keeps its flag in a local variable; the guided call ends with the null class."""
    labels = arguments["class_labels"]
    return len(labels) % 2 == 0 and _last(labels) == pipe.transformer.config.num_embeds_ada_norm


@lru_cache(maxsize=2)
def _last(labels: Tensor) -> int:
    """The last entry, read from the device once a run: every step brings the same tensor."""
    return int(labels[-1])


def _not_truncated(pipe: Any, arguments: Arguments) -> bool:
    """Z-Image stops guiding late in the run when `cfg_truncation` says so; its network is told 1 - t."""
    cut = getattr(pipe, "_cfg_truncation", None)
    truncated = cut is not None and float(cut) <= 1 and float(arguments["t"].reshape(-1)[0]) > float(cut)
    return bool(pipe.do_classifier_free_guidance) and not truncated


TRANSFORMERS: dict[str, Adapter] = {
    "DiTPipeline": Adapter(
        branches=("cond", "uncond"),
        batched=("hidden_states", "timestep", "class_labels"),
        conditioned_by=("class_labels",),
        sample="hidden_states",
        network="transformer",
        guides=_null_class,
        notes="learned sigma: the conditional half is kept",
    ),
    "StableDiffusion3Pipeline": Adapter(
        batched=("hidden_states", "timestep", "encoder_hidden_states", "pooled_projections"),
        conditioned_by=("encoder_hidden_states", "pooled_projections"),
        sample="hidden_states",
        network="transformer",
    ),
    "FluxPipeline": Adapter(
        layout="in turn",
        branches=("cond", "uncond"),
        batched=("hidden_states", "timestep", "guidance", "encoder_hidden_states", "pooled_projections"),
        conditioned_by=("encoder_hidden_states", "pooled_projections"),
        sample="hidden_states",
        network="transformer",
        network_time=lambda t: t / 1000,
        on="true_cfg_scale above 1 (its value has no effect) and a negative_prompt, which may be empty",
        on_settings=(("true_cfg_scale", 2.0), ("negative_prompt", "")),
    ),
    "ZImagePipeline": Adapter(
        layout="listed",
        branches=("cond", "uncond"),
        batched=("x", "t", "cap_feats"),
        conditioned_by=("cap_feats",),
        sample="x",
        time="t",
        network_time=lambda t: (1000 - t) / 1000,
        network="transformer",
        guides=_not_truncated,
        on="guidance_scale above 0 (its value has no effect)",
        on_settings=(("guidance_scale", 2.0),),
        flip=True,
    ),
}

REFUSED: dict[str, str] = {}
