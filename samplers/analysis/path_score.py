"""How a score rides along the flow: what a path gradient needs where the model is not itself a score.

Along du/dlam = D - u the score s of u's density obeys

    ds / dlam = s - grad_u (s . D + tr dD/du),    s held fixed inside the gradient

which is ds/drho = -J^T s - grad tr J with J = d noise / du (section C.10 of the sampler notes; derived there, and
checked here). Path gradients for flows use this s as the gradient of log q (Vaitl et al. 2022). A diffusion model is
its own score, so this is a check on a denoiser, or a tool for fields that are not scores: guided ones, students.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..denoiser import Denoiser
from ..noise import SeededNoise
from ..schedule import Level
from .flow import integrate
from .jacobian import differentiable_attention, jacobian_of, rademacher


def score_along_flow(
    denoiser: Denoiser,
    x: Tensor,
    score: Tensor,
    levels: Sequence[Level],
    *,
    probes: int = 0,
    noise: SeededNoise | None = None,
    condition: Any = None,
    method: str = "rk4",
) -> tuple[Tensor, Tensor]:
    """(x, score) at the last level, from those at the first; all (B, ...).

    score: gradient of log p(x) at the first level. levels: of finite lam, running either way. probes: as in
    `log_likelihood`; 0 takes the exact trace.
    """
    vectors = rademacher(noise, probes, x)

    def slope(level: Level, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        u, s = state

        def potential(at: Tensor) -> tuple[Tensor, Tensor]:
            jacobian = jacobian_of(denoiser, level.alpha * at, level, condition=condition)
            denoised, trace = jacobian.value_and_trace(vectors)
            return (s * denoised).sum() + level.alpha * trace.sum(), denoised.detach()

        with differentiable_attention():
            gradient, denoised = torch.func.grad(potential, has_aux=True)(u)
        return denoised - u, s - gradient

    first, last = levels[0], levels[-1]
    u, s = integrate(slope, (x / first.alpha, score * first.alpha), levels, denoiser.schedule, method)
    return last.alpha * u, s / last.alpha
