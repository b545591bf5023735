"""How much better than expected a picture was: rewards against those of the same prompt, or of the same group.

All statistics are over the pictures of all processes, and with the population's standard deviation, divided by n.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import UsageError
from ..samplers.noise import derived_seed
from .method import Gather

History = dict[str, list[list[float]]]  # prompt key -> [update, reward] pairs, oldest first


def prompt_keys(prompts: Sequence[str], device: Any = "cpu") -> Tensor:
    """(B,) int64 that stand for the prompts, so that processes can tell each other."""
    return torch.tensor([derived_seed("prompt", prompt) for prompt in prompts], dtype=torch.int64, device=device)


def remember(history: History, keys: Tensor, rewards: Tensor, update: int) -> None:
    """Add rewards (B,) of the prompts `keys` (B,) to the history, in place; one that is not finite would spoil later
    updates and is left out."""
    for key, reward in zip(keys.tolist(), rewards.tolist()):
        if math.isfinite(reward):
            history.setdefault(str(key), []).append([float(update), reward])


def forget(history: History, *, newest: int | None = None, since: float | None = None) -> None:
    """Keep the `newest` rewards of each prompt, or those of updates >= `since`, in place."""
    for key, kept in list(history.items()):
        if since is not None:
            kept = [pair for pair in kept if pair[0] >= since]
        history[key] = kept if newest is None else kept[-newest:]
        if not history[key]:
            del history[key]


def prompt_scores(history: History, keys: Tensor, rewards: Tensor, everyone: Tensor, least: int = 16) -> Tensor:
    """z = (R - mean) / (std + 1e-6), (B,) float64 on the CPU, with mean and std of the history of each picture's prompt
    (Black et al. 2023, arXiv 2305.13301).

    A prompt that has fewer than `least` rewards takes those of the whole batch, `everyone`.
    """
    own = rewards.cpu().double()
    batch = [float(reward) for reward in everyone.tolist()]
    statistics: dict[int, tuple[float, float]] = {}
    for key in set(keys.tolist()):
        seen = [pair[1] for pair in history.get(str(key), [])]
        values = torch.tensor(seen if len(seen) >= max(1, least) else batch, dtype=torch.float64)
        statistics[key] = float(values.mean()), float(values.std(correction=0))
    means, stds = torch.tensor([statistics[key] for key in keys.tolist()], dtype=torch.float64).T
    return (own - means) / (stds + 1e-6)


def group_advantages(
    rewards: Tensor, group: int, spread: str = "batch", epsilon: float = 1e-4, gather: Gather = lambda v: v
) -> Tensor:
    """A = (R - mean of the group) / (std + epsilon), (B,) float64 on the CPU.

    rewards: (B,), members of a group one after the other. spread: whose standard deviation, the "batch"'s (Flow-GRPO)
    or the "group"'s own (GRPO, DanceGRPO). A group sums to 0; one whose rewards are all equal has zeros.
    """
    if spread not in ("batch", "group"):
        raise UsageError(f'the standard deviation is that of the "batch" or of the "group", not {spread!r}')
    values = rewards.cpu().double().reshape(-1, group)
    own, everyone = values.std(1, correction=0, keepdim=True), gather(rewards).cpu().double()
    std = own if spread == "group" else everyone.std(correction=0)
    advantages = (values - values.mean(1, keepdim=True)) / (std + epsilon)
    return torch.where(varied(rewards.cpu(), group), advantages.flatten(), 0.0)


def varied(rewards: Tensor, group: int) -> Tensor:
    """(B,) bool: whether the rewards of a picture's group differ; others say nothing."""
    values = rewards.reshape(-1, group)
    return (values.amax(1) > values.amin(1)).repeat_interleave(group)
