"""explain: what a line of guidance does, in which order, at what cost, from the registry alone."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..registry import everything
from .compose import parts_of
from .dry_run import dry_run
from .grammar import name_of, parse, spell
from .registry import RULES
from .rule import Rule, settings_of
from .stages import stage_of


@dataclass(frozen=True)
class Part:
    """One rule or modifier of a line."""

    name: str
    modifier: bool
    stage: str  # where in a step it acts
    summary: str
    how: str  # the docstring of its class: formula and settings
    settings: Mapping[str, Any]
    limits: Mapping[str, str]  # what each setting does at its ends
    off: str  # where it does nothing, such as "scale=1"; "" where it always acts
    is_off: bool
    cost: str
    space: str
    paper: str
    notes: str
    models: str


@dataclass(frozen=True)
class Explanation:
    """A line of guidance. parts: in the order in which they act, directions first, then modifiers from inside out.
    asks: the evaluations of its dearest step, by kind."""

    line: str
    parts: tuple[Part, ...]
    needs: tuple[str, ...]
    shifts: bool
    asks: Mapping[str, int]

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
        """Rows of the dearest step for one picture, such as `2 a picture and step at most: cond, uncond`."""
        kinds = [kind if count == 1 else f"{count} {kind}" for kind, count in self.asks.items()]
        return f"{sum(self.asks.values())} a picture and step at most: {', '.join(kinds) or 'none'}"

    @property
    def references(self) -> tuple[str, ...]:
        """What to cite, each once."""
        return tuple(dict.fromkeys(part.paper for part in self.parts if part.paper))


def explain(rule: Rule | str) -> Explanation:
    """What a rule, or a line such as "apg + interval:low=0.3", does. Raises UsageError as `parse` does."""
    rule = parse(rule) if isinstance(rule, str) else rule
    rules, modifiers = parts_of(rule)
    parts = [_part(piece, False) for piece in rules] + [_part(piece, True) for piece in modifiers]
    return Explanation(spell(rule), tuple(parts), tuple(rule.needs), rule.shifts, _asks(rule))


def _asks(rule: Rule) -> Mapping[str, int]:
    """The evaluations of the dearest step; the branches, once each, where a rule cannot be run without its model."""
    try:
        return max((step.kinds for step in dry_run(rule)), key=lambda kinds: kinds.total())
    except Exception:  # a classifier that wants real pictures, coefficients of other steps: not this line's fault
        return dict.fromkeys(rule.needs, 1)


def _part(rule: Rule, modifier: bool) -> Part:
    name = name_of(rule)
    spec = everything("guidance", RULES).get(name)
    off: Mapping[str, Any] = spec.off if spec else {}
    settings = settings_of(rule)
    return Part(
        name,
        modifier,
        stage_of(rule),
        (spec.summary if spec else type(rule).__name__).removeprefix("modifier: "),
        inspect.getdoc(type(rule)) or "",
        settings,
        spec.limits if spec else {},
        ", ".join(f"{key}={_plain(value)}" for key, value in off.items()),
        bool(off) and all(settings.get(key) == value for key, value in off.items()),
        spec.cost if spec else "",
        spec.space if spec else "",
        spec.paper if spec else "",
        spec.notes if spec else "",
        spec.models if spec else "",
    )


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
