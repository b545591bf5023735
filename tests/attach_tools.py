"""What the tests of `attach` share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import tiny
import torch

from pilotage.guidance.pipelines import adapter_of
from pilotage.guidance.rule import Ask, Context, Guide, Point, Rule
from pilotage.guidance.trees import map_tensors


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


@dataclass(frozen=True)
class Elsewhere(Rule):
    """Asks again for the step's own point, given by hand, which must be answered alike, and for one further away."""

    passes: ClassVar[int] = 0

    def guide(self, ctx: Context) -> Guide:
        (c,) = yield (Ask(),)
        far = ctx.x + 1
        (again,) = yield (Ask(at=Point(ctx.x.clone(), ctx.level)),)
        (other,) = yield (Ask(at=Point(far, ctx.level)),)
        size = float(c.native.abs().max())
        assert float((again.native - c.native).abs().max()) < 1e-4 * size
        assert float((other.native - c.native).abs().max()) > 1e-4 * size and other.x is far
        return c


@dataclass(frozen=True)
class OtherCondition(Rule):
    """Edits the conditioning: the cond branch with everything that it is conditioned by set to zero."""

    passes: ClassVar[int] = 0

    def guide(self, ctx: Context) -> Guide:
        c, zero = yield Ask(), Ask(edit=zeroed)
        assert float((zero.native - c.native).abs().max()) > 1e-4
        return c


def zeroed(conditioning: Any) -> Any:
    return {name: map_tensors(value, torch.zeros_like) for name, value in conditioning.items()}
