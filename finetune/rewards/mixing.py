"""Rewards made of rewards: sums, ensembles, the harmonic mean, targets, z-scores."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from ...errors import UsageError
from .reward import Reward

TINY = 1e-8  # of the harmonic mean, as its paper's code has it


def weighted_sum(terms: Sequence[tuple[float, Reward]]) -> Reward:
    """sum_i weight_i r_i. Weights may be negative; they are not normalised."""
    if not terms:
        raise UsageError("a sum of rewards has no terms; write for example '0.7 * adherence + 0.3 * saturation'")
    if len(terms) == 1 and terms[0][0] == 1:
        return terms[0][1]
    weights = [float(weight) for weight, _ in terms]
    name = " + ".join(_bracketed(part) if weight == 1 else f"{weight:g} * {_bracketed(part)}" for weight, part in terms)

    def added(scores: Tensor) -> Tensor:
        return (scores * scores.new_tensor(weights)[:, None]).sum(0)

    return _of_parts(name, [part for _, part in terms], added)


def ensemble(rewards: Sequence[Reward], c: float = 1.0) -> Reward:
    """mean - c std over k rewards, std with divisor k: what they do not agree on does not count.

    The rewards should have one scale: see `normalised`. c 0 is the mean.
    """

    def cautious(scores: Tensor) -> Tensor:
        mean = scores.mean(0)
        # The norm has the gradient 0 where all agree; std has none there.
        return mean - c * torch.linalg.vector_norm(scores - mean, dim=0) / len(scores) ** 0.5

    return _of_parts(f"ensemble:c={c:g} of {_listed(rewards)}", rewards, cautious)


def minimum(rewards: Sequence[Reward]) -> Reward:
    """The least of k rewards, row by row. They should have one scale: see `normalised`."""
    return _of_parts(f"minimum of {_listed(rewards)}", rewards, lambda scores: scores.amin(0))


def harmonic(rewards: Sequence[Reward], weight: float = 0.3) -> Reward:
    """1 / (weight / a + (1 - weight) / b) of two rewards in 0..1: neither can raise it alone (the lambda-harmonic of
    2407.12164).

    a, b: such as the similarity to a subject and the adherence to a prompt. What is below 0 counts as 0, and has no
    gradient. weight: lambda, 0 is b alone and 1 is a alone.
    """
    if len(rewards) != 2:
        raise UsageError(f"harmonic is of 2 rewards, not {len(rewards)}; write harmonic of A + B")
    if not 0 <= weight <= 1:
        raise UsageError(f"the weight {weight} of harmonic is not within 0..1; 0.3 is the paper's")

    def joined(scores: Tensor) -> Tensor:
        a, b = scores.clamp(min=0) + TINY
        return 1 / (weight / a + (1 - weight) / b)

    return _of_parts(f"harmonic:weight={weight:g} of {_listed(rewards)}", rewards, joined)


def near(reward: Reward, value: float) -> Reward:
    """-|r - value|: a target instead of more and more (AlignProp's aesthetic reward aims at 10)."""
    return _of_one(f"near:value={value:g}", reward, lambda score: -(score - value).abs())


def up_to(reward: Reward, value: float) -> Reward:
    """-relu(value - r): more is better up to a value, then nothing is gained (ReFL, 2304.05977, stops at 2)."""
    return _of_one(f"up-to:value={value:g}", reward, lambda score: -(value - score).relu())


def normalised(reward: Reward, mean: float, deviation: float) -> Reward:
    """(r - mean) / deviation, with the moments of what the model made before training: see `Moments`."""
    if not deviation > 0:
        raise UsageError(f"the deviation {deviation} of {reward.name} is not above 0; it must differ between pictures")
    return _of_one(
        f"normalised:mean={mean:g},deviation={deviation:g}", reward, lambda score: (score - mean) / deviation
    )


def _of_one(name: str, reward: Reward, change: Callable[[Tensor], Tensor]) -> Reward:
    return _of_parts(f"{name} of {reward.name}", [reward], lambda scores: change(scores[0]))


def _of_parts(name: str, parts: Sequence[Reward], join: Callable[[Tensor], Tensor]) -> Reward:
    """join: scores (k, B) of the parts -> (B,)."""
    if not parts:
        raise UsageError(f"{name.strip()} nothing; name at least one reward")

    def scores(pictures: Tensor, prompts: Sequence[str]) -> Tensor:
        return join(torch.stack([part(pictures, prompts) for part in parts]))

    return Reward(
        name,
        scores,
        differentiable=all(part.differentiable for part in parts),
        needs_prompt=any(part.needs_prompt for part in parts),
        licence=_each(part.licence for part in parts),
        model=_each(part.model for part in parts if part.model != "none") or "none",
        preprocessing=_each(part.preprocessing for part in parts),
        parts=tuple(parts),
    )


def _each(texts: Iterable[str]) -> str:
    """Every text once, in order."""
    return "; ".join(dict.fromkeys(text for text in texts if text))


def _listed(rewards: Sequence[Reward]) -> str:
    return " + ".join(_bracketed(reward) for reward in rewards)


def _bracketed(reward: Reward) -> str:
    """A name that can stand in a sum."""
    return f"({reward.name})" if " " in reward.name else reward.name
