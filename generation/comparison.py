"""compare: the same prompts and seeds under different settings, side by side, with scores and costs."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator, Field, field_validator

from ..errors import UsageError, nearest
from ..evaluation.processes import Processes
from ..storage import disk_errors, whole, write_text
from .folder import Finished, default_folder, run
from .lock import claimed
from .models import Loaded, open_model
from .notes import notes
from .pictures import Sample, Watch, generate
from .spec import RunSpec

if TYPE_CHECKING:
    from .scores import Score

# Cells share what they draw, so that pictures in a column differ by the settings alone.
SHARED = ("prompts", "seeds", "paired", "output", "preview_every", "allow_download")


MOST_CELLS = 10_000


def _as_axes(given: Any) -> Any:
    if not isinstance(given, dict):
        raise UsageError("axes is a table from settings to values, such as guidance: [none, cfg]")
    return {name: list(v) if isinstance(v, (list, tuple)) else [v] for name, v in given.items()}


class CompareSpec(RunSpec):
    """A run spec with axes: every combination of their values is a cell."""

    axes: Annotated[dict[str, list[Any]], BeforeValidator(_as_axes)] = Field(default_factory=dict)
    show: int = Field(8, ge=1, le=64, description="pictures of each cell on the page; scores use all")
    metrics: list[str] | None = Field(None, description="what to score; none for no scores")
    features: str | None = Field(None, description="the feature network of distances")
    real: str | None = Field(None, description="what to compare with; the embedded world for the embedded model")
    title: str = "Comparison"

    @field_validator("axes")
    @classmethod
    def _known_axes(cls, axes: dict[str, list[Any]]) -> dict[str, list[Any]]:
        own = [name for name in RunSpec.model_fields if name not in SHARED]
        for name, values in axes.items():
            if name in SHARED:
                raise UsageError(f"{name} cannot be an axis: all cells share it")
            if name.partition(".")[0] not in own:
                raise UsageError(f"unknown axis {name!r}: {nearest(name, own)}")
            if not values:
                raise UsageError(f"the axis {name} has no values; write for example {name}: [a, b]")
        return axes

    def base(self) -> RunSpec:
        """The settings that all cells share."""
        return RunSpec(**{name: value for name, value in self.plain().items() if name in RunSpec.model_fields})

    def cells(self) -> list[tuple[dict[str, Any], RunSpec]]:
        """What each cell changes, and its spec; validated before anything is made."""
        if not self.axes:
            raise UsageError("nothing to compare: give an axis, such as --axis 'guidance=none|cfg:scale=3|apg'")
        if (count := math.prod(map(len, self.axes.values()))) > MOST_CELLS:
            raise UsageError(f"the axes make {count:.6g} cells, and the most is {MOST_CELLS}; give fewer values")
        found = []
        for values in itertools.product(*self.axes.values()):
            changes = dict(zip(self.axes, values, strict=True))
            found.append((changes, self.base().changed(**changes)))
        return found


@dataclass
class Cell:
    """One combination. values: what it sets. scores: by metric, empty where nothing was scored."""

    values: dict[str, Any]
    spec: RunSpec
    run: Finished
    scores: dict[str, Score] = field(default_factory=dict)

    @property
    def label(self) -> str:
        if len(self.values) == 1:
            return str(next(iter(self.values.values())))
        return ", ".join(f"{name} {value}" for name, value in self.values.items())


@dataclass
class Comparison:
    """The cells and where they are shown. notes: what a reader should know, such as why there are no scores."""

    spec: CompareSpec
    folder: Path
    cells: list[Cell]
    shown: list[int]
    notes: list[str] = field(default_factory=list)

    @property
    def columns(self) -> list[tuple[str, str]]:
        """(prompt, seed) of each picture shown."""
        pictures = self.cells[0].spec.pictures()
        return [(pictures[i][0], str(pictures[i][1])) for i in self.shown]


@dataclass(frozen=True)
class Told:
    """Who wants to know: cell(number, of, label, pictures), picture(sample), scoring(label)."""

    cell: Callable[[int, int, str, int], None] | None = None
    picture: Callable[[Sample], None] | None = None
    scoring: Callable[[str], None] | None = None


def compare(spec: CompareSpec, told: Told | None = None, watch: Watch | None = None) -> Comparison:
    """Make what is missing, score it, and write index.html, grid.png and metrics.json. Again: only what is new.

    Under a launcher of several processes every one of them calls it, and the first one writes; entries of pictures and
    what is said of them are whole there. UsageError while another comparison works in the folder.
    """
    folder = Path(spec.output) if spec.output else default_folder(spec)
    spec.cells()  # refused before a folder is made
    with ExitStack() as held:
        Processes.found().by_first(lambda: held.enter_context(claimed(folder)))
        return _compared(spec, folder, told or Told(), watch)


def _compared(spec: CompareSpec, folder: Path, told: Told, watch: Watch | None) -> Comparison:
    from .page import write_page
    from .scores import Scorer
    from .sheet import write_sheet

    processes, planned = Processes.found(), spec.cells()
    scorer = Scorer(planned[0][1].model, spec.metrics, spec.features, spec.real)
    said = list(dict.fromkeys(note for _, cell in planned for note in notes(cell)))
    cells = []
    for number, (values, cell, model) in enumerate(_with_models(planned)):
        cell = cell.changed(output=str(folder / "cells" / _slug(values, cell)))
        made = Cell(values, cell, Finished(folder, cell, {}))
        if told.cell:
            told.cell(number, len(planned), made.label, len(cell.pictures()))
        made.run = run(cell, model=model, told=told.picture, watch=watch)
        said += made.run.notes
        cells.append(made)
    result = Comparison(spec, folder, cells, _shown(planned[0][1], spec.show), said)
    for made in cells:
        if told.scoring:
            told.scoring(made.label)
        made.scores = scorer.scores(made.run)
    result.notes += scorer.notes

    def write() -> None:
        with disk_errors(folder), whole(folder / "grid.png") as part:
            write_sheet(result, part)
        write_text(folder / "metrics.json", json.dumps(_as_json(result), indent=1))
        write_page(result, folder / "index.html")

    processes.by_first(write)
    return result


def _with_models(planned: list[tuple[dict[str, Any], RunSpec]]) -> Iterator[tuple[dict[str, Any], RunSpec, Loaded]]:
    """Each cell with its pipeline; cells that can share one do. A first picture in one step keeps start-up costs out
    of the times."""
    model: Loaded | None = None
    for values, cell in planned:
        if model is None or not model.fits(cell):
            model = open_model(cell)
            prompt, seed = cell.pictures()[0]
            first = cell.changed(prompts=[prompt], seeds=[seed], paired=False, steps=2, strength=1.0, exact=False)
            list(generate(first, model=model))
        yield values, cell, model


def _slug(values: dict[str, Any], cell: RunSpec) -> str:
    """A folder name that stays when other cells come and go."""
    words = re.sub(r"[^a-z0-9.+]+", "-", "-".join(str(v) for v in values.values()).lower()).strip("-")[:48]
    return f"{words}-{default_folder(cell).name.rpartition('-')[2]}"


def _shown(spec: RunSpec, most: int) -> list[int]:
    """Every prompt with its first seed, then with its second, and so on."""
    pictures = spec.pictures()
    seen: dict[str, int] = {}
    order = []
    for index, (prompt, _) in enumerate(pictures):
        seen[prompt] = seen.get(prompt, -1) + 1
        order.append((seen[prompt], index))
    return sorted(index for _, index in sorted(order)[:most])


def _as_json(result: Comparison) -> dict[str, Any]:
    return {
        "spec": result.spec.plain(),
        "cells": [
            {
                "label": cell.label,
                "values": cell.values,
                "folder": cell.run.folder.relative_to(result.folder).as_posix(),
                "pictures": len(cell.run.items),
                "evaluations": cell.run.evaluations,
                "seconds": round(cell.run.seconds, 4),
                "scores": {name: score.plain() for name, score in cell.scores.items()},
            }
            for cell in result.cells
        ],
        "notes": result.notes,
    }
