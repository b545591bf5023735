"""A model that learns, small enough for exact answers: N(0, 1/4 I) or unit Gaussian data and a residual that starts at
zero."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pilotage.finetune.method import Method, Sampling, UpdateContext
from pilotage.finetune.rewards.reward import Reward
from pilotage.guidance import Guided, parse
from pilotage.samplers import Denoiser
from pilotage.samplers.prediction import EPSILON, FLOW_PREDICTION, Prediction
from pilotage.samplers.sampler import Levels
from pilotage.samplers.schedule import Level, LinearVP, NoiseSchedule, RectifiedFlow
from pilotage.training.learner import Learner

VP, FLOW = LinearVP(), RectifiedFlow()
PLAIN = Sampling("ddim", "trailing", 10, "none")
NOISY = Sampling("ddim:eta=1", "trailing", 10, "none")


class Residual(nn.Module):
    """r(x, t, prompt) with r = 0 at the start. calls, backs: rows of its forward and of its backward passes."""

    def __init__(self, size: int, width: int, seed: int):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.first = nn.Parameter(torch.randn(width, size + 2, generator=generator).double() / (size + 2) ** 0.5)
        self.offset = nn.Parameter(torch.zeros(width).double())
        self.last = nn.Parameter(torch.zeros(size, width).double())
        self.bias = nn.Parameter(torch.zeros(size).double())
        self.calls = self.backs = 0

    def forward(self, x: Tensor, time: float, told: Tensor) -> Tensor:
        """x: (B, size). told: (B, 1). (B, size)."""
        self.calls += len(x)
        features = torch.cat([x, torch.full_like(x[:, :1], time), told.to(x).expand(len(x), 1)], 1)
        out = torch.tanh(features @ self.first.T + self.offset) @ self.last.T + self.bias
        if out.requires_grad:
            out.register_hook(self.backed)
        return out

    def backed(self, gradient: Tensor) -> None:
        self.backs += len(gradient)


@dataclass(eq=False)
class ToyNetwork:
    """The exact prediction for N(0, spread^2 I) data, and the residual where `trained`. It stays what it was made."""

    residual: Residual
    schedule: NoiseSchedule
    spread: float
    trained: bool

    def __call__(self, x: Tensor, level: Level, condition: Any = None) -> Prediction:
        """condition: {"told": (B, 1)}."""
        a, s, power = level.alpha, level.sigma, level.alpha**2 * self.spread**2 + level.sigma**2
        flow = isinstance(self.schedule, RectifiedFlow)
        native = x * ((s - a * self.spread**2) / power if flow else s / power)
        if self.trained:
            share = level.time if flow else level.time / 1000
            native = native + self.residual(x.flatten(1), share, condition["told"]).reshape(x.shape)
        return Prediction(x, level, native, FLOW_PREDICTION if flow else EPSILON)


class ToyLearner(Learner):
    """Latents and pictures (B, size, 1, 1) in float64; `decode` is the identity. A prompt is told as its length."""

    def __init__(
        self, schedule: NoiseSchedule = VP, size: int = 2, spread: float = 0.5, width: int = 16, seed: int = 0
    ):
        self.shape = (size, 1, 1)
        self.schedule, self.spread, self.trained = schedule, spread, True
        self.residual = Residual(size, width, seed)
        self.parameters = list(self.residual.parameters())

    def denoiser(self, prompts: Sequence[str], guidance: str = "none") -> Denoiser:
        network = ToyNetwork(self.residual, self.schedule, self.spread, self.trained)
        told = torch.tensor([[len(prompt) / 10] for prompt in prompts], dtype=torch.float64)
        conditions = {"cond": {"told": told}, "uncond": {"told": torch.zeros(1, 1, dtype=torch.float64)}}
        return Guided({"main": network}, parse(guidance), conditions)

    def decode(self, latents: Tensor) -> Tensor:
        return latents

    @contextmanager
    def base(self) -> Iterator[None]:
        before, self.trained = self.trained, False
        try:
            yield
        finally:
            self.trained = before

    def start(self, seeds: Sequence[str], levels: Levels) -> Tensor:
        return super().start(seeds, levels).double()

    def disturb(self, scale: float = 0.1, seed: int = 1) -> ToyLearner:
        """With a residual that is not zero."""
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in self.parameters:
                parameter.add_(scale * torch.randn(parameter.shape, generator=generator).double())
        return self


def near(*target: float) -> Reward:
    """-|x - target|^2; a single number is the same for every coordinate, and then the mean is taken."""
    aim = torch.tensor(target, dtype=torch.float64)

    def scores(pictures: Tensor, prompts: Sequence[str]) -> Tensor:
        apart = (pictures.flatten(1) - aim.to(pictures.device)).square()
        return -apart.mean(1) if len(target) == 1 else -apart.sum(1)

    return Reward("near", scores)


def of(function: Callable[[Tensor], Tensor], **settings: Any) -> Reward:
    """The reward of a function of flat pictures (B, size) -> (B,)."""
    return Reward("toy", lambda pictures, prompts: function(pictures.flatten(1)), **settings)


def context(
    learner: Learner,
    reward: Reward | None = None,
    count: int = 4,
    sampling: Sampling = PLAIN,
    *,
    rows: int = 64,
    update: int = 0,
    updates: int = 100,
    **settings: Any,
) -> UpdateContext:
    """An update of `count` pictures of two prompts in turn. settings: further fields of UpdateContext."""
    prompts = [("a red circle", "two squares")[i % 2] for i in range(count)]
    seeds = [str(1000 * update + i) for i in range(count)]
    return UpdateContext(
        learner, reward or near(2.0, 1.0), sampling, prompts, seeds,
        update=update, updates=updates, rows=rows, **settings)  # fmt: skip


def gradients(method: Method, ctx: UpdateContext) -> list[Tensor]:
    """Of one update whose parts end in one step, in the learner's parameters."""
    learner = ctx.learner
    for parameter in learner.parameters:
        parameter.grad = None
    parts = 0
    for part in method.update(ctx):
        parts += part.steps
        part.loss.backward()
    assert parts == 1, "gradients() is for updates of one step"
    return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in learner.parameters]


def train(method: Method, learner: Learner, updates: int, rate: float = 0.01, **settings: Any) -> dict[str, Any]:
    """Adam for `updates` updates; the state that the method left. settings: of `context`."""
    optimiser, state = torch.optim.Adam(learner.parameters, lr=rate), settings.pop("state", {})
    for update in range(updates):
        for part in method.update(context(learner, update=update, updates=updates, state=state, **settings)):
            part.loss.backward()
            if part.steps:
                optimiser.step()
                optimiser.zero_grad()
    return state
