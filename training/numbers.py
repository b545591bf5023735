"""What an update logs: each number may come many times, and from every process; its mean is what is said."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from ..evaluation.processes import Processes


class Numbers:
    """Sums and counts by name."""

    def __init__(self) -> None:
        self.sums: dict[str, tuple[float, int]] = {}

    def add(self, **numbers: Any) -> None:
        """Numbers, or tensors of one element."""
        for name, value in numbers.items():
            before, count = self.sums.get(name, (0.0, 0))
            told = value.detach() if isinstance(value, Tensor) else value
            self.sums[name] = (before + float(told), count + 1)

    def means(self, processes: Processes) -> dict[str, float]:
        """Over all that was added, by all processes, in the order of the names' first coming."""
        everybody = processes.gathered(self.sums)
        names = dict.fromkeys(name for sums in everybody for name in sums)
        return {name: _mean(sums.get(name, (0.0, 0)) for sums in everybody) for name in names}


def _mean(pairs: Iterable[tuple[float, int]]) -> float:
    held = list(pairs)
    return sum(value for value, _ in held) / sum(count for _, count in held)


def flat(entry: Mapping[str, Any], name: str = "") -> dict[str, float]:
    """Numbers inside numbers by names such as held_out/reward; texts are left out."""
    found: dict[str, float] = {}
    for key, value in entry.items():
        path = f"{name}/{key}" if name else key
        if isinstance(value, Mapping):
            found |= flat(value, path)
        elif isinstance(value, (int, float)):
            found[path] = value
    return found
