"""The gradient problem: the reference mixture with shifted means z and component logits theta, and its gradients."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any

import torch
from exact import PATHS, level_of_lam, smooth_grid
from torch import Tensor, nn

from pilotage.samplers.prediction import EPSILON, SAMPLE, Parameterization, Prediction, working_precision
from pilotage.samplers.sampler import Leg, Levels, Sampler, State, finish
from pilotage.samplers.schedule import Level

MEANS = torch.tensor([[1.2, 0.3], [-0.8, 0.9], [0.1, -1.3]], dtype=torch.float64)
COVARIANCES = torch.tensor(
    [[[0.25, 0.05], [0.05, 0.15]], [[0.1, -0.03], [-0.03, 0.3]], [[0.2, 0.0], [0.0, 0.12]]], dtype=torch.float64
)
START = torch.tensor([[0.7, -0.4], [-1.1, 0.2], [0.2, 1.5]], dtype=torch.float64)
SHIFT = torch.tensor([[0.1, -0.2]], dtype=torch.float64)
LOGITS = (0.3, 0.1, -0.2)
AIM = torch.tensor([0.3, 0.8], dtype=torch.float64)


class Counted(torch.autograd.Function):
    """Counts backward passes."""

    @staticmethod
    def forward(ctx: Any, out: Tensor, owner: Any) -> Tensor:
        ctx.owner = owner
        return out.view_as(out)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        ctx.owner.backs += 1
        return gradient, None


class Shifted(nn.Module):
    """The exact denoiser; condition: {"z": (1, 2) or (B, 2)}. calls, backs: its forward and its backward passes."""

    schedule = PATHS["vp"]

    def __init__(self, kind: Parameterization = SAMPLE):
        super().__init__()
        self.theta = nn.Parameter(torch.tensor(LOGITS, dtype=torch.float64))
        self.kind = kind
        self.calls, self.backs = 0, 0

    def forward(self, x: Tensor, level: Level, condition: Any = None) -> Prediction:
        self.calls += 1
        x = working_precision(x)
        z = (torch.zeros(1, 2) if condition is None else condition["z"]).to(x.dtype)
        means, covariances, logits = (t.to(x.dtype) for t in (MEANS, COVARIANCES, self.theta))
        a, s = level.alpha, level.sigma
        spread = a * a * covariances + s * s * torch.eye(2, dtype=x.dtype)
        offset = x[:, None] - a * (means + z[:, None])
        pulled = torch.linalg.solve(spread, offset[..., None])[..., 0]
        log = logits - torch.logdet(spread) / 2 - (offset * pulled).sum(-1) / 2
        share = log.softmax(1)
        if self.kind is EPSILON:
            return Prediction(x, level, Counted.apply(s * torch.einsum("bk,bki->bi", share, pulled), self), EPSILON)
        parts = means + z[:, None]
        parts = parts + a * torch.einsum("kij,bkj->bki", covariances, pulled)
        return Prediction(x, level, Counted.apply(torch.einsum("bk,bki->bi", share, parts), self), SAMPLE)


def loss(x: Tensor) -> Tensor:
    """sin(2 x_1) + |x - y|^2 / 2 of each row, (B,)."""
    return torch.sin(2 * x[:, 0]) + (x - AIM.to(x)).square().sum(1) / 2


def slope(denoiser: Shifted, u: Tensor, lam: float, z: Tensor) -> Tensor:
    """du/dlam = D(alpha u) - u."""
    level = level_of_lam("vp", lam)
    return denoiser(level.alpha * u, level, {"z": z}).denoised - u


def runge_kutta(denoiser: Shifted, x: Tensor, z: Tensor, lams: list[float]) -> list[Tensor]:
    """x at each of these, by one classical step of fourth order in between."""
    u = x / level_of_lam("vp", lams[0]).alpha
    xs = [x]
    for a, b in pairwise(lams):
        h = b - a
        k1 = slope(denoiser, u, a, z)
        k2 = slope(denoiser, u + h / 2 * k1, a + h / 2, z)
        k3 = slope(denoiser, u + h / 2 * k2, a + h / 2, z)
        k4 = slope(denoiser, u + h * k3, b, z)
        u = u + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        xs.append(u * level_of_lam("vp", b).alpha)
    return xs


@cache
def exact_gradients(steps: int = 200) -> tuple[Tensor, ...]:
    """In x, z and theta, of the flow itself."""
    denoiser, x, z = Shifted(), START.clone().requires_grad_(), SHIFT.clone().requires_grad_()
    lams = [level.lam for level in smooth_grid("vp", steps)]
    end = runge_kutta(denoiser, x, z, lams)[-1]
    return torch.autograd.grad(loss(end).sum(), (x, z, denoiser.theta))


@dataclass(frozen=True)
class Given(Sampler):
    """Goes through these states, whatever it is told: (steps + 1, B, 2)."""

    states: Any = None
    order = 1

    def plan(self, levels: Levels, schedule: Any = None) -> tuple[Leg, ...]:
        return tuple(Leg((a,), b) for a, b in pairwise(levels))

    def advance(self, state: State, prediction: Prediction, noise: Tensor | None) -> State:
        return finish(state, self.states[state.step + 1])
