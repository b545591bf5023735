"""The same numbers as `torchmetrics.Metric`: `update(images, real=...)`, `update_features`, `compute`, sync.

Importing this module imports torchmetrics; nothing else in the package does.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from ..errors import UsageError, nearest
from .collect import Collected
from .features import Extractor, open_features
from .measures.evidence import Evidence
from .metrics.colour import Colour, colour_statistics, wasserstein
from .metrics.frechet import frechet_from_moments
from .metrics.moments import Moments
from .metrics.prdc import prdc
from .metrics.registry import chosen
from .space import Space


class _OfFeatures(Metric):
    """Pictures go through an extractor; features are taken as they are."""

    full_state_update = False

    def __init__(self, features: Any = "embedded", **settings: Any):
        super().__init__(**settings)
        self.extractor: Extractor | None = None if features is None else open_features(features)

    def update(self, images: Any = None, real: bool = False, *, features: Tensor | None = None) -> None:
        """images: uint8 (B, 3, H, W) or (B, H, W, 3). real: whose they are. features: (B, D) instead of images."""
        if features is None:
            if self.extractor is None:
                raise UsageError("this metric has no extractor; call update_features, or pass features='embedded'")
            features = self.extractor(images)
        self._take(features.to(self.device), real)

    def update_features(self, features: Tensor, real: bool) -> None:
        """features: (B, D) of any float dtype. real: whose they are."""
        self.update(real=real, features=features)

    def _take(self, features: Tensor, real: bool) -> None:
        raise NotImplementedError


def _merged(packed: Tensor) -> Tensor:
    """Moments of several processes, (world, 1 + 2 D + D^2) -> one."""
    first, *others = [Moments.unpacked(row) for row in packed]
    for other in others:
        first = first.merge(other)
    return first.packed()


class FrechetDistanceMetric(_OfFeatures):
    """Frechet distance from moments in float64: memory does not grow with the number of pictures.

    features: what `open_features` takes, or None for `update_features` alone. dimension: D, needed with None.
    """

    higher_is_better = False
    is_differentiable = False

    def __init__(self, features: Any = "embedded", dimension: int | None = None, **settings: Any):
        super().__init__(features, **settings)
        if dimension is None:
            if self.extractor is None:
                raise UsageError("say how many features there are; pass dimension=")
            probe = torch.zeros(1, 3, self.extractor.side or 32, self.extractor.side or 32, dtype=torch.uint8)
            dimension = self.extractor(probe).shape[1]
        for side in ("real", "generated"):
            self.add_state(side, default=Moments.empty(dimension).packed(), dist_reduce_fx=_merged)

    def _take(self, features: Tensor, real: bool) -> None:
        side = "real" if real else "generated"
        setattr(self, side, Moments.unpacked(getattr(self, side)).update(features).packed())

    def compute(self) -> Tensor:
        """float64 scalar."""
        moments = {side: Moments.unpacked(getattr(self, side)) for side in ("real", "generated")}
        for side, found in moments.items():
            if found.n < 2:
                raise UsageError(f"there are {found.n} {side} pictures and at least 2 are needed; update first")
        value = frechet_from_moments(**moments).value
        return torch.tensor(value, dtype=torch.float64, device=self.device)


class PRDCMetric(_OfFeatures):
    """Precision, recall, density and coverage; keeps all features."""

    is_differentiable = False
    real: list[Tensor]
    generated: list[Tensor]

    def __init__(self, features: Any = "embedded", k: int = 5, closed: bool = False, **settings: Any):
        super().__init__(features, **settings)
        self.k, self.closed = k, closed
        for side in ("real", "generated"):
            self.add_state(side, default=[], dist_reduce_fx="cat")

    def _take(self, features: Tensor, real: bool) -> None:
        (self.real if real else self.generated).append(features)

    def compute(self) -> dict[str, Tensor]:
        """float64 scalars by name."""
        if not (len(self.real) and len(self.generated)):
            raise UsageError("there are no real or no generated pictures yet; update first")
        found = prdc(real=dim_zero_cat(self.real), generated=dim_zero_cat(self.generated), k=self.k, closed=self.closed)
        names = ("precision", "recall", "density", "coverage")
        return {n: torch.tensor(getattr(found, n), dtype=torch.float64, device=self.device) for n in names}


SIDES = ("generated", "real", "train", "test")


class ScoreMetric(Metric):
    """Any metric of `METRICS` that needs no captions, by its line ("kid:estimator=subsets"), as `score` has it.

    Features and colours of all pictures are kept; several processes bring theirs together before it is computed.
    features: what `open_features` takes, or None for rows of features alone. k: neighbours.
    """

    full_state_update = False
    is_differentiable = False

    def __init__(self, metric: str, features: Any = "embedded", k: int = 5, **settings: Any):
        super().__init__(**settings)
        self.wanted, self.k = chosen([metric]), k
        self.extractor: Extractor | None = None if features is None else open_features(features)
        if any({"captions", "texts"} & set(one.needs) for one in self.wanted):
            raise UsageError(f"{metric} needs captions; use evaluation.score, which reads them")
        for side in SIDES:
            for kept in ("features", "logits", "colour"):
                self.add_state(f"{side}_{kept}", default=[], dist_reduce_fx="cat")

    @property
    def higher_is_better(self) -> bool | None:  # type: ignore[override]
        """As the registry has it; None where nearness to real pictures is what counts."""
        return getattr(self.wanted[0].spec, "higher_is_better", None)

    def update(self, images: Any = None, real: bool = False, *, side: str = "", features: Tensor | None = None) -> None:
        """images: uint8 (B, 3, H, W) or (B, H, W, 3), generated ones or `real`; side: also "train" and "test".

        features: (B, D) of any float dtype instead of images.
        """
        side = side or ("real" if real else "generated")
        if side not in SIDES:
            raise UsageError(f"side {side!r}: {nearest(side, SIDES)}")
        if features is not None:
            outputs = {"features": features}
        else:
            if images is None or self.extractor is None:
                raise UsageError(
                    "this metric has no extractor; pass features=(B, D) rows, or features='embedded' at first"
                )
            outputs = dict(self.extractor.outputs(images))
            colour = colour_statistics(images)
            getattr(self, f"{side}_colour").append(torch.from_numpy(colour.stacked()).to(self.device))
        for name, rows in outputs.items():
            getattr(self, f"{side}_{name}").append(rows.to(self.device))

    def compute(self) -> dict[str, Tensor]:
        """float64 scalars by the names of the results."""
        sets = {side: self._collected(side) for side in SIDES}
        generated = sets.pop("generated")
        if generated is None:
            raise UsageError("there are no generated pictures yet; update first")
        space = next(iter(generated.spaces))
        real, train, test = (sets[side] for side in ("real", "train", "test"))
        place = torch.device("cpu")
        evidence = Evidence(generated, self.k, place, real=real, train=train, test=test, space=space)
        found = [result for one in self.wanted for result in one.measuring()(evidence, one.name, **one.settings)]
        return {r.name: torch.tensor(r.value, dtype=torch.float64, device=self.device) for r in found}

    def _collected(self, side: str) -> Collected | None:
        kept = {name: getattr(self, f"{side}_{name}") for name in ("features", "logits", "colour")}
        if not len(kept["features"]):
            return None
        rows = {name: dim_zero_cat(kept[name]).cpu().float() for name in ("features", "logits") if len(kept[name])}
        colour = (
            Colour.unstacked(dim_zero_cat(kept["colour"]).cpu().numpy()) if len(kept["colour"]) else Colour.joined([])
        )
        name = self.extractor.name if self.extractor else "features"
        called = self.extractor.distance if self.extractor else "fd_features"
        space = Space(name, {}, rows, source=side, distance=called)
        return Collected(side, [], [], [], {name: space}, colour, count=len(rows["features"]))


class _OfColour(Metric):
    """One number a picture; 8 bytes each are kept."""

    full_state_update = False
    is_differentiable = False
    statistic: str
    real: list[Tensor]
    generated: list[Tensor]

    def __init__(self, **settings: Any):
        super().__init__(**settings)
        for side in ("real", "generated"):
            self.add_state(side, default=[], dist_reduce_fx="cat")

    def update(self, images: Any, real: bool) -> None:
        """images: uint8 (B, 3, H, W) or (B, H, W, 3). real: whose they are."""
        values = torch.from_numpy(getattr(colour_statistics(images), self.statistic)).to(self.device)
        (self.real if real else self.generated).append(values)

    def compute(self) -> dict[str, Tensor]:
        """float64 scalars: the mean over generated pictures; with real ones also theirs, difference and distance."""
        if not len(self.generated):
            raise UsageError("there are no generated pictures yet; update first")
        generated = dim_zero_cat(self.generated)
        found = {"generated": generated.mean()}
        if len(self.real):
            real = dim_zero_cat(self.real)
            distance = wasserstein(real=real.cpu(), generated=generated.cpu())
            found |= {"real": real.mean(), "difference": generated.mean() - real.mean()}
            found["wasserstein"] = generated.new_tensor(distance)
        return found


class SaturationMetric(_OfColour):
    """Mean HSV saturation; see `metrics.colour`."""

    statistic = "saturation"


class ContrastMetric(_OfColour):
    """RMS contrast of the luma; see `metrics.colour`."""

    statistic = "contrast"
