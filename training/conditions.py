"""What a pipeline's network is told of prompts, each encoded once and alone, so that none depends on another."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from ..guidance.pipelines.denoiser import condition_of
from ..guidance.trees import joined

_PROMPTS = 2048  # that are kept


class Conditions:
    """pipe: the pipeline that encodes. size: (width, height), of which some networks are told.

    Raises UsageError for a pipeline that cannot be used as a denoiser.
    """

    def __init__(self, pipe: Any, size: tuple[int, int] | None = None):
        self.pipe, self.size = pipe, size
        self._known: OrderedDict[tuple[str, bool], Any] = OrderedDict()
        condition_of(pipe, "", size=size)  # refuses other pipelines

    def of(self, prompts: Sequence[str], negative: bool = False) -> Any:
        """A row for each prompt. negative: encoded as the pipeline does a negative prompt."""
        return joined([self._one(prompt, negative) for prompt in prompts])

    def _one(self, prompt: str, negative: bool) -> Any:
        key = prompt, negative
        if key not in self._known:
            self._known[key] = condition_of(self.pipe, prompt, size=self.size, negative=negative)
            if len(self._known) > _PROMPTS:
                self._known.popitem(last=False)
        self._known.move_to_end(key)
        return self._known[key]
