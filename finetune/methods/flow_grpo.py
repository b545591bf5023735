"""Group-relative policy gradients of flow models: Flow-GRPO (Liu et al. 2025, arXiv 2505.05470) and DanceGRPO (Xue et
al. 2025, arXiv 2505.07818).

    the flow's ODE becomes an SDE with the same marginals, whose steps are Gaussian (`flow_sde`)
    A = (R - mean of the group) / (std + epsilon), clamped, over several pictures of each prompt
    L = mean of max(-A ratio, -A clip(ratio, 1 - e, 1 + e)) + beta KL(step || step of the model before training)

Groups whose rewards are all equal say nothing and are left out. On a schedule that is no rectified flow the SDE is that
of the flow with the same signal-to-noise ratios.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ...errors import UsageError
from ...training.learner import Learner
from ..advantages import group_advantages, varied
from ..flow_sde import DanceGRPOSampler, FlowGRPOSampler, FlowSDE
from ..method import Part, Sampling, UpdateContext
from ..policy_gradient import StepPolicyGradient, members, repeated, score
from ..trajectory import Policy, check_rule, make_policy, record


@dataclass(frozen=True, kw_only=True)
class FlowGRPO(StepPolicyGradient):
    """group: pictures of each prompt. noise: a of s = a sqrt(t / (1 - t)). spread: whose std, of the "batch" or the
    "group". epsilon: added to it. same_start: do the pictures of a group begin at the same noise?

    The sampler is the method's own; of `ctx.sampling` it takes grid, steps and guidance (the paper trains with 10 steps
    and judges with 40). The defaults are those of the authors' code, where the last step is not trained on either; kl
    is the weight of its published text runs in its own form. A user saw it blow up FLUX, where 0 did not.
    """

    kl: float = 0.04
    kl_form: str = "code"
    group: int = 24
    noise: float = 0.7
    spread: str = "batch"
    epsilon: float = 1e-4
    same_start: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.group < 2:
            raise UsageError(f"a group needs at least 2 pictures of a prompt, not {self.group}")

    def pictures(self, prompts: int) -> int:
        return prompts * self.group

    def sde(self) -> FlowSDE:
        return FlowGRPOSampler(self.noise)

    def check(self, learner: Learner, sampling: Sampling) -> None:
        check_rule(self._policy(learner, sampling))

    def _policy(self, learner: Learner, how: Sampling) -> Policy:
        return make_policy(learner, self.sde(), how.grid, how.steps, how.guidance)

    def update(self, ctx: UpdateContext) -> Iterator[Part]:
        policy = self._policy(ctx.learner, ctx.sampling)
        prompts = repeated(ctx.prompts, self.group)
        seeds = [seed for own in ctx.seeds for seed in members(own, self.group)]
        start = ctx.learner.start(repeated(ctx.seeds, self.group) if self.same_start else seeds, policy.levels)
        trajectory = record(policy, start, prompts, seeds, ctx.rows)
        rewards = score(ctx, trajectory.end, prompts)
        advantages = group_advantages(rewards, self.group, self.spread, self.epsilon, ctx.gather)
        told = varied(rewards, self.group)
        ctx.log(kept=float(ctx.gather(told.float()).mean()))
        yield from self.improve_steps(ctx, trajectory, told.nonzero().flatten().tolist(), advantages)


@dataclass(frozen=True, kw_only=True)
class DanceGRPO(FlowGRPO):
    """noise: s itself, the same at all times. A group begins at the same noise and has its own std; each picture is
    trained on 60 % of its steps. The paper samples 16 steps with a time shift of 3: grid="flow:shift=3"."""

    fraction: float = 0.6
    kl: float = 0.0
    group: int = 12
    noise: float = 0.3
    spread: str = "group"
    epsilon: float = 1e-8
    same_start: bool = True

    def sde(self) -> FlowSDE:
        return DanceGRPOSampler(self.noise)
