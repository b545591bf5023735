"""EluCD: Ma et al. 2024, arXiv 2310.11311. Guidance by an ordinary classifier of clean pictures, with no training.

Smooth the classifier first: EluCD(smoothed(network, beta=3.0), target=207); `smoothed` and `ImageNetInput` are in
`guidance.gradient.losses`. The equations are those of the authors' code (AlexMaOLS/EluCD).
"""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...samplers.prediction import Prediction
from ..rule import Asks, Context, Guide, Modifier, Point
from ..scale import Scale
from .attributes import aim_of, attribute_score, check_guide, guide_at
from .autograd import (
    at_rest,
    check_word,
    gradient,
    half_gain,
    is_zero,
    nudged_score,
    posterior_variance,
    seen_from,
    shifted,
)
from .losses import Classes, class_score, decoded, fed

FORMS = ("ancestral", "edm", "score")
READS = ("pictures", "latents")


@dataclass(frozen=True)
class EluCD(Modifier):
    """G = grad_D of own f_y - log sum_k exp(others f_k), f the logits of D; not through the denoiser.

    form "ancestral": x' = S(x, D) + weight (Var_t + bump sin(pi t/T) max Var) G, Var that of the ancestral step.
    form "edm": before the step, x += weight_i rms(x) G / rms(G), with G taken at q = x / max(1, rms(x)) itself, and
        weight_i = max(weight (n - i)/n, 1e-5) + weight bump sin(pi i/(n - 1)), n = steps + 1.
    form "score": noise - weight sigma G, as the DDIM path of the code.

    classifier: network(pictures) -> logits (B, K), "" is off; "guide" is the embedded world's, told that the estimate
    is clean. target: a class, or one a row; for "guide" an attribute ("star") or "caption", all that the row's prompt
    states. weight: 0 is off; 1 in the paper's DDPM setting (own 1, others 0.5, bump 0.3), 0.004 in its EDM setting
    (others 0). own, others: the two temperatures; others 0 is the joint direction grad f_y, both 1 the conditional grad
    log p(y | D). reads: "pictures" needs the run's decode; "latents" gives the classifier the estimate as it is (pixel
    models, latent classifiers, the guide always).
    """

    classifier: Any = ""
    target: Classes = ""
    weight: Scale = 1.0
    own: float = 1.0
    others: float = 0.5
    bump: float = 0.3
    form: str = "ancestral"
    reads: str = "pictures"

    order: ClassVar[int] = 34
    passes: ClassVar[int] = 6

    def __post_init__(self) -> None:
        check_word("elucd", "form", self.form, FORMS)
        check_word("elucd", "reads", self.reads, READS)
        check_guide("elucd", self.classifier, self.target)

    @property
    def off(self) -> bool:
        return self.classifier == "" or is_zero(self.weight)

    @property
    def shifts(self) -> bool:  # type: ignore[override]
        return self.rule.shifts or (not self.off and self.form != "score")

    def slope(self, z: Tensor, ctx: Context) -> Tensor:
        """grad_z of the score of z, (B, ...)."""

        def values(z: Tensor) -> Tensor:
            if isinstance(self.classifier, str):
                logits = guide_at(z, 0.0)
            else:
                logits = fed(self.classifier, decoded(z, ctx, "elucd") if self.reads == "pictures" else z)
            if isinstance(logits, Mapping):
                return attribute_score(logits, aim_of(self.target, ctx, "elucd"), self.own, self.others)
            return class_score(logits, self.target, self.own, self.others)

        found, pull = gradient(values, z, half_gain(self.classifier))
        ctx.log(log_probability=found)
        return pull

    def guide(self, ctx: Context) -> Guide:
        if self.off:
            return (yield from self.rule.guide(ctx))
        if self.form == "edm":
            return seen_from(ctx, (yield from self._moved_first(ctx)))
        p = yield from self.rule.guide(ctx)
        pull = self.slope(p.denoised, ctx) * ctx.column(self.weight)
        if self.form == "score":
            return nudged_score(p, pull)
        now = posterior_variance(ctx.start, ctx.goal)
        highest = ctx.recall(self, ctx.x.detach().new_zeros(len(ctx.x))).clamp(min=now)
        ctx.keep(self, highest)
        time = (ctx.steps - 1 - ctx.step) / ctx.steps
        strength = now + self.bump * math.sin(math.pi * time) * highest
        return shifted(p, pull * ctx.column(strength / ctx.goal.alpha))

    def _moved_first(self, ctx: Context) -> Generator[Asks, Any, Prediction]:
        size = rms(ctx.x)
        pull = self.slope(ctx.x / size.clamp(min=1), ctx)
        length = rms(pull)
        unit = torch.where(length > 0, pull / torch.where(length > 0, length, 1.0), 0.0)
        x = ctx.x + unit * size * self._weight_of(ctx)
        return (yield from at_rest(self.rule, ctx, Point(x, ctx.level)))

    def _weight_of(self, ctx: Context) -> Any:
        i, n = ctx.step, ctx.steps + 1
        bump = self.bump * math.sin(math.pi * i / (n - 1))

        def one(weight: float) -> float:
            return max(weight * (n - i) / n, 1e-5) + weight * bump if weight else 0.0

        return ctx.column(tuple(map(one, self.weight))) if isinstance(self.weight, tuple) else one(self.weight)


def rms(x: Tensor) -> Tensor:
    """Root mean square of each row, shaped to broadcast."""
    return x.square().flatten(1).mean(1).sqrt().reshape(-1, *[1] * (x.dim() - 1))
