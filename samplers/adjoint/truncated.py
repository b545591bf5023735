"""The last K steps only: DRaFT-K, Clark et al. 2023, arXiv 2309.17400.

The steps before run without a graph. Cheap, and biased towards fine detail (K = 1 sees one denoised estimate); the
gradient in x is zero, so this is for parameters and conditions. (N - K) F + K (F + B).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...errors import UsageError, nearest
from .chain import Chain
from .checkpoint import remembered
from .method import Method

REMEMBER = ("all", "steps")


@dataclass(frozen=True)
class Truncated(Method):
    """last: K, from 1 on. remember: "all" keeps the graphs of the last steps, "steps" computes each once more."""

    last: int = 1
    remember: str = "all"

    def __post_init__(self) -> None:
        if self.last < 1:
            raise UsageError(f"truncated last={self.last}: differentiate at least one step")
        if self.remember not in REMEMBER:
            raise UsageError(f"truncated remember={self.remember!r} is unknown: {nearest(self.remember, REMEMBER)}")

    def sample(self, chain: Chain, x: Tensor) -> Tensor:
        state = chain.begin(x)
        cut = chain.steps(state) - self.last
        if cut > 0 and x.requires_grad and torch.is_grad_enabled():
            raise UsageError(
                f"the gradient in x is zero when only the last {self.last} steps are differentiated: detach x to train "
                'parameters, or choose method="checkpoint"'
            )
        with torch.no_grad():
            for _ in range(cut):
                state = chain.step(state)
        while not chain.done(state):
            state = chain.step(state) if self.remember == "all" else remembered(chain, chain.step, state)
        return chain.end(state)
