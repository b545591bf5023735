"""How the numbers of a picture's latents lie in the x of a pipeline and in what its VAE is given.

Both are found by handing the pipeline numbers of which the places are known: permutations are read off, and so are the
factor and the shift of every place. The numbers are digits, small enough to be exact in half precision.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ...errors import UsageError
from ...samplers.schedule import is_flow
from .adapter import Arguments
from .capture import Call, Told, given_to_decoder, told_of_noise

BASE = 64


@dataclass(frozen=True)
class Arrangement:
    """shape: of a picture's latents. tokens: of the same in the pipeline's x. order: x.flatten() is the picture's
    flattened latents at these places; None where they are in order."""

    shape: tuple[int, ...]
    tokens: tuple[int, ...]
    order: Tensor | None = None

    def pack(self, x: Tensor) -> Tensor:
        """(B, *shape) -> (B, *tokens)"""
        if self.order is not None:
            x = x.flatten(1).index_select(1, self.order.to(x.device))
        return x.reshape(-1, *self.tokens)

    def unpack(self, x: Tensor) -> Tensor:
        """(B, *tokens) -> (B, *shape)"""
        if self._back is not None:
            x = x.flatten(1).index_select(1, self._back.to(x.device))
        return x.reshape(-1, *self.shape)

    @cached_property
    def _back(self) -> Tensor | None:
        return None if self.order is None else self.order.argsort()


@dataclass(frozen=True)
class Tail:
    """The VAE's latents are scale * latents + shift, at other places: the pipeline's own map, inverted by `back`."""

    arrangement: Arrangement
    scale: Tensor
    shift: Tensor
    further: Arguments

    def into(self, latents: Tensor) -> Tensor:
        """(B, *shape), the network's scaling -> what the VAE decodes."""
        z = self.arrangement.pack(latents)
        return z * self.scale + self.shift

    def back(self, z: Tensor) -> Tensor:
        """What the VAE encodes -> (B, *shape), the network's scaling."""
        return self.arrangement.unpack((z - self.shift) / self.scale)


def found_arrangement(call: Call) -> tuple[Arrangement, list[Told]]:
    """Of the pipeline's first noise in its first x, and what the network was told for different noise. UsageError where
    x is no rearranged noise."""
    captures: list[tuple[Told, tuple[int, ...]]] = []

    def seen(values: Callable[[int], Tensor]) -> Tensor:
        captures.append(told_of_noise(call, values))
        return captures[-1][0].x

    ones = seen(torch.ones)
    told, noise = captures[0]
    scale = ones.flatten().double().cpu()
    if is_flow(call.pipe.scheduler) and abs(float(scale.max()) - 1) > 1e-2:
        raise UsageError(f"{call.name} starts from noise of size {scale.max():.3g}; only unit noise can be learnt from")
    places = _places(lambda digits: seen(lambda n: digits), told.x.numel(), scale, 0.0, call.name)
    shape, order = _as_picture(noise, places, call.adapter.channel_axis)
    order = None if order is None else order.to(told.x.device)
    return Arrangement(shape, tuple(told.x.shape[1:]), order), [told for told, _ in captures]


def _as_picture(noise: Sequence[int], places: Tensor, channel_axis: int) -> tuple[tuple[int, ...], Tensor | None]:
    """The shape of a picture, channels first and without axes of one, and the places in it."""
    axes = [axis for axis in range(1, len(noise)) if noise[axis] != 1 or (axis == 1 and len(noise) == 4)]
    if len(noise) == 5 and channel_axis == 4:
        axes = [4, *(axis for axis in axes if axis != 4)]
    whole = torch.arange(torch.Size(noise).numel()).view(*noise)
    moved = whole.permute(0, *axes, *(axis for axis in range(1, len(noise)) if axis not in axes)).flatten()
    order = moved.argsort()[places]
    shape = tuple(noise[axis] for axis in axes)
    return shape, None if torch.equal(order, torch.arange(len(order))) else order


def found_tail(call: Call, vae: Any, arrangement: Arrangement) -> Tail:
    """Of the pipeline's last x on its way to the VAE. UsageError where that is more than a factor and a shift a
    place."""

    def decoded(latents: Tensor) -> Tensor:
        z, _ = given_to_decoder(call, vae, arrangement.pack(latents.float().view(1, *arrangement.shape)))
        return z[:1].flatten().double().cpu()

    size = torch.Size(arrangement.shape).numel()
    z, further = given_to_decoder(call, vae, arrangement.pack(torch.zeros(1, *arrangement.shape)))
    shift = z[:1].flatten().double().cpu()
    scale = decoded(torch.ones(size)) - shift
    places = _places(decoded, size, scale, shift, call.name)
    probe = torch.linspace(-3, 3, size, dtype=torch.float64)
    if not torch.allclose(decoded(probe), scale * probe[places] + shift, rtol=1e-3, atol=1e-3):
        raise UsageError(f"{call.name} does more than scale and shift its latents before the VAE; it cannot be used")
    order = None if torch.equal(places, torch.arange(size)) else places
    whole = tuple(z.shape[1:])
    scale, shift = (values.float().view(1, *whole).to(z.device) for values in (scale, shift))
    return Tail(
        Arrangement(arrangement.shape, whole, None if order is None else order.to(z.device)), scale, shift, further
    )


def _places(seen: Callable[[Tensor], Tensor], size: int, scale: Tensor, shift: Any, name: str) -> Tensor:
    """Where every number went: y[i] = scale[i] * x[places[i]] + shift[i], found digit by digit."""
    places, numbers, unit = torch.zeros(len(scale), dtype=torch.long), torch.arange(size), 1
    while unit < size:
        y = seen((numbers // unit % BASE).float()).flatten().double().cpu()
        places += ((y - shift) / scale).round().nan_to_num(-1).long() * unit
        unit *= BASE
    if len(scale) != size or not torch.equal(places.sort().values, numbers):
        raise UsageError(f"{name} does not keep every number of its latents in a place of its own; it cannot be used")
    return places
