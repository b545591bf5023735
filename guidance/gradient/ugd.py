"""UGD, universal guidance: Bansal et al. 2023, arXiv 2302.07121, Algorithm 1, as in the code of arXiv 2409.15761."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..rule import Context
from ..scale import Scale
from .autograd import is_zero
from .posterior import Look, Move, Posterior, descended, refuse_few


@dataclass(frozen=True)
class UGD(Posterior):
    """Forward: noise + weight sigma grad_x loss(D(x)). Backward: `steps` steps D~ -= backward grad loss(D~) from D, and
    noise - (alpha / sigma) (D~ - D). The prediction stays consistent; S then steps on it.

    weight and backward (or steps) 0 is off; weight 0 alone needs no graph of the network.
    """

    weight: Scale = 1.0
    backward: float = 0.0
    steps: int = 1

    passes: ClassVar[int] = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_few("ugd", "steps", self.steps, 0)

    @property
    def off(self) -> bool:
        return is_zero(self.weight) and (self.backward == 0 or self.steps == 0)

    @property
    def through(self) -> bool:
        return not is_zero(self.weight)

    @property
    def through_only(self) -> bool:
        return True

    def move(self, ctx: Context, look: Look) -> Move:
        own, level = None, ctx.level
        if look.pull is not None and level.alpha > 0:
            own = look.pull * (ctx.column(self.weight) * (-(level.sigma**2) / level.alpha))
        if self.backward and self.steps:
            back = descended(look, lambda slope, z: -self.backward * slope, int(self.steps))
            own = back if own is None else own + back
        return own, None
