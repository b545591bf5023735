"""What a run reports: evaluations by branch, and one record a step."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from .dialogue import Dialogue
from .reduce import cosine, norm
from .rule import Context


@dataclass
class RunRecord:
    """evaluations: rows really evaluated, by branch, before padding. steps: one dict an outer step with `rho`, the
    effective `scale`, what the rules logged, and where both branches were evaluated `difference` (norm of
    cond - uncond a row) and `cosine` of the two, in the network's own terms; tensors are (B,)."""

    evaluations: Counter[str] = field(default_factory=Counter)
    steps: list[dict[str, Any]] = field(default_factory=list)

    def clear(self) -> None:
        self.evaluations.clear()
        self.steps.clear()

    def open_step(self, level_rho: float) -> dict[str, Any]:
        self.steps.append({"rho": level_rho})
        return self.steps[-1]

    def close_step(self, ctx: Context, dialogue: Dialogue) -> None:
        """Statistics of the branches; nothing is read from the device here."""
        cond, other = dialogue.known("cond"), dialogue.known("uncond") or dialogue.known("weak")
        if cond is None or other is None or cond.kind is not other.kind:
            return
        ctx.log(difference=norm(cond.native - other.native), cosine=cosine(cond.native, other.native))

    def as_plain(self) -> list[dict[str, Any]]:
        """The step records with tensors as lists, for JSON."""
        return [{k: v.tolist() if isinstance(v, Tensor) else v for k, v in step.items()} for step in self.steps]
