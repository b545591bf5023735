"""Classifier guidance: Dhariwal & Nichol 2021, arXiv 2105.05233, Algorithms 1 and 2. Needs a noise-aware classifier."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...errors import UsageError
from ...samplers.schedule import Level
from ..rule import Context, Guide, Modifier
from ..scale import Scale
from .autograd import check_word, gradient, half_gain, is_zero, nudged_score, posterior_variance, shifted
from .losses import Classes, class_score, embedded_network, fed, head_of

FORMS = ("score", "ancestral")


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
    network(x, t); "guide" is the embedded world's, with an attribute ("star") for its target. "" is off. target: a
    class, or one a row. weight: 0 is off, 1 is Bayes' rule; 1 to 10 in the paper. form: "score" (above, any sampler),
    or "ancestral", x' = S(x) + weight Var G with Var the variance of the ancestral step (the paper's Algorithm 1).
    """

    classifier: Any = ""
    target: Classes = ""
    weight: Scale = 1.0
    form: str = "score"

    order: ClassVar[int] = 34
    passes: ClassVar[int] = 6

    def __post_init__(self) -> None:
        check_word("classifier", "form", self.form, FORMS)
        if isinstance(self.classifier, str) and self.classifier not in ("", "guide"):
            raise UsageError(
                f"unknown classifier {self.classifier!r}; use guide, or pass classifier(x, level) in Python"
            )
        if self.classifier == "guide" and self.target != "":
            head_of(str(self.target))

    @property
    def shifts(self) -> bool:  # type: ignore[override]
        active = self.classifier != "" and not is_zero(self.weight)
        return self.rule.shifts or (active and self.form == "ancestral")

    def log_probability(self, x: Tensor, level: Level) -> Tensor:
        """log p(target | x, level), (B,)."""
        if self.classifier == "guide":
            head, index = head_of(str(self.target))
            return class_score(Timed(embedded_network("guide"))(x, level)[head], index)
        answer = self.classifier(x, level)
        return answer if answer.dim() == 1 else class_score(answer, self.target)

    def guide(self, ctx: Context) -> Guide:
        p = yield from self.rule.guide(ctx)
        if self.classifier == "" or is_zero(self.weight):
            return p
        network = embedded_network("guide") if self.classifier == "guide" else self.classifier
        gain = half_gain(getattr(network, "network", network))
        found, pull = gradient(lambda x: self.log_probability(x, ctx.level), ctx.x, gain)
        ctx.log(log_probability=found)
        pull = pull * ctx.column(self.weight)
        if self.form == "score":
            return nudged_score(p, pull)
        return shifted(p, pull * (posterior_variance(ctx.start, ctx.goal) / ctx.goal.alpha))
