"""Pictures to look at after the numbers: suspected copies, the least and most real, what is missed, duplicates."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..errors import UsageError
from ..storage import disk_errors, write_text
from .collect import Collected
from .measures.evidence import Evidence
from .metrics.duplicates import representatives
from .metrics.nearest import nearest
from .metrics.realism import realism
from .metrics.suspects import suspects

COUNT = 12


class Tile(NamedTuple):
    """A picture, uint8 (H, W, 3), and what stands below it."""

    picture: np.ndarray
    label: str


@dataclass(frozen=True, eq=False)
class Gallery:
    """Rows of pictures that belong together, one or two each. missing: why it could not be made, "" where it could.

    explanation: how to read it, or that nothing was found. csv_rows: the same for a spreadsheet, column names first.
    """

    title: str
    explanation: str = ""
    rows: tuple[tuple[Tile, ...], ...] = ()
    csv_rows: tuple[tuple[str, ...], ...] = ()
    missing: str = ""


class _Pairs(NamedTuple):
    """Pictures of two sets beside each other. first, second: int64 (n,) numbers; distances, ratios: float64 (n,)."""

    first: Tensor
    second: Tensor
    distances: Tensor
    ratios: Tensor


def galleries(evidence: Evidence, count: int = COUNT) -> tuple[Gallery, ...]:
    """What a reader of the numbers will want to see, at most `count` rows each.

    A gallery that cannot be made (no features, no train or real set, pictures that cannot be read again) is there
    without rows, and its `missing` says why. Costs a pass of nearest neighbours for each, and reads a few pictures.
    """
    if count < 1:
        raise UsageError(f"count={count} shows nothing; use count={COUNT}, or write the page without galleries")
    found: list[Gallery] = []
    for title, make in _MAKERS.items():
        try:
            found += make(evidence, count)
        except UsageError as error:
            found.append(Gallery(title, missing=str(error)))
    return tuple(found)


def write_suspects(gallery: Gallery, path: str | Path) -> Path:
    """The rows of a gallery as CSV. Errors: the gallery has none."""
    if not gallery.csv_rows:
        raise UsageError(f"{gallery.title}: there is nothing to write ({gallery.missing or 'no pictures were found'})")
    target, held = Path(path), io.StringIO()
    csv.writer(held, lineterminator="\n").writerows(gallery.csv_rows)
    with disk_errors(target.parent):
        target.parent.mkdir(parents=True, exist_ok=True)
    write_text(target, held.getvalue())
    return target


def _copies(evidence: Evidence, count: int) -> list[Gallery]:
    """Generated pictures beside their nearest training pictures, the most suspicious first."""
    which = "train" if evidence.train else "real"
    if not evidence.train and not evidence.real:
        raise UsageError("it needs training pictures; give train= (--train), for example embedded:train:2000")
    others = evidence.train or evidence.reference
    _readable(evidence.generated, others)
    if evidence.train and evidence.test:
        pairs, than = _against_test(evidence, count), "the distance to the nearest held-out picture"
    else:
        pairs, than = _against_fellows(evidence, which, count), "the distance of that one to its own nearest fellow"
    title = "Suspected copies" if evidence.train else "Nearest real pictures"
    caution = (
        "Far below 1 is suspicious, about 1 is not."
        if evidence.train
        else "No training pictures were given (train=), so these are nearest neighbours and no evidence of copying."
    )
    explanation = (
        f"Left a generated picture, right the nearest {'training' if evidence.train else 'real'} picture. "
        f"The ratio is the distance between them over {than}, lowest first. {caution}"
    )
    columns = ("generated", f"nearest_{which}", "distance", "ratio")
    return [_beside(title, explanation, columns, evidence.generated, others, pairs)]


def _against_test(evidence: Evidence, count: int) -> _Pairs:
    train, test, generated = (evidence.rows(name) for name in ("train", "test", "generated"))
    found = suspects(train=train, test=test, generated=generated, count=count)
    return _Pairs(found.indices, found.nearest_train, found.distance_train, found.ratio)


def _against_fellows(evidence: Evidence, which: str, count: int) -> _Pairs:
    """d(g, t) / d(t, t'), t nearest to g and t' nearest to t; below 1, g is not authentic (Alaa et al. 2022)."""
    rows = evidence.rows(which)
    found = nearest(queries=evidence.rows("generated"), among=rows)
    distances, numbers = found.distances[:, 0], found.indices[:, 0]
    some, place = numbers.unique(return_inverse=True)
    fellows = nearest(queries=rows[some], among=rows, k=2).distances[:, 1][place]  # the first one is itself
    ratios = torch.where(distances == 0, 0.0, distances / fellows)
    order = ratios.argsort(stable=True)[:count]
    return _Pairs(order, numbers[order], distances[order], ratios[order])


def _by_realism(evidence: Evidence, count: int) -> list[Gallery]:
    """The pictures of the lowest and of the highest realism."""
    _needs_real(evidence)
    _readable(evidence.generated)
    real, generated = evidence.features
    scores = realism(real=real, generated=generated)
    low, high = (scores.argsort(descending=way, stable=True)[:count] for way in (False, True))
    what = (
        "Realism of a generated picture: the largest ratio, over real ones that do not lie apart, of the distance of "
        "the real one to its third neighbour and its distance to the generated one. Above 1 is inside, near 0 far off."
    )
    return [
        _alone("Lowest realism", f"{what} Lowest first.", evidence.generated, low, scores),
        _alone("Highest realism", f"{what} Highest first.", evidence.generated, high, scores),
    ]


def _uncovered(evidence: Evidence, count: int) -> list[Gallery]:
    """Real pictures with no generated one in their ball, the loneliest first."""
    _needs_real(evidence)
    _readable(evidence.reference, evidence.generated)
    real, generated = evidence.features
    balls, k = evidence.balls, evidence.k
    missed = (~balls.covered).nonzero()[:, 0]
    title = "Real pictures that nothing covers"
    if not len(missed):
        return [Gallery(title, "None: every real picture has a generated one nearby.")]
    found = nearest(queries=real[missed], among=generated)
    distances = found.distances[:, 0]
    ratios = torch.where(distances == 0, 0.0, distances / evidence.seen("real").radii(k).distances[missed])
    order = ratios.argsort(descending=True, stable=True)[:count]
    expected = round((1 - balls.expected_coverage) * len(real))
    explanation = (
        f"{len(missed)} of {len(real)} real pictures have no generated one within the distance to their neighbour "
        f"number {k}; {expected} are expected of a perfect model. Left the real picture, right the nearest generated "
        "one; the ratio is the distance between them over that distance, highest first."
    )
    pairs = _Pairs(missed[order], found.indices[order, 0], distances[order], ratios[order])
    columns = ("real", "nearest_generated", "distance", "ratio")
    return [_beside(title, explanation, columns, evidence.reference, evidence.generated, pairs)]


def _duplicates(evidence: Evidence, count: int) -> list[Gallery]:
    """Generated pictures with equal features, the most frequent first."""
    _readable(evidence.generated)
    first = representatives(evidence.rows("generated").cpu())
    sizes = torch.bincount(first, minlength=len(first))
    repeated = sizes.argsort(descending=True, stable=True)[: int((sizes > 1).sum())]
    if not len(repeated):
        return [Gallery("Exact duplicates", "None: no two generated pictures have the same features.")]
    keys = evidence.generated.keys
    groups = [(first == one).nonzero()[:, 0].tolist() for one in repeated.tolist()]
    pictures = _pictures(evidence.generated, [i for group in groups[:count] for i in group[:2]])
    rows = tuple(
        (Tile(pictures[g[0]], f"{keys[g[0]]}\n{len(g)} times"), Tile(pictures[g[1]], keys[g[1]]))
        for g in groups[:count]
    )
    copies = int(sizes[repeated].sum()) - len(repeated)
    explanation = (
        f"{copies} generated pictures have the same features, to the last bit, as an earlier one. "
        "Side by side the first two of each group, the largest group first."
    )
    table = (("group", "picture"), *((str(n), keys[i]) for n, group in enumerate(groups) for i in group))
    return [Gallery("Exact duplicates", explanation, rows, table)]


_MAKERS: dict[str, Callable[[Evidence, int], list[Gallery]]] = {
    "Suspected copies": _copies,
    "Lowest and highest realism": _by_realism,
    "Real pictures that nothing covers": _uncovered,
    "Exact duplicates": _duplicates,
}


def _beside(
    title: str, explanation: str, columns: tuple[str, ...], left: Collected, right: Collected, pairs: _Pairs
) -> Gallery:
    """A gallery of pairs."""
    first, second = pairs.first.tolist(), pairs.second.tolist()
    ratios, distances = pairs.ratios.tolist(), pairs.distances.tolist()
    lefts, rights = _pictures(left, first), _pictures(right, second)
    rows = tuple(
        (Tile(lefts[i], f"{left.keys[i]}\nratio {ratio:.3g}"), Tile(rights[j], right.keys[j]))
        for i, j, ratio in zip(first, second, ratios, strict=True)
    )
    numbers = zip(first, second, distances, ratios, strict=True)
    table = tuple((left.keys[i], right.keys[j], f"{distance:.9g}", f"{ratio:.9g}") for i, j, distance, ratio in numbers)
    return Gallery(title, explanation, rows, (columns, *table))


def _alone(title: str, explanation: str, collected: Collected, numbers: Tensor, scores: Tensor) -> Gallery:
    """A gallery of single pictures with their scores."""
    chosen, pictures = numbers.tolist(), _pictures(collected, numbers.tolist())
    rows = tuple((Tile(pictures[i], f"{collected.keys[i]}\n{float(scores[i]):.3g}"),) for i in chosen)
    table = tuple((collected.keys[i], f"{float(scores[i]):.9g}") for i in chosen)
    return Gallery(title, explanation, rows, (("generated", "realism"), *table))


def _needs_real(evidence: Evidence) -> None:
    if evidence.real is None:
        raise UsageError("it needs real pictures; give real= (--real), for example embedded:test:2000")


def _readable(*sets: Collected) -> None:
    """Errors: pictures of a set cannot be had by their names."""
    for one in sets:
        if not one.keys or not callable(getattr(one.source, "pick", None)):
            raise UsageError(f"the pictures of {one.name} cannot be read again; give a folder, an archive or an array")


def _pictures(collected: Collected, numbers: Sequence[int]) -> dict[int, np.ndarray]:
    """The pictures of these numbers."""
    _readable(collected)
    found = collected.source.pick([collected.keys[i] for i in numbers])  # type: ignore[union-attr]
    return {i: found[collected.keys[i]].pixels for i in numbers}
