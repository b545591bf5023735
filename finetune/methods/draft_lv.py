"""DRaFT-LV: the gradient of the last step from several noises. Clark et al. 2023, arXiv 2309.17400.

    x_0 = the run's end, without a graph;   x_1^i = x_0 taken back up by fresh noise;   x_0^i = the last step again
    loss = mean over i = 1 .. n of loss(R(x_0^i))

(T + n) F + n B of the network, where DRaFT-1 takes T F + B for one draw. The last step is one of first order, whatever
the sampler remembers of earlier ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...errors import UsageError
from ...samplers.adjoint.draft_lv import draft_lv
from ..method import UpdateContext
from .backprop import Backprop, Losses, Visit
from .batch import Batch


@dataclass(frozen=True, kw_only=True)
class DRaFTLV(Backprop):
    """draws: n, pictures from one run that are rewarded; their graphs are held together."""

    draws: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.draws < 1:
            raise UsageError(f"draws={self.draws}: take the last step at least once")

    def pictures(self, prompts: int) -> int:
        return prompts * self.draws

    def visit(self, ctx: UpdateContext, batch: Batch) -> Visit:
        chain, states = batch.chain(), []
        state = chain.begin(batch.start())
        with torch.no_grad():
            while chain.steps(state) > 1:
                states.append(state)
                state = chain.step(state)
        return Visit(batch, [*states, state], state.x)

    def losses(self, visit: Visit, judge: Losses) -> Tensor:
        batch = visit.batch
        found, _ = draft_lv(
            batch.denoiser,
            visit.x,
            judge,
            noise=batch.noise,
            draws=self.draws,
            sampler=batch.sampling.sampler,
            grid=batch.levels[-2:],
        )
        return found
