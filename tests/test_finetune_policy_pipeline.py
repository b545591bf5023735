"""Policy gradients of a tiny Stable Diffusion with adapters, in float32: what holds exactly in toys holds here."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from finetune_toys import context, gradients, of
from tiny_parts import stable_diffusion
from torch import Tensor

from pilotage.finetune.method import Sampling, UpdateContext
from pilotage.finetune.methods.ddpo import DDPO
from pilotage.finetune.methods.flow_grpo import FlowGRPO
from pilotage.finetune.methods.fpo import FPO
from pilotage.finetune.policy_gradient import PolicyGradient
from pilotage.training.pipeline_learner import PipelineLearner

GUIDED = Sampling("ddim:eta=1", "trailing", 4, "cfg:scale=3")
BRIGHT = of(lambda pictures: pictures.mean(1))
WAYS: list[PolicyGradient] = [
    DDPO(inner_steps=1, least=2, reduction="sum", clip=0.2),
    FlowGRPO(inner_steps=1, group=3),
    FPO(inner_steps=1, pairs=2, least=2),
]


def tiny(**settings: Any) -> PipelineLearner:
    """With adapters that do something."""
    learner = PipelineLearner(stable_diffusion(), **settings)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in learner.parameters:
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return learner


def apart(found: list[Tensor], wanted: list[Tensor]) -> float:
    a, b = (torch.cat([tensor.flatten() for tensor in tensors]) for tensors in (found, wanted))
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("method", WAYS, ids=lambda method: type(method).__name__)
def test_the_first_ratio_is_one(method: PolicyGradient) -> None:
    """To 1e-5, with guidance, with other rows together than when sampling, and summed over a latent's numbers."""
    numbers: dict[str, float] = {}
    ctx = context(tiny(), BRIGHT, 4, GUIDED, rows=3, log=lambda **n: numbers.update(n))
    assert any(gradient.any() for gradient in gradients(method, ctx))
    assert numbers["ratio_off"] < 1e-5


@pytest.mark.parametrize("method", WAYS, ids=lambda method: type(method).__name__)
def test_pieces_and_checkpoints_change_nothing(method: PolicyGradient) -> None:
    """Also with passes of the base model between a loss and its backward pass, which switch the adapters."""

    def found(learner: PipelineLearner, rows: int) -> list[Tensor]:
        return gradients(method, context(learner, BRIGHT, 4, GUIDED, rows=rows))

    wanted = found(tiny(), 64)
    assert apart(found(tiny(), 1), wanted) < 1e-4
    assert apart(found(tiny(network_checkpoints=True), 64), wanted) < 1e-4


def test_the_base_is_the_model_before_training() -> None:
    """Adapters that do nothing: no divergence; others: some, with a gradient that pulls back."""

    def divergence(learner: PipelineLearner) -> tuple[float, list[Tensor]]:
        numbers: dict[str, float] = {}
        flat = of(lambda pictures: pictures.mean(1) * 1e-12)
        ctx: UpdateContext = context(learner, flat, 2, GUIDED, log=lambda **n: numbers.update(n))
        found = gradients(FlowGRPO(inner_steps=1, group=2, kl=1.0, kl_form="exact", spread="batch"), ctx)
        return numbers["kl"], found

    assert divergence(PipelineLearner(stable_diffusion()))[0] == 0
    moved = tiny()
    before, gradient = divergence(moved)
    with torch.no_grad():
        for parameter, slope in zip(moved.parameters, gradient):
            parameter -= 1e-3 * slope / (1e-9 + max(float(g.norm()) for g in gradient))
    assert 0 < divergence(moved)[0] < before
