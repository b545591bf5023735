"""A stochastic run as a chain of Gaussian decisions, recorded; and what the present parameters make of the same steps.

    x_{t-1} ~ N(mean_theta(x_t, t), std_t^2 I)

The mean is the sampler's own step without its noise, the std its weight of the noise; no formula of a sampler stands
here. The last step, which ends at clean data, is deterministic: it has no density and is never trained on. So a policy
gradient knows nothing of what that step's prediction does to the picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..errors import UsageError
from ..samplers.denoiser import Denoiser
from ..samplers.first_order import FirstOrder
from ..samplers.flow_ancestral import flow_time
from ..samplers.noise import SeededNoise, purpose_of
from ..samplers.prediction import Prediction
from ..samplers.registry import make_sampler
from ..samplers.sampler import Leg, Levels, Sampler, State
from ..training.learner import Learner
from .gaussian_steps import log_prob, log_ratio


@dataclass(frozen=True, eq=False)
class Policy:
    """What draws each next state. learner: it lives on, so means are those of its parameters as they are when asked."""

    learner: Learner
    sampler: FirstOrder
    levels: Levels
    guidance: str = "none"

    @cached_property
    def legs(self) -> tuple[Leg, ...]:
        return self.sampler.plan(self.levels)

    def std(self, step: int) -> float:
        """Standard deviation of the noise of a step, 0 .. steps - 1; 0 where it is deterministic."""
        return float(self.legs[step].weights[2])

    def span(self, step: int) -> float:
        """Length of a step in flow time t = sigma / (alpha + sigma)."""
        return flow_time(self.legs[step].level) - flow_time(self.legs[step].goal)

    def denoiser(self, prompts: Sequence[str]) -> Denoiser:
        return self.learner.denoiser(list(prompts), self.guidance)

    def mean(self, denoiser: Denoiser, x: Tensor, step: int) -> Tensor:
        """(B, ...): the mean of the state after the step from x (B, ...), differentiable."""
        state = State(x, self.legs, step)
        prediction = _prediction(denoiser, state)
        still = torch.zeros_like(prediction.x) if self.std(step) else None
        return self.sampler.tell(state, prediction, still).x


def make_policy(learner: Learner, sampler: str | Sampler, grid: Any, steps: int, guidance: str = "none") -> Policy:
    """The policy of a sampler whose steps are Gaussian: one evaluation, no look back, noise of one size.

    UsageError for other samplers, and for runs that take no noise before their last step.
    """
    made = make_sampler(sampler)
    if not isinstance(made, FirstOrder) or type(made).advance is not FirstOrder.advance:
        raise UsageError(
            f"{type(made).__name__} steps are not single Gaussian draws, which policy gradients need; use ddim:eta=1"
        )
    policy = Policy(learner, made, learner.levels(grid, steps), guidance)
    if not any(leg.fresh for leg in policy.legs):
        raise UsageError(
            f"{type(made).__name__} takes no noise in this run, so there is no policy gradient; use ddim:eta=1 and at "
            "least two steps"
        )
    return policy


def _prediction(denoiser: Any, state: State) -> Prediction:
    """At a step that is looked at alone: rules that carry something from step to step are refused."""
    if not hasattr(denoiser, "guide"):
        return denoiser(state.x, state.level)
    rule = denoiser.rule
    if rule.moves:
        raise UsageError(f"{type(rule).__name__} moves x between steps, so they are not Gaussian; train with cfg")
    prediction, memory = denoiser.guide(state)
    if memory.later:
        raise UsageError(
            f"{type(rule).__name__} remembers earlier steps, so a recorded step cannot be asked again; train with cfg"
        )
    return prediction


def check_rule(policy: Policy) -> None:
    """UsageError for a rule that a policy gradient cannot ask again, at the cost of one evaluation of one row."""
    x = policy.learner.start(["0"], policy.levels)
    state = policy.sampler.init(x, policy.levels)
    with torch.no_grad():
        _prediction(policy.learner.denoiser([""], policy.guidance), state)


@dataclass(frozen=True, eq=False)
class Trajectory:
    """B recorded runs of the steps `start` .. of a policy.

    x: (n + 1, B, *shape), before each recorded step and at the end. means: (n, B, *shape), of the steps when they were
    taken. prompts, seeds: one a row. No gradients.
    """

    policy: Policy
    prompts: Sequence[str]
    seeds: Sequence[str]
    start: int
    x: Tensor
    means: Tensor

    def __len__(self) -> int:
        return self.x.shape[1]

    @property
    def end(self) -> Tensor:
        """(B, *shape): clean latents, where the record goes to the end of the run."""
        return self.x[-1]

    @property
    def drawn(self) -> list[int]:
        """The recorded steps that took noise, by their number in the run."""
        steps = range(self.start, self.start + len(self.means))
        return [step for step in steps if self.policy.std(step) > 0]

    def log_prob(self, step: int, rows: Sequence[int], reduction: str = "mean") -> Tensor:
        """(len(rows),): log-density of these rows' step when it was taken."""
        i, chosen = step - self.start, list(rows)
        return log_prob(self.x[i + 1, chosen], self.means[i, chosen], self.policy.std(step), reduction)

    def mean_now(self, step: int, rows: Sequence[int]) -> Tensor:
        """(len(rows), *shape): the mean of that step under the present parameters, with a gradient."""
        chosen = list(rows)
        denoiser = self.policy.denoiser([self.prompts[row] for row in chosen])
        return self.policy.mean(denoiser, self.x[step - self.start, chosen], step)

    def log_prob_now(self, step: int, rows: Sequence[int], reduction: str = "mean") -> Tensor:
        """(len(rows),): log-density of the recorded step under the present parameters, with a gradient."""
        after = self.x[step - self.start + 1, list(rows)]
        return log_prob(after, self.mean_now(step, rows), self.policy.std(step), reduction)

    def log_ratio(self, step: int, rows: Sequence[int], mean: Tensor, reduction: str = "mean") -> Tensor:
        """(len(rows),): log-density of the recorded step under `mean`, less that when it was taken."""
        i, chosen = step - self.start, list(rows)
        return log_ratio(self.x[i + 1, chosen], mean, self.means[i, chosen], self.policy.std(step), reduction)


@torch.no_grad()
def record(
    policy: Policy,
    x: Tensor,
    prompts: Sequence[str],
    seeds: Sequence[str],
    rows: int,
    start: int = 0,
    stop: int | None = None,
) -> Trajectory:
    """Take the steps `start` .. `stop` - 1 (to the end by default) of a run and keep them.

    x: (B, *shape) at the level where step `start` begins. rows: pictures that go through the network together. seeds:
    of the fresh noise, which is that of `samplers.iterate` with the same seeds.
    """
    stop = len(policy.legs) if stop is None else stop
    parts = [
        _recorded(policy, x[low : low + rows], prompts[low : low + rows], seeds[low : low + rows], start, stop)
        for low in range(0, len(x), rows)
    ]
    states, means = (torch.cat(kept, 1) for kept in zip(*parts))
    return Trajectory(policy, list(prompts), list(seeds), start, states, means)


def _recorded(
    policy: Policy, x: Tensor, prompts: Sequence[str], seeds: Sequence[str], start: int, stop: int
) -> tuple[Tensor, Tensor]:
    """(states, means) of a batch: (n + 1, B, ...) and (n, B, ...)."""
    denoiser, noise = policy.denoiser(prompts), SeededNoise(seeds)
    states, means = [x], [x[None][:0]]
    for step in range(start, stop):
        mean = policy.mean(denoiser, states[-1], step)
        fresh = noise.draw(purpose_of(0, last=True), step, mean) if policy.std(step) else None
        means.append(mean[None])
        states.append(mean if fresh is None else torch.add(mean, fresh, alpha=policy.std(step)))
    return torch.stack(states), torch.cat(means)
