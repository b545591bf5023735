"""How much a picture is its own mirror image."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from ...errors import UsageError, nearest
from .reward import Reward
from .sight import shown

AXES = {"left-right": 3, "top-bottom": 2}  # the dimension that is mirrored


def symmetry(axis: str = "left-right", device: torch.device | str = "cpu") -> Reward:
    """Minus the mean absolute difference of a picture and its mirror image: -1..0, 0 where they are the same."""
    if axis not in AXES:
        raise UsageError(f"there is no axis {axis!r}: {nearest(str(axis), AXES)}")
    return Reward(f"symmetry:axis={axis}", partial(_mirrored, AXES[axis]), range="-1..0", preprocessing="none")


def _mirrored(dim: int, pictures: Tensor, prompts: Sequence[str]) -> Tensor:
    values = shown(pictures)
    return -(values - values.flip(dim)).abs().flatten(1).mean(1)
