"""Roles small enough for exact answers: teachers that are Gaussians by prompt, students that are small networks.

Latents (B, size, 1, 1) in float64; `decode` is the identity. A prompt is told as its length / 10, "" as 0.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from pilotage.distill.method import DistillContext, DistillMethod, Pictures
from pilotage.distill.roles import Roles
from pilotage.errors import UsageError
from pilotage.guidance import Guided, parse
from pilotage.samplers import Denoiser
from pilotage.samplers.denoiser import NetworkDenoiser
from pilotage.samplers.noise import SeededNoise, derived_seed
from pilotage.samplers.prediction import EPSILON, FLOW_PREDICTION, Parameterization, Prediction
from pilotage.samplers.sampler import Levels
from pilotage.samplers.schedule import Level, LinearVP, NoiseSchedule, RectifiedFlow
from pilotage.training.learner import Learner

VP, FLOW = LinearVP(), RectifiedFlow()
PROMPTS = ("a red circle", "two squares")


def kind_of(schedule: NoiseSchedule) -> Parameterization:
    return FLOW_PREDICTION if isinstance(schedule, RectifiedFlow) else EPSILON


def told_of(prompts: Sequence[str | None]) -> Tensor:
    """(B, 1): what a network is told of prompts."""
    return torch.tensor([[len(prompt or "") / 10] for prompt in prompts], dtype=torch.float64)


def column(told: Tensor) -> Tensor:
    """(B, 1) as (B, 1, 1, 1)."""
    return told[:, :, None, None]


# -- students --------------------------------------------------------------------------------------------------------


class Mlp(nn.Module):
    """(x, time in [0, 1000], told) -> (B, size, 1, 1), two hidden layers. scale_width: it takes an embedded scale as
    well, at first with weights of zero. calls: how often it was called, rows: with how many rows."""

    def __init__(self, size: int, hidden: int, seed: int, scale_width: int | None = None):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.config = SimpleNamespace(time_cond_proj_dim=scale_width)
        sizes = [size + 2, hidden, hidden, size]
        self.weights = nn.ParameterList(
            nn.Parameter(torch.randn(b, a, generator=generator, dtype=torch.float64) / a**0.5)
            for a, b in zip(sizes, sizes[1:])
        )
        self.biases = nn.ParameterList(nn.Parameter(torch.zeros(b, dtype=torch.float64)) for b in sizes[1:])
        if scale_width:
            self.cond_proj = nn.Parameter(torch.zeros(hidden, scale_width, dtype=torch.float64))
        self.calls = self.rows = 0

    def forward(self, x: Tensor, time: Tensor, told: Tensor, timestep_cond: Tensor | None = None) -> Tensor:
        """x (B, size, 1, 1), time (B,), told (B, 1)."""
        self.calls, self.rows = self.calls + 1, self.rows + len(x)
        h = self.middle(x, time, told, timestep_cond)
        return (h @ self.weights[2].T + self.biases[2]).reshape(x.shape)

    def middle(self, x: Tensor, time: Tensor, told: Tensor, timestep_cond: Tensor | None = None) -> Tensor:
        """(B, hidden)."""
        h = torch.cat([x.flatten(1), time.double()[:, None] / 1000, told.expand(len(x), 1)], 1)
        h = h @ self.weights[0].T + self.biases[0]
        if timestep_cond is not None:
            h = h + timestep_cond.double() @ self.cond_proj.T
        return nn.functional.silu(nn.functional.silu(h) @ self.weights[1].T + self.biases[1])


class ToyLearner(Learner):
    """network: `network(x, time, told=...)`, an `Mlp` by default."""

    def __init__(
        self,
        schedule: NoiseSchedule = FLOW,
        size: int = 2,
        hidden: int = 32,
        seed: int = 0,
        *,
        kind: Parameterization | None = None,
        network: Any = None,
        scale_width: int | None = None,
    ):
        self.shape, self.schedule, self.kind = (size, 1, 1), schedule, kind or kind_of(schedule)
        self.network = Mlp(size, hidden, seed, scale_width) if network is None else network
        self.before = copy.deepcopy(self.network).requires_grad_(False)
        self.parameters, self.trained = list(self.network.parameters()), True

    def denoiser(
        self, prompts: Sequence[str], guidance: str = "none", told: Mapping[str, Tensor] | None = None
    ) -> Denoiser:
        network = NetworkDenoiser(self.network if self.trained else self.before, self.schedule, self.kind)
        cond = {"told": told_of(prompts), **(told or {})}
        return Guided({"main": network}, parse(guidance), {"cond": cond, "uncond": {"told": told_of([""])}})

    def inner(self, prompts: Sequence[str], x: Tensor, level: Level) -> Tensor:
        """(B, hidden, 1, 1)."""
        network = self.network if self.trained else self.before
        return column(network.middle(x, torch.full((len(x),), level.time), told_of(prompts)))

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

    def twin(self) -> ToyLearner:
        """Another learner with the same weights: a target, or a fake."""
        made = copy.deepcopy(self)
        made.parameters = list(made.network.parameters())
        return made


# -- teachers --------------------------------------------------------------------------------------------------------


def gaussian(mean: Tensor, spread: float, x: Tensor, level: Level) -> Tensor:
    """E[x_0 | x] for data N(mean, spread^2 I)."""
    a, s = level.alpha, level.sigma
    return mean + a * spread**2 / (a * a * spread**2 + s * s) * (x - a * mean)


@dataclass(eq=False)
class ExactNetwork:
    """denoised(x, level, told): the posterior mean; told (B, 1, 1, 1)."""

    denoised: Callable[[Tensor, Level, Tensor], Tensor]
    schedule: NoiseSchedule
    kind: Parameterization

    def __call__(self, x: Tensor, level: Level, condition: Any = None) -> Prediction:
        found = self.denoised(x, level, column(condition["told"]))
        return Prediction(x, level, torch.zeros_like(x), self.kind).with_denoised(found)


def by_prompt(x: Tensor, level: Level, told: Tensor) -> Tensor:
    """N(told, 1/4 I), and N(0, I) without a prompt."""
    return torch.where(told == 0, gaussian(0 * told, 1.0, x, level), gaussian(told, 0.5, x, level))


class ExactLearner(ToyLearner):
    """A teacher that is known exactly; nothing learns."""

    def __init__(
        self,
        schedule: NoiseSchedule = FLOW,
        size: int = 2,
        denoised: Callable[[Tensor, Level, Tensor], Tensor] = by_prompt,
        kind: Parameterization | None = None,
    ):
        self.shape, self.schedule, self.parameters = (size, 1, 1), schedule, []
        self.exact = ExactNetwork(denoised, schedule, kind or kind_of(schedule))

    def denoiser(
        self, prompts: Sequence[str], guidance: str = "none", told: Mapping[str, Tensor] | None = None
    ) -> Denoiser:
        conditions = {"cond": {"told": told_of(prompts)}, "uncond": {"told": told_of([""])}}
        return Guided({"main": self.exact}, parse(guidance), conditions)

    @contextmanager
    def base(self) -> Iterator[None]:
        yield


# -- students that are known exactly ---------------------------------------------------------------------------------


class Nudged(nn.Module):
    """What `answer(x, level, told, w)` says in the network's terms, plus nudge_0 x + nudge_1; zero nudges are the exact
    student. w: the toolkit scale that it reads from what it is told, None where it is told none. told: all such w."""

    def __init__(self, learner: ExactLearner, answer: Any, scale_width: int | None = None):
        super().__init__()
        self.exact, self.answer, self.told = learner.exact, answer, []
        self.config = type("Config", (), {"time_cond_proj_dim": scale_width})
        self.nudge = nn.Parameter(torch.zeros(2, dtype=torch.float64))
        self.levels: dict[float, Level] = {}

    def forward(self, x: Tensor, time: Tensor, told: Tensor, timestep_cond: Tensor | None = None) -> Tensor:
        level, w = self.level_of(float(time[0])), None
        if timestep_cond is not None:
            w = scale_of(timestep_cond)
            self.told.append(w)
        network = replace(self.exact, denoised=lambda x, level, told: self.answer(x, level, told, w))
        said: Tensor = network(x, level, {"told": told}).native
        return said + self.nudge[0] * x + self.nudge[1]

    def level_of(self, time: float) -> Level:
        schedule = self.exact.schedule
        return replace(schedule.level(min(max(time / 1000, schedule.t_min), schedule.T)), time=time)

    def __deepcopy__(self, memo: Any) -> Nudged:
        made = Nudged.__new__(Nudged)
        nn.Module.__init__(made)
        made.exact, made.answer, made.told, made.config = self.exact, self.answer, [], self.config
        made.nudge = nn.Parameter(self.nudge.detach().clone())
        return made


def scale_of(embedded: Tensor) -> float:
    """w back from its slowest sine, of 0.1 (w - 1)."""
    return 1 + float(embedded[0, embedded.shape[1] // 2 - 1].double().asin()) / 0.1


def exact_roles(schedule: NoiseSchedule, answer: Any, scale_width: int | None = None) -> tuple[Roles, Nudged]:
    teacher = ExactLearner(schedule)
    network = Nudged(teacher, answer, scale_width)
    return Roles(teacher, ToyLearner(schedule, network=network)), network


def guided_by(w: float) -> Any:
    """The exact D_w = D_null + w (D_cond - D_null) for the toys' Gaussians."""

    def answer(x: Tensor, level: Level, told: Tensor, _: Any) -> Tensor:
        null, cond = by_prompt(x, level, 0 * told), by_prompt(x, level, told)
        return null + w * (cond - null)

    return answer


# -- an update -------------------------------------------------------------------------------------------------------


def toy_roles(schedule: NoiseSchedule = FLOW, **settings: Any) -> Roles:
    """An exact teacher and a student with a network. settings: of the student."""
    return Roles(ExactLearner(schedule, settings.get("size", 2)), ToyLearner(schedule, **settings))


def pictures(update: int, draw: int, count: int, prompts: Sequence[str] = PROMPTS) -> Pictures:
    seeds = [str(derived_seed("toy", update, draw, i)) for i in range(count)]
    return Pictures([prompts[i % len(prompts)] for i in range(count)], seeds)


def of_gaussian(some: Pictures) -> Tensor:
    """Clean latents (B, 2, 1, 1) of `by_prompt`'s data."""
    unit = SeededNoise(list(some.seeds)).draw("clean", 0, torch.empty(len(some), 2, 1, 1, dtype=torch.float64))
    return column(told_of(some.prompts)) + 0.5 * unit


def context(
    roles: Roles,
    guidance: str = "none",
    batch: int = 8,
    clean: Callable[[Pictures], Tensor] | None = None,
    *,
    update: int = 0,
    updates: int = 100,
    rows: int = 4096,
    pairs: bool = False,
    prompts: Sequence[str] = PROMPTS,
    **settings: Any,
) -> DistillContext:
    """clean: the latents of pictures of a data set; a UsageError without it. pairs: it is told their starts too.
    settings: further fields."""

    def deal(draw: int) -> Pictures:
        return pictures(update, draw, batch, prompts)

    def data(draw: int) -> Pictures:
        if clean is None:
            raise UsageError("there is no data set here; give data")
        some = pictures(update, 1000 + draw, batch, prompts)
        some = replace(some, starts=[str(derived_seed(seed, "pair")) for seed in some.seeds] if pairs else None)
        return replace(some, clean=clean(some))

    return DistillContext(
        roles=roles, guidance=guidance, deal=deal, data=data, first=0, total=batch,
        update=update, updates=updates, rows=rows, **settings)  # fmt: skip


def gradients(method: DistillMethod, ctx: DistillContext, role: str = "student") -> list[Tensor]:
    """Of the parts of one role until its step, in that role's parameters."""
    found = ctx.roles.parameters()[role]
    for parameter in found:
        parameter.grad = None
    for part in method.update(ctx):
        if part.role == role:
            part.loss.backward()
            if part.steps:
                break
    return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in found]


def total_loss(method: DistillMethod, ctx: DistillContext) -> float:
    """Of an update whose parts are all the student's; nothing steps."""
    return sum(float(part.loss.detach()) for part in method.update(ctx))


def distilled(
    method: DistillMethod, roles: Roles, updates: int, rate: float = 1e-3, first: int = 0, **settings: Any
) -> dict[str, Any]:
    """Adam for every role, updates first .. updates - 1; the state that the method left. settings: of `context`, and
    optimisers by role, state."""
    learning = roles.parameters()
    optimisers = settings.pop("optimisers", None) or {r: torch.optim.Adam(ps, lr=rate) for r, ps in learning.items()}
    state = settings.pop("state", {})
    for update in range(first, updates):
        ctx = context(roles, update=update, updates=updates, state=state, **settings)
        for part in method.update(ctx):
            part.loss.backward()
            if part.steps:
                optimisers[part.role].step()
                for optimiser in optimisers.values():
                    optimiser.zero_grad()
    return state
