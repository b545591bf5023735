"""Two runs over the same captions and seeds, compared picture by picture: what "as good as" is claimed from."""

from __future__ import annotations

from ..errors import UsageError
from .collect import Collected
from .metrics.adherence import ALL, Adherence, adherence
from .metrics.intervals import Difference


def compare_adherence(a: Collected, b: Collected, attribute: str = ALL) -> Difference:
    """Adherence of a less that of b, paired by key and caption, with the interval of 95 % (see `paired_difference`).

    a, b: from `reference(..., judge=...)`. Errors: other pictures or captions on one side, not judged, another judge.
    """
    if a.judgement and b.judgement and a.judgement.judge.identity != b.judgement.judge.identity:
        raise UsageError(f"{a.name} and {b.name} were judged by different judges; use one for both")
    pairs = {(key, text): i for i, (key, text) in enumerate(zip(b.keys, b.texts, strict=True))}
    wanted = list(zip(a.keys, a.texts, strict=True))
    if len(a) != len(b) or len(pairs) != len(b) or any(pair not in pairs for pair in wanted):
        raise UsageError(f"{a.name} and {b.name} are not of the same captions and seeds; make both with the same ones")
    return _judged(a, range(len(a))).less(_judged(b, [pairs[pair] for pair in wanted]), attribute)


def _judged(collected: Collected, order: list[int] | range) -> Adherence:
    judgement = collected.judgement
    if judgement is None:
        raise UsageError(f"{collected.name} was not judged ({collected.unjudged}); collect it with judge='embedded'")
    seen = {name: [values[i] for i in order] for name, values in judgement.seen.items()}
    return adherence(predicted=seen, stated=[judgement.stated[i] for i in order])
