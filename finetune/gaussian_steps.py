"""What is known of Gaussian steps x' ~ N(mean, std^2 I): densities, their ratio under two means, their divergence."""

from __future__ import annotations

import math

from torch import Tensor

from ..errors import UsageError

REDUCTIONS = ("mean", "sum")
KL_FORMS = ("exact", "code")


def reduced(values: Tensor, reduction: str) -> Tensor:
    """(B, ...) -> (B,): the sum over a row's numbers, or their mean, which is the sum divided by their count."""
    if reduction not in REDUCTIONS:
        raise UsageError(f'reduction is "mean" or "sum" over the numbers of a latent, not {reduction!r}')
    flat = values.flatten(1)
    return flat.mean(1) if reduction == "mean" else flat.sum(1)


def log_prob(after: Tensor, mean: Tensor, std: float, reduction: str = "mean") -> Tensor:
    """(B,): log N(after; mean, std^2 I) = -|after - mean|^2 / (2 std^2) - log std - log(2 pi) / 2, reduced over the
    numbers of a row. after, mean: (B, ...)."""
    return reduced(-((after - mean) ** 2) / (2 * std**2) - math.log(std) - math.log(2 * math.pi) / 2, reduction)


def log_ratio(after: Tensor, mean: Tensor, old: Tensor, std: float, reduction: str = "mean") -> Tensor:
    """(B,): log N(after; mean) - log N(after; old) = d (after - old - d / 2) / std^2 with d = mean - old.

    Written so that nothing cancels: it is exactly 0 for equal means, in float32 and for any number of dimensions.
    """
    apart = mean - old
    return reduced(apart * (after - old - apart / 2) / std**2, reduction)


def step_kl(mean: Tensor, other: Tensor, std: float, span: float, form: str = "exact") -> Tensor:
    """(B,): how far a step is from another with the same std. mean, other: (B, ...).

    exact  KL(N(mean) || N(other)) = |mean - other|^2 / (2 std^2), in nats, summed over the numbers of a row
    code   the mean over them of (mean - other)^2 / (2 std^2 / span): the form of Flow-GRPO's code, to which the
           published weights 0.01 to 0.04 belong; it lacks the length of the step. span: that length, in flow time.
    """
    if form not in KL_FORMS:
        raise UsageError(f'kl_form is "exact" or "code", not {form!r}')
    squares = (mean - other) ** 2 / (2 * std**2)
    return reduced(squares, "sum") if form == "exact" else reduced(squares, "mean") * span
