"""The measure of a metric that is a function of features, named by the sets that it asks for."""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

from ...registry import Spec
from ..results import Result
from .evidence import NO_INTERVAL, Evidence

SETS = ("real", "generated", "train", "test")


def measure_of(spec: Spec) -> Callable[..., list[Result]]:
    """For `spec.cls(*, real=features, generated=features, ..., **settings)`, whatever of `SETS` its signature names.

    It returns a float, or an object with `value` and, where they are known, `interval`, `interval_kind`, `null`
    (exact), `notes`; its other numbers become details. Without `null` a distance of real and generated features is also
    taken between halves of the real set.
    """
    function = spec.load()
    needed, welcome = sets_of(spec), sets_of(spec, optional=True)

    def measure(evidence: Evidence, name: str, **settings: Any) -> list[Result]:
        wanted = [*needed, *(which for which in welcome if getattr(evidence, which) is not None)]
        found = function(**{which: evidence.rows(which) for which in wanted}, **settings)
        more: dict[str, Any] = {}
        if getattr(found, "null", None) is None and set(wanted) == {"real", "generated"}:
            more = evidence.null_of_halves(lambda **sets: _value(function(**sets, **settings)))
        return [result_of(evidence, name, found, settings, **more)]

    return measure


def result_of(evidence: Evidence, name: str, found: Any, settings: Mapping[str, Any], **more: Any) -> Result:
    """What a metric's function returned, as a result. more: what is known beyond it."""
    chosen = "".join(f", {key}={value}" for key, value in settings.items())
    protocol = f"{name.partition(':')[0].partition('/')[0]}_{evidence.seen('generated').name}{chosen}"
    return evidence.result(name, _value(found), **{"protocol": protocol, **_said(found), **more})


def sets_of(spec: Spec, optional: bool = False) -> tuple[str, ...]:
    """The sets that the function of a metric asks for: those that it needs, or those that it can do without."""
    parameters = inspect.signature(spec.load()).parameters
    return tuple(
        w for w in SETS if w in parameters and (parameters[w].default is not inspect.Parameter.empty) == optional
    )


def _value(found: Any) -> float:
    return float(getattr(found, "value", found))


def _said(found: Any) -> dict[str, Any]:
    """What a `Result` takes from what a function returned."""
    if not dataclasses.is_dataclass(found):
        return {"interval_kind": NO_INTERVAL}
    interval = getattr(found, "interval", None)
    known = interval is not None and all(math.isfinite(end) for end in interval)
    null = getattr(found, "null", None)
    return {
        "interval": tuple(interval) if known and interval else None,
        "interval_kind": getattr(found, "interval_kind", "normal 95 %") if known else NO_INTERVAL,
        "null": null,
        "null_kind": getattr(found, "null_kind", "expected of equal distributions") if null is not None else "",
        "cautions": tuple(getattr(found, "notes", ())),
        "details": _details(found),
    }


def _details(found: Any) -> Mapping[str, Any]:
    told = ("value", "interval", "interval_kind", "null", "null_kind", "notes")
    fields = {f.name: getattr(found, f.name) for f in dataclasses.fields(found) if f.repr and f.name not in told}
    return {name: value for name, value in fields.items() if _is_plain(value)}


def _is_plain(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return len(value) <= 100 and all(_is_plain(one) for one in value)
    return isinstance(value, (bool, int, float, str)) or value is None
