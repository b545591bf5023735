"""A choice for each step, such as a search has found: Castillo et al. 2023, arXiv 2312.12487, section 3."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

from ..errors import UsageError
from .cfg import CFG
from .modifiers.linear import LinearAG
from .rule import Ask, Context, Guide, Origin, Rule


@dataclass(frozen=True)
class Choice:
    """kind: "cond", "uncond", "cfg", or "linear", CFG with an estimated null prediction."""

    kind: str
    scale: float = 1.0


@dataclass(frozen=True)
class StepPolicy(Rule):
    """One choice for each step: "cond" or "uncond" alone, a number for CFG with that scale, "linear:5" for CFG with
    scale 5 whose null prediction is estimated.

    plan: "7.5*10 5 cond*9" - the choices of the steps in turn, apart by blanks, each as often as its *n says; the last
    one holds for the rest of the run. file: fitted coefficients for "linear", as in the modifier linear; then every
    scale is that of the fit, and "cond" comes last, for an estimate needs all the steps before it.
    """

    plan: str = "7.5"
    file: str = ""

    passes: ClassVar[int] = 3

    def __post_init__(self) -> None:
        if any(choice.kind == "linear" for choice in choices(self.plan)) and not self.file:
            raise UsageError("policy: a plan with linear needs file=..., as pilotage fit-linear-ag writes it")

    @property
    def needs(self) -> tuple[str, ...]:  # type: ignore[override]
        kinds = {choice.kind for choice in choices(self.plan)}
        return ("cond", "uncond") if kinds & {"cfg", "uncond"} else ("cond",)

    def refuse(self, origin: Origin) -> None:
        if self.file:
            LinearAG(self.file).refuse(origin)

    def guide(self, ctx: Context) -> Guide:
        plan = choices(self.plan)
        choice = plan[min(ctx.step, len(plan) - 1)]
        ctx.log(scale=choice.scale)
        if choice.kind in ("cond", "uncond"):
            (only,) = yield (Ask(choice.kind),)
            return only
        if not self.file:
            return (yield from CFG(choice.scale).guide(ctx))
        every = 1 if choice.kind == "cfg" else ctx.steps + 1  # the first step is a real one in any case
        return (yield from LinearAG(self.file, every, math.inf, inner=CFG(choice.scale)).guide(ctx))


@lru_cache(maxsize=64)
def choices(plan: str) -> tuple[Choice, ...]:
    """The choice of each step."""
    found: list[Choice] = []
    for piece in plan.split():
        what, star, times = piece.partition("*")
        if star and not (times.isdecimal() and int(times) > 0):
            raise UsageError(f"cannot read {piece!r} in the plan; write a choice and how often, such as 7.5*10")
        found += [_choice(what)] * (int(times) if star else 1)
    if not found:
        raise UsageError("the plan is empty; write for example policy:plan='7.5*10 cond*10'")
    return tuple(found)


def _choice(text: str) -> Choice:
    if text in ("cond", "uncond"):
        return Choice(text, 1.0 if text == "cond" else 0.0)
    kind, colon, number = text.rpartition(":")
    try:
        scale = float(number)
    except ValueError:
        scale = math.nan
    if kind not in ("", "linear") or bool(colon) != bool(kind) or not math.isfinite(scale):
        raise UsageError(f"cannot read {text!r} in the plan; write cond, uncond, a scale such as 7.5, or linear:7.5")
    return Choice("linear" if kind else "cfg", scale)
