"""What is seen when a training looks at the same prompts and seeds again and again, never trained on."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


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
