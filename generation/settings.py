"""From presets, files and flags to one spec: default < preset < file < flag."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import yaml

from ..errors import UsageError, nearest
from .spec import read_yaml, with_settings

if TYPE_CHECKING:
    from pydantic import BaseModel

S = TypeVar("S", bound="BaseModel")
FINETUNE = "finetune-"  # how the names of the presets of fine-tuning begin


def presets(training: bool = False) -> dict[str, Path]:
    """The presets that ship, by name: of runs, or of fine-tuning."""
    folder = Path(str(files(f"{__package__.rpartition('.')[0]}.configs")))
    return {path.stem: path for path in sorted(folder.glob("*.yaml")) if path.stem.startswith(FINETUNE) == training}


def purpose_of(preset: Path) -> str:
    """The comment on the first line of a preset."""
    return preset.read_text(encoding="utf-8").splitlines()[0].lstrip("# ").rstrip()


def preset_settings(name: str, training: bool = False) -> dict[str, Any]:
    known = presets(training)
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
            settings[key.strip()] = yaml.safe_load(value)
        except yaml.YAMLError:
            settings[key.strip()] = value
    return settings


def resolve(
    model: type[S],
    preset: str | None = None,
    config: Path | None = None,
    flags: Mapping[str, Any] | None = None,
    assignments: Sequence[str] = (),
    training: bool = False,
) -> S:
    """One spec from all sources; later ones win. Flags that are None were not given. training: a preset of those."""
    settings = preset_settings(preset, training) if preset else {}
    if config is not None:
        settings = with_settings(settings, read_yaml(config))
    settings = with_settings(settings, {key: value for key, value in (flags or {}).items() if value is not None})
    return model(**with_settings(settings, read_set(assignments)))
