"""Optimise one latent from rankings alone, by a person or by a reward (ZO-RankSGD, arXiv 2303.03751)."""

from __future__ import annotations

from .by_reward import ByReward
from .drawing import Drawing, drawer_of, first_latent
from .files import Ranking, Wish
from .page import OnPage
from .question import Answer, Question
from .rank_sgd import RankSGD, RankState, rank_weights
from .session import rank
from .terminal import InTerminal

__all__ = [
    "Answer",
    "ByReward",
    "Drawing",
    "InTerminal",
    "OnPage",
    "Question",
    "RankSGD",
    "RankState",
    "Ranking",
    "Wish",
    "drawer_of",
    "first_latent",
    "rank",
    "rank_weights",
]
