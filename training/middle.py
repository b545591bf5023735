"""What the middle of a network makes of its input: the features that a discriminator looks at."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UsageError
from ..samplers.denoiser import raw_output
from .sharding import let_go

_TOKENS = ("hidden_states", "x", "visual_embed")  # what a block calls the picture's tokens
_ASIDE = ("refiner", "text", "caption", "context", "vace", "face", "control")  # lists of blocks beside the trunk


class _Reached(Exception):
    """The part of the network that was wanted has been computed."""


def middle_features(network: nn.Module, call: Callable[[], Any], shape: tuple[int, ...]) -> Tensor:
    """Runs `call`, which calls the network, until its middle; nothing after that is computed.

    Of a UNet what the middle block gives, (B, C, H, W). Of a transformer what reaches the block in the middle of its
    trunk: (B, C, H, W) if these are the tokens of a picture of `shape` (C, H, W), else (B, C, N, 1).
    """
    found: list[Tensor] = []

    def leave(tensor: Tensor) -> None:
        found.append(tensor)
        raise _Reached

    if getattr(network, "mid_block", None) is not None:
        part: Any = network.mid_block
        hook = part.register_forward_hook(lambda module, inputs, output: leave(raw_output(output)))
    else:
        blocks = _trunk(network)
        part = blocks[len(blocks) // 2]
        hook = part.register_forward_pre_hook(
            lambda module, args, kwargs: leave(_tokens(module, args, kwargs)), with_kwargs=True
        )
    try:
        call()
    except _Reached:
        pass
    finally:
        hook.remove()
        if not torch.is_grad_enabled():  # with a graph the backward pass does it
            let_go(network)
    return _as_picture(found[0], shape)


def _trunk(network: nn.Module) -> list[nn.Module]:
    """The blocks that the picture's tokens pass one after another."""
    lists = [
        list(part)
        for name, part in network.named_children()
        if isinstance(part, nn.ModuleList) and len(part) and not any(word in name for word in _ASIDE)
    ]
    blocks = [block for part in lists if _name(part[0]) is not None for block in part]
    if not blocks:
        raise UsageError(f"{type(network).__name__} has no blocks whose tokens could be looked at")
    return blocks


def _name(block: nn.Module) -> str | None:
    """Of the block's argument that holds the picture's tokens."""
    taken = inspect.signature(type(block).forward).parameters
    return next((name for name in _TOKENS if name in taken), None)


def _tokens(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    names = list(inspect.signature(type(block).forward).parameters)[1:]
    name = _name(block)
    assert name is not None
    tokens: Tensor = {**dict(zip(names, args, strict=False)), **kwargs}[name]
    return tokens


def _as_picture(features: Tensor, shape: tuple[int, ...]) -> Tensor:
    if features.dim() != 3:
        return features
    tokens, (height, width) = features.mT, shape[-2:]
    side = next((side for side in range(1, height + 1) if _fits(side, height, width, features.shape[1])), None)
    if side is None or len(shape) > 3:
        return tokens.unsqueeze(3)
    return tokens.unflatten(2, (height // side, width // side))


def _fits(side: int, height: int, width: int, tokens: int) -> bool:
    """Are these the patches of so many latents a side?"""
    return height % side == width % side == 0 and (height // side) * (width // side) == tokens
