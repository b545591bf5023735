"""pilotage list"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

Rows = tuple[list[str], list[list[str]]]


def list_(
    what: Annotated[
        str,
        typer.Argument(
            help="rules, optimisers, samplers, grids, inversions, metrics, features, rewards, methods, distillations, "
            "divergences, presets, models"
        ),
    ] = "rules",
) -> None:
    """List what there is: rules, samplers, metrics, rewards, ways to fine-tune and to distil, presets and more."""
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


def _optimisers() -> Rows:
    from ..guidance.optimise import OPTIMISERS
    from ..registry import everything

    found = everything("optimisers", OPTIMISERS)
    return ["optimiser", "what it moves", "evaluations", "paper"], [
        [n, s.summary, s.cost, s.paper] for n, s in found.items()
    ]


def _samplers() -> Rows:
    from ..registry import everything
    from ..samplers.aliases import sampler_rows
    from ..samplers.registry import SAMPLERS

    elsewhere = _names_elsewhere(sampler_rows())
    rows = [[n, s.summary, s.cost, elsewhere.get(n, ""), s.paper] for n, s in everything("samplers", SAMPLERS).items()]
    return ["sampler", "what it is", "a step", "also called", "paper"], [
        *rows,
        ["stock", "the scheduler that comes with the model", "", "", ""],
    ]


def _grids() -> Rows:
    from ..registry import everything
    from ..samplers.aliases import grid_rows
    from ..samplers.grid_wrappers import WRAPPERS
    from ..samplers.grids import GRIDS

    elsewhere = _names_elsewhere(grid_rows())
    rows = [[n, s.summary, elsewhere.get(n, ""), s.paper] for n, s in everything("grids", GRIDS).items()]
    rows += [[f"... + {n}", s.summary, "", ""] for n, s in everything("grid_wrappers", WRAPPERS).items()]
    return ["grid", "levels", "also called", "paper"], rows


def _names_elsewhere(rows: list[list[str]]) -> dict[str, str]:
    """Names in the web UI and in ComfyUI by ours."""
    found: dict[str, list[str]] = {}
    for web, comfy, ours in rows:
        for name in (web, comfy):
            known = [ours, *found.setdefault(ours, [])]
            if name and name.lower().replace("_", " ") not in [other.lower() for other in known]:
                found[ours].append(name)
    return {ours: ", ".join(names) for ours, names in found.items()}


def _inversions() -> Rows:
    from ..registry import everything
    from ..samplers.inversion import INVERSIONS

    found = everything("inversions", INVERSIONS)
    return ["inversion", "what it is", "a step", "paper"], [[n, s.summary, s.cost, s.paper] for n, s in found.items()]


def _metrics() -> Rows:
    from ..evaluation.metrics.explanation import everything_explained

    return ["metric", "what it says", "better", "needs", "paper"], [
        [one.name, one.summary, one.way, one.needs, one.paper] for one in everything_explained()
    ]


def _features() -> Rows:
    from ..evaluation import FEATURES
    from ..registry import everything

    found = everything("features", FEATURES)
    return ["features", "what they are", "paper"], [[n, s.summary, s.paper] for n, s in found.items()]


def _rewards() -> Rows:
    from ..finetune.rewards.table import rows

    found = rows()
    return list(found[0]), [list(row.values()) for row in found]


def _methods() -> Rows:
    from ..finetune import METHODS
    from ..registry import everything

    found = everything("finetune", METHODS)
    return ["method", "what it does", "an update, each picture", "paper"], [
        [n, s.summary, s.cost, s.paper] for n, s in found.items()
    ]


def _distillations() -> Rows:
    from ..distill import METHODS
    from ..registry import everything

    found = everything("distill", METHODS)
    return ["method", "what it does", "an update, each picture", "paper"], [
        [n, s.summary, s.cost, s.paper] for n, s in found.items()
    ]


def _divergences() -> Rows:
    from ..distill import DIVERGENCES
    from ..registry import everything

    found = everything("divergences", DIVERGENCES)
    return ["divergence", "what it trades", "paper"], [[n, s.summary, s.paper] for n, s in found.items()]


def _presets() -> Rows:
    from ..generation.settings import TRAININGS, presets, purpose_of

    found = presets() | {name: path for kind in TRAININGS for name, path in presets(kind).items()}
    return ["preset", "purpose"], [[name, purpose_of(path)] for name, path in found.items()]


def _models() -> Rows:
    from ..generation.models import MODELS

    return ["model", "what it is"], [[name, text] for name, text in MODELS.items()]


TABLES: dict[str, Callable[[], Rows]] = {
    "rules": _rules,
    "optimisers": _optimisers,
    "samplers": _samplers,
    "grids": _grids,
    "inversions": _inversions,
    "metrics": _metrics,
    "features": _features,
    "rewards": _rewards,
    "methods": _methods,
    "distillations": _distillations,
    "divergences": _divergences,
    "presets": _presets,
    "models": _models,
}
