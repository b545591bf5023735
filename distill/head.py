"""The head of a discriminator: one logit a row from features of a network that somebody else owns, and its losses.

At its best, sigmoid(logit) = p_real / (p_real + p_fake), so the logit is the log-ratio of the densities.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss, softplus

from ..errors import UsageError

_GROUPS, _A_GROUP = 32, 4  # at most so many groups, of at least so many channels: a group of one value tells nothing


class Head(nn.Module):
    """Logits (B,), high for real, of feature maps (B, C, H, W) or vectors (B, C).

    A map: 4x4 convolutions of stride 2 down to 4x4 or less, one to 1x1, one to the logit, with GroupNorm and SiLU
    between them (the head of DMD2, Yin et al. 2024, arXiv 2405.14867, and of f-distill). A vector: three layers.

    shape: of the features of one row, (C, H, W) or (C,). width: channels inside; C by default. seed: of the weights.
    The logit starts at 0 everywhere, ratio 1. Computes in float32, under autocast too.
    """

    def __init__(self, shape: Sequence[int], seed: int = 0, width: int | None = None):
        super().__init__()
        if len(shape) not in (1, 3) or min(shape) < 1:
            raise UsageError(f"a head takes features (C, H, W) or (C,), not {tuple(shape)}; reshape tokens to a map")
        self.shape = tuple(shape)
        with torch.device("meta"):  # no weights are drawn here, so the global generator is left alone
            self.layers = _of_map(self.shape, width) if len(shape) == 3 else _of_vector(shape[0], width)
        self.layers.to_empty(device="cpu")
        _draw(self.layers, seed)

    def forward(self, features: Tensor) -> Tensor:
        if features.shape[1:] != self.shape:
            raise UsageError(f"this head takes features {self.shape}, not {tuple(features.shape[1:])}")
        with torch.autocast(features.device.type, enabled=False):
            return self.layers(features.float()).flatten()


def _of_map(shape: Sequence[int], width: int | None) -> nn.Sequential:
    channels, height, breadth = shape
    width = width or channels
    layers: list[nn.Module] = []
    while max(height, breadth) > 4:
        (kh, sh, ph), (kw, sw, pw) = _halving(height), _halving(breadth)
        layers += [nn.Conv2d(channels, width, (kh, kw), (sh, sw), (ph, pw)), *_between(width)]
        channels, height, breadth = width, height // sh, breadth // sw
    layers += [nn.Conv2d(channels, width, (height, breadth)), *_between(width), nn.Conv2d(width, 1, 1)]
    return nn.Sequential(*layers)


def _halving(side: int) -> tuple[int, int, int]:
    """Kernel, stride and padding along a side; one of 4 or less stays as it is."""
    return (4, 2, 1) if side > 4 else (1, 1, 0)


def _of_vector(channels: int, width: int | None) -> nn.Sequential:
    width = width or max(channels, 64)
    return nn.Sequential(nn.Linear(channels, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 1))


def _between(channels: int) -> list[nn.Module]:
    groups = max(n for n in range(1, _GROUPS + 1) if channels % n == 0 and (n == 1 or channels // n >= _A_GROUP))
    return [nn.SiLU()] if channels == 1 else [nn.GroupNorm(groups, channels), nn.SiLU()]


def _draw(layers: nn.Sequential, seed: int) -> None:
    """Kaiming's uniform weights as torch's layers have them, from a seed; the last layer is 0."""
    generator = torch.Generator().manual_seed(seed)
    for layer in layers:
        if isinstance(layer, nn.GroupNorm):
            nn.init.ones_(layer.weight)
            nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_uniform_(layer.weight, a=math.sqrt(5), generator=generator)
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    nn.init.zeros_(layers[-1].weight)  # type: ignore[arg-type]


def head_loss(fake_logits: Tensor, real_logits: Tensor) -> Tensor:
    """mean softplus(fake) + mean softplus(-real): the cross-entropy of telling apart. Logits (B,) or (B, heads)."""
    return softplus(fake_logits.float()).mean() + softplus(-real_logits.float()).mean()


def generator_loss(fake_logits: Tensor) -> Tensor:
    """mean softplus(-fake): the non-saturating loss of who makes the fakes. Logits (B,) or (B, heads)."""
    return softplus(-fake_logits.float()).mean()


def r1(logits: Tensor, logits_noised: Tensor) -> Tensor:
    """mean (D(x) - D(x + noise))^2: with noise of deviation s about s^2 |grad D|^2, without a second derivative.

    Take s = 0.1 on real samples; weights of 100 to 1000 are usual, 0 is off.
    """
    return mse_loss(logits_noised.float(), logits.float())
