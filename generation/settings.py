"""From presets, files and flags to one spec: default < preset < file < flag."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ..documents import Unreadable, plain_yaml
from ..errors import UsageError, nearest
from .spec import read_yaml, with_settings

if TYPE_CHECKING:
    from pydantic import BaseModel

S = TypeVar("S", bound="BaseModel")
TRAININGS = ("finetune", "distill")  # how the names of their presets begin


def presets(kind: str = "") -> dict[str, Path]:
    """The presets that ship, by name: of runs, or of a kind of training, one of `TRAININGS`."""
    folder = Path(str(files(f"{__package__.rpartition('.')[0]}.configs")))
    of_kind = {
        path: next((t for t in TRAININGS if path.stem.startswith(f"{t}-")), "") for path in folder.glob("*.yaml")
    }
    return {path.stem: path for path in sorted(of_kind) if of_kind[path] == kind}


def purpose_of(preset: Path) -> str:
    """The comment on the first line of a preset."""
    return preset.read_text(encoding="utf-8").splitlines()[0].lstrip("# ").rstrip()


def preset_settings(name: str, kind: str = "") -> dict[str, Any]:
    known = presets(kind)
    if name not in known:
        raise UsageError(f"unknown preset {name!r}: {nearest(name, known)}")
    return read_yaml(known[name])


def read_set(assignments: Sequence[str]) -> dict[str, Any]:
    """`--set a.b=c` lines as a mapping; values are read as YAML."""
    settings = {}
    for line in assignments:
        key, equals, value = line.partition("=")
        if not equals or not key.strip():
            raise UsageError(f"cannot read --set {line!r}; write --set steps=30 or --set call.max_sequence_length=256")
        try:
            settings[key.strip()] = plain_yaml(value)
        except Unreadable:
            settings[key.strip()] = value
    return settings


def resolve(
    model: type[S],
    preset: str | None = None,
    config: Path | None = None,
    flags: Mapping[str, Any] | None = None,
    assignments: Sequence[str] = (),
    kind: str = "",
) -> S:
    """One spec from all sources; later ones win. Flags that are None were not given. kind: of the preset."""
    settings = preset_settings(preset, kind) if preset else {}
    if config is not None:
        settings = with_settings(settings, read_yaml(config))
    settings = with_settings(settings, {key: value for key, value in (flags or {}).items() if value is not None})
    return model(**with_settings(settings, read_set(assignments)))
