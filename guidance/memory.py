"""What rules remember within a run. It belongs to the run and travels with the sampler's state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .rule import Context


@dataclass(frozen=True)
class Memory:
    """now: what every stage of the current outer step sees. later: what the next outer step will see."""

    now: Mapping[Any, Any] = field(default_factory=dict)
    later: Mapping[Any, Any] = field(default_factory=dict)

    def seen_at(self, stage: int) -> Mapping[Any, Any]:
        return self.later if stage == 0 else self.now

    def after(self, ctx: Context) -> Memory:
        """Rules write at the first stage of an outer step only, so state advances once however often a solver asks."""
        return self if ctx.stage > 0 else Memory(ctx.memory, {**ctx.memory, **ctx.kept})
