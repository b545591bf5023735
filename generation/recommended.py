"""What a model's folder says about drawing with it: a student wants one step, its own scheduler and no guidance."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..documents import plain_json
from ..errors import UsageError
from ..storage import write_text

FILE, STUDENT = "pilotage.json", "student"
SIZE = ("width", "height")
_SETTINGS = {"guidance", "sampler", "grid", "steps", "call", *SIZE}
_KEYS, _BY_HAND = {"base", "settings", "scales", "by_hand"}, {"sampler", "grid"}
_BYTES, _DEEPEST = 2**20, 8  # of the file; of students on students


@dataclass(frozen=True)
class Recommendation:
    """What a folder asks for. settings: of a RunSpec. base: the model whose adapters lie in the folder, None for a
    whole pipeline. scales: the lowest and highest guidance scale that the network was taught to be told, in the
    toolkit's units; None where it is told none. by_hand: the sampler and grid that do what the folder's scheduler does,
    for its adapters on a pipeline that keeps its own scheduler.
    """

    settings: Mapping[str, Any] = field(default_factory=dict)
    base: str | None = None
    scales: tuple[float, float] | None = None
    by_hand: Mapping[str, Any] = field(default_factory=dict)


def write_recommended(
    folder: Path,
    settings: Mapping[str, Any],
    base: str | None = None,
    scales: tuple[float, float] | None = None,
    by_hand: Mapping[str, Any] | None = None,
) -> None:
    """A `Recommendation` into a folder; what it leaves open is not written."""
    told = {"scales": scales and list(scales), "by_hand": by_hand and dict(by_hand)}
    given = {key: value for key, value in told.items() if value}
    write_text(folder / FILE, json.dumps({"base": base, "settings": dict(settings), **given}, indent=1))


def student_of(name: str) -> str:
    """The folder of a student where `name` is that of a distillation run; the name itself otherwise."""
    inner = _folder(name) / STUDENT
    return str(inner) if (inner / FILE).is_file() else name


def recommended(name: str, picture: bool = False) -> dict[str, Any]:
    """Settings that a model's folder asks for; none where it says nothing. picture: does the run start from one? It
    then has the size of that. UsageError for a damaged file."""
    settings = recommendation(name).settings
    return {key: value for key, value in settings.items() if not (picture and key in SIZE)}


def base_of(name: str) -> str | None:
    """The model on which the folder's adapters lie, or None."""
    base = recommendation(name).base
    below = base
    for _ in range(_DEEPEST):
        below = recommendation(below).base if below else None
    if below:
        raise UsageError(f"the student {name} rests on more than {_DEEPEST} others, or on itself; distil it again")
    return base


def recommendation(name: str) -> Recommendation:
    """All that a model's folder says, or an empty one. UsageError for a damaged file."""
    path = _folder(student_of(name)) / FILE
    if not path.is_file():
        return Recommendation()
    try:
        if path.stat().st_size > _BYTES:
            raise ValueError(f"it has more than {_BYTES} bytes")
        return _checked(plain_json(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise UsageError(f"cannot read {path}: {error}; take it away to draw with the usual settings") from None


def _checked(found: Any) -> Recommendation:
    """The kinds of what the file holds; settings are checked as a user's are, where they are used."""
    settings, base, by_hand = found["settings"], found["base"], found.get("by_hand", {})
    known = isinstance(settings, dict) and settings.keys() <= _SETTINGS and found.keys() <= _KEYS
    if not (known and isinstance(base, str | None)):
        raise ValueError("it holds other keys")
    if len({key in settings for key in SIZE}) > 1:
        raise ValueError("it has one of width and height alone")
    if not (isinstance(by_hand, dict) and by_hand.keys() <= _BY_HAND):
        raise ValueError("by_hand is a sampler and a grid")
    return Recommendation(settings, base, _range(found["scales"]) if "scales" in found else None, by_hand)


def _range(scales: Any) -> tuple[float, float]:
    low, high = scales
    if not all(type(end) in (int, float) and math.isfinite(end) for end in (low, high)) or low > high:
        raise ValueError("scales are the lowest and the highest")
    return float(low), float(high)


def _folder(name: str) -> Path:
    """Where a model of this name would lie. UsageError for what no disk can hold."""
    try:
        path = Path(name).expanduser()
        path.exists()
    except (OSError, ValueError, RuntimeError) as error:
        raise UsageError(f"no model is called {name!r:.100}: {getattr(error, 'strerror', None) or error}") from None
    return path
