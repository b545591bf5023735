"""What a training run has logged, as series of numbers: its log.jsonl read with whatever is in it."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..documents import Unreadable, plain_yaml
from ..errors import UsageError
from .curves import Points
from .run_folder import LOG, RUN, SHEETS, read_log

_ABOUT = ("update", "seconds", "pictures", "notices")  # of a line, no series


@dataclass(frozen=True)
class History:
    """lines: one an update, in order; the last one where an update was logged twice. spec: the text of run.yaml.

    sheets: the sheet after so many updates.
    """

    lines: tuple[Mapping[str, Any], ...]
    spec: str
    sheets: Mapping[int, Path]

    @property
    def names(self) -> tuple[str, ...]:
        """Of all series, "reward" or "held_out/reward", in the order in which they first come."""
        return tuple(dict.fromkeys(name for line in self.lines for name, _ in _numbers(line)))

    def series(self, name: str, over: str = "update") -> Points:
        """(x, value) where both are numbers. over: "update" or "pictures"."""
        found = [(_number(line.get(over)), dict(_numbers(line)).get(name)) for line in self.lines]
        return tuple((x, y) for x, y in found if x is not None and y is not None)

    @property
    def notices(self) -> tuple[str, ...]:
        """What was said, without repetitions; each begins with its update."""
        said: dict[str, None] = {}
        for line in self.lines:
            told = line.get("notices")
            for text in told if isinstance(told, list) else [told] if isinstance(told, str) else []:
                head = "" if str(text).startswith("update ") else f"update {line['update']}: "
                said[f"{head}{text}"] = None
        return tuple(said)

    @property
    def settings(self) -> Mapping[str, Any]:
        """Of the spec in run.yaml; empty where it cannot be read."""
        found = self._read()
        inner = found.get("spec", found)
        return inner if isinstance(inner, dict) else {}

    def _read(self) -> dict[str, Any]:
        try:
            found = plain_yaml(self.spec)
        except Unreadable:
            return {}
        return found if isinstance(found, dict) else {}

    @property
    def kind(self) -> str:
        """Of the training, "finetune" or "distill"; empty where run.yaml does not say."""
        found = self._read()
        return str(found.get("kind", ""))

    @property
    def diversity_limit(self) -> float | None:
        """The share of the first diversity below which the run was to stop."""
        limits = self.settings.get("limits")
        return _number(limits.get("diversity")) if isinstance(limits, dict) else None

    def last(self, name: str) -> float | None:
        """The last number of this name in any line, such as "pictures" or "seconds"."""
        found = [number for line in self.lines if (number := _number(line.get(name))) is not None]
        return found[-1] if found else None


def read_history(folder: str | Path) -> History:
    """Of a run's folder. Raises UsageError where no line of a log is there."""
    folder = Path(folder)
    try:
        lines = {line["update"]: line for line in read_log(folder) if isinstance(line, dict) and _is_update(line)}
        spec = (folder / RUN).read_text(encoding="utf-8") if (folder / RUN).is_file() else ""
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the log of {folder}: {error}; give the folder of a training run") from None
    if not lines:
        raise UsageError(f"{folder} holds no {LOG} with updates; give the folder of a training run")
    sheets = {int(p.stem): p for p in sorted((folder / SHEETS).glob("*.png")) if p.stem.isdecimal()}
    return History(tuple(lines[update] for update in sorted(lines)), spec, sheets)


def _is_update(line: Mapping[str, Any]) -> bool:
    return isinstance(line.get("update"), int) and not isinstance(line["update"], bool)


def _numbers(line: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """All that is a number, also within a mapping, with its name."""
    for key, value in line.items():
        if key in _ABOUT:
            continue
        inner = value.items() if isinstance(value, Mapping) else ()
        for name, found in ((key, value), *((f"{key}/{part}", v) for part, v in inner)):
            if (number := _number(found)) is not None:
                yield name, number


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= sys.float_info.max:
        return None
    return float(value)
