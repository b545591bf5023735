"""Best of n: sample n pictures of a prompt and keep the one with the highest reward. Nothing is trained.

The baseline that every fine-tuning has to beat at the same number of pictures sampled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...errors import UsageError
from ...samplers.loop import sample
from ...samplers.noise import derived_seed
from ...training.learner import Learner
from ..method import Sampling
from ..rewards.reward import Reward
from .batch import Batch


@dataclass(frozen=True, eq=False)
class Best:
    """pictures: (P, 3, H, W), the best of each prompt. rewards: (P,), theirs. seeds: that they were made from.
    tried: (P, n), the rewards of all. sampled: how many pictures that took."""

    pictures: Tensor
    rewards: Tensor
    seeds: list[str]
    tried: Tensor
    sampled: int


def best_of_n(
    learner: Learner,
    reward: Reward,
    prompts: Sequence[str],
    seeds: Sequence[str],
    n: int,
    sampling: Sampling,
    rows: int = 8,
) -> Best:
    """The best of n pictures for each prompt.

    prompts, seeds: P, one each. The first candidate's seed is the given one and the others follow from it, so n = 1 is
    plain sampling and the candidates of a smaller n are among those of a larger one. rows: pictures that go through the
    network together.
    """
    if n < 1 or len(prompts) != len(seeds) or not prompts:
        raise UsageError(f"best of {n} for {len(prompts)} prompts and {len(seeds)} seeds: n from 1 on, a seed a prompt")
    kept = [best_of_one(learner, reward, p, candidates(s, n), sampling, rows) for p, s in zip(prompts, seeds)]
    pictures, tried, chosen = zip(*kept)
    rewards = torch.stack(tried)
    return Best(torch.stack(pictures), rewards.amax(1), list(chosen), rewards, n * len(prompts))


def candidates(seed: str, n: int) -> list[str]:
    """n seeds, the first of them `seed`."""
    return [str(seed), *(str(derived_seed(seed, "best of n", i)) for i in range(1, n))]


def best_of_one(
    learner: Learner, reward: Reward, prompt: str, seeds: list[str], sampling: Sampling, rows: int
) -> tuple[Tensor, Tensor, str]:
    """The best picture (3, H, W) of one prompt, all rewards (n,), and the best one's seed."""
    rewards, best, highest = [], None, -torch.inf
    for i in range(0, len(seeds), rows):
        batch = Batch(learner, [prompt] * len(seeds[i : i + rows]), seeds[i : i + rows], sampling)
        with torch.no_grad():
            ends = sample(batch.denoiser, batch.start(), sampler=sampling.sampler, grid=batch.levels, noise=batch.noise)
            pictures = learner.decode(ends)
            found = reward(pictures, batch.prompts)
        rewards.append(found.cpu())
        if best is None or float(found.max()) > highest:
            highest, best = float(found.max()), (pictures[int(found.argmax())].cpu(), i + int(found.argmax()))
    assert best is not None
    return best[0], torch.cat(rewards), seeds[best[1]]
