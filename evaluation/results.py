"""Results with what is needed to trust them, and the report that holds them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..documents import plain_json
from ..errors import UsageError, nearest
from ..storage import disk_errors, write_text

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

SCHEMA = "pilotage.metrics/2"
WAYS = {True: ("↑", "higher is better"), False: ("↓", "lower is better"), None: ("≈", "near real is best")}


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
    cautions: tuple[str, ...] = ()  # what would mislead a reader
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __float__(self) -> float:
        return self.value


@dataclass(frozen=True)
class Report:
    """Results in order, metrics that were left out and why, warnings, and where all of it comes from."""

    results: tuple[Result, ...]
    skipped: Mapping[str, str] = field(default_factory=dict)  # metric -> reason
    warnings: tuple[str, ...] = ()
    sources: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
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

    def made_in(self, environment: Mapping[str, Any]) -> Report:
        """The same report, with where it was made."""
        return replace(self, environment=environment)

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
            found = plain_json(file.read_text(encoding="utf-8"))
            if found.pop("schema") != SCHEMA:
                raise UsageError(f"{file} was written by another version of pilotage; score again")
            return _checked(found)
        except OSError as error:
            raise UsageError(f"{file} cannot be read ({error.strerror}); give a folder with metrics.json") from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, UsageError):
                raise
            raise UsageError(f"{file} is no report of pilotage; score again") from None

    def table(self) -> Table:
        """For a terminal of 100 columns or more: value, interval, null and real value, which way is better, protocol.

        A protocol that is that of the line above is shown as ″. Below the table stand what the null values are and why
        metrics were left out.
        """
        from rich import box
        from rich.table import Table

        table = Table(title="Scores", title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
        for column in ("metric", "value", "95 % interval", "null", "real"):
            figure = column != "metric"
            table.add_column(column, justify="right" if figure else "left", no_wrap=figure, overflow="fold")
        table.add_column("protocol", min_width=18)
        above = ""
        for result in self.results:
            table.add_row(*_row(result, above))
            above = result.protocol
        for name in self.skipped:
            table.add_row(_text(name), "–", "", "", "", "left out, see below", style="dim")
        below = [*_legend(self.results), *_left_out(self.skipped)]
        table.caption, table.caption_justify = _text("\n".join(below)), "left"
        return table


def _row(result: Result, above: str) -> tuple[Text, ...]:
    interval = f"{result.interval[0]:.3g} … {result.interval[1]:.3g}" if result.interval else ""
    null, real = (f"{v:.4g}" if v is not None else "" for v in (result.null, result.real))
    protocol = "″" if result.protocol and result.protocol == above else result.protocol
    value = f"{result.value:.4g} {WAYS[result.higher_is_better][0]}"
    return tuple(_text(cell) for cell in (result.name, value, interval, null, real, protocol))


def _legend(results: Iterable[Result]) -> list[str]:
    """What the arrows mean, and of which kind the null values are."""
    found = list(results)
    kinds: dict[str, list[str]] = {}
    for result in found:
        if result.null is not None:
            kinds.setdefault(result.null_kind, []).append(result.name)
    ways = {WAYS[result.higher_is_better] for result in found}
    arrows = ", ".join(" ".join(way) for way in WAYS.values() if way in ways)
    nulls = [f"null of {', '.join(names)}: {kind}" for kind, names in kinds.items() if kind]
    return [line for line in (arrows, *nulls) if line]


def _left_out(skipped: Mapping[str, str]) -> list[str]:
    """Each reason once, with the metrics that it keeps from being measured."""
    concerned: dict[str, list[str]] = {}
    for name, reason in skipped.items():
        concerned.setdefault(reason, []).append(name)
    return [
        f"{', '.join(names)} {'was' if len(names) == 1 else 'were'} left out: {reason}"
        for reason, names in concerned.items()
    ]


def _text(content: str) -> Text:
    """Brackets are those of a name, not markup."""
    from rich.text import Text

    return Text(content)


def _checked(found: dict[str, Any]) -> Report:
    """The report that JSON holds, every value of the kind that its field has. ValueError for other keys and kinds."""
    from pydantic import TypeAdapter

    known = {field.name for field in fields(Result)}
    results = [_whole(one) for one in found["results"]]
    if found.keys() - {field.name for field in fields(Report)} or any(one.keys() - known for one in results):
        raise ValueError("it has keys of no report")
    return TypeAdapter(Report).validate_python({**found, "results": results})


def _whole(found: dict[str, Any]) -> dict[str, Any]:
    """The nan that JSON has not."""
    interval = found.get("interval")
    ends = [math.nan if end is None else end for end in interval] if interval else None
    return {**found, "interval": ends, "value": math.nan if found["value"] is None else found["value"]}


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
