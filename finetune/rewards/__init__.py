"""Rewards: what a picture is worth. One file each; all are differentiable where that is possible."""

from .mixing import ensemble, harmonic, minimum, near, normalised, up_to, weighted_sum
from .moments import Moments
from .opening import open_rewards
from .registry import COMBINATIONS, REWARDS
from .reward import Reward

__all__ = [
    "COMBINATIONS",
    "REWARDS",
    "Moments",
    "Reward",
    "ensemble",
    "harmonic",
    "minimum",
    "near",
    "normalised",
    "open_rewards",
    "up_to",
    "weighted_sum",
]
