"""DDPO: the steps of a stochastic run as decisions, rewarded by the picture they led to (Black et al. 2023, arXiv
2305.13301).

    A = (R - mean of the prompt) / (std of the prompt + 1e-6), clamped
    L = mean over pictures and steps of max(-A ratio, -A clip(ratio, 1 - e, 1 + e))

with the ratio of the densities of x_{t-1} given x_t. The defaults are those of the authors' code for the aesthetic
reward. Its clip of 1e-4 belongs to the mean of the log-density over a latent's numbers, not to the sum.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ...errors import UsageError
from ...training.learner import Learner
from ..method import Part, Sampling, UpdateContext
from ..policy_gradient import StepPolicyGradient, prompt_advantages, score
from ..trajectory import Policy, check_rule, make_policy, record


@dataclass(frozen=True, kw_only=True)
class DDPO(StepPolicyGradient):
    """buffer: the newest rewards of a prompt that its mean and std are taken of. least: with fewer than that, those of
    the batch are.

    The sampler is that of `ctx.sampling`: stochastic, with Gaussian steps ("ddim:eta=1"). Its last step, to clean data,
    has no density and is left out; no std is floored. A grid whose other steps come near clean data ruins the estimate:
    a step's density weighs 1 / std^2. In a toy one such step, to sigma = 0.01, needed twelve times as many pictures.
    """

    buffer: int = 32
    least: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.buffer < self.least:
            raise UsageError(f"buffer={self.buffer} never holds least={self.least} rewards of a prompt; make it larger")

    @property
    def alike(self) -> bool:
        return self.fraction == 1  # otherwise each picture draws its own steps

    def check(self, learner: Learner, sampling: Sampling) -> None:
        check_rule(self._policy(learner, sampling))

    def _policy(self, learner: Learner, how: Sampling) -> Policy:
        return make_policy(learner, how.sampler, how.grid, how.steps, how.guidance)

    def update(self, ctx: UpdateContext) -> Iterator[Part]:
        policy = self._policy(ctx.learner, ctx.sampling)
        start = ctx.learner.start(ctx.seeds, policy.levels)
        trajectory = record(policy, start, ctx.prompts, ctx.seeds, ctx.rows)
        rewards = score(ctx, trajectory.end, ctx.prompts)
        advantages = prompt_advantages(ctx, ctx.prompts, rewards, self.least, newest=self.buffer)
        yield from self.improve_steps(ctx, trajectory, range(len(trajectory)), advantages)
