"""Is a value that was written in a line of the kind that a class or a function declares for it?"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from .errors import UsageError

_WORDS = {int: "a whole number", float: "a number", str: "a word", bool: "true or false", NoneType: "none"}


def check_kinds(name: str, settings: Mapping[str, Any], made: Any) -> None:
    """UsageError for a setting of `name` whose value is not of the kind that `made`, a class or function, declares."""
    hints = get_type_hints(made)
    for key, value in settings.items():
        if key in hints and not fits(value, hints[key]):
            wanted = " or ".join(_WORDS.get(kind, "a list of numbers") for kind in _options(hints[key]))
            raise UsageError(f"{name}:{key} must be {wanted}, not {value!r}; see pilotage explain {name}")


def fits(value: Any, hint: Any) -> bool:
    """A number is finite or infinite, never NaN, and no truth value."""
    return any(_is(value, kind) for kind in _options(hint))


def _options(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def _is(value: Any, kind: Any) -> bool:
    if kind is Any:
        return True
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if isinstance(value, tuple):
        inside = [one for one in get_args(kind) if one is not ...]
        return get_origin(kind) is tuple and all(any(fits(v, one) for one in inside) for v in value)
    if isinstance(value, bool) or kind is bool:
        return isinstance(value, bool) and kind is bool
    if kind is float:
        return isinstance(value, (int, float)) and not math.isnan(value)
    return isinstance(kind, type) and isinstance(value, kind)
