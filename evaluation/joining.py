"""What several processes found in their parts of one source, as one: on the first process, in the order of the source.

Rows of features go there in short runs, in order, and into a store that uses the disk when they are many: no process
ever holds the rows of another, and the first one holds them once.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .metrics.colour import Colour
from .processes import Processes
from .store import FeatureStore

Run = tuple[int, int, int]  # (place in the source, first row of that process, how many) of rows that lie together


def joined(part: Mapping[str, Any], processes: Processes) -> dict[str, Any]:
    """The parts of all processes as one, without "positions", on the first of them; nothing on the others.

    part: "positions" (N,) in the source, ascending; "keys", "texts", "labels" and, where all was judged, "stated" and
    the lists of "seen", N each; "rows": float32 (N, D) by name; "colour"; "unjudged"; "sizes"; "notes", "opening".
    """
    rows: Mapping[Any, Tensor] = part["rows"]
    about = {**part, "rows": {name: tuple(found.shape) for name, found in rows.items()}}
    parts = processes.by_rank(about)
    if processes.rank:
        _send(rows, part["positions"], processes)
        return {}
    return {**_of_all(parts), "rows": _rows_of_all(rows, parts, processes)}


def _send(rows: Mapping[Any, Tensor], positions: Sequence[int], processes: Processes) -> None:
    for name in sorted(rows):
        for _, first, count in _runs(positions):
            processes.send(rows[name][first : first + count])


def _rows_of_all(
    rows: Mapping[Any, Tensor], parts: Sequence[Mapping[str, Any]], processes: Processes
) -> dict[Any, Any]:
    """(N, D) by name; run by run, in the order of the source and, for each process, in the order of `_send`."""
    if len(parts) == 1:
        return dict(rows)
    runs = sorted((place, rank, first, count)
                  for rank, part in enumerate(parts) for place, first, count in _runs(part["positions"]))  # fmt: skip
    stores: dict[Any, FeatureStore] = {}
    shapes: Mapping[Any, Any] = next((part["rows"] for part in parts if part["keys"]), {})
    for name in sorted(shapes):  # each process has met them in an order of its own
        width, stores[name] = shapes[name][1], FeatureStore()
        for _, rank, first, count in runs:
            own = rank == processes.rank
            stores[name].append(
                rows[name][first : first + count].clone()  # of its own: the part can be let go
                if own else processes.received(rank, (count, width), torch.float32)
            )  # fmt: skip
    return {name: store.rows() for name, store in stores.items()}


def _runs(positions: Sequence[int]) -> Iterator[Run]:
    """Rows whose pictures follow one another in the source."""
    for _, run in itertools.groupby(enumerate(positions), lambda at: at[1] - at[0]):
        together = list(run)
        yield together[0][1], together[0][0], len(together)


def _of_all(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Everything but the rows."""
    if len(parts) == 1:
        return dict(parts[0])
    read = [part for part in parts if part["keys"]]
    order = np.argsort([p for part in read for p in part["positions"]], kind="stable").tolist()
    failure = next((part["unjudged"] for part in read if part["unjudged"]), "")
    judged = bool(read) and not failure

    def each(name: str) -> list[Any]:
        together = [value for part in read for value in part[name]]
        return [together[i] for i in order]

    heads = read[0]["seen"] if judged else ()
    seen = {head: [x for part in read for x in part["seen"][head]] for head in heads or ()}
    return {
        "keys": each("keys"),
        "texts": each("texts"),
        "labels": each("labels"),
        "colour": Colour.joined(part["colour"] for part in read).ordered(order),
        "stated": each("stated") if judged else None,
        "seen": {head: [values[i] for i in order] for head, values in seen.items()},
        "unjudged": failure,
        "sizes": sum((part["sizes"] for part in read), Counter()),
        "notes": read[0]["opening"] + sum((part["notes"] - part["opening"] for part in read), Counter())
        if read
        else Counter(),
    }
