"""What a run reports: evaluations by branch, and one record a step."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .dialogue import Dialogue
from .rule import Context


@dataclass
class RunRecord:
    """evaluations: rows really evaluated, by branch, before padding. open: the steps as they are written."""

    evaluations: Counter[str] = field(default_factory=Counter)
    open: list[dict[str, Any]] = field(default_factory=list)

    @property
    def steps(self) -> list[dict[str, Any]]:
        """One dict an outer step: its index `step`, noise level `rho`, the effective `scale`, what the rules logged,
        and where every row of both branches was evaluated `difference` (norm of cond - uncond) and `cosine` of the
        two, in the network's own terms. Tensors are (B,)."""
        return [_finished(step) for step in self.open]

    def clear(self) -> None:
        self.evaluations.clear()
        self.open.clear()

    def open_step(self, step: int, rho: float) -> dict[str, Any]:
        """The record of an outer step. A run that goes back to an earlier step writes from there anew."""
        while self.open and self.open[-1]["step"] >= step:
            self.open.pop()
        self.open.append({"step": step, "rho": rho})
        return self.open[-1]

    def close_step(self, ctx: Context, dialogue: Dialogue) -> None:
        """Three norms of the branches; nothing is read from the device here."""
        if ctx.stage > 0:
            return
        cond, other = dialogue.known("cond"), dialogue.known("uncond") or dialogue.known("weak")
        if cond is None or other is None or cond.kind is not other.kind:
            return
        with torch.no_grad():
            a, b = cond.native, other.native
            rest = tuple(range(1, a.dim()))
            ctx.log(_norms=tuple(torch.linalg.vector_norm(t, dim=rest) for t in (a, b, a - b)))

    def as_plain(self) -> list[dict[str, Any]]:
        """The step records with tensors as lists, for JSON."""
        return [{k: v.tolist() if isinstance(v, Tensor) else v for k, v in step.items()} for step in self.steps]


def _finished(step: dict[str, Any]) -> dict[str, Any]:
    """The record of a step for reading. 1 - cosine = (|a - b|^2 - (|a| - |b|)^2) / (2 |a| |b|) keeps its digits where
    the branches agree, so norms in float32 are enough."""
    done = {name: value for name, value in step.items() if name != "_norms"}
    if (on := step.get("guided_rows")) is not None and "scale" in step:
        scale = torch.as_tensor(step["scale"], dtype=torch.float32, device=on.device)
        done["scale"] = torch.where(on, scale, 1.0)
    if norms := step.get("_norms"):
        a, b, apart = (n.double() for n in norms)
        lengths = 2 * a * b
        done["difference"] = apart
        done["cosine"] = 1 - torch.where(lengths > 0, (apart**2 - (a - b) ** 2) / lengths, 0.0).clamp(min=0)
    return done
