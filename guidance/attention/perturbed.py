"""What the rules of the attention family share: one further conditional evaluation, by the perturbed network."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from ..rule import Ask, Context, Guide, Rule
from ..scale import Scale, guided_rows, selected
from .patch import Patch


@dataclass(frozen=True)
class Perturbed(Rule):
    """cond + weight (cond - perturbed); the weights sum to one, so in any space."""

    weight: Scale = 3.0
    layers: str = ""

    passes: ClassVar[int] = 3

    @abstractmethod
    def patch(self, ctx: Context) -> Patch:
        """The perturbation at this step."""

    def guide(self, ctx: Context) -> Guide:
        ctx.log(weight=self.weight)
        scale = plus_one(self.weight)
        if no_weight(self.weight):
            (cond,) = yield (Ask(),)
            return cond
        on = guided_rows(scale, ctx.x)
        cond, bad = yield Ask(), Ask(patch=self.patch(ctx), rows=on)
        return selected(cond.like(cond.native + ctx.column(self.weight) * (cond.native - bad.native)), on, cond)


def plus_one(weight: Scale) -> Scale:
    """The scale of branch guidance that has this additive weight."""
    return tuple(w + 1 for w in weight) if isinstance(weight, tuple) else weight + 1


def no_weight(weight: Scale) -> bool:
    """Is it 0 for every row, so that nothing need be evaluated for it?"""
    return all(w == 0 for w in weight) if isinstance(weight, tuple) else weight == 0
