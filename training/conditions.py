"""What a pipeline's network is told of prompts, each encoded once and alone, so that none depends on another."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

from ..guidance.pipelines.forms import leaves, together
from ..guidance.pipelines.model import PipelineModel, model_of

_BYTES = 2**31  # of prompts that are kept


class Conditions:
    """pipe: the pipeline that encodes. size: (width, height), of which some networks are told. call: further arguments
    of the pipeline's call, as of `model_of`.

    Raises UsageError for a pipeline that cannot be used as a denoiser.
    """

    def __init__(self, pipe: Any, size: tuple[int, int] | None = None, call: Mapping[str, Any] | None = None):
        self.pipe, self.size = pipe, size
        self.model: PipelineModel = model_of(pipe, size, call)
        self._known: OrderedDict[tuple[str, bool], Any] = OrderedDict()
        self._bytes = 0
        self.model.condition("")  # refuses pipelines that need more than a prompt

    def of(self, prompts: Sequence[str | None], negative: bool = False) -> Any:
        """A row for each prompt. negative: encoded as the pipeline does a negative prompt. None: no prompt, as guidance
        has it, which in SDXL is not the empty text but zeros."""
        return together([self._one(prompt or "", negative or prompt is None) for prompt in prompts])

    def _one(self, prompt: str, negative: bool) -> Any:
        key = prompt, negative
        if key not in self._known:
            self._known[key] = self.model.condition(prompt, negative)
            self._bytes += _bytes(self._known[key])
            while self._bytes > _BYTES and len(self._known) > 1:
                self._bytes -= _bytes(self._known.popitem(last=False)[1])
        self._known.move_to_end(key)
        return self._known[key]


def _bytes(condition: Any) -> int:
    return sum(leaf.numel() * leaf.element_size() for leaf in leaves(condition))
