"""What a reader should know before trusting a report: few pictures, unequal sets, duplicates, a guide as judge."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from .collect import Collected
from .measures.evidence import Evidence
from .metrics.duplicates import found_among

_BALLS = {"precision", "recall", "density", "coverage"}


def cautions(evidence: Evidence, metrics: Sequence[str], guide: str = "") -> Iterator[str]:
    """One line each. guide: the hash of the weights of the classifier that guided, if known."""
    sets = {"generated": evidence.generated} | ({"real": evidence.real} if evidence.real else {})
    yield from _sizes(evidence, sets, metrics)
    for name, collected in sets.items():
        space = collected.space(evidence.space) if collected.spaces else None
        if space and space.has_rows and space.duplicates:
            count = round(space.duplicates * len(collected))
            yield f"{count} of {len(collected)} {name} pictures have the same features as an earlier one"
        if missing := collected.notes["pictures of the manifest are missing"]:
            yield f"{missing} {name} pictures of the manifest are missing: was there a choice?"
        if space and space.side:
            side = space.side
            if other := [f"{w}x{h}" for h, w in collected.sizes if (h, w) != (side, side)]:
                yield f"{name} pictures of {', '.join(other)} were resized to {side}x{side} for the features"
    if len(sets) == 2:
        yield from _mixtures(evidence.generated, sets["real"])
        yield from _shared(evidence)
    judgement = evidence.generated.judgement
    if guide and judgement and guide == judgement.judge.identity:
        yield "the judge is the classifier that guided: adherence says how well it was pleased, not what is seen"


def _sizes(evidence: Evidence, sets: dict[str, Collected], metrics: Sequence[str]) -> Iterator[str]:
    counts = {name: len(collected) for name, collected in sets.items() if len(collected)}
    if not ("frechet" in metrics or _BALLS & set(metrics)):
        return
    least = min(counts.values())
    width = evidence.seen("generated").width if evidence.generated.spaces else 0
    if "frechet" in metrics and least <= width:
        yield f"frechet: {least} pictures for {width} features make a singular covariance; give more than {20 * width}"
    elif "frechet" in metrics and least < min(10_000, 20 * width):
        yield f"frechet: {least} pictures are few for {width} features; the bias is large, never compare different N"
    if _BALLS & set(metrics) and least < 1000:
        yield f"neighbours: {least} pictures are few; 1000 or more give steady numbers"
    if len(set(counts.values())) > 1:
        real, generated = counts["real"], counts["generated"]
        yield f"{real} real and {generated} generated pictures: compare only with runs of the same numbers"


def _shared(evidence: Evidence) -> Iterator[str]:
    """Pictures that are in both sets."""
    if not evidence.generated.spaces:
        return
    generated, real = evidence.seen("generated"), evidence.seen("real")
    if generated.has_rows and real.has_rows:
        count = int(found_among(generated.features, real.features).sum())
        if count:
            yield f"{count} of {len(generated.features)} generated pictures have the features of a real one: one file?"


def _mixtures(generated: Collected, real: Collected) -> Iterator[str]:
    jpeg = {c.notes["JPEG files"] == len(c) for c in (generated, real)}
    if len(jpeg) == 2:
        yield "one set is all JPEG and the other is not: compression alone shifts distances"
    if generated.sizes.keys() != real.sizes.keys():
        yield "real and generated pictures have different sizes: resizing alone shifts distances"
