"""The embedded world's judge: is everything that a caption states to be seen? It never trains."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..errors import UsageError
from ..evaluation.judges import open_judge


def adherence() -> tuple[Callable[[Tensor, Sequence[str]], Tensor], str]:
    """Pictures (B, 3, H, W) in [0, 1] and captions -> (B,) of 1 and 0; and the identity of the judge."""
    judge = open_judge("embedded")

    def scores(pictures: Tensor, prompts: Sequence[str]) -> Tensor:
        seen = judge.predict(pictures.clamp(0, 1).mul(255).round().to(torch.uint8).cpu())
        stated = [judge.parse(prompt) for prompt in prompts]
        right = [all(seen[head][i] == word for head, word in stated[i].items()) for i in range(len(prompts))]
        return torch.tensor(right, dtype=torch.float32)

    return scores, judge.identity


def of_the_world(prompts: Sequence[str]) -> bool:
    """Are all of these captions that the judge understands?"""
    judge = open_judge("embedded")
    try:
        return all(judge.parse(prompt) for prompt in prompts)
    except UsageError:
        return False
