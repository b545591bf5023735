"""What is seen when a training looks at the same prompts and seeds again and again, never trained on."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

_SIDE = 16  # of the pictures whose pixels are compared where no feature network is given


def features_of(network: Any, pictures: Tensor) -> Tensor:
    """(n, D), where pictures are compared. network: uint8 pictures -> (n, D), or None for their pixels at 16x16, scaled
    so that black and white are 1 apart. pictures: uint8 (n, 3, H, W)."""
    if network is not None:
        told: Tensor = network(pictures).float()
        return told
    small = nn.functional.adaptive_avg_pool2d(pictures.float() / 255, _SIDE)
    return small.flatten(1) / (3**0.5 * _SIDE)


@dataclass
class Spread:
    """Mean and standard deviation over pictures."""

    mean: float
    deviation: float


@dataclass(frozen=True, eq=False)
class Look:
    """numbers: by name, over all pictures. judges: means by name. spread: over pictures, of what a guard asks for.

    shown: bytes (rows, columns, 3, H, W), a row for a prompt.
    """

    numbers: dict[str, float]
    judges: dict[str, float]
    shown: Tensor
    spread: dict[str, Spread] = field(default_factory=dict)

    def plain(self, update: int) -> dict[str, Any]:
        """As checkpoints and the log have it. update: after how many."""
        return {"held_out": self.numbers, "judge": self.judges, "at": update}


def shown(look: dict[str, Any]) -> dict[str, Any]:
    """A plain look as the log's line has it."""
    return {"held_out": look["held_out"], "judge": look["judge"]}
