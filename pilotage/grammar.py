"""Names with settings in one line of text: `apg:scale=10,momentum=-0.75 + interval:low=0.3,high=5`.

Pieces are separated by " + " with blanks (so that `cfg++` is a name), settings by commas; values may be quoted. Lists
are written scale=[2,4,8]. Rules, samplers and grids are all written so; what a name means is theirs.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from typing import Any

from .errors import UsageError

_PIECES = re.compile(r"(?:^|\s)\+(?:\s|$)(?=(?:[^'\"]*['\"][^'\"]*['\"])*[^'\"]*$)")
_SETTINGS = re.compile(r",(?=(?:[^'\"\[\]]|'[^']*'|\"[^\"]*\"|\[[^\]]*\])*$)")


def pieces_of(text: str) -> list[str]:
    """The pieces of a line; some may be empty."""
    return [piece.strip() for piece in _PIECES.split(text.strip())]


def name_and_settings(piece: str) -> tuple[str, dict[str, Any]]:
    """("apg", {"scale": 10}) of "apg:scale=10". Raises UsageError for what is no setting=value."""
    name, colon, rest = piece.partition(":")
    settings = {}
    for part in _SETTINGS.split(rest) if colon else []:
        key, equals, value = part.partition("=")
        if not equals or not key.strip():
            raise UsageError(f"cannot read {part!r} in {piece!r}; write {name.strip()}:setting=value,setting=value")
        if "+" in value and " + " not in value and value.strip()[0] not in "'\"":
            raise UsageError(f"cannot read {value.strip()!r}; put blanks around the + between two pieces")
        settings[key.strip()] = value_of(value.strip())
    return name.strip(), settings


def value_of(text: str) -> Any:
    """A number, true/false/none, a quoted or bare word, or a list of numbers. Nothing is evaluated."""
    plain = {"true": True, "false": False, "none": None, "inf": float("inf"), "-inf": float("-inf")}
    if text.lower() in plain:
        return plain[text.lower()]
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text
    return tuple(value) if isinstance(value, list) else value


def spelled(name: str, settings: Mapping[str, Any]) -> str:
    """The piece that `name_and_settings` reads back."""
    shown = [f"{key}={_spelled_value(value)}" for key, value in settings.items()]
    return f"{name}:{','.join(shown)}" if shown else name


def _spelled_value(value: Any) -> str:
    if isinstance(value, tuple):
        return "[" + ",".join(repr(v) for v in value) + "]"
    return value if isinstance(value, str) else repr(value)
