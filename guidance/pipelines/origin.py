"""What runs under `attach`, for rules that were fitted to one model, scheduler and negative prompt."""

from __future__ import annotations

import hashlib
from typing import Any

from torch import nn

from ...errors import UsageError
from .adapter import local_of

_LOOKED_AT = 16  # parameters, and entries of each


def origin_of(module: nn.Module, scheduler: Any, pipe: Any = None) -> dict[str, str]:
    """By name: "network", a name of exactly these weights; "scheduler", its class; and from a pipeline that is running,
    "negative", its negative prompt, absent where it was given none, embeddings or several."""
    found = {"network": network_name(module), "scheduler": type(scheduler).__name__}
    negative = None if pipe is None else _negative(pipe)
    return found if negative is None else {**found, "negative": negative}


def network_name(module: nn.Module) -> str:
    """Class and a hash of shapes and of some entries of its parameters: other weights, another precision or a LoRA have
    another name. Parameters that are away (offloaded) count by their shape."""
    digest, named = hashlib.sha256(), list(module.named_parameters())
    for name, parameter in named:
        digest.update(f"{name}{tuple(parameter.shape)}{parameter.dtype}".encode())
    for _, parameter in named[:: max(1, len(named) // _LOOKED_AT)]:
        if parameter.device.type != "meta":
            entries = parameter.detach().flatten()[:_LOOKED_AT].double().cpu()
            digest.update(entries.numpy().tobytes())
    inner: Any = getattr(module, "_orig_mod", module)
    return f"{type(inner).__name__}-{digest.hexdigest()[:12]}"


def _negative(pipe: Any) -> str | None:
    try:
        given = local_of(pipe, "negative_prompt")
    except UsageError:  # this pipeline has none
        return None
    several = {given} if isinstance(given, str) else set(given or ())
    return several.pop() if len(several) == 1 else None


def prompts_of(pipe: Any, rows: int) -> tuple[str, ...] | None:
    """The prompt of each row in the pipeline's present call; None where it was given embeddings or has no prompt."""
    try:
        given = local_of(pipe, "prompt")
    except UsageError:
        return None
    prompts = (given,) if isinstance(given, str) else tuple(given or ())
    if not prompts or rows % len(prompts) or not all(isinstance(prompt, str) for prompt in prompts):
        return None
    return tuple(prompt for prompt in prompts for _ in range(rows // len(prompts)))
