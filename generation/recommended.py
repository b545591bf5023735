"""What a model's folder says about drawing with it: a student wants one step, its own scheduler and no guidance."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..documents import plain_json
from ..errors import UsageError
from ..storage import write_text

FILE, STUDENT = "pilotage.json", "student"
_SETTINGS = {"guidance", "sampler", "grid", "steps", "call"}
_BYTES, _DEEPEST = 2**20, 8  # of the file; of students on students


def write_recommended(folder: Path, settings: Mapping[str, Any], base: str | None = None) -> None:
    """settings: of a RunSpec. base: the model whose adapters lie in the folder, None for a whole pipeline."""
    write_text(folder / FILE, json.dumps({"base": base, "settings": dict(settings)}, indent=1))


def student_of(name: str) -> str:
    """The folder of a student where `name` is that of a distillation run; the name itself otherwise."""
    inner = _folder(name) / STUDENT
    return str(inner) if (inner / FILE).is_file() else name


def recommended(name: str) -> dict[str, Any]:
    """Settings that a model's folder asks for; none where it says nothing. UsageError for a damaged file."""
    return dict(_read(name).get("settings", {}))


def base_of(name: str) -> str | None:
    """The model on which the folder's adapters lie, or None."""
    base: str | None = _read(name).get("base")
    below = base
    for _ in range(_DEEPEST):
        below = _read(below).get("base") if below else None
    if below:
        raise UsageError(f"the student {name} rests on more than {_DEEPEST} others, or on itself; distil it again")
    return base


def _read(name: str) -> dict[str, Any]:
    path = _folder(student_of(name)) / FILE
    if not path.is_file():
        return {}
    try:
        if path.stat().st_size > _BYTES:
            raise ValueError(f"it has more than {_BYTES} bytes")
        found = plain_json(path.read_text(encoding="utf-8"))
        settings, base = found["settings"], found["base"]
        if not (isinstance(settings, dict) and settings.keys() <= _SETTINGS and isinstance(base, str | None)):
            raise ValueError("it holds other keys")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"cannot read {path}: {error}; take it away to draw with the usual settings") from None
    return {"settings": settings, "base": base}


def _folder(name: str) -> Path:
    """Where a model of this name would lie. UsageError for what no disk can hold."""
    try:
        path = Path(name).expanduser()
        path.exists()
    except (OSError, ValueError, RuntimeError) as error:
        raise UsageError(f"no model is called {name!r:.100}: {getattr(error, 'strerror', None) or error}") from None
    return path
