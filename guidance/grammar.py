"""One line of text for a rule: `apg:scale=10,momentum=-0.75 + interval:low=0.3,high=5`.

Pieces are separated by " + " with blanks (so that `cfg++` is a name), settings by commas; values may be quoted. Lists
are written scale=[2,4,8], one value a row. `spell` writes the line that `parse` reads back.
"""

from __future__ import annotations

import ast
import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

from ..errors import UsageError, nearest
from ..registry import lookup
from .compose import compose, parts_of
from .registry import RULES
from .rule import Modifier, Rule, settings_of
from .scale import Scale

Defaults = Mapping[str, Mapping[str, Any]]

_PIECES = re.compile(r"(?:^|\s)\+(?:\s|$)(?=(?:[^'\"]*['\"][^'\"]*['\"])*[^'\"]*$)")
_SETTINGS = re.compile(r",(?=(?:[^'\"\[\]]|'[^']*'|\"[^\"]*\"|\[[^\]]*\])*$)")


def parse(text: str, defaults: Defaults | None = None) -> Rule:
    """The rule that a line describes. Raises UsageError: an unknown rule or setting, or a value of the wrong kind.

    defaults: settings by rule name that a model brings with it, {"adaptive": {"threshold": 0.97}}, for what the line
        leaves out.
    """
    pieces = [piece.strip() for piece in _PIECES.split(text.strip())]
    if not all(pieces):
        raise UsageError(f"empty piece in the guidance {text!r}; write for example 'apg:scale=10 + interval:low=0.3'")
    return compose(*(_piece(piece, defaults or {}) for piece in pieces))


def make(name: str, **settings: Any) -> Rule:
    """A rule by its registry name and settings."""
    spec = lookup("guidance", RULES, name, "guidance rule")
    known, by_row = spec.defaults, _by_row(spec.load())
    for key, value in settings.items():
        if key not in known:
            raise UsageError(f"{name} has no setting {key!r}: {nearest(key, known) if known else 'it has none'}")
        settings[key] = _checked(name, key, value, known[key], key in by_row)
    return spec.load()(**settings)


def _by_row(cls: type) -> set[str]:
    """The settings that may have one value a row: those of type `Scale`."""
    return {f.name for f in dataclasses.fields(cls) if f.type in (Scale, "Scale")}


def _piece(piece: str, defaults: Defaults) -> Rule:
    name, colon, rest = piece.partition(":")
    lookup("guidance", RULES, name.strip(), "guidance rule")
    settings = dict(defaults.get(name.strip(), {}))
    for part in _SETTINGS.split(rest) if colon else []:
        key, equals, value = part.partition("=")
        if not equals or not key.strip():
            raise UsageError(f"cannot read {part!r} in {piece!r}; write {name.strip()}:setting=value,setting=value")
        if "+" in value and " + " not in value and value.strip()[0] not in "'\"":
            raise UsageError(f"cannot read {value.strip()!r}; put blanks around the + between two rules")
        settings[key.strip()] = _value(value.strip())
    return make(name.strip(), **settings)


def _value(text: str) -> Any:
    """A number, true/false/none, a quoted or bare word, or a list of numbers. Nothing is evaluated."""
    plain = {"true": True, "false": False, "none": None, "inf": float("inf"), "-inf": float("-inf")}
    if text.lower() in plain:
        return plain[text.lower()]
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text
    return tuple(value) if isinstance(value, list) else value


def _checked(name: str, key: str, value: Any, default: Any, by_row: bool) -> Any:
    """The value, if it is a number where a number belongs (or several, one a row), or a word where a word belongs."""
    words = isinstance(default, str)
    rows = by_row and isinstance(value, (tuple, list)) and len(value) > 0
    if (
        (words and isinstance(value, str))
        or (value is None and default is None)
        or (not words and all(_is_number(v, default) for v in (value if rows else [value])))
    ):
        return tuple(value) if rows else value
    wanted = "a word" if words else "a number, or a list of one a row" if by_row else "a number"
    raise UsageError(f"{name}:{key} must be {wanted}, not {value!r}; for example {name}:{key}={_example(default)}")


def _is_number(value: Any, default: Any) -> bool:
    """A finite number; an infinite one where that is the default."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return math.isfinite(value) or (value == default and not math.isnan(value))


def _example(default: Any) -> Any:
    return 5.0 if default in (None, ...) else default


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
    shown = [f"{k}={_spell_value(v)}" for k, v in values.items()]
    return f"{name}:{','.join(shown)}" if shown else name


def _spell_value(value: Any) -> str:
    if isinstance(value, tuple):
        return "[" + ",".join(repr(v) for v in value) + "]"
    return value if isinstance(value, str) else repr(value)


def name_of(rule: Rule) -> str:
    """The registry name of a rule's class; the class name when it is in no registry."""
    from ..registry import everything

    found = [name for name, spec in everything("guidance", RULES).items() if spec.load() is type(rule)]
    return found[0] if found else type(rule).__name__
