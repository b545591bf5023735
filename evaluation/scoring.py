"""score: pictures in, report out. Every picture passes every network once, whatever the number of metrics."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ..errors import UsageError
from .cautions import cautions
from .collect import Collected, Progress, collect
from .environment import environment, open_device
from .features import Extractor, open_features, weights_hash
from .judges import Judge, open_judge
from .measures.evidence import SEED, Evidence
from .metrics.prdc import smallest_k
from .metrics.registry import SUITES, chosen, lines_of
from .plan import Plan
from .processes import Processes
from .results import Report
from .sources import open_source
from .space import check_same, identity_of
from .statistics import is_statistics, read_statistics

VERSION = 2  # of the definitions of the metrics


def score(
    *,
    generated: Any,
    real: Any = None,
    train: Any = None,
    test: Any = None,
    metrics: Iterable[str] | str | None = None,
    features: Any = "embedded",
    judge: str | Judge = "embedded",
    k: int | str = 5,
    device: torch.device | str = "auto",
    guided_by: str | nn.Module | None = None,
    assume: str | None = None,
    value_range: tuple[float, float] | None = None,
    background: tuple[int, int, int] | None = None,
    captions: Iterable[str] | None = None,
    progress: Progress | None = None,
    look: Callable[[str, Evidence], None] | None = None,
) -> Report:
    """Score generated pictures, against real ones where a metric needs them.

    generated, real: what `open_source` takes, or a `Collected` from `reference`; real also a file of statistics.
    train, test: pictures that the model was trained on, and pictures like them that it was not, for memorisation.
    metrics: names of `METRICS`, lines with settings, or groups (prdc, colour, quick, standard, full). What is named
    must be possible; of quick (the default), standard and full, what is not is left out with the reason.
    features: a name of `FEATURES` with settings or a callable uint8 (n, 3, H, W) -> (n, D), or several of them, the
    first being that of metrics that are not bound to one. k: neighbours, or "auto", the smallest with which equal
    distributions are covered to .95. device: "auto", "cpu", "cuda".
    guided_by: the classifier that guided, or the hash of its weights, which must not be the judge.
    assume: the preprocessing of a foreign statistics file, which does not say it.
    value_range, background, captions: see `open_source`; captions are those of the generated pictures.
    progress: called with (source, pictures done, of how many). look: called with ("", evidence) after it was measured,
    for what a report shows beside numbers (`galleries.galleries`).
    Under `accelerate launch` each process reads its part of every source, the first one measures, and all return the
    same report. `look` is called on the first.
    """
    if captions is not None:
        generated = open_source(generated, value_range=value_range, background=background, captions=captions)
    return score_each(
        generated={"": generated},
        real=real,
        train=train,
        test=test,
        metrics=metrics,
        features=features,
        judge=judge,
        k=k,
        device=device,
        guided_by=guided_by,
        assume=assume,
        value_range=value_range,
        background=background,
        progress=progress,
        look=look,
    )[""]


def score_each(
    *,
    generated: Mapping[str, Any],
    real: Any = None,
    train: Any = None,
    test: Any = None,
    metrics: Iterable[str] | str | None = None,
    features: Any = "embedded",
    judge: str | Judge = "embedded",
    k: int | str = 5,
    device: torch.device | str = "auto",
    guided_by: str | nn.Module | None = None,
    assume: str | None = None,
    value_range: tuple[float, float] | None = None,
    background: tuple[int, int, int] | None = None,
    progress: Progress | None = None,
    look: Callable[[str, Evidence], None] | None = None,
) -> dict[str, Report]:
    """Several sets of generated pictures by name, as `score` does one; what they are compared with is read once."""
    began = time.perf_counter()
    processes, place = Processes.found(), open_device(device)
    lines = lines_of(metrics) if isinstance(metrics, str) else None if metrics is None else list(metrics)
    if lines == []:
        raise UsageError("no metric is named; leave metrics away for the usual ones, or name some: frechet,prdc")
    plan = Plan(chosen(lines), strict=lines is not None and not set(lines) & set(SUITES))
    options = {"value_range": value_range, "background": background}
    given = {
        which: source for which, source in (("real", real), ("train", train), ("test", test)) if source is not None
    }
    opened = {which: _opened(source, options, assume) for which, source in given.items()}
    made = {name: _opened(source, options, assume) for name, source in generated.items()}
    for which, example in (("real", "test:2000"), ("train", "train:2000"), ("test", "test:2000")):
        if which not in opened:
            fix = f"give {which}= (--{which}), for example embedded:{example}"
            plan.without(which, f"it needs {which} pictures; {fix}")
    extractors = plan.extractors(_several(features), place)
    judging = plan.attempt(lambda: open_judge(judge), lambda one: "captions" in one.needs)

    def read(source: Any, strict: bool) -> Collected:
        return _collected(source, extractors, judging, strict, progress, processes, assume is not None)

    sets = {which: read(source, False) for which, source in opened.items()}
    reports = {}
    for name, source in made.items():
        evidence = _Evidence({**sets, "generated": read(source, plan.strict)}, extractors, judging, k, place)
        seen = functools.partial(look, name) if look else None
        report = processes.by_first(functools.partial(_measured, plan.copy(), evidence, _identity(guided_by), seen))
        reports[name] = report.made_in(environment(place, time.perf_counter() - began, processes.world))
    return reports


class _Evidence:
    """The sets as each of the extractors sees them: `evidence(space)`, made once."""

    def __init__(
        self,
        sets: Mapping[str, Collected],
        extractors: Sequence[Extractor],
        judge: Judge | None,
        k: int | str,
        device: torch.device,
    ):
        self.sets, self.judge, self.device = sets, judge, device
        self.k = self._resolved(k)
        self.extractors = {extractor.name: extractor for extractor in extractors}
        self.first = extractors[0].name if extractors else ""
        self.known: dict[str, Evidence] = {}

    def _resolved(self, k: int | str) -> int:
        if k != "auto":
            return int(k)
        if "real" not in self.sets:
            return 5
        return smallest_k(len(self.sets["real"]), len(self.sets["generated"]))

    def of(self, space: str, with_recall: bool) -> Evidence:
        name = space or self.first
        if name not in self.known:
            extractor = self.extractors.get(name)
            self.known[name] = Evidence(
                **self.sets,
                k=self.k,
                device=self.device,
                space=name,
                extractor=extractor,
                with_recall=with_recall,
                provenance=_provenance(extractor, self.judge, self.k, self.device),
            )
        return self.known[name]


def _measured(plan: Plan, evidence: _Evidence, guide: str, look: Callable[[Evidence], None] | None) -> Report:
    with_recall = "recall" in plan.names
    results = plan.measure(lambda space: evidence.of(space, with_recall))
    first = evidence.of("", with_recall)
    if look:
        look(first)
    said = (f"{result.name}: {caution}" for result in results for caution in result.cautions)
    return Report(
        results=tuple(results),
        skipped=plan.skipped,
        warnings=(*cautions(first, plan.names, guide), *said),
        sources={name: _about(collected) for name, collected in sorted(evidence.sets.items())},
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

    features: one or several, as for `score`. Features and neighbour radii are kept; `statistics.write_statistics` puts
    them into a file. With a judge, its rate on this set is reported as the ceiling of adherence.
    """
    opened = open_source(source, value_range=value_range, background=background)
    judging = None if judge is None else open_judge(judge)
    place = open_device(device)
    extractors = [open_features(one, place) for one in _several(features)]
    processes = Processes.found()
    return collect(opened, extractors=extractors, judge=judging, strict=False, progress=progress, processes=processes)


def _several(features: Any) -> Sequence[Any]:
    return features if isinstance(features, (list, tuple)) else [features]


def _opened(source: Any, options: Mapping[str, Any], assume: str | None) -> Any:
    if isinstance(source, Collected):
        return source
    if is_statistics(source):
        return read_statistics(source, assume=assume)
    return open_source(source, **options)


def _collected(
    source: Any,
    extractors: Sequence[Extractor],
    judge: Judge | None,
    strict: bool,
    progress: Progress | None,
    processes: Processes,
    assumed: bool,
) -> Collected:
    if not isinstance(source, Collected):
        return collect(
            source, extractors=extractors, judge=judge, strict=strict, progress=progress, processes=processes
        )
    for extractor in extractors:
        space = source.space(extractor.name)
        check_same(space.identity, identity_of(extractor), source.name, f"features {extractor.name}", assumed)
    return source


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
