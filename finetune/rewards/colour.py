"""Colour, saturation and brightness of a picture."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from ...errors import UsageError, nearest
from ...guidance.gradient.losses import rgb_of
from .reward import Reward
from .sight import shown

OVER = ("pixels", "mean")
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
DARKEST = 1 / 255  # added to the largest channel: below one step of a byte, saturation has no meaning


def colour(target: str = "red", over: str = "pixels", device: torch.device | str = "cpu") -> Reward:
    """Minus the distance to a target colour, RMS over the channels: -1..0.

    target: a colour of the embedded world, of the web ("tomato") or "#4488ff". over "pixels": the mean distance of the
    pixels, so all of the picture takes the colour; "mean": the distance of the mean colour, the structure stays free.
    """
    if over not in OVER:
        raise UsageError(f"colour over {over!r} is not to be had: {nearest(str(over), OVER)}")
    wanted = torch.tensor(rgb_of(target), device=device)
    return Reward(f"colour:target={target}", partial(_near_colour, wanted, over), range="-1..0", preprocessing="none")


def _near_colour(wanted: Tensor, over: str, pictures: Tensor, prompts: Sequence[str]) -> Tensor:
    values = shown(pictures).flatten(2)
    if over == "mean":
        values = values.mean(2, keepdim=True)
    apart = values - wanted.to(values)[:, None]
    # vector_norm has the gradient 0 at 0, where sqrt has none.
    return -torch.linalg.vector_norm(apart, dim=1).mean(1) / 3**0.5


def saturation(device: torch.device | str = "cpu") -> Reward:
    """The mean over the pixels of (max - min) / (max + 1/255) of the channels: that of HSV, 0..1.

    The 1/255 keeps the gradient of black pixels below 255 over their number.
    """
    return Reward("saturation", _saturation, range="0..1", preprocessing="none")


def _saturation(pictures: Tensor, prompts: Sequence[str]) -> Tensor:
    values = shown(pictures)
    largest = values.amax(1)
    return ((largest - values.amin(1)) / (largest + DARKEST)).flatten(1).mean(1)


def brightness(device: torch.device | str = "cpu") -> Reward:
    """The mean luma, .299 R + .587 G + .114 B (BT.601): 0..1."""
    return Reward("brightness", _brightness, range="0..1", preprocessing="none")


def _brightness(pictures: Tensor, prompts: Sequence[str]) -> Tensor:
    weights = pictures.new_tensor(LUMA)[:, None, None]
    return (shown(pictures) * weights).sum(1).flatten(1).mean(1)
