"""The posterior family: at each step, follow a loss of the clean estimate downhill.

What its members share, and in what they differ:

    G_x = grad_x loss(D(x))      through the denoiser, one backward pass of it        DPS, LGD, FreeDoM, UGD, TFG
    G_D = grad_D loss(D)         not through it: no graph of the network              MPGD, UGD's backward part, TFG
    where the gradient goes      into the score (`own`), or into the clean estimate alone, which moves the end of the
                                 step and keeps the noise (`kept`)
    a smoothed loss              - log mean_j exp(- loss(D + std n_j))                LGD, TFG
    repeats                      go down by DDIM, up again by fresh noise, and look anew, `repeats` - 1 times

Equations as in the unified account of Ye et al. 2024 (TFG), arXiv 2409.15761, with l = - loss.
All are modifiers: they follow the gradient of the whole guided prediction that they wrap.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...errors import UsageError
from ...samplers.prediction import Prediction
from ..identity import identities, row_noise
from ..rule import Ask, Asks, Context, Guide, Modifier, Point
from .autograd import at_rest, gradient, graph, nudged, pulled, seen_from, shifted, traced, without_graph
from .losses import Loss, loss_of

Move = tuple[Tensor | None, Tensor | None]


@dataclass(frozen=True)
class Look:
    """One look at the clean estimate. p: the guided prediction. values: the (smoothed) loss (B,). pull: G_x, or None
    where the rule does not ask for it. loss: z -> (B,), smoothed as the rule says."""

    p: Prediction
    values: Tensor
    pull: Tensor | None
    loss: Callable[[Tensor], Tensor]

    def slope(self, z: Tensor) -> Tensor:
        """grad loss at z, not through the denoiser."""
        return gradient(self.loss, z)[1]


@dataclass(frozen=True)
class Posterior(Modifier):
    """loss: a Loss, a callable on denoised latents, or a name with its `target` (loss=colour,target=red); "" is off.
    repeats: looks a step, 1 for no recurrence; the last step has one."""

    loss: Any = ""
    target: str = ""
    repeats: int = 1

    order: ClassVar[int] = 35
    passes: ClassVar[int] = 6  # beside the gradient

    def __post_init__(self) -> None:
        loss_of(self.loss, self.target)
        refuse_few(type(self).__name__.lower(), "repeats", self.repeats)

    # -- what a member says -------------------------------------------------------------------------------------------

    @property
    @abstractmethod
    def off(self) -> bool:
        """Do the weights leave everything as it is?"""

    @property
    def through(self) -> bool:
        """Does it need G_x?"""
        return True

    @property
    def through_only(self) -> bool:
        """Is the step left consistent (the gradient is in the score)?"""
        return False

    def smoothing(self, ctx: Context) -> tuple[int, float]:
        """Samples and deviation of the smoothed loss; one sample at 0 is the loss itself."""
        return 1, 0.0

    @abstractmethod
    def move(self, ctx: Context, look: Look) -> Move:
        """(own, kept): changes of the clean estimate with its noise, and of the clean estimate alone; None is none."""

    # -- what they share ----------------------------------------------------------------------------------------------

    @property
    def shifts(self) -> bool:  # type: ignore[override]
        active = not self.off and loss_of(self.loss, self.target) is not None
        return self.rule.shifts or (active and not (self.through_only and self.repeats == 1))

    def guide(self, ctx: Context) -> Guide:
        loss = loss_of(self.loss, self.target)
        if loss is None or self.off:
            return (yield from self.rule.guide(ctx))
        x, looks = ctx.x, max(1, int(self.repeats)) if ctx.goal.sigma > 0 else 1
        for turn in range(looks):
            look = yield from self._look(ctx, x, loss, turn)
            own, kept = self.move(ctx, look)
            p = shifted(nudged(look.p, own), kept)
            ctx.log(loss=look.values)
            if turn < looks - 1:
                x = self._again(ctx, p, turn)
        return seen_from(ctx, p)

    def _look(self, ctx: Context, x: Tensor, loss: Loss, turn: int) -> Generator[Asks | Ask, Any, Look]:
        smooth = self._smoothed(ctx, loss, turn)
        nested = x.requires_grad  # another rule traces this one
        if self.through:
            with graph():
                leaf = x if nested else x.detach().clone().requires_grad_()
            traced_p = yield from traced(self.rule, ctx, Point(leaf, ctx.level), keep=turn == 0)
            with graph():
                values = smooth(traced_p.denoised)
            pull = pulled(values, leaf, keep=nested)
            return Look(traced_p if nested else without_graph(traced_p, x), values.detach(), pull, smooth)
        if x is ctx.x:
            p = yield from self.rule.guide(ctx)
        else:
            p = yield from at_rest(self.rule, ctx, Point(x, ctx.level), keep=False)
        return Look(p, smooth(p.denoised.detach()).detach(), None, smooth)

    def _smoothed(self, ctx: Context, loss: Loss, turn: int) -> Callable[[Tensor], Tensor]:
        """- log mean_j exp(- loss(z + std n_j)); the noise belongs to the row."""
        samples, std = self.smoothing(ctx)
        if std == 0:
            return lambda z: loss.of(z, ctx)
        who = identities(ctx, self)
        drawn = [
            row_noise(who, ctx.x, type(self).__name__, ctx.step, ctx.stage, turn, j) * std for j in range(int(samples))
        ]

        def soft(z: Tensor) -> Tensor:
            values = torch.stack([loss.of(z + noise, ctx) for noise in drawn])
            return math.log(len(drawn)) - torch.logsumexp(-values, dim=0)

        return soft

    def _again(self, ctx: Context, p: Prediction, turn: int) -> Tensor:
        """Down to the step's end by DDIM, up again to where it began: x = (alpha/alpha') x' + fresh noise."""
        level, goal, base = ctx.level, ctx.goal, p.step_on
        down = goal.alpha * p.denoised + goal.sigma * base.noise
        ratio = level.alpha / goal.alpha
        fresh = math.sqrt(max(0.0, level.sigma**2 - (ratio * goal.sigma) ** 2))
        noise = row_noise(identities(ctx, self), ctx.x, type(self).__name__, "again", ctx.step, ctx.stage, turn)
        return ratio * down + fresh * noise


def refuse_few(who: str, setting: str, value: float, least: int = 1) -> None:
    if value < least or value != int(value):
        raise UsageError(f"{who} {setting}={value} must be a whole number from {least} on")


def descended(look: Look, step: Callable[[Tensor, Tensor], Tensor], times: int) -> Tensor:
    """The change of the clean estimate after `times` steps of z += step(grad loss(z), z)."""
    start = look.p.denoised.detach()
    z = start
    for _ in range(times):
        z = z + step(look.slope(z), z)
    return z - start
