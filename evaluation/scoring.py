"""score: pictures in, report out. Every picture passes the network once, whatever the number of metrics."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from ..errors import UsageError
from ..registry import Spec
from ..version import __version__
from .cautions import cautions
from .collect import Collected, Progress, collect
from .features import Extractor, open_features, weights_hash
from .judges import Judge, open_judge
from .measures import SEED, Evidence, generic
from .metrics.registry import MetricSpec, chosen, needs_of
from .results import Report, Result
from .sources import open_source

VERSION = 1  # of the definitions of the metrics


def score(
    *,
    generated: Any,
    real: Any = None,
    metrics: Iterable[str] | str | None = None,
    features: Any = "embedded",
    judge: str | Judge = "embedded",
    k: int = 5,
    device: torch.device | str = "auto",
    guided_by: str | nn.Module | None = None,
    value_range: tuple[float, float] | None = None,
    background: tuple[int, int, int] | None = None,
    captions: Iterable[str] | None = None,
    progress: Progress | None = None,
) -> Report:
    """Score generated pictures, against real ones where a metric needs them.

    generated, real: what `open_source` takes, or a `Collected` from `reference`. metrics: names of `METRICS` or the
    groups prdc and colour; named ones must be possible, while of the default (all) those that are not are left out with
    the reason. features: a name of `FEATURES` or a callable uint8 (n, 3, H, W) -> (n, D). k: neighbours. guided_by: the
    classifier that guided, or the hash of its weights, which must not be the judge. value_range, background, captions:
    see `open_source`; captions are those of the generated pictures. progress(source, done, of how many).
    """
    began = time.perf_counter()
    plan = _Plan(chosen([metrics] if isinstance(metrics, str) else metrics), strict=metrics is not None)
    place = _device(device)
    options = {"value_range": value_range, "background": background}
    made = _opened(generated, options | {"captions": captions})
    truth = None if real is None else _opened(real, options)
    if truth is None:
        plan.leave_out("real", "it needs real pictures; give real=, for example embedded:test:2000")
    extractor = plan.attempt("features", lambda: open_features(features, place))
    judging = plan.attempt("captions", lambda: open_judge(judge))
    made = _collected(made, extractor, judging, plan.strict, progress)
    truth = None if truth is None else _collected(truth, extractor, judging, False, progress)
    provenance = _provenance(extractor, judging, k, place)
    evidence = Evidence(made, truth, k, place, "recall" in plan.wanted, provenance)
    results = plan.measure(evidence)
    return Report(
        results=tuple(results),
        skipped=plan.skipped,
        warnings=tuple(cautions(evidence, list(plan.wanted), _identity(guided_by))),
        sources={"generated": _about(made)} | ({"real": _about(truth)} if truth else {}),
        environment=_environment(place, time.perf_counter() - began),
    )


def reference(
    source: Any,
    *,
    features: Any = "embedded",
    judge: str | Judge | None = None,
    device: torch.device | str = "auto",
    value_range: tuple[float, float] | None = None,
    background: tuple[int, int, int] | None = None,
    progress: Progress | None = None,
) -> Collected:
    """Read a set once, to score many runs against it: `score(generated=..., real=reference(...))`.

    Features and neighbour radii are kept. With a judge, its rate on this set is reported as the ceiling of adherence.
    """
    opened = open_source(source, value_range=value_range, background=background)
    judging = None if judge is None else open_judge(judge)
    extractor = open_features(features, _device(device))
    return collect(opened, extractor=extractor, judge=judging, strict=False, progress=progress)


def _opened(source: Any, options: Mapping[str, Any]) -> Any:
    return source if isinstance(source, Collected) else open_source(source, **options)


def _collected(
    source: Any, extractor: Extractor | None, judge: Judge | None, strict: bool, progress: Progress | None
) -> Collected:
    if not isinstance(source, Collected):
        return collect(source, extractor=extractor, judge=judge, strict=strict, progress=progress)
    for what in ("extractor_id", "preprocessing_id"):
        before, now = getattr(source.extractor, what, None), getattr(extractor, what, None)
        if extractor and before != now:
            raise UsageError(f"{source.name} was collected with {what} {before}, not {now}; collect it again")
    return source


class _Plan:
    """What will be measured. strict: what was named must be possible; otherwise it is left out, with the reason."""

    def __init__(self, wanted: Mapping[str, Spec], strict: bool):
        self.wanted, self.strict = dict(wanted), strict
        self.skipped: dict[str, str] = {}

    def leave_out(self, need: str, reason: str) -> None:
        """Nothing can be measured that needs this."""
        for name in [name for name, spec in self.wanted.items() if need in needs_of(spec)]:
            if self.strict:
                raise UsageError(f"{name}: {reason}")
            del self.wanted[name]
            self.skipped[name] = reason

    def attempt(self, need: str, opening: Callable[[], Any]) -> Any:
        """Open what some metric needs; None if none does, or if it is not to be had."""
        if not any(need in needs_of(spec) for spec in self.wanted.values()):
            return None
        try:
            return opening()
        except UsageError as error:
            if self.strict:
                raise
            self.leave_out(need, str(error))
            return None

    def measure(self, evidence: Evidence) -> list[Result]:
        """The results in the order of the metrics."""
        results: list[Result] = []
        for name, spec in list(self.wanted.items()):
            own = spec.load_measure() if isinstance(spec, MetricSpec) else None
            try:
                results += (own or generic(name, spec))(evidence)
            except UsageError as error:
                if self.strict:
                    raise
                del self.wanted[name]
                self.skipped[name] = str(error)
        return results


def _device(device: torch.device | str) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    chosen_device = torch.device(device)
    if chosen_device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError("this machine or this torch has no cuda; use device='cpu'")
    return chosen_device


def _identity(guide: str | nn.Module | None) -> str:
    return weights_hash(guide) if isinstance(guide, nn.Module) else guide or ""


def _provenance(extractor: Extractor | None, judge: Judge | None, k: int, device: torch.device) -> dict[str, Any]:
    return {
        "version": VERSION,
        "extractor": extractor.extractor_id if extractor else None,
        "preprocessing": extractor.preprocessing_id if extractor else None,
        "judge": f"{judge.name}-{judge.identity[:16]}" if judge else None,
        "k": k,
        "dtype": "float64",
        "seed": SEED,
        "device": str(device),
    }


def _about(collected: Collected) -> dict[str, Any]:
    return {
        "name": collected.name,
        "pictures": len(collected),
        "sizes": {f"{width}x{height}": count for (height, width), count in collected.sizes.items()},
        "captions": sum(text is not None for text in collected.texts),
        "notes": dict(collected.notes),
    }


def _environment(device: torch.device, seconds: float) -> dict[str, Any]:
    found: dict[str, Any] = {
        "pilotage": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "platform": platform.platform(),
        "device": str(device) if device.type == "cpu" else torch.cuda.get_device_name(device),
        "threads": torch.get_num_threads(),
        "seconds": round(seconds, 3),
    }
    if os.name == "posix":
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        found["peak_memory_mb"] = round(peak / (2**20 if platform.system() == "Darwin" else 2**10))
    return found
