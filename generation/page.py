"""index.html: one self-contained page, pictures as data."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

from PIL import Image

from ..storage import write_text
from .comparison import Cell, Comparison
from .scores import Score
from .sheet import shown


def write_page(result: Comparison, path: Path) -> None:
    write_text(path, render(result))


def render(result: Comparison) -> str:
    """The page as text; every name that a user gave is escaped."""
    import jinja2

    template = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
        Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    )
    names = list(dict.fromkeys(name for cell in result.cells for name in cell.scores))
    return template.render(
        title=result.spec.title,
        columns=result.columns,
        names=names,
        metrics={name: _about(name, result.cells) for name in names},
        rows=[_row(cell, result) for cell in result.cells],
        notes=result.notes,
        facts=_facts(result),
        branches=list(dict.fromkeys(b for cell in result.cells for b in cell.run.evaluations)),
        most=max(sum(cell.run.evaluations.values()) for cell in result.cells),
        spec=result.spec.as_yaml(),
    )


def _facts(result: Comparison) -> list[str]:
    first = result.cells[0].spec
    return [
        f"model {first.model}",
        f"{len(result.cells)} cells",
        f"{len(first.pictures())} pictures each",
        *(f"{name} {getattr(first, name)}" for name in ("sampler", "steps") if name not in result.spec.axes),
    ]


def _about(name: str, cells: list[Cell]) -> dict[str, Any]:
    scores = {cell.label: cell.scores[name] for cell in cells if name in cell.scores}
    first = next(iter(scores.values()))
    real = f"{first.real:.3g}" if first.real is not None else "–"
    return {"better": first.better, "what": first.what, "real": real, "best": _best(scores)}


def _best(scores: dict[str, Score]) -> list[str]:
    """The cells that the intervals do not tell apart from the best one; none where that is all of them."""
    choose = {"higher": max, "lower": min}.get(next(iter(scores.values())).better)
    known = {label: score for label, score in scores.items() if score.value == score.value}
    if choose is None or not known:
        return []
    top = choose(score.value for score in known.values())
    found = [label for label, score in known.items() if score.reaches(top)]
    return found if len(found) < len(known) else []


def _row(cell: Cell, result: Comparison) -> dict[str, Any]:
    return {
        "label": cell.label,
        "scores": cell.scores,
        "evaluations": {branch: round(count, 1) for branch, count in cell.run.evaluations.items()},
        "total": sum(cell.run.evaluations.values()),
        "seconds": cell.run.seconds,
        "pictures": [as_data(cell.run.folder / cell.run.items[i]["file"]) for i in result.shown],
        "spec": cell.spec.changed(output=None).as_yaml(),
    }


def as_data(path: Path) -> str:
    """A picture in viewing size as a data URI: PNG when it is small, JPEG when that would be heavy."""
    with Image.open(path) as opened:
        picture = shown(opened)
    held = io.BytesIO()
    if max(picture.size) <= 160:
        picture.save(held, format="PNG", optimize=True)
        kind = "png"
    else:
        picture.save(held, format="JPEG", quality=90)
        kind = "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(held.getvalue()).decode()}"
