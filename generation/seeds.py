"""Seeds as people write them: `0-63`, `1,4,9-12`, `17:2`, a number, or a list of any of these."""

from __future__ import annotations

import re
from typing import Any

from ..errors import UsageError

Seed = int | str
_PIECE = re.compile(r"(?P<first>\d{1,300})(?:-(?P<last>\d{1,300})|:(?P<repeat>\d{1,300}))?")
_MOST = 10_000_000  # a slip such as 0-99999999999 should not fill the memory


def read_seeds(given: Any) -> tuple[Seed, ...]:
    """The seeds in order. Repeat r of a seed is the string "seed:r"; "17:0" is 17 itself."""
    pieces = given if isinstance(given, (list, tuple)) else str(given).split(",")
    seeds = tuple(seed for piece in pieces for seed in _piece(str(piece).strip()))
    if not seeds:
        raise UsageError("no seeds, so no pictures; write for example seeds 0-3")
    if len(set(seeds)) < len(seeds):
        twice = next(seed for seed in seeds if seeds.count(seed) > 1)
        raise UsageError(f"seed {twice} is given twice; for another picture of the same seed write {twice}:1")
    return seeds


def _piece(text: str) -> list[Seed]:
    if "," in text:
        return [seed for part in text.split(",") for seed in _piece(part.strip())]
    match = _PIECE.fullmatch(text)
    if match is None:
        raise UsageError(f"cannot read the seeds {text!r}; write 0-63, 1,4,9-12 or 17:2 (repeat 2 of seed 17)")
    first = int(match["first"])
    if match["repeat"] is not None:
        return [f"{first}:{int(match['repeat'])}" if int(match["repeat"]) else first]
    last = int(match["last"]) if match["last"] is not None else first
    if last < first:
        raise UsageError(f"the seeds {text!r} run backwards; write {last}-{first}")
    if last - first >= _MOST:
        raise UsageError(f"the seeds {text!r} are {last - first + 1} pictures; the most is {_MOST}")
    return list(range(first, last + 1))


def spell_seeds(seeds: tuple[Seed, ...]) -> str:
    """The shortest line that `read_seeds` reads back: (0, 1, 2, 3, "17:2") is "0-3,17:2"."""
    runs: list[list[Seed]] = []
    for seed in seeds:
        follows = runs and isinstance(seed, int) and isinstance(runs[-1][-1], int) and seed == runs[-1][-1] + 1
        if follows:
            runs[-1].append(seed)
        else:
            runs.append([seed])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
