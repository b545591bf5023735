"""log.jsonl of a run folder: what happened, a few lines. `pilotage status` reads it; pictures do not depend on it.

    {"event": "begin", "time": "2026-01-31T12:00:00+00:00", "seconds": 0.0, "finished": 0, "of": 10000, "processes": 2}

Events: begin, resumed, progress (now and then), memory (a batch did not fit), stopped, failed, done. `seconds` is since
this start, by a clock that nobody sets; `time` is for people.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic
from typing import Any

from ..documents import Unreadable, plain_json
from ..storage import append_line, disk_errors

LOG = "log.jsonl"
EVERY = 10.0  # seconds between two lines of progress


@dataclass
class RunLog:
    """Of the process that writes it; the others' notes come to it with their results."""

    folder: Path
    of: int
    finished: int
    begun: float = field(default_factory=monotonic)
    told: float = field(default_factory=monotonic)

    def say(self, event: str, **more: Any) -> None:
        line = {
            "event": event,
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": round(monotonic() - self.begun, 3),
            "finished": self.finished,
            "of": self.of,
        }
        with disk_errors(self.folder):
            append_line(self.folder / LOG, json.dumps(line | more))
        self.told = monotonic()

    def progress(self, finished: int) -> None:
        """So many pictures are there; a line when the last one is old."""
        self.finished = finished
        if monotonic() - self.told >= EVERY:
            self.say("progress")

    def ended(self, error: BaseException) -> None:
        """How a run ended that did not get done; a disk that takes no line must not hide why."""
        stopped = isinstance(error, KeyboardInterrupt)
        with suppress(Exception):
            self.say("stopped" if stopped else "failed", **({} if stopped else {"why": told_in_short(error)}))


def told_in_short(error: BaseException) -> str:
    from ..errors import UsageError

    text = " ".join(str(error).split())[:300]
    return text if isinstance(error, UsageError) else f"{type(error).__name__}: {text}"


def read_log(folder: Path) -> list[dict[str, Any]]:
    """Its lines; what is no line, such as half of one, is passed over."""
    path, found = folder / LOG, []
    for line in path.read_bytes().splitlines() if path.is_file() else []:
        with suppress(Unreadable):
            entry = plain_json(line)
            if isinstance(entry, dict):
                found.append(entry)
    return found
