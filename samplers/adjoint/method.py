"""What a method of differentiating a run is: settings, and a run that is attached to autograd."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

from .chain import Chain


@dataclass(frozen=True)
class Method(ABC):
    """Frozen settings; subclasses are frozen dataclasses."""

    @abstractmethod
    def sample(self, chain: Chain, x: Tensor) -> Tensor:
        """x (B, ...) at the last level, attached to autograd, from x at the first one. Raises UsageError, before
        anything is evaluated, for a run that the method cannot differentiate."""
