"""ICG, independent condition guidance: Sadat et al. 2025, arXiv 2407.02687. A null branch for models without one."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from ...errors import UsageError
from ...samplers.noise import derived_seed
from ..identity import identities
from ..rule import Ask, Context, Guide, Modifier, changed
from .conditioning import NoisyEdit, moments


@dataclass(frozen=True)
class ICG(Modifier):
    """Answer the wrapped rule's "uncond" with the model under a condition that has nothing to do with the picture:
    Gaussian noise of the embedding's own mean and deviation, or with `classes` a random class number below it.

    draw: "step" draws anew at each step, "run" once a run (which of the two the paper does was not seen: experimental),
    "off" is off. seed: another draw. A row's condition follows the picture, not the batch.
    """

    draw: str = "step"
    classes: int = 0
    seed: int = 0

    order: ClassVar[int] = 50
    passes: ClassVar[int] = 0

    def __post_init__(self) -> None:
        if self.draw not in ("step", "run", "off"):
            raise UsageError(f"icg draw {self.draw!r} is unknown; use step, run or off")

    @property
    def needs(self) -> tuple[str, ...]:  # type: ignore[override]
        if self.draw == "off":
            return self.rule.needs
        return tuple(dict.fromkeys(("cond", *(b for b in self.rule.needs if b != "uncond"))))

    def guide(self, ctx: Context) -> Guide:
        if self.draw == "off":
            return (yield from self.rule.guide(ctx))
        who = identities(ctx, self)
        edit = Independent(who, (self.seed, "icg", ctx.step if self.draw == "step" else 0), self.classes)

        def replaced(ask: Ask) -> Ask:
            plain = ask.branch == "uncond" and ask.edit is None
            return replace(ask, branch="cond", edit=edit) if plain else ask

        return (yield from changed(self.rule.guide(ctx), replaced))


@dataclass(frozen=True)
class Independent(NoisyEdit):
    """Another conditioning altogether."""

    classes: int
    called: ClassVar[str] = "icg"

    def changed(self, y: Tensor, noise: Tensor, name: str) -> Tensor:
        mean, std = moments(y)
        return mean + std * noise

    def labels(self, y: Tensor, name: str) -> Tensor | None:
        if not self.classes:
            return None
        self._check(len(y.expand(len(self.who)) if len(y) == 1 else y))
        drawn = [derived_seed(one, *self.purpose, name) % self.classes for one in self.who]
        return torch.tensor(drawn, dtype=y.dtype, device=y.device)
