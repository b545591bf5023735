"""The velocity of a prediction: what moves x. The home space of rules that are written for flow models."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import UsageError
from ..samplers.prediction import FLOW_PREDICTION, Prediction
from ..samplers.schedule import RectifiedFlow
from .rule import Context


def refuse_other_than_flow(ctx: Context, who: str) -> None:
    if not isinstance(ctx.schedule, RectifiedFlow):
        raise UsageError(
            f"{who} works on the velocity of a flow model; this one has {type(ctx.schedule).__name__}: use cfg or apg"
        )


def velocity(prediction: Prediction, ctx: Context) -> Tensor:
    """dx/dt = noise - denoised on the rectified-flow path; d(x / alpha) / d rho = noise on others."""
    if prediction.kind is FLOW_PREDICTION:
        return prediction.native
    if isinstance(ctx.schedule, RectifiedFlow):
        return prediction.noise - prediction.denoised
    return prediction.noise


def with_velocity(prediction: Prediction, value: Tensor, ctx: Context) -> Prediction:
    """The consistent prediction of the same point with this velocity; denoised = x - t velocity on the flow path."""
    if prediction.kind is FLOW_PREDICTION:
        return prediction.like(value)
    if isinstance(ctx.schedule, RectifiedFlow):
        return prediction.with_denoised(torch.add(prediction.x, value, alpha=-prediction.level.sigma))
    return prediction.with_noise(value)
