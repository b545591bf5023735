"""ReFL: the reward of the denoised estimate at one late step. Xu et al. 2023, arXiv 2304.05977.

    i uniform in 3/4 T .. T - 1;   x after i steps without a graph;   loss = relu(2 - R(decode(D_theta(x)))) 10^-3

i F + (F + B) of the network. Unlike in DRaFT-1 the step is random, and D is scored, not the end of the run.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...errors import UsageError
from ..method import UpdateContext
from .backprop import Backprop, Losses, Visit
from .batch import Batch


@dataclass(frozen=True, kw_only=True)
class ReFL(Backprop):
    """first: the earliest step where a run may stop, as a share of all; the original's is 30 of 40. rule: the guidance
    while training, "none" as in the original; "sampling" is that of the run's pictures."""

    loss: str = "hinge:target=2"
    scale: float = 1e-3
    first: float = 0.75
    rule: str | None = "none"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.first < 1:
            raise UsageError(f"first={self.first:g} is a share of the steps: from 0 to below 1")

    def guidance(self) -> str | None:
        return None if self.rule == "sampling" else self.rule or "none"

    def stop(self, steps: int, seed: int) -> int:
        """Steps without a graph: uniform in first * steps .. steps - 1."""
        low = min(int(self.first * steps), steps - 1)
        return int(torch.randint(low, steps, (), generator=torch.Generator().manual_seed(seed)))

    def told(self, ctx: UpdateContext) -> dict[str, float]:
        return {"stop": self.stop(ctx.sampling.steps, ctx.seed("stop"))}

    def visit(self, ctx: UpdateContext, batch: Batch) -> Visit:
        chain, states = batch.chain(), []
        state = chain.begin(batch.start())
        with torch.no_grad():
            for _ in range(self.stop(chain.steps(state), ctx.seed("stop"))):
                states.append(state)
                state = chain.step(state)
        return Visit(batch, [*states, state], state.x)

    def losses(self, visit: Visit, judge: Losses) -> Tensor:
        return judge(visit.batch.step(visit.states[-1]).prediction.denoised)
