"""Extractors: pictures -> features, and who they are. Numbers of different extractors are never comparable.

An extractor always calls its network with the same number of rows (the last batch is padded and cut), so a picture's
features do not depend on how pictures were batched.
"""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import UsageError
from ..registry import Spec, lookup
from .arrays import as_pictures, full_precision
from .decode import DECODER

ROWS = 64  # pictures in every call of a network; part of the preprocessing id


@dataclass(frozen=True)
class Extractor:
    """A network from uint8 pictures (n, 3, H, W) to features (n, D), and its identity.

    side: pictures of another size are resized by the network, and a report says so. 0: any size.
    """

    name: str
    network: Callable[[Tensor], Tensor]
    weights: str  # hash, or "unknown"
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    side: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def extractor_id(self) -> str:
        """Name, hash of the weights and dtype of the features."""
        return f"{self.name}-{self.weights[:16]}-float32"

    @property
    def preprocessing_id(self) -> str:
        """Hash of everything between the file and the network; see `evaluation.md` 4.3."""
        text = json.dumps({**DECODER, **self.preprocessing, "rows": ROWS}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def __call__(self, pictures: Any) -> Tensor:
        """uint8 (N, 3, H, W) or (N, H, W, 3) -> float32 (N, D) on the CPU."""
        batch = as_pictures(pictures)
        with full_precision(self.device):
            parts = [self._padded(part) for part in batch.split(ROWS)]
        return torch.cat(parts)

    def _padded(self, part: Tensor) -> Tensor:
        count = len(part)
        if 0 < count < ROWS:
            part = torch.cat([part, part[-1:].expand(ROWS - count, -1, -1, -1)])
        found = self.network(part.contiguous().to(self.device))  # another memory format takes other kernels
        if not isinstance(found, Tensor) or found.ndim != 2 or len(found) != len(part):
            shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise UsageError(f"extractor {self.name!r} must return ({len(part)}, D), got {shape}; pool and flatten it")
        return found[:count].float().cpu()


def open_features(features: Any, device: torch.device | str = "cpu") -> Extractor:
    """An extractor by its name in `FEATURES`, from a callable uint8 (n, 3, H, W) -> (n, D), or as it is.

    A module is put in eval mode and moved to the device.
    """
    if isinstance(features, Extractor):
        return features
    device = torch.device(device)
    if isinstance(features, str):
        made: Extractor = lookup("features", FEATURES, features, "features").load()(device=device)
        return made
    if not callable(features):
        raise UsageError(f"features must be a name or a callable, not {type(features).__name__}")
    name = getattr(features, "__name__", type(features).__name__)
    if isinstance(features, nn.Module):
        return Extractor(name, features.eval().to(device), weights_hash(features), device=device)
    return Extractor(name, features, "unknown", device=device)


def embedded(device: torch.device | str = "cpu") -> Extractor:
    """64 features of the embedded world's own network (trained on its attributes, on blur, noise and saturation)."""
    network = importlib.import_module("pilotage.zoo.embedded").features().to(device)
    preprocessing = {"size": 32, "resize": "area", "range": [-1, 1]}
    return Extractor("embedded", network, weights_hash(network), preprocessing, 32, torch.device(device))


def random(device: torch.device | str = "cpu", seed: int = 0) -> Extractor:
    """64 features of seeded random convolutions: needs no weights, sees blur, noise and colour, hardly sees classes."""
    network = RandomConvolutions(seed).eval().to(device)
    preprocessing = {"size": 32, "resize": "bilinear, antialias, half-pixel", "range": [-1, 1]}
    return Extractor("random", network, weights_hash(network), preprocessing, 32, torch.device(device))


def pixels(device: torch.device | str = "cpu") -> Extractor:
    """192 features: the picture itself at 8x8. A baseline that any other space must beat; slight blur improves it."""
    preprocessing = {"size": 8, "resize": "area", "range": [-1, 1]}
    return Extractor("pixels", _thumbnail, "none", preprocessing, 0, torch.device(device))


def _thumbnail(pictures: Tensor) -> Tensor:
    return nn.functional.interpolate(pictures.float().div(127.5).sub(1), (8, 8), mode="area").flatten(1)


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

    def forward(self, pictures: Tensor) -> Tensor:
        """uint8 (N, 3, H, W) -> float32 (N, 64)."""
        x = pictures.float().div(127.5).sub(1)
        if x.shape[-2:] != (self.SIDE, self.SIDE):
            x = nn.functional.interpolate(x, (self.SIDE, self.SIDE), mode="bilinear", antialias=True)
        for i in range(len(self.WIDTHS) - 1):
            x = nn.functional.leaky_relu(nn.functional.conv2d(x, self.get_buffer(f"kernel{i}"), None, 2, 1), 0.2)
        cells = x.unflatten(3, (2, -1)).unflatten(2, (2, -1)).movedim(4, 3).flatten(4)  # (N, C, 2, 2, pixels)
        statistics = torch.cat([cells.mean(-1).flatten(1), cells.std(-1, correction=0).flatten(1)], 1)
        return statistics @ self.get_buffer("project").T


def weights_hash(module: nn.Module) -> str:
    """SHA-256 of a module's parameters and buffers, with their names, as float32."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(value.detach().cpu().float().numpy()).tobytes())
    return digest.hexdigest()


FEATURES: dict[str, Spec] = {
    "embedded": Spec(
        embedded,
        "64 features of a network trained on the embedded world",
        cost="5 M multiply-adds a picture",
        needs=("pictures of the embedded world",),
    ),
    "random": Spec(
        random,
        "64 features of seeded random convolutions; no weights",
        "Naeem et al. 2020, 2002.09797, section 5 (R64)",
        notes="Deterministic. Sees blur, noise and colour, hardly sees classes.",
    ),
    "pixels": Spec(
        pixels,
        "the picture itself at 8x8, as a baseline",
        notes="Any other space should beat it; slight blur improves its distances.",
    ),
}
