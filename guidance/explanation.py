"""explain: what a line of guidance does, in which order, at what cost, from the registry alone."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .compose import parts_of
from .grammar import name_of, parse, spell
from .registry import RULES
from .rule import Rule, settings_of


@dataclass(frozen=True)
class Part:
    """One rule or modifier of a line."""

    name: str
    modifier: bool
    summary: str
    how: str  # the docstring of its class: formula and settings
    settings: Mapping[str, Any]
    off: str  # where it does nothing, such as "scale=1"; "" where it always acts
    is_off: bool
    cost: str
    space: str
    paper: str
    notes: str


@dataclass(frozen=True)
class Explanation:
    """A line of guidance. parts: in the order in which they act, directions first, then modifiers from inside out."""

    line: str
    parts: tuple[Part, ...]
    needs: tuple[str, ...]
    shifts: bool

    @property
    def order(self) -> str:
        """The order as one line: `interval(adaptive(cfg))`."""
        directions = [part.name for part in self.parts if not part.modifier]
        text = " + ".join(directions) or "none"
        for part in self.parts:
            text = f"{part.name}({text})" if part.modifier else text
        return text

    @property
    def evaluations(self) -> str:
        """Rows of a full step for one picture, such as `2 a picture and step at most: cond, uncond`."""
        return f"{len(self.needs)} a picture and step at most: {', '.join(self.needs)}"


def explain(rule: Rule | str) -> Explanation:
    """What a rule, or a line such as "apg + interval:low=0.3", does. Raises UsageError as `parse` does."""
    rule = parse(rule) if isinstance(rule, str) else rule
    rules, modifiers = parts_of(rule)
    parts = [_part(piece, False) for piece in rules] + [_part(piece, True) for piece in modifiers]
    return Explanation(spell(rule), tuple(parts), tuple(rule.needs), rule.shifts)


def _part(rule: Rule, modifier: bool) -> Part:
    name = name_of(rule)
    spec = RULES.get(name)
    off: Mapping[str, Any] = spec.off if spec else {}
    settings = settings_of(rule)
    return Part(
        name,
        modifier,
        (spec.summary if spec else type(rule).__name__).removeprefix("modifier: "),
        inspect.getdoc(type(rule)) or "",
        settings,
        ", ".join(f"{key}={_plain(value)}" for key, value in off.items()),
        bool(off) and all(settings.get(key) == value for key, value in off.items()),
        spec.cost if spec else "",
        spec.space if spec else "",
        spec.paper if spec else "",
        spec.notes if spec else "",
    )


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
