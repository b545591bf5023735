"""One checkpoint a step: the states are stored, and each step is computed once more on the way back.

Memory is one step's activations and N states, time N (2F + B); the gradient is exactly that of the sampler. The
default, and the only one that also replays the global random state (dropout in training mode).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .chain import Chain
from .method import Method
from .tensors import put_together, taken_apart


@dataclass(frozen=True)
class Checkpoint(Method):
    """Every tensor of a state is stored: x, a multistep history, a rule's memory."""

    def sample(self, chain: Chain, x: Tensor) -> Tensor:
        state = chain.begin(x)
        while not chain.done(state):
            state = remembered(chain, chain.step, state)
        return chain.end(state)


def remembered(chain: Chain, part: Callable[[Any], Any], state: Any) -> Any:
    """part(state), of which only the tensors of `state` are stored. part: some steps of the chain; it may hold
    checkpoints itself."""
    if not torch.is_grad_enabled():
        return part(state)
    tensors, form = taken_apart(state)
    forms: list[Any] = []

    def function(*given: Tensor) -> tuple[Tensor, ...]:
        after, end = taken_apart(part(put_together(form, given)))
        forms.append(end)
        return tuple(after)

    after = checkpoint(function, *tensors, use_reentrant=False, context_fn=lambda: (nullcontext(), chain.again()))
    return put_together(forms[0], after)
