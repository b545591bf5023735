"""Seeded random convolutions: features without weights to fetch."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from .extractor import Extractor, weights_hash


def random(device: torch.device | str = "cpu", seed: int = 0) -> Extractor:
    """64 features of seeded random convolutions: needs no weights, sees blur, noise and colour, hardly sees classes."""
    network = RandomConvolutions(seed).eval().to(device)
    preprocessing = {
        "resize": "bilinear",
        "size": network.SIDE,
        "antialias": True,
        "centres": "half-pixel",
        "rounding": "none",
        "mapping": "x / 127.5 - 1",
    }
    return Extractor(
        "random", network, weights_hash(network), preprocessing, network.SIDE, torch.device(device), dim=network.OUT
    )


class RandomConvolutions(nn.Module):
    """Three strided random convolutions, mean and deviation over a 2x2 grid, a random projection to 64.

    After R64 of Naeem et al. 2020, 2002.09797, section 5. Weights are drawn with NumPy's PCG64 in float64, then cast,
    so that they are the same on every platform.
    """

    WIDTHS = (3, 24, 48, 64)
    SIDE, OUT = 32, 64

    def __init__(self, seed: int = 0):
        super().__init__()
        rng = np.random.Generator(np.random.PCG64(seed))

        def drawn(*shape: int) -> Tensor:
            return torch.from_numpy(rng.standard_normal(shape) * (2 / np.prod(shape[1:])) ** 0.5).float()

        for i, (inputs, outputs) in enumerate(zip(self.WIDTHS, self.WIDTHS[1:])):
            self.register_buffer(f"kernel{i}", drawn(outputs, inputs, 3, 3))
        self.register_buffer("project", drawn(self.OUT, 8 * self.WIDTHS[-1]))

    def _small(self, pictures: Tensor) -> Tensor:
        x = pictures.float().div(127.5).sub(1)
        if x.shape[-2:] == (self.SIDE, self.SIDE):
            return x
        return nn.functional.interpolate(x, (self.SIDE, self.SIDE), mode="bilinear", antialias=True)

    def forward(self, pictures: Tensor) -> Tensor:
        """uint8 (N, 3, H, W) -> float32 (N, 64)."""
        x = torch.cat([self._small(part) for part in pictures.split(4)])  # floats of many large ones leave every cache
        for i in range(len(self.WIDTHS) - 1):
            x = nn.functional.leaky_relu(nn.functional.conv2d(x, self.get_buffer(f"kernel{i}"), None, 2, 1), 0.2)
        cells = x.unflatten(3, (2, -1)).unflatten(2, (2, -1)).movedim(4, 3).flatten(4)  # (N, C, 2, 2, pixels)
        statistics = torch.cat([cells.mean(-1).flatten(1), cells.std(-1, correction=0).flatten(1)], 1)
        return statistics @ self.get_buffer("project").T
