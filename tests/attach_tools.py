"""What the tests of `attach` share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import tiny
import torch

from pilotage.guidance.pipelines import adapter_of


def network_of(case: tiny.Case) -> Any:
    return getattr(case.pipe, adapter_of(case.pipe).network)


@contextmanager
def rows_seen(network: Any) -> Iterator[list[int]]:
    """Leading sizes that the network's first layer is given, call by call, below all hooks."""
    seen: list[int] = []
    first = next(m for m in network.modules() if isinstance(m, (torch.nn.Conv2d, torch.nn.Linear)))
    handle = first.register_forward_hook(lambda module, args, out: seen.append(len(args[0])))
    try:
        yield seen
    finally:
        handle.remove()
