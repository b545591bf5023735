"""Results with what is needed to trust them, and the report that holds them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UsageError, nearest
from ..storage import disk_errors, write_text

if TYPE_CHECKING:
    from rich.table import Table

SCHEMA = "pilotage.metrics/1"


@dataclass(frozen=True)
class Result:
    """One number, with the interval it has, what it would be for nothing at all, and how it was made.

    null: the value for two samples of one distribution. real: the same statistic of the real pictures alone.
    higher_is_better: None where nearness to `real` is what counts. interval_kind says what varies; "" is no interval.
    """

    name: str
    value: float
    interval: tuple[float, float] | None = None
    interval_kind: str = ""
    null: float | None = None
    null_kind: str = ""
    real: float | None = None
    higher_is_better: bool | None = None
    protocol: str = ""
    n_real: int = 0
    n_generated: int = 0
    details: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __float__(self) -> float:
        return self.value


@dataclass(frozen=True)
class Report:
    """Results in order, metrics that were left out and why, warnings, and where all of it comes from."""

    results: tuple[Result, ...]
    skipped: Mapping[str, str] = field(default_factory=dict)  # metric -> reason
    warnings: tuple[str, ...] = ()
    sources: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Result:
        for result in self.results:
            if result.name == name:
                return result
        if name in self.skipped:
            raise UsageError(f"{name} was left out: {self.skipped[name]}")
        raise UsageError(f"no result {name!r}: {nearest(name, [r.name for r in self.results])}")

    def __contains__(self, name: str) -> bool:
        return any(result.name == name for result in self.results)

    def __iter__(self) -> Iterator[Result]:
        return iter(self.results)

    def to_json(self) -> str:
        """The report as JSON, sorted only where order carries no meaning; nan and infinity become null."""
        content = {"schema": SCHEMA, **asdict(self)}
        return json.dumps(_plain(content), indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    def write(self, path: str | Path) -> Path:
        """Write `metrics.json` in a folder, or the file named; the old file stays until the new one is complete."""
        target = Path(path)
        if target.suffix != ".json":
            target = target / "metrics.json"
        with disk_errors(target.parent):
            target.parent.mkdir(parents=True, exist_ok=True)
        write_text(target, self.to_json())
        return target

    @classmethod
    def read(cls, path: str | Path) -> Report:
        """A report written by `write`."""
        file = Path(path)
        file = file if file.suffix == ".json" else file / "metrics.json"
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
            if found.pop("schema") != SCHEMA:
                raise UsageError(f"{file} was written by another version of pilotage; score again")
            results = tuple(_result(r) for r in found.pop("results"))
            warnings = tuple(found.pop("warnings"))
            return cls(results=results, warnings=warnings, **found)
        except OSError as error:
            raise UsageError(f"{file} cannot be read ({error.strerror}); give a folder with metrics.json") from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, UsageError):
                raise
            raise UsageError(f"{file} is no report of pilotage; score again") from None

    def table(self) -> Table:
        """For a terminal: value, interval, null and real value, and which way is better."""
        from rich.table import Table

        table = Table(title="Scores", title_justify="left")
        for column in ("metric", "value", "95 % interval", "null", "real", "better"):
            table.add_column(column, justify="left" if column in ("metric", "better") else "right")
        for result in self.results:
            table.add_row(*_row(result))
        for name, reason in self.skipped.items():
            table.add_row(name, "–", "", "", "", f"left out: {reason}", style="dim")
        return table


_WAYS = {True: "higher", False: "lower", None: "near real"}


def _row(result: Result) -> tuple[str, ...]:
    interval = f"{result.interval[0]:.4g} … {result.interval[1]:.4g}" if result.interval else ""
    null, real = (f"{v:.4g}" if v is not None else "" for v in (result.null, result.real))
    return result.name, f"{result.value:.4g}", interval, null, real, _WAYS[result.higher_is_better]


def _result(found: dict[str, Any]) -> Result:
    interval = found.get("interval")
    result = Result(**{**found, "interval": tuple(interval) if interval else None})
    return replace(result, value=math.nan) if result.value is None else result


def _plain(value: Any) -> Any:
    """As JSON has it."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(v) for v in value]
    if isinstance(value, bool) or value is None or isinstance(value, (str, int)):
        return value
    number = float(value)
    return number if math.isfinite(number) else None
