"""One line of text for a rule: `apg:scale=10,momentum=-0.75 + interval:low=0.3,high=5`.

How a line is cut is `pilotage.grammar`'s; a list, scale=[2,4,8], has one value a row. `spell` writes the line that
`parse` reads back.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Mapping
from typing import Any

from ..errors import UsageError
from ..grammar import name_and_settings, pieces_of, spelled
from ..registry import check_settings, lookup
from .compose import compose, parts_of
from .reduce import Axes
from .registry import RULES
from .rule import Modifier, Rule, settings_of
from .scale import Scale

Defaults = Mapping[str, Mapping[str, Any]]


def parse(text: str, defaults: Defaults | None = None) -> Rule:
    """The rule that a line describes. Raises UsageError: an unknown rule or setting, or a value of the wrong kind.

    defaults: settings by rule name that a model brings with it, {"adaptive": {"threshold": 0.97}}, for what the line
        leaves out.
    """
    pieces = pieces_of(text)
    if not all(pieces):
        raise UsageError(f"empty piece in the guidance {text!r}; write for example 'apg:scale=10 + interval:low=0.3'")
    return compose(*(_piece(piece, defaults or {}) for piece in pieces))


def make(name: str, **settings: Any) -> Rule:
    """A rule by its registry name and settings."""
    spec = lookup("guidance", RULES, name, "guidance rule")
    known, lists = spec.defaults, _lists(spec.load())
    check_settings(name, settings, known)
    for key, value in settings.items():
        settings[key] = _checked(name, key, value, known[key], key in lists)
    return spec.load()(**settings)


def _lists(cls: type) -> set[str]:
    """The settings that may be a list: one value a row (those of type `Scale`), or axes."""
    return {f.name for f in dataclasses.fields(cls) if f.type in (Scale, "Scale", Axes, "Axes")}


def _piece(piece: str, defaults: Defaults) -> Rule:
    lookup("guidance", RULES, piece.partition(":")[0].strip(), "guidance rule")
    name, settings = name_and_settings(piece)
    return make(name, **{**defaults.get(name, {}), **settings})


def _checked(name: str, key: str, value: Any, default: Any, may_list: bool) -> Any:
    """The value, if it is a number where a number belongs (or a list of them where that may be), or a word where a word
    belongs."""
    words, always_list = isinstance(default, str), isinstance(default, tuple)
    several = may_list and isinstance(value, (tuple, list)) and (always_list or len(value) > 0)
    if (
        (words and isinstance(value, str))
        or (value is None and default is None)
        or (not words and all(_is_number(v, default) for v in (value if several else [value])))
    ):
        return tuple(value) if several else (value,) if always_list else value
    wanted = "a number"
    if words or may_list:
        wanted = "a word" if words else "a list of numbers" if always_list else "a number, or a list of one a row"
    raise UsageError(f"{name}:{key} must be {wanted}, not {value!r}; for example {name}:{key}={_example(default)}")


def _is_number(value: Any, default: Any) -> bool:
    """A finite number; an infinite one where that is the default."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return abs(value) <= sys.float_info.max or (value == default and not math.isnan(value))


def _example(default: Any) -> Any:
    return [1] if default == () else 5.0 if default in (None, ...) else default


def spell(rule: Rule, always: Defaults | None = None) -> str:
    """The line that gives this rule back, with the settings that differ from their defaults.

    always: settings by rule name that are written in any case, so that a model's own defaults cannot replace them.
    """
    rules, modifiers = parts_of(rule)
    if any(isinstance(part, Modifier) for part in rules):
        raise UsageError("a sum of parts with modifiers of their own cannot be written as a line; build it in Python")
    return " + ".join(_spell_piece(piece, always or {}) for piece in [*rules, *modifiers])


def _spell_piece(rule: Rule, always: Defaults) -> str:
    name = name_of(rule)
    written = always.get(name, {})
    defaults = {f.name: f.default for f in dataclasses.fields(rule)}  # type: ignore[arg-type]
    values = {k: v for k, v in settings_of(rule).items() if v is not None and (v != defaults[k] or k in written)}
    return spelled(name, values)


def name_of(rule: Rule) -> str:
    """The registry name of a rule's class; the class name when it is in no registry."""
    from ..registry import everything

    found = [name for name, spec in everything("guidance", RULES).items() if spec.load() is type(rule)]
    return found[0] if found else type(rule).__name__
