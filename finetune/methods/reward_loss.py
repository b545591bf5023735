"""What a reward becomes as a loss, row by row."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

from ...registry import Spec, make


class RewardLoss(ABC):
    @abstractmethod
    def __call__(self, rewards: Tensor) -> Tensor:
        """(B,) -> (B,), to be lowered."""


@dataclass(frozen=True)
class Negative(RewardLoss):
    """-r"""

    def __call__(self, rewards: Tensor) -> Tensor:
        return -rewards


@dataclass(frozen=True)
class Absolute(RewardLoss):
    """|r - target|: a reward beyond the target is a fault, too."""

    target: float = 10.0

    def __call__(self, rewards: Tensor) -> Tensor:
        return (rewards - self.target).abs()


@dataclass(frozen=True)
class Hinge(RewardLoss):
    """relu(target - r): pictures that have reached the target teach nothing."""

    target: float = 2.0

    def __call__(self, rewards: Tensor) -> Tensor:
        return (self.target - rewards).relu()


LOSSES: dict[str, Spec] = {
    "negative": Spec(Negative, "-r: as high as it goes"),
    "absolute": Spec(Absolute, "|r - target|: to the target and no further", "Prabhudesai et al. 2023, 2310.03739"),
    "hinge": Spec(Hinge, "relu(target - r): nothing once the target is reached", "Xu et al. 2023, 2304.05977"),
}


def make_loss(line: str) -> RewardLoss:
    """Of "absolute:target=10". UsageError for unknown names and settings."""
    made: RewardLoss = make("reward_losses", LOSSES, line, "loss of a reward")
    return made
