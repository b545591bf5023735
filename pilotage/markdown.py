"""Tables of the docs that are made from registries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .registry import Spec


def table(rows: Sequence[Mapping[str, str]]) -> str:
    """A Markdown table; the keys of the first row are its head."""
    lines = [
        list(rows[0]),
        ["---"] * len(rows[0]),
        *([cell.replace("|", "\\|") for cell in row.values()] for row in rows),
    ]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + "\n"


def off_at(spec: Spec) -> str:
    """The settings at which an entry does nothing."""
    return ", ".join(f"{key}={plain(value)}" for key, value in spec.off.items())


def settings_of(spec: Spec) -> str:
    """The settings of an entry with their defaults."""
    return ", ".join(f"{key}={plain(value)}" for key, value in spec.defaults.items())


def limits_of(spec: Spec) -> str:
    """What each setting does at its ends, a line each."""
    return "\n".join(f"- `{key}={plain(spec.defaults[key])}`: {text}" for key, text in spec.limits.items())


def plain(value: Any) -> str:
    if value is ...:
        return "(required)"
    return f"{value:g}" if isinstance(value, float) else repr(value) if value == "" else str(value)
