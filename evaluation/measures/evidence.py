"""Two sets in one feature space, and what several metrics share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...errors import UsageError, nearest
from ..collect import Collected
from ..features import Extractor
from ..metrics.clipped_balls import ClippedBalls, clipped_balls
from ..metrics.prdc import PRDC, SETTINGS, prdc
from ..results import Result
from ..space import Space

SEED = 0  # of the split into halves, and of every subset that is drawn
NO_INTERVAL = "none: repeat the generation with other seeds"


@dataclass
class Evidence:
    """Collected sets as one extractor sees them. What several metrics share is computed once, when it is first wanted.

    real: what the pictures should be like. train, test: what the model was trained on, and what it was not, for the
    metrics of memorisation. space: the name of the extractor, which is there where pictures were read; "" where no
    features were asked for.
    """

    generated: Collected
    k: int
    device: torch.device
    real: Collected | None = None
    space: str = ""
    train: Collected | None = None
    test: Collected | None = None
    extractor: Extractor | None = None
    with_recall: bool = True
    provenance: Mapping[str, Any] = field(default_factory=dict)
    _presets: dict[str, tuple[PRDC, PRDC | None]] = field(default_factory=dict, repr=False, init=False)

    @property
    def reference(self) -> Collected:
        """The real pictures."""
        return self._needed("real")

    def _needed(self, which: str) -> Collected:
        found: Collected | None = getattr(self, which)
        if found is None:
            raise UsageError(f"this metric needs {which} pictures; give {which}=, for example embedded:test:2000")
        return found

    def seen(self, which: str) -> Space:
        """One of the sets ("generated", "real", "train", "test") in this space."""
        return self._needed(which).space(self.space)

    def rows(self, which: str, output: str = "features") -> Tensor:
        """float32 (N, D) of one of the sets on the device: its features, or another output of the extractor."""
        space = self.seen(which)
        if output == "features":
            return space.features.to(self.device)
        if output not in space.outputs:
            raise UsageError(f"the features {space.name} have no {output}; use --features inception:weights=FILE")
        return space.outputs[output].to(self.device)

    def texts(self, which: str) -> list[str]:
        """The captions of one of the sets. Errors: a picture has none."""
        collected = self._needed(which)
        missing = [key for key, text in zip(collected.keys, collected.texts, strict=True) if text is None]
        if missing or not collected.keys:
            fix = "put a captions.csv (file,caption) beside the pictures, or pass captions="
            raise UsageError(f"{collected.name}: picture {(missing or ['?'])[0]} has no caption; {fix}")
        return [text for text in collected.texts if text is not None]

    @cached_property
    def features(self) -> tuple[Tensor, Tensor]:
        """(real, generated), float32 (N, D) and (M, D) on the device."""
        return self.rows("real"), self.rows("generated")

    @cached_property
    def halves(self) -> tuple[Tensor, Tensor] | None:
        """Two disjoint halves of the real features, or None where there are none or too few to say anything."""
        if not self.seen("real").has_rows:
            return None
        real = self.rows("real")
        half = len(real) // 2
        if half < 2 * (self.k + 1):
            return None
        order = torch.from_numpy(np.random.default_rng(SEED).permutation(len(real))).to(real.device)
        return real[order[:half]], real[order[half : 2 * half]]

    @property
    def halves_kind(self) -> str:
        """What a null value from halves is called."""
        return f"halves of the real set, {len(self.halves[0])} each" if self.halves else ""

    def null_of_halves(self, distance: Callable[..., float]) -> dict[str, Any]:
        """The null value of a distance (real=, generated=) and its kind, for `result`."""
        if self.halves is None:
            return {}
        value = float(distance(real=self.halves[0], generated=self.halves[1]))
        return {"null": value, "null_kind": self.halves_kind}

    @cached_property
    def balls(self) -> PRDC:
        """Precision, recall, density and coverage of the two sets."""
        real, generated = self.features
        radii = self.seen("real").radii(self.k, self.device)
        return prdc(real=real, generated=generated, k=self.k, real_radii=radii, recall=self.with_recall)

    def balls_as(self, preset: str = "") -> tuple[PRDC, PRDC | None]:
        """Those of the two sets, and of halves of the real set, by a preset of `prdc.SETTINGS`; "" is k and strict."""
        if not preset:
            return self.balls, self.balls_of_halves
        if preset not in SETTINGS:
            raise UsageError(f"unknown preset {preset!r}: {nearest(preset, SETTINGS)}")
        if preset not in self._presets:
            settings, (real, generated) = SETTINGS[preset], self.features
            halves = self.halves
            self._presets[preset] = (
                prdc(real=real, generated=generated, k=settings.k, closed=settings.closed),
                halves and prdc(real=halves[0], generated=halves[1], k=settings.k, closed=settings.closed),
            )
        return self._presets[preset]

    @cached_property
    def clipped(self) -> ClippedBalls:
        """Clipped density and coverage."""
        real, generated = self.features
        return clipped_balls(real=real, generated=generated, k=self.k)

    @cached_property
    def balls_of_halves(self) -> PRDC | None:
        """Those of halves of the real set."""
        if self.halves is None:
            return None
        return prdc(real=self.halves[0], generated=self.halves[1], k=self.k, recall=self.with_recall)

    def result(self, name: str, value: float, **rest: Any) -> Result:
        """A result with the sizes and the provenance of this evidence."""
        n_real = len(self.real) if self.real else 0
        return Result(
            name, value, n_real=n_real, n_generated=len(self.generated), provenance=dict(self.provenance), **rest
        )
