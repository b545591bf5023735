"""What a metric is, for whoever asks for it by name: `pilotage explain kid`, `pilotage list metrics`."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping
from dataclasses import dataclass

from ...registry import everything
from ..results import WAYS
from .registry import GROUPS, METRICS, Wanted, chosen, settings_of


@dataclass(frozen=True)
class Explanation:
    """Texts, "" where there is nothing to say. definition: formulas and source. how: of the function's arguments."""

    name: str
    summary: str
    needs: str
    way: str  # an arrow
    better: str  # the same in words
    cost: str
    notes: str
    paper: str
    groups: str
    definition: str
    how: str
    settings: Mapping[str, str]  # the value, or what it is by default


def is_metric(line: str) -> bool:
    """Does a line begin with the name of a metric?"""
    return line.split(":")[0].strip() in everything("metrics", METRICS)


def explain(line: str) -> Explanation:
    """Of a metric, perhaps with settings, "kid:estimator=subsets". Errors: an unknown name or setting."""
    return _explained(chosen([line])[0])


def everything_explained() -> list[Explanation]:
    """Of every metric, those of other packages too, in the order of the registry."""
    return [explain(name) for name in everything("metrics", METRICS)]


def _explained(wanted: Wanted) -> Explanation:
    spec, name = wanted.spec, wanted.name.split(":")[0]
    function = spec.load()
    way, better = WAYS[getattr(spec, "higher_is_better", None)]
    features = f"features {wanted.space}" if wanted.space else "features"
    needs = [need for need in wanted.needs if need != "features"] + [features] * ("features" in wanted.needs)
    settings = {
        key: f"{wanted.settings[key]}" if key in wanted.settings else f"{default} by default"
        for key, default in settings_of(spec).items()
    }
    _, _, how = (inspect.getdoc(function) or "").partition("\n")
    return Explanation(
        name=wanted.name,
        summary=spec.summary,
        needs=", ".join(needs) or "pictures alone",
        way=way,
        better=better,
        cost=spec.cost,
        notes=spec.notes,
        paper=spec.paper,
        groups=", ".join(group for group, names in GROUPS.items() if name in names),
        definition=(sys.modules[function.__module__].__doc__ or "").strip(),
        how=how.strip() if settings else "",
        settings=settings,
    )
