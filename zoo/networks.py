"""The small networks beside the generator: two attribute classifiers (one judges, one guides) and the feature network.

The judge sees clean pictures, the guide sees noisy latents and the time: other inputs, architectures, seeds and
losses, so that climbing the guide's gradient does not by itself please the judge.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import UsageError
from . import world

_SIZES = {head: len(names) for head, names in world.ATTRIBUTES.items()}
_TOTAL = sum(_SIZES.values())


def _split(logits: Tensor) -> dict[str, Tensor]:
    return dict(zip(_SIZES, logits.split(list(_SIZES.values()), dim=-1)))


def as_nchw(pictures: Tensor | np.ndarray) -> Tensor:
    """uint8 pictures (N, 3, H, W) or (N, H, W, 3) -> uint8 tensor (N, 3, H, W)."""
    batch = torch.as_tensor(np.asarray(pictures) if not isinstance(pictures, Tensor) else pictures)
    if batch.dtype != torch.uint8 or batch.ndim != 4 or 3 not in (batch.shape[1], batch.shape[-1]):
        got = f"{tuple(batch.shape)} {str(batch.dtype).removeprefix('torch.')}"
        raise UsageError(
            f"pictures must be uint8 (N, 3, H, W) or (N, H, W, 3), got {got}; convert with .round().to(uint8)"
        )
    return batch if batch.shape[1] == 3 else batch.permute(0, 3, 1, 2)


def to_unit(pictures: Tensor | np.ndarray) -> Tensor:
    """uint8 pictures in either layout -> float32 (N, 3, 32, 32) in [-1, 1]; other sizes are area-resampled."""
    parts = as_nchw(pictures).split(4)  # a few at a time: floats of many large pictures leave every cache
    return torch.cat([_small(part.float().div(127.5).sub(1)) for part in parts])


def _small(batch: Tensor) -> Tensor:
    return batch if batch.shape[-2:] == (32, 32) else nn.functional.interpolate(batch, (32, 32), mode="area")


def _block(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())


class Judge(nn.Module):
    """Attributes of clean pictures. Its head sees where things are, not only that they are somewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            _block(3, 32),
            _block(32, 48, 2),
            _block(48, 64),
            _block(64, 96, 2),
            _block(96, 96),
        )
        self.place = nn.Conv2d(96, 20, 1)
        self.hidden = nn.Linear(20 * 64 + 96, 160)
        self.head = nn.Linear(160, _TOTAL)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """float (N, 3, 32, 32) in [-1, 1] -> logits of each head (N, classes)."""
        maps = self.body(x)
        flat = torch.cat([self.place(maps).flatten(1), maps.amax((2, 3))], dim=1)
        return _split(self.head(torch.relu(self.hidden(flat))).float())

    @torch.no_grad()
    def predict(self, pictures: Tensor | np.ndarray) -> dict[str, Tensor]:
        """uint8 (N, 3, H, W) or (N, H, W, 3) -> class numbers int64 (N,) of each head."""
        device = self.head.weight.device
        parts = [self(to_unit(part).to(device)) for part in as_nchw(pictures).split(256)]
        return {head: torch.cat([p[head] for p in parts]).argmax(-1).cpu() for head in _SIZES}

    def adherence(self, pictures: Tensor | np.ndarray, captions: Sequence[str]) -> dict[str, np.ndarray]:
        """Does each picture show what its caption states? float64 (N,): 1 yes, 0 no, NaN where it is not stated.

        The entry "all" is 1 where every stated attribute is right.
        """
        wanted = world.encode(world.parse(caption) for caption in captions)
        if len(wanted) != len(pictures):
            raise UsageError(f"{len(pictures)} pictures but {len(wanted)} captions; give one caption a picture")
        seen = np.stack([v.numpy() for v in self.predict(pictures).values()], axis=1)
        stated, right = wanted >= 0, wanted == seen
        result = {h: np.where(stated[:, i], right[:, i], np.nan) for i, h in enumerate(_SIZES)}
        return result | {"all": (right | ~stated).all(axis=1).astype(np.float64)}


class FeatureNetwork(nn.Module):
    """64 numbers for a picture, for distances between sets of pictures.

    Trained on attributes, on geometry and on how much a picture was blurred, made noisy or saturated.
    """

    GEOMETRY = 9  # x, y, radius of up to three objects
    DAMAGE = 3  # blur, noise, saturation

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 24, 40, 56, 72)
        strides = (1, 2, 2, 2)
        layers: list[nn.Module] = []
        for i, stride in enumerate(strides):
            layers += [nn.Conv2d(widths[i], widths[i + 1], 3, stride, 1), nn.GroupNorm(8, widths[i + 1]), nn.SiLU()]
        self.body = nn.Sequential(*layers)
        self.hidden = nn.Linear(72 * 16, 96)
        self.narrow = nn.Linear(96, 64)
        self.head = nn.Linear(64, _TOTAL + self.GEOMETRY + self.DAMAGE)

    def embed(self, x: Tensor) -> Tensor:
        """float (N, 3, 32, 32) in [-1, 1] -> float (N, 64)."""
        return self.narrow(nn.functional.silu(self.hidden(self.body(x).flatten(1))))

    def heads(self, x: Tensor) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """Attribute logits, geometry (N, 9) and damage (N, 3); used in training only."""
        logits, geometry, damage = self.head(self.embed(x)).float().split([_TOTAL, self.GEOMETRY, self.DAMAGE], dim=1)
        return _split(logits), geometry, damage

    @torch.no_grad()
    def forward(self, pictures: Tensor | np.ndarray) -> Tensor:
        """uint8 (N, 3, H, W) or (N, H, W, 3) -> float32 (N, 64)."""
        device = self.head.weight.device
        parts = [self.embed(to_unit(part).to(device)).float().cpu() for part in as_nchw(pictures).split(256)]
        return torch.cat(parts) if parts else torch.zeros(0, 64)


def _time_features(timesteps: Tensor, width: int) -> Tensor:
    frequencies = torch.exp(-math.log(1000.0) * torch.arange(width // 2, device=timesteps.device) / (width // 2))
    angles = timesteps.float()[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)


class _TimedBlock(nn.Module):
    def __init__(self, width: int, time_width: int):
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(8, width), nn.GroupNorm(8, width)
        self.conv1, self.conv2 = nn.Conv2d(width, width, 3, 1, 1), nn.Conv2d(width, width, 3, 1, 1)
        self.time = nn.Linear(time_width, 2 * width)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        scale, shift = self.time(time)[:, :, None, None].chunk(2, dim=1)
        h = self.conv1(nn.functional.silu(self.norm1(x)))
        h = self.norm2(h) * (1 + scale) + shift
        return x + self.conv2(nn.functional.silu(h))


class Guide(nn.Module):
    """Attributes of noisy latents at a time, smooth in its input: for classifier guidance."""

    WIDTH, TIME = 56, 64

    def __init__(self) -> None:
        super().__init__()
        self.time = nn.Sequential(
            nn.Linear(self.TIME, self.TIME), nn.SiLU(), nn.Linear(self.TIME, self.TIME), nn.SiLU()
        )
        self.first = nn.Conv2d(4, self.WIDTH, 3, 1, 1)
        self.blocks = nn.ModuleList(_TimedBlock(self.WIDTH, self.TIME) for _ in range(3))
        self.norm = nn.GroupNorm(8, self.WIDTH)
        self.place = nn.Conv2d(self.WIDTH, 12, 1)
        self.hidden = nn.Linear(12 * 64, 128)
        self.head = nn.Linear(128, _TOTAL)

    def forward(self, latents: Tensor, timesteps: Tensor) -> dict[str, Tensor]:
        """Scaled latents (N, 4, 8, 8) as the denoiser sees them, timesteps (N,) in 0..999 -> logits (N, classes)."""
        time = self.time(_time_features(timesteps.expand(len(latents)), self.TIME).to(latents.dtype))
        h = self.first(latents)
        for block in self.blocks:
            h = block(h, time)
        h = self.place(nn.functional.silu(self.norm(h))).flatten(1)
        return _split(self.head(nn.functional.silu(self.hidden(h))))

    def log_probability(self, latents: Tensor, timesteps: Tensor, captions: Sequence[str]) -> Tensor:
        """log p(what the caption states | noisy latents), (N,), differentiable in the latents."""
        wanted = torch.from_numpy(world.encode(world.parse(c) for c in captions)).to(latents.device)
        total = latents.new_zeros(len(latents))
        for i, logits in enumerate(self(latents, timesteps).values()):
            stated = wanted[:, i] >= 0
            chosen = logits.log_softmax(-1).gather(1, wanted[:, i : i + 1].clamp(min=0))[:, 0]
            total = total + torch.where(stated, chosen, torch.zeros_like(chosen))
        return total
