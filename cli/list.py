"""pilotage list"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

Rows = tuple[list[str], list[list[str]]]


def list_(
    what: Annotated[
        str, typer.Argument(help="rules, samplers, grids, metrics, features, presets or models.")
    ] = "rules",
) -> None:
    """List what there is: rules, samplers, grids, metrics, features, presets, models."""
    from ..errors import UsageError, nearest
    from .console import print_table

    if what not in TABLES:
        raise UsageError(f"there is no list of {what!r}: {nearest(what, TABLES)}")
    columns, rows = TABLES[what]()
    print_table("", columns, rows)


def _rules() -> Rows:
    from ..guidance.registry import RULES
    from ..registry import everything

    found = everything("guidance", RULES)
    columns = ["rule", "what it does", "needs", "evaluations", "space", "models", "paper"]
    return columns, [
        [n, s.summary, ", ".join(s.needs), s.cost, s.space, s.models or "all", s.paper] for n, s in found.items()
    ]


def _samplers() -> Rows:
    from ..registry import everything
    from ..samplers.registry import SAMPLERS

    rows = [[n, s.summary, s.cost, s.paper] for n, s in everything("samplers", SAMPLERS).items()]
    return ["sampler", "what it is", "a step", "paper"], [
        *rows,
        ["stock", "the scheduler that comes with the model", "", ""],
    ]


def _grids() -> Rows:
    from ..registry import everything
    from ..samplers.grids import GRIDS

    return ["grid", "levels", "paper"], [[n, s.summary, s.paper] for n, s in everything("grids", GRIDS).items()]


def _metrics() -> Rows:
    from ..evaluation import METRICS
    from ..registry import everything

    found = everything("metrics", METRICS)
    return ["metric", "what it says", "needs", "paper"], [
        [n, s.summary, ", ".join(s.needs), s.paper] for n, s in found.items()
    ]


def _features() -> Rows:
    from ..evaluation import FEATURES
    from ..registry import everything

    found = everything("features", FEATURES)
    return ["features", "what they are", "paper"], [[n, s.summary, s.paper] for n, s in found.items()]


def _presets() -> Rows:
    from ..generation.settings import presets, purpose_of

    return ["preset", "purpose"], [[name, purpose_of(path)] for name, path in presets().items()]


def _models() -> Rows:
    from ..generation.models import MODELS

    return ["model", "what it is"], [[name, text] for name, text in MODELS.items()]


TABLES: dict[str, Callable[[], Rows]] = {
    "rules": _rules,
    "samplers": _samplers,
    "grids": _grids,
    "metrics": _metrics,
    "features": _features,
    "presets": _presets,
    "models": _models,
}
