"""Copies of training pictures: what the test set gives in the place of the generated pictures is the null value."""

from __future__ import annotations

import math

from ..metrics.authenticity import authenticity as authenticity_of
from ..metrics.copying_test import copying_test
from ..metrics.intervals import wilson
from ..metrics.memorisation_fid import memorisation_fid
from ..metrics.network_divergence import CriticSettings
from ..metrics.network_divergence import network_divergence as divergence_of
from ..results import Result
from .evidence import NO_INTERVAL, SEED, Evidence

_BY_TEST = "test pictures in the place of the generated ones"
_FAR = 3.0  # deviations of C_T that are no chance


def authenticity(evidence: Evidence, name: str) -> list[Result]:
    """Percent, over generated pictures."""
    train = evidence.rows("train")
    found = authenticity_of(train=train, generated=evidence.rows("generated"))
    null = authenticity_of(train=train, generated=evidence.rows("test")).value if evidence.test else None
    share = f"{found.duplicates_train:.1%} of the training pictures are copies of others, whose copies look authentic"
    return [
        evidence.result(
            name,
            found.value,
            interval=tuple(100 * end for end in wilson(int(found.authentic.sum()), len(found.authentic))),
            interval_kind="Wilson 95 %, conditional: generated points vary, the training set fixed",
            null=null,
            null_kind=_BY_TEST if null is not None else "",
            protocol=f"AuthPct_{evidence.seen('generated').name}, exact; pictures far from all count as authentic",
            details={"duplicates_train": found.duplicates_train, "median_distance": float(found.distances.median())},
            cautions=(share,) if found.duplicates_train else (),
        )
    ]


def copying(evidence: Evidence, name: str, cells: int = 5, pca: int = 64) -> list[Result]:
    """C_T, and what its cells say."""
    train, test, generated = (evidence.rows(which) for which in ("train", "test", "generated"))
    found = copying_test(train=train, test=test, generated=generated, cells=cells, pca=pca, seed=SEED)
    said = []
    if found.value < -_FAR:
        said.append("generated pictures lie nearer to training pictures than chance lets test pictures lie: copies")
    if found.value > _FAR:
        said.append("generated pictures lie farther from training pictures than test pictures do: underfitting")
    if found.judged < 1:
        said.append(f"only {found.judged:.0%} of the test pictures lie in cells with enough generated ones")
    told = ("z", "p_value", "weakest", "judged", "kept_variance", "dimension")
    return [
        evidence.result(
            name,
            found.value,
            interval_kind="none: a test statistic, about normal for an honest model",
            null=0.0,
            null_kind="expected of equal distributions",
            protocol=f"C_T_{evidence.seen('generated').name}, PCA to {found.dimension}, {cells} cells of train",
            details={key: getattr(found, key) for key in told} | {"cells": [cell.z for cell in found.cells]},
            cautions=tuple(said),
        )
    ]


def mifid(evidence: Evidence, name: str, direction: str = "generated", threshold: float = 0.1) -> list[Result]:
    """The penalty beside the plain distance."""
    settings = {"direction": direction, "threshold": threshold}
    real = evidence.rows("real") if evidence.real else None
    train = evidence.rows("train")
    found = memorisation_fid(train=train, generated=evidence.rows("generated"), real=real, **settings)  # type: ignore[arg-type]
    null = None
    if evidence.test:
        null = memorisation_fid(train=train, generated=evidence.rows("test"), real=real, **settings).value  # type: ignore[arg-type]
    return [
        evidence.result(
            name,
            found.value,
            interval_kind=NO_INTERVAL,
            null=null,
            null_kind=_BY_TEST if null is not None else "",
            protocol=f"{evidence.seen('generated').distance}, cosine to train by {direction}, below {threshold:g}",
            details={"frechet": found.frechet, "distance": found.distance, "penalised": found.penalised},
            cautions=("the penalty for copies acts: read the null beside it",) if found.penalised else (),
        )
    ]


def network_divergence(evidence: Evidence, name: str, steps: int = 1000, seeds: int = 3) -> list[Result]:
    """On the features of train, test (held out) and generated pictures."""
    sets = {"train": evidence.rows("train"), "held_out": evidence.rows("test"), "generated": evidence.rows("generated")}
    found = divergence_of(**sets, settings=CriticSettings(steps=steps), seeds=tuple(range(seeds)))
    known = not math.isnan(found.ratio)
    half = 1.96 * found.ratio_error if known else 0.0
    return [
        evidence.result(
            name,
            found.ratio,
            interval=(found.ratio - half, found.ratio + half) if known else None,
            interval_kind=f"normal 95 %, over {seeds} seeds of critics and rows",
            null=0.0,
            null_kind="real pictures; copies of the training set have 1",
            protocol=f"critics of {evidence.seen('generated').name}, {steps} steps, {found.rows} rows a side",
            details={"model": list(found.model), "floor": list(found.floor), "copier": list(found.copier)},
            cautions=() if known else ("critics cannot tell copies from real pictures; take more steps or pictures",),
        )
    ]
