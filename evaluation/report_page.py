"""The report as one self-contained page: no scripts, nothing from elsewhere, the same bytes for the same reports."""

from __future__ import annotations

import base64
import functools
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import numpy as np
from PIL import Image

from ..errors import UsageError, nearest
from ..storage import disk_errors, write_text
from . import report_plots as plots
from .metrics.registry import METRICS
from .report_comparison import compare
from .report_plots import interval_text, number_text, part_of
from .results import WAYS, Report, Result

if TYPE_CHECKING:
    from .galleries import Gallery

T = TypeVar("T")
Several: TypeAlias = Mapping[str, Sequence[T]] | Sequence[T]  # by the name of a report, or those of the only one

LARGEST = 256  # the longest side of a picture on the page


def write_page(
    reports: Report | Mapping[str, Report] | Sequence[Report],
    path: str | Path,
    galleries: Several[Gallery] = (),
    histograms: Several[plots.Histogram] = (),
) -> Path:
    """Write `report.html` in a folder, or the .html file named; the old one stays until the new one is complete.

    reports: one, or those of a sweep by name: then the page begins with a comparison. galleries, histograms: those of
    the only report, or of each by its name (see `galleries.galleries`, `report_plots.colour_histograms`).
    """
    target = Path(path)
    if target.suffix != ".html":
        target = target / "report.html"
    text = render(reports, galleries, histograms)
    with disk_errors(target.parent):
        target.parent.mkdir(parents=True, exist_ok=True)
    write_text(target, text)
    return target


def render(
    reports: Report | Mapping[str, Report] | Sequence[Report],
    galleries: Several[Gallery] = (),
    histograms: Several[plots.Histogram] = (),
) -> str:
    """The page as text; every name that a user gave is escaped."""
    named = _named(reports)
    shown, drawn = _by_report(galleries, named, "galleries"), _by_report(histograms, named, "histograms")
    filled = _template().render(
        title="Scores of " + (_short(next(iter(named))) if len(named) == 1 else f"{len(named)} sets of pictures"),
        sections=[_section(name, report, shown[name], drawn[name]) for name, report in named.items()],
        comparison=compare(named) if len(named) > 1 else None,
    )
    return str(filled)


@functools.cache
def _template() -> Any:
    """Compiled once: that takes longer than to fill it."""
    import jinja2

    return jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
        Path(__file__).with_name("report.html.j2").read_text(encoding="utf-8")
    )


def _named(reports: Report | Mapping[str, Report] | Sequence[Report]) -> dict[str, Report]:
    """Reports by name; that of the generated pictures where none was given, numbered where it is not the only one."""
    if isinstance(reports, Mapping):
        named = dict(reports)
    else:
        listed = [reports] if isinstance(reports, Report) else list(reports)
        names = [_short(str(r.sources.get("generated", {}).get("name", "generated pictures"))) for r in listed]
        unique = [n if names.count(n) == 1 else f"{n} ({names[: i + 1].count(n)})" for i, n in enumerate(names)]
        named = dict(zip(unique, listed, strict=True))
    if not named:
        raise UsageError("there is no report to write a page of; score some pictures first")
    return named


def _short(name: str) -> str:
    """The last part of a path."""
    return name.rstrip("/\\").replace("\\", "/").rpartition("/")[2] or name


def _by_report(given: Several[T], named: Mapping[str, Report], what: str) -> dict[str, Sequence[T]]:
    if isinstance(given, Mapping):
        for name in given:
            if name not in named:
                raise UsageError(f"{what} of {name!r}: {nearest(name, named)}")
        return {name: given.get(name, ()) for name in named}
    if given and len(named) > 1:
        raise UsageError(f"{what} of several reports must say whose they are; give a mapping from names of reports")
    return dict.fromkeys(named, given)


def _section(
    name: str, report: Report, galleries: Sequence[Gallery], histograms: Sequence[plots.Histogram]
) -> dict[str, Any]:
    heads, parts = _parts(report.results)
    drawn = [*(_bars(head, group) for head, group in parts.items()), *(_histogram(found) for found in histograms)]
    return {
        "name": name,
        "facts": _facts(report),
        "warnings": report.warnings,
        "rows": [_row(result) for result in heads],
        "skipped": report.skipped,
        "plots": drawn,
        "galleries": [_pictured(gallery) for gallery in galleries],
        "made": [_made(result) for result in report.results],
        "tables": _provenance(report),
    }


def _parts(results: Iterable[Result]) -> tuple[list[Result], dict[str, list[Result]]]:
    """Results for the table, and by metric those that have parts ("adherence/colour"), with the whole first."""
    found = [(*part_of(result.name), result) for result in results]
    groups = {head: [r for other, _, r in found if other == head] for head, part, _ in found if part}
    return [result for _, part, result in found if not part], groups


def _row(result: Result) -> dict[str, Any]:
    arrow, better = WAYS[result.higher_is_better]
    return {
        "name": result.name,
        "arrow": arrow,
        "better": better,
        "what": METRICS[result.name].summary if result.name in METRICS else "",
        "value": f"{result.value:.4g}",
        "interval": interval_text(result),
        "interval_kind": result.interval_kind,
        "strip": plots.strip(result),
        "null": number_text(result.null),
        "null_kind": result.null_kind,
        "real": number_text(result.real),
        "protocol": result.protocol,
    }


def _bars(head: str, group: Sequence[Result]) -> plots.Panel:
    low, high = plots.bar_range(group)
    bars = [
        (
            part_of(r.name)[1] or "all",
            plots.bar(r, low, high),
            f"{r.value:.3g}" + f" ({interval_text(r)})" * bool(r.interval),
        )
        for r in group
    ]
    reading = f"Each bar runs from {min(0, low):.3g} to the value, on a scale to {high:.3g}."
    if any(r.interval for r in group):
        reading += f" The line on it is the interval ({next(r.interval_kind for r in group if r.interval)})."
    if any(r.real is not None for r in group):
        reading += " The mark is the value of real pictures."
    if any(r.null is not None for r in group):
        reading += " The dashed mark is the null value."
    return plots.Panel(f"{head} by part", reading, bars=tuple(bars))


def _histogram(found: plots.Histogram) -> plots.Panel:
    reading = "Bars are generated pictures" + (", the outline is real ones" if found.real is not None else "")
    lean = ". A shift to the right is more of it; the two should cover each other." if found.real is not None else "."
    return plots.Panel(found.name, reading + lean, plots.histogram(found))


def _facts(report: Report) -> list[str]:
    facts = [
        f"{about.get('pictures', '?')} {which} ({about.get('name', '')})" for which, about in report.sources.items()
    ]
    if isinstance(seconds := report.environment.get("seconds"), (int, float)):
        facts.append(f"{seconds:.3g} s on {report.environment.get('device', '')}")
    return facts


def _pictured(gallery: Gallery) -> dict[str, Any]:
    rows = [
        [(as_data(tile.picture), max(tile.picture.shape[:2]) <= 64, tile.label) for tile in row] for row in gallery.rows
    ]
    return {"title": gallery.title, "explanation": gallery.explanation, "rows": rows, "missing": gallery.missing}


def as_data(picture: np.ndarray) -> str:
    """uint8 (H, W, 3) as a data URI: PNG when it is small, else a JPEG to look at."""
    image, held = Image.fromarray(np.ascontiguousarray(picture), "RGB"), io.BytesIO()
    if max(image.size) <= 160:
        image.save(held, format="PNG", optimize=True)
        kind = "png"
    else:
        image.thumbnail((LARGEST, LARGEST), Image.Resampling.LANCZOS)
        image.save(held, format="JPEG", quality=90)
        kind = "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(held.getvalue()).decode()}"


def _made(result: Result) -> dict[str, str]:
    """How a number was made, beyond what the table has room for."""
    return {
        "name": result.name,
        "interval": result.interval_kind,
        "null": result.null_kind,
        "pictures": f"{result.n_real} real, {result.n_generated} generated",
        "details": _told(result.details),
    }


def _provenance(report: Report) -> list[tuple[str, list[tuple[str, str]]]]:
    """(title, rows): the sources, where it was computed, and with what; metrics of one provenance together."""
    tables = [(f"{which} pictures", _rows(about)) for which, about in report.sources.items()]
    shared: dict[str, tuple[list[str], Mapping[str, Any]]] = {}
    for result in report:
        shared.setdefault(_told(result.provenance), ([], result.provenance))[0].append(result.name)
    for names, provenance in shared.values():
        tables.append((f"made with ({'all' if len(shared) == 1 else ', '.join(names)})", _rows(provenance)))
    tables.append(("environment", _rows(report.environment)))
    return [(title, rows) for title, rows in tables if rows]


def _rows(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(name, _told(value)) for name, value in facts.items() if value not in (None, "", {})]


def _told(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_told(inner)}" for name, inner in value.items() if inner is not None)
    if isinstance(value, (list, tuple)):
        joined = " … " if len(value) == 2 else ", "
        return joined.join(_told(inner) for inner in value) if len(value) <= 12 else f"{len(value)} values"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
