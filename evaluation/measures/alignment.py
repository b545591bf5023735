"""Do pictures show what was asked for?"""

from __future__ import annotations

import numpy as np

from ...errors import UsageError
from ..collect import Collected
from ..judging import Judgement
from ..metrics.adherence import ALL, Adherence
from ..metrics.adherence import adherence as adherence_of
from ..metrics.classifier_precision import ClassifierPrecision
from ..metrics.classifier_precision import classifier_precision as precision_of
from ..metrics.clip_score import ClipScore
from ..metrics.clip_score import clip_score as clip_score_of
from ..results import Result
from .evidence import NO_INTERVAL, Evidence


def adherence(evidence: Evidence, name: str) -> list[Result]:
    """Of whole captions, then of each attribute stated somewhere. `real` is the ceiling: the judge on real pictures."""
    found, ceiling = _judged(evidence.generated), _judged(evidence.real) if evidence.real else None
    if found is None:
        raise UsageError(f"adherence cannot be judged: {evidence.generated.unjudged}")
    judge = evidence.generated.judgement.judge  # type: ignore[union-attr]
    results = []
    for head, rate in sorted(found.rates.items(), key=lambda item: item[0] != ALL):
        if not rate.stated and head != ALL:
            continue
        best = ceiling.rates.get(head) if ceiling else None
        results.append(
            evidence.result(
                name if head == ALL else f"{name}/{head}",
                rate.value,
                interval=(rate.low, rate.high),
                interval_kind="Wilson 95 %, over captions that state it",
                real=best.value if best and best.stated else None,
                protocol=f"judge {judge.name}",
                details={"right": rate.right, "stated": rate.stated},
            )
        )
    return results


def _judged(collected: Collected) -> Adherence | None:
    judgement = collected.judgement
    return adherence_of(predicted=judgement.seen, stated=judgement.stated) if judgement else None


def classifier_precision(evidence: Evidence, name: str) -> list[Result]:
    """The judge's macro precision of each attribute that captions state, and their mean."""
    judgement, ceiling = evidence.generated.judgement, evidence.real.judgement if evidence.real else None
    if judgement is None:
        raise UsageError(f"{name} cannot be judged: {evidence.generated.unjudged}")
    found = {head: _precision(judgement, head) for head in judgement.seen}
    known = {head: one for head, one in found.items() if one}
    if not known:
        raise UsageError(f"{name}: no caption states anything that the judge sees; give captions of its world")
    real = [one.macro_precision for head in known if ceiling and (one := _precision(ceiling, head))]
    details = {"accuracy": {head: one.accuracy for head, one in known.items()}}
    details |= {"macro_precision": {head: one.macro_precision for head, one in known.items()}}
    return [
        evidence.result(
            name,
            float(np.mean([one.macro_precision for one in known.values()])),
            interval_kind=NO_INTERVAL,
            real=float(np.mean(real)) if real else None,
            protocol=f"judge {judgement.judge.name}, mean over predicted classes, then over attributes",
            details=details,
        )
    ]


def _precision(judgement: Judgement, head: str) -> ClassifierPrecision | None:
    stated = [i for i, caption in enumerate(judgement.stated) if head in caption]
    if not stated:
        return None
    asked = [judgement.stated[i][head] for i in stated]
    return precision_of(requested=asked, predicted=[judgement.seen[head][i] for i in stated])


def clip_score(evidence: Evidence, name: str, prefix: str = "") -> list[Result]:
    """Of each picture and its caption, the prefix before it; that of real pictures and their captions beside it."""
    found, cut = _clip_score(evidence, "generated", prefix)
    captioned = evidence.real is not None and evidence.real.texts and None not in evidence.real.texts
    real = _clip_score(evidence, "real", prefix)[0].cosine if captioned else None
    return [
        evidence.result(
            name,
            found.cosine,
            interval=found.cosine_interval if len(found.cosines) > 1 else None,
            interval_kind="normal 95 %, over pairs",
            real=real,
            protocol=f"mean cosine of {evidence.seen('generated').name}, prefix {prefix!r}",
            details={"percent": found.percent, "score": found.score, "captions_cut": cut},
            cautions=(f"{cut} captions are longer than CLIP reads and were cut",) if cut else (),
        )
    ]


def _clip_score(evidence: Evidence, which: str, prefix: str) -> tuple[ClipScore, int]:
    encode = getattr(evidence.extractor, "encode_text", None)
    if encode is None:
        raise UsageError("these features embed no captions; use --features clip")
    texts = evidence.texts(which)
    embedded = encode(texts, prefix)
    return clip_score_of(pictures=evidence.rows(which), texts=embedded.embeddings), embedded.truncated
