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

MOST = 100_000  # characters of a line: a grid of 5,000 levels has fewer
_PIECES = re.compile(r"['\"]|(?:^|(?<=\s))\+(?=\s|$)")
_SETTINGS = re.compile(r"['\"\[,]")
_CLOSING = {"'": "'", '"': '"', "[": "]"}
_NUMBER = r"[-+]?(?:[0-9][0-9_]{,299}(?:\.[0-9_]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?"  # floats end at 308 digits
_QUOTED = r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\""
_ITEM = rf"\s*(?:{_NUMBER}|True|False|None|{_QUOTED})\s*"
_VALUE = re.compile(rf"{_NUMBER}|{_QUOTED}|\[(?:{_ITEM}(?:,{_ITEM})*,?)?\s*\]")


def _cut(text: str, marks: re.Pattern[str]) -> list[str]:
    """Cut at those marks that open nothing and stand within no quotes or brackets; what never closes is text."""
    if len(text) > MOST:
        raise UsageError(f"a line of {len(text)} characters, {text[:40]!r}...; the most is {MOST}")
    parts, start, at = [], 0, 0
    endless: set[str] = set()
    while found := marks.search(text, at):
        at = found.end()
        close = _CLOSING.get(found[0])
        if close is None:
            parts.append(text[start : found.start()])
            start = at
        elif close not in endless:
            end = text.find(close, at)
            at = at if end < 0 else end + 1
            endless |= {close} if end < 0 else set()
    return [*parts, text[start:]]


def pieces_of(text: str) -> list[str]:
    """The pieces of a line; some may be empty."""
    return [piece.strip() for piece in _cut(text.strip(), _PIECES)]


def name_and_settings(piece: str) -> tuple[str, dict[str, Any]]:
    """("apg", {"scale": 10}) of "apg:scale=10". Raises UsageError for what is no setting=value."""
    name, colon, rest = piece.partition(":")
    settings = {}
    for part in _cut(rest, _SETTINGS) if colon else []:
        key, equals, value = part.partition("=")
        if not equals or not key.strip():
            raise UsageError(f"cannot read {part!r} in {piece!r}; write {name.strip()}:setting=value,setting=value")
        if "+" in value and " + " not in value and not _VALUE.fullmatch(value.strip()):
            raise UsageError(f"cannot read {value.strip()!r}; put blanks around the + between two pieces")
        settings[key.strip()] = value_of(value.strip())
    return name.strip(), settings


def value_of(text: str) -> Any:
    """A number, true/false/none, a quoted or bare word, or a list of numbers or quoted words. Nothing is evaluated."""
    plain = {"true": True, "false": False, "none": None, "inf": float("inf"), "-inf": float("-inf")}
    if text.lower() in plain:
        return plain[text.lower()]
    if not _VALUE.fullmatch(text):
        return text
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
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
