"""Reward-guided noise: nothing is trained, the noise of each picture is moved until the reward of its run is high.

The optimisers are those of `guidance.optimise`; this makes their problem of a learner and a reward. Like best of n it
is a baseline: what it gains is gained for these pictures alone, and paid for again with the next ones.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ...errors import UsageError
from ...guidance.optimise.driver import Optimised, Optimiser
from ...guidance.optimise.problem import Problem
from ...guidance.optimise.registry import make_optimiser
from ...training.learner import Learner
from ..method import Sampling
from ..rewards.reward import Reward
from .batch import Batch


def optimise_noise(
    learner: Learner,
    reward: Reward,
    prompts: Sequence[str],
    seeds: Sequence[str],
    sampling: Sampling,
    optimiser: str | Optimiser = "doodl:iterations=20",
) -> Optimised:
    """The best run found for each prompt and seed; its `loss` is minus the reward, (B,), and `runs` times B pictures
    were sampled.

    optimiser: a line of `guidance.optimise.OPTIMISERS`. Rows do not see each other. UsageError for a reward without a
    gradient.
    """
    if not reward.differentiable:
        raise UsageError(f"the reward {reward.name} has no gradient to move noise by; use best_of_n, or zo-rank-sgd")
    batch = Batch(learner, prompts, seeds, sampling)

    def loss(latents: Tensor) -> Tensor:
        return -reward(learner.decode(latents), prompts)

    problem = Problem(
        batch.denoiser, loss, sampler=sampling.sampler, grid=batch.levels, noise=batch.noise, decode=learner.decode
    )
    made = make_optimiser(optimiser) if isinstance(optimiser, str) else optimiser
    return made.optimise(problem, batch.start())
