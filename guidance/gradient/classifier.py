"""Classifier guidance: Dhariwal & Nichol 2021, arXiv 2105.05233, Algorithms 1 and 2. Needs a noise-aware classifier."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...samplers.prediction import Prediction
from ...samplers.schedule import Level
from ..reduce import norm, safe_ratio
from ..rule import Context, Guide, Modifier
from ..scale import Scale
from .attributes import GUIDE, aim_of, attribute_score, check_guide, guide_at
from .autograd import check_word, gradient, half_gain, is_zero, nudged_score, posterior_variance, shifted
from .losses import Classes, class_score, embedded_network, fed

FORMS = ("score", "ancestral", "matched")


@dataclass(frozen=True)
class Timed:
    """A network(x, t) with t (B,) as classifier(x, level). per_level: t in units of the level's time, for networks that
    count to 1000 on a schedule that does not."""

    network: Any
    per_level: float = 1.0

    def __call__(self, x: Tensor, level: Level) -> Any:
        time = torch.full((len(x),), level.time * self.per_level, dtype=torch.float32, device=x.device)
        return fed(self.network, x, time)


@dataclass(frozen=True)
class ClassifierGuidance(Modifier):
    """noise - weight sigma G with G = grad_x log p(target | x_t, t), on top of whatever it wraps.

    classifier: classifier(x, level) -> logits (B, K) of noisy x, or log p itself (B,); Timed(network) makes one of a
    network(x, t); "guide" is the embedded world's. "" is off. target: a class, or one a row; for classifiers with the
    heads of the embedded world, such as "guide", an attribute ("star") or "caption", all that the row's prompt states.
    weight: 0 is off, 1 is Bayes' rule; 1 to 10 in the paper.
    form: "score" (above, any sampler); "ancestral", x' = S(x) + weight Var G with Var the variance of the ancestral
    step (the paper's Algorithm 1); or "matched", x' = S(x) + weight |mean| G / |G|, row by row, with the mean of the
    ancestral step, as the code of PPAP guides pixels: weights are then far below 1.
    """

    classifier: Any = ""
    target: Classes = ""
    weight: Scale = 1.0
    form: str = "score"

    order: ClassVar[int] = 34
    passes: ClassVar[int] = 4

    def __post_init__(self) -> None:
        check_word("classifier", "form", self.form, FORMS)
        check_guide("classifier", self.classifier, self.target)

    @property
    def shifts(self) -> bool:  # type: ignore[override]
        active = self.classifier != "" and not is_zero(self.weight)
        return self.rule.shifts or (active and self.form != "score")

    def log_probability(self, x: Tensor, level: Level, ctx: Context | None = None) -> Tensor:
        """log p(target | x, level), (B,). ctx: where the captions come from."""
        if isinstance(self.classifier, str):
            answer = guide_at(x, level.time, embedded_network(GUIDE))
        else:
            answer = self.classifier(x, level)
        if isinstance(answer, Mapping):
            return attribute_score(answer, aim_of(self.target, ctx, "classifier"))
        return answer if answer.dim() == 1 else class_score(answer, self.target)

    def guide(self, ctx: Context) -> Guide:
        p = yield from self.rule.guide(ctx)
        if self.classifier == "" or is_zero(self.weight):
            return p
        gain = half_gain(getattr(self.classifier, "network", self.classifier))
        found, pull = gradient(lambda x: self.log_probability(x, ctx.level, ctx), ctx.x, gain)
        ctx.log(log_probability=found)
        if self.form == "matched":
            pull = pull * ctx.column(safe_ratio(norm(ancestral_mean(p, ctx)), norm(pull)).to(pull.dtype))
        pull = pull * ctx.column(self.weight)
        if self.form == "score":
            return nudged_score(p, pull)
        size = posterior_variance(ctx.start, ctx.goal) if self.form == "ancestral" else 1.0
        return shifted(p, pull * (size / ctx.goal.alpha))


def ancestral_mean(p: Prediction, ctx: Context) -> Tensor:
    """Where the ancestral step ends but for its noise: alpha' denoised + sqrt(sigma'^2 - Var) noise."""
    left = math.sqrt(ctx.goal.sigma**2 - posterior_variance(ctx.start, ctx.goal))
    return torch.add(p.step_on.denoised * ctx.goal.alpha, p.step_on.noise, alpha=left)
