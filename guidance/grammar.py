"""One line of text for a rule: `apg:scale=10,momentum=-0.75 + interval:low=0.3,high=5`.

Pieces are separated by " + " with blanks (so that `cfg++` is a name), settings by commas; values may be quoted. Lists
are written scale=[2,4,8], one value a row. `spell` writes the line that `parse` reads back.
"""

from __future__ import annotations

import ast
import dataclasses
import re
from typing import Any

from ..errors import UsageError, nearest
from ..registry import lookup
from .compose import compose, parts_of
from .registry import RULES
from .rule import Rule, settings_of

_PIECES = re.compile(r"\s\+\s(?=(?:[^'\"]*['\"][^'\"]*['\"])*[^'\"]*$)")
_SETTINGS = re.compile(r",(?=(?:[^'\"\[\]]|'[^']*'|\"[^\"]*\"|\[[^\]]*\])*$)")


def parse(text: str) -> Rule:
    """The rule that a line describes. Raises UsageError: an unknown rule or setting, or a value of the wrong kind."""
    pieces = [piece.strip() for piece in _PIECES.split(text.strip())]
    if not all(pieces):
        raise UsageError(f"empty piece in the guidance {text!r}; write for example 'apg:scale=10 + interval:low=0.3'")
    return compose(*(_piece(piece) for piece in pieces))


def make(name: str, **settings: Any) -> Rule:
    """A rule by its registry name and settings."""
    spec = lookup("guidance", RULES, name, "guidance rule")
    known = spec.defaults
    for key, value in settings.items():
        if key not in known:
            raise UsageError(f"{name} has no setting {key!r}: {nearest(key, known) if known else 'it has none'}")
        _check(name, key, value, known[key])
    return spec.load()(**settings)


def _piece(piece: str) -> Rule:
    name, colon, rest = piece.partition(":")
    settings = {}
    for part in _SETTINGS.split(rest) if colon else []:
        key, equals, value = part.partition("=")
        if not equals or not key.strip():
            raise UsageError(f"cannot read {part!r} in {piece!r}; write {name.strip()}:setting=value,setting=value")
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


def _check(name: str, key: str, value: Any, default: Any) -> None:
    """Numbers where numbers belong, words where words belong."""
    words = isinstance(default, str)
    numbers = (float, int) if not isinstance(value, bool) else ()
    if words and isinstance(value, str):
        return
    rows = isinstance(value, tuple) and value and all(isinstance(v, (int, float)) for v in value) and key == "scale"
    if not words and (isinstance(value, numbers) or rows or (value is None and default is None)):
        if value != value:
            raise UsageError(f"{name}:{key} is not a number; give one such as {key}={_example(default)}")
        return
    wanted = "a word" if words else "a number"
    raise UsageError(f"{name}:{key} must be {wanted}, not {value!r}; for example {name}:{key}={_example(default)}")


def _example(default: Any) -> Any:
    return 5.0 if default in (None, ...) else default


def spell(rule: Rule) -> str:
    """The line that gives this rule back, with the settings that differ from their defaults."""
    rules, modifiers = parts_of(rule)
    return " + ".join(_spell_piece(piece) for piece in [*rules, *modifiers])


def _spell_piece(rule: Rule) -> str:
    name = name_of(rule)
    defaults = {f.name: f.default for f in dataclasses.fields(rule)}  # type: ignore[arg-type]
    shown = [f"{k}={_spell_value(v)}" for k, v in settings_of(rule).items() if v != defaults[k] and v is not None]
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
