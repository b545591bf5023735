"""Full backpropagation: the graph of every step is kept. N (F + B) time, N M memory; exact."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .chain import Chain
from .method import Method


@dataclass(frozen=True)
class Full(Method):
    """Ordinary autograd over the loop; a few steps, or the reference for the others."""

    def sample(self, chain: Chain, x: Tensor) -> Tensor:
        state = chain.begin(x)
        while not chain.done(state):
            state = chain.step(state)
        return chain.end(state)
