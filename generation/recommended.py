"""What a model's folder says about drawing with it: a student wants one step, its own scheduler and no guidance."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..storage import write_text

FILE, STUDENT = "pilotage.json", "student"
_SETTINGS = {"guidance", "sampler", "grid", "steps", "call"}


def write_recommended(folder: Path, settings: Mapping[str, Any], base: str | None = None) -> None:
    """settings: of a RunSpec. base: the model whose adapters lie in the folder, None for a whole pipeline."""
    write_text(folder / FILE, json.dumps({"base": base, "settings": dict(settings)}, indent=1))


def student_of(name: str) -> str:
    """The folder of a student where `name` is that of a distillation run; the name itself otherwise."""
    inner = Path(name).expanduser() / STUDENT
    return str(inner) if (inner / FILE).is_file() else name


def recommended(name: str) -> dict[str, Any]:
    """Settings that a model's folder asks for; none where it says nothing. UsageError for a damaged file."""
    return dict(_read(name).get("settings", {}))


def base_of(name: str) -> str | None:
    """The model on which the folder's adapters lie, or None."""
    base: str | None = _read(name).get("base")
    return base


def _read(name: str) -> dict[str, Any]:
    path = Path(student_of(name)).expanduser() / FILE
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        settings, base = found["settings"], found["base"]
        if not (isinstance(settings, dict) and settings.keys() <= _SETTINGS and isinstance(base, str | None)):
            raise ValueError("it holds other keys")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"cannot read {path}: {error}; take it away to draw with the usual settings") from None
    return {"settings": settings, "base": base}
