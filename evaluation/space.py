"""A set of pictures as one extractor sees it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..errors import UsageError
from .features import Extractor
from .metrics.duplicates import duplicated_share, representatives
from .metrics.moments import Moments
from .metrics.prdc import Radii, radii

FEATURES_OUT = "features"


@dataclass
class Space:
    """What an extractor says of N pictures: rows for each, or only their moments where a file has no more.

    identity: who made them, field by field (see `identity_of`). outputs: float32 (N, D) by name, "features" first and
    what else the network gives ("logits"). known: moments that came without rows. side: pictures were resized to it.
    distance: what a Frechet distance is called here.
    """

    name: str
    identity: Mapping[str, Any]
    outputs: Mapping[str, Tensor] = field(default_factory=dict, repr=False)
    known: Moments | None = field(default=None, repr=False)
    source: str = ""
    side: int = 0
    distance: str = ""
    kept_radii: dict[int, Radii] = field(default_factory=dict, repr=False)

    @property
    def features(self) -> Tensor:
        """float32 (N, D). Errors: only moments are known."""
        if FEATURES_OUT not in self.outputs:
            if self.known is None:
                raise UsageError(f"the features of {self.source} are with the first process; use them there")
            raise UsageError(
                f"{self.source} has only mean and covariance; give the pictures, or statistics of `pilotage stats` "
                "without --moments-only"
            )
        return self.outputs[FEATURES_OUT]

    @property
    def has_rows(self) -> bool:
        """Are the rows themselves here?"""
        return FEATURES_OUT in self.outputs

    @cached_property
    def moments(self) -> Moments:
        """Mean and covariance."""
        return self.known if self.known is not None else Moments.of(self.features)

    @property
    def width(self) -> int:
        """D."""
        return self.features.shape[1] if self.has_rows else len(self.moments.origin)

    def radii(self, k: int, device: torch.device | str = "cpu") -> Radii:
        """Distances to the k-th neighbours, computed once."""
        if k not in self.kept_radii:
            if k >= len(self.features):
                fix = f"give more pictures, or k={len(self.features) - 1} at most (--neighbours)"
                raise UsageError(f"{self.source}: {len(self.features)} pictures have no {k} neighbours each; {fix}")
            self.kept_radii[k] = radii(self.features.to(device), k)
        return self.kept_radii[k]

    @cached_property
    def duplicates(self) -> float:
        """The share of pictures whose features equal those of an earlier one."""
        return duplicated_share(representatives(self.features))


def identity_of(extractor: Extractor) -> dict[str, Any]:
    """The fields that must agree before two sets may be compared: network, weights, dtype, all that comes before it."""
    network = {
        "extractor": extractor.name,
        "weights": extractor.weights[:16],
        "layer": extractor.layer,
        "dtype": str(extractor.dtype).removeprefix("torch."),
    }
    return network | {f"preprocessing.{name}": value for name, value in extractor.preprocessing_fields.items()}


def check_same(a: Mapping[str, Any], b: Mapping[str, Any], of_a: str, of_b: str, assumed: bool = False) -> None:
    """UsageError that names the fields in which two identities differ.

    assumed: a says only what its user assumed, so that a field which is missing there is no difference.
    """
    differing = [f"{name} is {_told(a[name])} and {_told(b[name])}" for name in a if name in b and a[name] != b[name]]
    missing = [] if assumed else [f"{name} is known of one side only" for name in a if name not in b]
    missing += [] if assumed else [f"{name} is known of one side only" for name in b if name not in a]
    if differing or missing:
        said = "; ".join(differing + missing)
        raise UsageError(f"{of_a} and {of_b} cannot be compared: {said}; make both with the same features")


def _told(value: Any) -> str:
    return repr(value) if value == "" else str(value)
