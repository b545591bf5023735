"""Further prompts of a rule under `attach`: the network's conditioning for a text, in the pipeline's own words.

An encoder takes the pipeline, a text, and the network's arguments for the conditional rows; it returns what changes in
them, one row that all pictures share. It runs inside the pipeline's call, whose settings it follows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from ...errors import UsageError
from .adapter import Arguments, local_of

Encoder = Callable[[Any, str, Arguments], Mapping[str, Any]]


def stable_diffusion(pipe: Any, text: str, arguments: Arguments) -> Mapping[str, Any]:
    embeds, _ = pipe.encode_prompt(text, pipe._execution_device, 1, False, **_as_called(pipe))
    return {"encoder_hidden_states": embeds}


def stable_diffusion_xl(pipe: Any, text: str, arguments: Arguments) -> Mapping[str, Any]:
    embeds, _, pooled, _ = pipe.encode_prompt(
        text, device=pipe._execution_device, do_classifier_free_guidance=False, **_as_called(pipe)
    )
    return {"encoder_hidden_states": embeds, "added_cond_kwargs": {"text_embeds": pooled}}


def stable_diffusion_3(pipe: Any, text: str, arguments: Arguments) -> Mapping[str, Any]:
    embeds, _, pooled, _ = pipe.encode_prompt(
        text, None, None, device=pipe._execution_device, do_classifier_free_guidance=False,
        max_sequence_length=local_of(pipe, "max_sequence_length"), clip_skip=pipe.clip_skip,
    )  # fmt: skip
    return {"encoder_hidden_states": embeds, "pooled_projections": pooled}


def flux(pipe: Any, text: str, arguments: Arguments) -> Mapping[str, Any]:
    embeds, pooled, _ = pipe.encode_prompt(
        text, device=pipe._execution_device, max_sequence_length=local_of(pipe, "max_sequence_length")
    )
    return {"encoder_hidden_states": embeds, "pooled_projections": pooled}


def class_number(pipe: Any, text: str, arguments: Arguments) -> Mapping[str, Any]:
    """A class by its number, or by a name of the pipeline's table."""
    names = getattr(pipe, "labels", None) or {}
    if not text.isdecimal() and text not in names:
        raise UsageError(f"{type(pipe).__name__} draws classes and has none called {text!r}; give a class number")
    label = int(text) if text.isdecimal() else pipe.get_label_ids([text])[0]
    return {"class_labels": arguments["class_labels"].new_full((1,), label)}


def _as_called(pipe: Any) -> dict[str, Any]:
    """The settings of the present call that change what a text means."""
    scale = (getattr(pipe, "cross_attention_kwargs", None) or {}).get("scale")
    return {"lora_scale": scale, "clip_skip": getattr(pipe, "clip_skip", None)}


def encoded(encoder: Encoder, pipe: Any, text: str, arguments: Arguments) -> Mapping[str, Any]:
    """What the text changes in the network's arguments; tensors of one row without a graph."""
    if not hasattr(pipe, "encode_prompt") and encoder is not class_number:
        raise UsageError(f"{type(pipe).__name__} has no encode_prompt, so it cannot be given the prompt {text!r}")
    with torch.inference_mode(False), torch.no_grad():
        return encoder(pipe, text, arguments)


def with_changes(arguments: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments with some of them exchanged, inside of mappings too: as many rows, the same dtype and device."""
    merged = dict(arguments)
    for name, value in changes.items():
        before = merged.get(name)
        if isinstance(value, Mapping):
            merged[name] = with_changes(before or {}, value)
        elif isinstance(before, torch.Tensor):
            merged[name] = value.to(before.device, before.dtype).expand(len(before), *value.shape[1:])
        else:
            merged[name] = value
    return merged
