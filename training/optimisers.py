"""Optimisers by name, and what is averaged over processes before they step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UsageError

OPTIMISERS = ("adamw", "adamw8bit")
BYTES = {"adamw": 8, "adamw8bit": 2}  # of state for each trained parameter


def make_optimiser(
    name: str,
    parameters: Sequence[nn.Parameter],
    rate: float,
    betas: tuple[float, float] = (0.9, 0.999),
    decay: float = 1e-4,
) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter 2017, arXiv 1711.05101), or with its state in 8 bits where bitsandbytes is there."""
    if name not in OPTIMISERS:
        raise UsageError(f"unknown optimiser {name!r}: known: {', '.join(OPTIMISERS)}")
    if name == "adamw":
        return torch.optim.AdamW(parameters, lr=rate, betas=betas, weight_decay=decay)
    if not available(name):
        raise UsageError("adamw8bit needs bitsandbytes, which is not installed: pip install bitsandbytes, or use adamw")
    import bitsandbytes  # type: ignore[import-not-found, unused-ignore]

    made: torch.optim.Optimizer = bitsandbytes.optim.AdamW8bit(parameters, lr=rate, betas=betas, weight_decay=decay)
    return made


def available(name: str) -> bool:
    """Is what this optimiser needs installed?"""
    from importlib.util import find_spec

    return name != "adamw8bit" or find_spec("bitsandbytes") is not None


def average_gradients(parameters: Sequence[nn.Parameter], reduce: Callable[[Tensor], Tensor]) -> None:
    """The gradients of all processes, averaged, as one vector; a missing gradient is zero. reduce: a vector's mean."""
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    grads: list[Any] = [parameter.grad for parameter in parameters]
    mean = reduce(torch.cat([grad.flatten() for grad in grads]))
    for grad, part in zip(grads, mean.split([grad.numel() for grad in grads]), strict=True):
        grad.copy_(part.view_as(grad))
