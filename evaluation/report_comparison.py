"""Several reports side by side: the best of each metric, one metric against another, and what is no comparison."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from .report_plots import Panel, Point, front, interval_text, number_text, pareto, part_of
from .results import WAYS, Report, Result

FRONTS = (  # (the first of these that two reports have, against the first of these)
    (("adherence", "precision", "density"), ("coverage", "recall")),
    (("adherence",), ("frechet", "fid")),
)


def compare(named: Mapping[str, Report]) -> dict[str, Any]:
    """The headline results side by side, and the plots of one against another."""
    heads = {name: {r.name: r for r in report if not part_of(r.name)[1]} for name, report in named.items()}
    metrics = list(dict.fromkeys(metric for found in heads.values() for metric in found))
    columns = []
    for metric in metrics:
        results = {name: found[metric] for name, found in heads.items() if metric in found}
        first = next(iter(results.values()))
        columns.append(
            {
                "name": metric,
                "arrow": WAYS[first.higher_is_better][0],
                "cells": {name: (f"{r.value:.4g}", interval_text(r)) for name, r in results.items()},
                "best": _best(results),
                "null": _one({number_text(r.null) for r in results.values()}),
                "real": _one({number_text(r.real) for r in results.values()}),
            }
        )
    fronts = [plot for wanted, against in FRONTS if (plot := _front(heads, wanted, against))]
    warnings = [*_other_sets(named.values()), *_differences(heads, metrics)]
    return {"names": list(named), "columns": columns, "plots": fronts, "warnings": warnings}


def _one(values: set[str]) -> str:
    """The value of all reports, if they agree."""
    return values.pop() if len(values) == 1 else "differs"


def _best(results: Mapping[str, Result]) -> set[str]:
    """The reports that the intervals do not tell apart from the best one; none where that is all of them."""
    known = {name: r for name, r in results.items() if r.value == r.value}
    up = next(iter(results.values())).higher_is_better
    if up is None or not known:
        return set()
    top = (max if up else min)(r.value for r in known.values())
    found = {name for name, r in known.items() if r.value == top or _reaches(r, top)}
    return found if len(found) < len(known) else set()


def _reaches(result: Result, value: float) -> bool:
    return result.interval is not None and result.interval[0] <= value <= result.interval[1]


def _front(heads: Mapping[str, Mapping[str, Result]], wanted: Sequence[str], against: Sequence[str]) -> Panel | None:
    """The plot of the first metric that two reports have and the first other one; None where there are none."""
    for y in wanted:
        for x in against:
            both = {n: (f[x], f[y]) for n, f in heads.items() if x in f and y in f}
            both = {n: (a, b) for n, (a, b) in both.items() if math.isfinite(a.value) and math.isfinite(b.value)}
            if len(both) < 2:
                continue
            first = next(iter(both.values()))
            up = (first[0].higher_is_better is not False, first[1].higher_is_better is not False)
            best = front([(a.value, b.value) for a, b in both.values()], up)
            points = [Point(n, a, b, one) for (n, (a, b)), one in zip(both.items(), best, strict=True)]
            reading = "Filled and joined: no other set is better in both. Lines through the points are intervals."
            return Panel(f"{y} against {x}", reading, pareto(points, x, y))
    return None


def _other_sets(reports: Collection[Report]) -> Iterator[str]:
    """A line where reports have different reference sets."""
    for which in ("real", "train", "test"):
        names = {str(r.sources[which].get("name", "")) for r in reports if which in r.sources}
        if len(names) > 1:
            yield f"no fair comparison: the {which} pictures differ ({', '.join(sorted(names))})"


def _differences(heads: Mapping[str, Mapping[str, Result]], metrics: Iterable[str]) -> Iterator[str]:
    """A line for each kind of difference between results of one metric: protocol, features, numbers of pictures."""
    found: dict[str, list[str]] = {}
    for metric in metrics:
        results = [head[metric] for head in heads.values() if metric in head]
        ways: dict[str, set[Any]] = {
            "protocols": {r.protocol for r in results},
            "features": {str([r.provenance.get(name) for name in ("extractor", "preprocessing")]) for r in results},
            "numbers of pictures": {(r.n_real, r.n_generated) for r in results},
        }
        for way in [way for way, values in ways.items() if len(values) > 1]:
            found.setdefault(way, []).append(metric)
    for way, names in found.items():
        yield f"no fair comparison: the {way} differ in {', '.join(names)}"
