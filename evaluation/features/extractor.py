"""Extractors: pictures -> features, and who they are. Numbers of different extractors are never comparable.

An extractor always calls its network with the same number of rows (the last batch is padded and cut), so a picture's
features do not depend on how pictures were batched.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...errors import UsageError, nearest
from ...registry import make
from ..arrays import as_pictures, full_precision
from ..sources.decode import DECODER
from .registry import FEATURES

ROWS = 64  # pictures in every call of a network; part of the preprocessing id
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Extractor:
    """From uint8 pictures (n, 3, H, W) to features (n, D), and the identity of what does it.

    network: returns features (n, D), or a mapping with "features" (n, D) and perhaps "logits" (n, classes). It is given
    what `prepare` makes of the pictures (n, ...), or the pictures themselves. Both work picture by picture.
    """

    name: str
    network: Callable[[Tensor], Any]
    weights: str  # hash, or "unknown"
    preprocessing: Mapping[str, Any] = field(default_factory=dict)  # what changes numbers before the network, by field
    side: int = 0  # pictures of another size are resized to this, and a report says so; 0: any size
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    prepare: Callable[[Tensor], Tensor] | None = None
    layer: str = ""  # which of the network's layers, where it has a name
    dtype: str = "float32"  # of the network's arithmetic; features are float32
    dim: int | None = None  # D, where it is known without running
    called: str = ""  # what a Frechet distance of these features is called, where it is not fd_<name>

    @property
    def extractor_id(self) -> str:
        """Name, hash of the weights, layer and dtype."""
        return "-".join(part for part in (self.name, self.weights[:16], self.layer, self.dtype) if part)

    @property
    def preprocessing_fields(self) -> dict[str, Any]:
        """Everything between the file and the network, field by field: decoder, resize, values, rows of a call."""
        return {**DECODER, **self.preprocessing, "rows": ROWS}

    @property
    def preprocessing_id(self) -> str:
        """Hash of `preprocessing_fields` as JSON with sorted keys."""
        return hashlib.sha256(json.dumps(self.preprocessing_fields, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def distance(self) -> str:
        """What a Frechet distance of these features is called: "fid" on the verified Inception network alone."""
        return self.called or f"fd_{self.name}"

    def __call__(self, pictures: Any) -> Tensor:
        """uint8 (N, 3, H, W) or (N, H, W, 3) -> float32 (N, D) on the CPU."""
        return self.outputs(pictures)["features"]

    def outputs(self, pictures: Any) -> dict[str, Tensor]:
        """All that the network tells of pictures as above: float32 (N, D) "features", perhaps (N, classes) "logits"."""
        batch = as_pictures(pictures)
        with full_precision(self.device):
            parts = [self._padded(part) for part in batch.split(ROWS)]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def _padded(self, part: Tensor) -> dict[str, Tensor]:
        return self.of_ready(self.ready(part))

    def ready(self, pictures: Tensor) -> Tensor:
        """uint8 (n, 3, H, W) of one size -> what the network is given, (n, ...) on the device."""
        part = pictures.contiguous().to(self.device)  # another memory format takes other kernels
        return self.prepare(part) if self.prepare else part

    def of_ready(self, ready: Tensor) -> dict[str, Tensor]:
        """One call: at most ROWS of what `ready` made, padded to ROWS, -> float32 (n, D) by output, on the CPU."""
        count = len(ready)
        if 0 < count < ROWS:
            ready = torch.cat([ready, ready[-1:].expand(ROWS - count, *ready.shape[1:])])
        found = self.network(ready)
        outputs = dict(found) if isinstance(found, Mapping) else {"features": found}
        for name in {"features", *outputs}:
            self._check(name, outputs.get(name), len(ready))
        return {name: value[:count].float().cpu() for name, value in outputs.items()}

    def _check(self, name: str, value: Any, rows: int) -> None:
        if not isinstance(value, Tensor) or value.ndim != 2 or len(value) != rows:
            shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise UsageError(
                f"extractor {self.name!r} must return {name} ({rows}, D), got {shape}; pool and flatten it"
            )


class FullCalls:
    """Pictures of mixed sizes in full calls of a network: they wait, resized, until there are ROWS of them.

    A network that resizes for itself is called at each change of size.
    """

    def __init__(self, extractor: Extractor):
        self.extractor, self.waiting = extractor, list[Tensor]()

    def take(self, pictures: Tensor) -> Iterator[dict[str, Tensor]]:
        """uint8 (n, 3, H, W) -> the outputs of the calls that became full, for pictures in their order."""
        if self.extractor.prepare is None:
            yield self.extractor.outputs(pictures)
            return
        with full_precision(self.extractor.device):
            self.waiting.append(self.extractor.ready(pictures))
        while sum(map(len, self.waiting)) >= ROWS:
            yield self._call()

    def rest(self) -> Iterator[dict[str, Tensor]]:
        """The outputs of the pictures that still wait."""
        if self.waiting:
            yield self._call()

    def _call(self) -> dict[str, Tensor]:
        together = torch.cat(self.waiting)
        now, later = together[:ROWS], together[ROWS:]
        self.waiting = [later] if len(later) else []
        with full_precision(self.extractor.device):
            return self.extractor.of_ready(now)


def open_features(features: Any, device: torch.device | str = "cpu") -> Extractor:
    """An extractor from a line, "random:seed=1", from a callable uint8 (n, 3, H, W) -> (n, D), or as it is.

    A line is a name of `FEATURES`, perhaps with settings. A module is put in eval mode and moved to the device.
    """
    if isinstance(features, Extractor):
        return features
    device = torch.device(device)
    if isinstance(features, str):
        made: Extractor = make("features", FEATURES, features, "features", device=device)
        return made
    if not callable(features):
        raise UsageError(f"features must be a name or a callable, not {type(features).__name__}")
    name = getattr(features, "__name__", type(features).__name__)
    if isinstance(features, nn.Module):
        return Extractor(name, features.eval().to(device), weights_hash(features), device=device)
    return Extractor(name, features, "unknown", device=device)


def dtype_named(name: str) -> torch.dtype:
    """float32 or bfloat16."""
    if name not in DTYPES:
        raise UsageError(f"dtype {name!r} is not to be had: {nearest(str(name), DTYPES)}")
    return DTYPES[name]


def weights_hash(module: nn.Module) -> str:
    """SHA-256 of a module's parameters and buffers, with their names, as float32."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(value.detach().cpu().float().numpy()).tobytes())
    return digest.hexdigest()
