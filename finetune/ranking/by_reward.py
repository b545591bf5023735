"""A reward that ranks. Only its order is used, so anything that grows with it does the same."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ...errors import UsageError
from ..rewards.reward import Reward, Scores
from .question import Answer, Question


@dataclass(frozen=True, eq=False)
class ByReward:
    """reward: (pictures (B, 3, H, W) in [0, 1], B prompts) -> (B,), higher is better.

    Of equals the first one wins: in a search that is the point that is kept.
    """

    reward: Reward | Scores

    def __call__(self, question: Question) -> Answer:
        count = len(question.pictures)
        with torch.no_grad():
            scores = self.reward(question.pictures, [question.prompt] * count).detach().double().cpu()
        if tuple(scores.shape) != (count,):
            raise UsageError(
                f"the reward gave {tuple(scores.shape)} for {count} pictures; it must give one number each"
            )
        if not bool(torch.isfinite(scores).all()):
            raise UsageError("the reward is not finite for one of the pictures; ranking needs numbers")
        order = scores.argsort(descending=True, stable=True).tolist()
        return Answer(tuple(order[: question.most]), tuple(scores.tolist()))
