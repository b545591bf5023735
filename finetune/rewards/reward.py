"""What a reward is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...errors import UsageError

Scores = Callable[[Tensor, Sequence[str]], Tensor]


@dataclass(frozen=True, eq=False)
class Reward:
    """scores: pictures (B, 3, H, W) float32 on the scale of [0, 1], not necessarily within it, and B prompts -> (B,).

    Each row from its own picture and prompt. differentiable: in the pictures, without rounding or Pillow inside.
    range: of usual values, in words. needs_prompt: does the prompt matter? licence: of the weights. model: who judges,
    with a hash, so that a judge is never the reward that was trained on. parts: what it was mixed from. reads: a
    UsageError for the first prompt that it cannot read; asked before anything is sampled.
    """

    name: str
    scores: Scores
    differentiable: bool = True
    range: str = ""
    needs_prompt: bool = False
    licence: str = ""
    model: str = "none"
    preprocessing: str = ""
    parts: tuple[Reward, ...] = ()
    reads: Callable[[Sequence[str]], Any] | None = None

    def check_prompts(self, prompts: Sequence[str]) -> None:
        """A UsageError where it, or what it was mixed from, cannot read one of them."""
        if self.reads is not None:
            self.reads(prompts)
        for part in self.parts:
            part.check_prompts(prompts)

    def __call__(self, pictures: Tensor, prompts: Sequence[str]) -> Tensor:
        """(B,) float32; higher is better. In full precision under autocast too. Errors: another number of prompts, not
        one score a picture, no gradient where there should be one."""
        if isinstance(prompts, str) or len(prompts) != len(pictures):
            count = "one text" if isinstance(prompts, str) else f"{len(prompts)} prompts"
            raise UsageError(f"reward {self.name}: {count} for {len(pictures)} pictures; give a list, one a picture")
        with torch.autocast(pictures.device.type, enabled=False):
            found: Any = self.scores(pictures, list(prompts))
        self._check(found, pictures)
        return found.float()

    def _check(self, found: Any, pictures: Tensor) -> None:
        if not isinstance(found, Tensor) or found.shape != (len(pictures),):
            got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise UsageError(
                f"reward {self.name} gave {got} for {len(pictures)} pictures; return one number a picture, "
                "never a mean over the batch"
            )
        wanted = self.differentiable and pictures.requires_grad and torch.is_grad_enabled()
        if wanted and not found.requires_grad:
            raise UsageError(
                f"reward {self.name} gives no gradient; take a method without one, such as ddpo, and say "
                "Reward(..., differentiable=False)"
            )
