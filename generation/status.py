"""What a folder is and how far its run has come, from its files alone: nothing is loaded, changed or waited for.

Of a run of pictures: run.yaml, the manifests, log.jsonl, run.lock. Of a training: run.yaml and log.jsonl, a line an
update. Of a comparison: its cells. Of scores: metrics.json.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..documents import plain_json, plain_yaml
from ..errors import UsageError, one_line
from .lock import holder_of
from .manifest import count_items, recent_seconds
from .run_log import LOG, read_log

_FAR = 1e12  # no run has so many units, nor lasts so many seconds
_RECENT = 50  # updates whose speed is the speed
_RESULTS = ("lora", "network", "student")  # of a training; its card is there when it is finished


@dataclass(frozen=True)
class Status:
    """kind: pictures, training, comparison or scores. state: running, finished or stopped. done, of: in units. rate:
    units a second. seconds_left: at that rate, while it runs. quiet: seconds since the log was written, by the clocks
    of disk and computer. holder: who works there. notice: the last one since it was started."""

    folder: str
    kind: str
    state: str
    unit: str
    done: int
    of: int | None = None
    rate: float | None = None
    seconds_left: float | None = None
    quiet: float | None = None
    holder: str | None = None
    notice: str = ""

    def plain(self) -> dict[str, Any]:
        return asdict(self)

    def line(self) -> str:
        """In one line."""
        by = f" by {self.holder}" if self.holder else ""
        said = [f"{self.done}{f' of {self.of}' if self.of is not None else ''} {self.unit}"]
        if self.rate and self.state != "finished":
            said.append(f"{self.rate:.3g} a second" if self.rate >= 0.1 else f"{1 / self.rate:.3g} s each")
        if self.seconds_left is not None:
            said.append(f"{spelled(self.seconds_left)} left")
        if self.quiet is not None and self.state == "stopped":
            said.append(f"last line {spelled(self.quiet)} ago")
        notice = f"; {' '.join(self.notice.split())}" if self.notice else ""
        return one_line(f"{self.folder}: {self.kind}, {self.state}{by}: {', '.join(said)}{notice}")


def spelled(seconds: float) -> str:
    """90 s, 12 min, 5.0 h, 3.2 days"""
    if seconds < 100:
        return f"{max(0, seconds):.0f} s"
    if seconds < 6000:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172_800 else f"{seconds / 86400:.1f} days"


def status_of(folder: Path) -> Status:
    """Of any folder that a command of ours writes. UsageError for others."""
    spec = _spec(folder)
    if spec is not None:
        return _of_training(folder, spec) if "updates" in spec else _of_pictures(folder, spec)
    if (folder / "cells").is_dir():
        return _of_comparison(folder)
    if (folder / "metrics.json").is_file():
        return _of_scores(folder)
    raise UsageError(f"{folder} is no run folder: it holds no run.yaml, cells or metrics.json; check the path")


def _spec(folder: Path) -> Mapping[str, Any] | None:
    path = folder / "run.yaml"
    if not path.is_file():
        return None
    try:
        found = plain_yaml(path.read_bytes())
        spec = found["spec"]
    except (OSError, ValueError, KeyError, TypeError):
        spec = None
    if not isinstance(spec, dict):
        raise UsageError(f"{path} cannot be read; nothing is known of this run")
    return spec


def _quiet(folder: Path) -> float | None:
    path = folder / LOG
    return max(0.0, time.time() - path.stat().st_mtime) if path.is_file() else None


# -- pictures --------------------------------------------------------------------------------------------------------


def _of_pictures(folder: Path, spec: Mapping[str, Any]) -> Status:
    log, holder = read_log(folder), holder_of(folder)
    done, of = count_items(folder), _pictures(log, spec)
    rate = _rate_of_start(log) or _rate_of_items(folder, log)
    state = "running" if holder else "finished" if done == of else "stopped"
    left = _left(done, of, rate) if state == "running" else None
    said = [_said(entry) for entry in _last_start(log) if entry.get("event") in ("memory", "stopped", "failed")]
    return Status(
        str(folder), "pictures", state, "pictures", done, of, rate, left, _quiet(folder),
        str(holder) if holder else None, said[-1] if said and state != "finished" else "",
    )  # fmt: skip


def _pictures(log: Sequence[Mapping[str, Any]], spec: Mapping[str, Any]) -> int | None:
    known = [entry["of"] for entry in log if isinstance(entry.get("of"), int)]
    if known:
        return int(known[-1])
    from .spec import RunSpec  # a run without a log

    return len(RunSpec(**spec).pictures())


def _last_start(log: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """The lines since then: what was said before it, such as how an earlier one ended, is no news."""
    starts = [place for place, entry in enumerate(log) if entry.get("event") in ("begin", "resumed")]
    return log[starts[-1] :] if starts else []


def _rate_of_start(log: Sequence[Mapping[str, Any]]) -> float | None:
    """Pictures a second since the last start, over all processes."""
    since = _last_start(log)
    if len(since) < 2:
        return None
    try:
        pictures = since[-1]["finished"] - since[0]["finished"]
        seconds = since[-1]["seconds"] - since[0]["seconds"]
    except (KeyError, TypeError):
        return None
    return _speed(pictures, seconds)


def _rate_of_items(folder: Path, log: Sequence[Mapping[str, Any]]) -> float | None:
    """Before the log says more: what the last pictures took, with so many processes."""
    seconds = recent_seconds(folder)
    processes = [entry["processes"] for entry in log if isinstance(entry.get("processes"), int)]
    return _speed(processes[-1] if processes else 1, seconds)


def _said(entry: Mapping[str, Any]) -> str:
    more = entry.get("note") or entry.get("why")
    return f"{entry['event']}: {more}" if more else str(entry["event"])


# -- other folders ---------------------------------------------------------------------------------------------------


def _of_training(folder: Path, spec: Mapping[str, Any]) -> Status:
    """By its log: a line an update, with the seconds so far."""
    lines = {e["update"]: e for e in read_log(folder) if isinstance(e.get("update"), int)}
    done, of = max(lines, default=0), spec["updates"] if isinstance(spec["updates"], int) else None
    holder = holder_of(folder)
    finished = any((folder / name / "README.md").is_file() for name in _RESULTS)
    rate = _updates_a_second([lines[update] for update in sorted(lines)])
    state = "running" if holder else "finished" if finished else "stopped"
    left = _left(done, of, rate) if state == "running" else None
    told = [lines[update].get("notices") for update in sorted(lines)]
    notices = [text for texts in told if isinstance(texts, list) for text in texts]
    return Status(
        str(folder), "training", state, "updates", done, of, rate, left, _quiet(folder),
        str(holder) if holder else None, str(notices[-1]) if notices else "",
    )  # fmt: skip


def _updates_a_second(lines: Sequence[Mapping[str, Any]]) -> float | None:
    recent = [line for line in lines if isinstance(line.get("seconds"), (int, float))][-_RECENT - 1 :]
    if len(recent) < 2:
        return None
    updates, seconds = (recent[-1][name] - recent[0][name] for name in ("update", "seconds"))
    return _speed(updates, seconds)


def _speed(units: float, seconds: float | None) -> float | None:
    """Units a second; None where a clock, or whoever wrote the log, makes no sense."""
    if seconds is None or not (0 < units < _FAR and 0 < seconds < _FAR):
        return None
    return units / seconds


def _left(done: int, of: int | None, rate: float | None) -> float | None:
    return (of - done) / rate if of is not None and rate and 0 <= of - done < _FAR else None


def _of_comparison(folder: Path) -> Status:
    """The sum of the cells that were begun; how many there will be, only the command knows."""
    cells = [status_of(cell) for cell in sorted((folder / "cells").iterdir()) if (cell / "run.yaml").is_file()]
    running = [cell for cell in cells if cell.state == "running"]
    whole = (folder / "metrics.json").is_file() and not running and all(cell.state == "finished" for cell in cells)
    state = "running" if running else "finished" if whole else "stopped"
    return Status(
        str(folder), "comparison", state, f"pictures in {len(cells)} cells", sum(cell.done for cell in cells),
        sum(cell.of or 0 for cell in cells), sum(cell.rate or 0 for cell in running) or None,
        holder=running[0].holder if running else None, notice=next((c.notice for c in reversed(cells) if c.notice), ""),
    )  # fmt: skip


def _of_scores(folder: Path) -> Status:
    try:
        count = len(plain_json((folder / "metrics.json").read_bytes())["results"])
    except (OSError, ValueError, KeyError, TypeError):
        raise UsageError(f"{folder / 'metrics.json'} cannot be read; score again") from None
    return Status(str(folder), "scores", "finished", "metrics", count)
