"""The signed distance at the two orders that are read together."""

from __future__ import annotations

from ..metrics.sid import sid as sid_of
from ..results import Result
from .evidence import SEED, Evidence
from .of_function import result_of


def sid(evidence: Evidence, name: str, order: int | None = None) -> list[Result]:
    """At one order, or at 1, which looks far, and at -1, which looks near."""
    real, generated = evidence.features
    results = []
    for q in (1, -1) if order is None else (order,):
        found = sid_of(real=real, generated=generated, order=q, seed=SEED)
        called = name if order is not None or q == 1 else f"{name}/order {q}"
        results.append(result_of(evidence, called, found, {"order": q}))
    return results
