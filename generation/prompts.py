"""Prompts from files: one a line, or a CSV table with a column `prompt` and, if wanted, `seed`."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from ..errors import UsageError


def read_prompts(path: Path) -> dict[str, Any]:
    """Settings for a RunSpec: `prompts`, and with a seed column `seeds` and `paired`."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UsageError(f"there is no prompt file {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"cannot read the prompts in {path}: {getattr(error, 'strerror', None) or 'it is not UTF-8'}"
        ) from None
    found = _table(path, text) if path.suffix.lower() == ".csv" else {"prompts": _lines(text)}
    if not found["prompts"]:
        raise UsageError(f"{path} holds no prompts, so there are no pictures to make; write one prompt a line")
    return found


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


def _table(path: Path, text: str) -> dict[str, Any]:
    try:
        rows = list(csv.DictReader(text.splitlines()))
    except csv.Error as error:
        raise UsageError(f"{path} is no table: {error}; a quote may be open") from None
    columns = set(rows[0]) if rows else {"prompt"}
    if "prompt" not in columns:
        raise UsageError(f"{path} has no column called prompt; its first line must name the columns")
    rows = [row for row in rows if (row["prompt"] or "").strip()]
    found: dict[str, Any] = {"prompts": [row["prompt"].strip() for row in rows]}
    if "seed" in columns:
        found |= {"seeds": [row["seed"] or "" for row in rows], "paired": True}
    return found
