"""`rule + rule` adds offsets from the conditional prediction; `rule + modifier` wraps.

The order of the text does not matter: rules are sorted by name, and modifiers by their `order` (innermost first), which
`stages.py` names. Pairs that do not go together (`conflicts.py`) are refused.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from ..errors import UsageError
from .conflicts import conflict
from .rule import Ask, Context, Guide, Modifier, Origin, Rule, together


@dataclass(frozen=True)
class Sum(Rule):
    """cond + sum of (rule_i - cond), in the network's own terms; at most one part may shift the base."""

    parts: tuple[Rule, ...] = ()

    passes: ClassVar[int] = 0

    @property
    def needs(self) -> tuple[str, ...]:  # type: ignore[override]
        return tuple(dict.fromkeys(branch for part in self.parts for branch in part.needs))

    @property
    def shifts(self) -> bool:  # type: ignore[override]
        return any(part.shifts for part in self.parts)

    @property
    def spatial(self) -> bool:  # type: ignore[override]
        return any(part.spatial for part in self.parts)

    def guide(self, ctx: Context) -> Guide:
        guides = [part.guide(ctx.scoped(i)) for i, part in enumerate(self.parts)]
        first, *others = yield from together(*guides)
        (cond,) = yield (Ask(),)
        native = first.native
        for other in others:
            native = native + (other.native - cond.native)
        base = next((p.base for p in (first, *others) if p.base is not None), None)
        return replace(first, native=native, base=base)

    def after(self, ctx: Context, x: Tensor) -> Tensor:
        for i, part in enumerate(self.parts):
            x = part.after(ctx.scoped(i), x)
        return x

    def refuse(self, origin: Origin) -> None:
        for part in self.parts:
            part.refuse(origin)

    @property
    def moves(self) -> bool:
        return any(part.moves for part in self.parts)


def parts_of(rule: Rule) -> tuple[list[Rule], list[Modifier]]:
    """The plain rules and the modifiers (innermost first) that a composition was made of."""
    if isinstance(rule, Sum):
        return list(rule.parts), []
    if isinstance(rule, Modifier):
        rules, modifiers = parts_of(rule.inner) if rule.inner else ([], [])
        return rules, [*modifiers, replace(rule, inner=None)]
    return [rule], []


def compose(*pieces: Rule) -> Rule:
    """One rule out of several rules and modifiers, in the fixed stage order."""
    rules: list[Rule] = []
    modifiers: list[Modifier] = []
    for piece in pieces:
        more_rules, more_modifiers = parts_of(piece)
        rules += more_rules
        modifiers += more_modifiers
    if sum(rule.shifts for rule in rules) > 1:
        names = ", ".join(type(rule).__name__ for rule in rules if rule.shifts)
        raise UsageError(f"{names} each re-noise in their own way and cannot be added; keep one of them")
    if reason := conflict([*rules, *modifiers]):
        raise UsageError(reason)
    twice = [kind.__name__ for kind, count in Counter(map(type, modifiers)).items() if count > 1]
    if twice:
        raise UsageError(f"the modifier {twice[0]} stands twice; keep one")
    rules.sort(key=lambda rule: (type(rule).__name__, repr(rule)))
    whole: Rule | None = rules[0] if len(rules) == 1 else Sum(tuple(rules)) if rules else None
    for modifier in sorted(modifiers, key=lambda m: (m.order, type(m).__name__)):
        whole = replace(modifier, inner=whole)
    assert whole is not None
    return whole
