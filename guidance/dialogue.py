"""Drives one evaluation of a rule: collects its asks, has the missing ones evaluated, and answers.

A `Dialogue` can wait. In pipelines that call the network once a branch, it stands still in the first call until the
second one brings the unconditional inputs. Whatever happens, the rule's generator is closed, so patches never leak.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..samplers.prediction import EPSILON, Parameterization, Prediction
from ..samplers.schedule import Level
from .rule import Ask, Asks, Context, Rule, as_round


@dataclass(frozen=True)
class Wanted:
    """An evaluation that is still missing: the ask, and the indices of its rows (None: every row; never none)."""

    ask: Ask
    rows: Tensor | None

    def count(self, batch: int) -> int:
        return batch if self.rows is None else len(self.rows)


Evaluate = Callable[[Sequence[Wanted]], Iterable[tuple[Tensor, Parameterization]]]


@contextmanager
def grad_mode(grad: bool) -> Iterator[None]:
    """Graphs are kept for an ask that wants them, also under inference_mode; otherwise as it is outside."""
    if not grad:
        yield
        return
    with torch.inference_mode(False), torch.enable_grad():
        yield


class Dialogue:
    """One rule, one context, until `result` is there.

    `advance(evaluate, can)` evaluates what `can` allows and returns the result, or None while the rule waits for
    something that is not to be had yet.
    """

    def __init__(self, rule: Rule, ctx: Context, evaluations: Counter[str]):
        self.ctx, self.evaluations = ctx, evaluations
        self.result: Prediction | None = None
        self.asked: Asks = ()
        self._known: dict[Ask, tuple[Prediction, Tensor | None]] = {}  # None: every row is known
        self._generator = rule.guide(ctx)
        self._send(None)

    def advance(self, evaluate: Evaluate, can: Callable[[Ask], bool] = lambda ask: True) -> Prediction | None:
        try:
            while self.result is None:
                missing = self.missing()
                ready = [wanted for wanted in missing if can(wanted.ask)]
                if ready:
                    self._learn(ready, evaluate(ready))
                if len(ready) < len(missing):
                    return None
                self._send(tuple(self._answer_to(ask) for ask in self.asked))
        except BaseException:
            self.close()
            raise
        return self.result

    def missing(self) -> list[Wanted]:
        """What the current round still lacks, equal asks joined."""
        rows_of: dict[Ask, Tensor | None] = {}
        for ask in self.asked:
            joined = ask.rows
            if ask in rows_of:
                before = rows_of[ask]
                joined = None if before is None or ask.rows is None else before | ask.rows
            rows_of[ask] = joined
        return [w for ask, rows in rows_of.items() if (w := self._lacking(ask, rows)) is not None]

    def _lacking(self, ask: Ask, rows: Tensor | None) -> Wanted | None:
        known = self._known.get(ask)
        if known is None:
            needed = rows
        elif known[1] is None:
            return None
        else:
            needed = ~known[1] if rows is None else rows & ~known[1]
        if needed is None:
            return Wanted(ask, None)
        index = needed.nonzero().flatten()  # reads from the device
        if len(index) == 0:
            return None
        return Wanted(ask, None if len(index) == len(needed) else index)

    def _answer_to(self, ask: Ask) -> Prediction:
        """What is known of it; zeros where it was asked for no row at all."""
        if ask in self._known:
            return self._known[ask][0]
        x, level = self._point(ask)
        kind = next((p.kind for p, _ in self._known.values()), EPSILON)
        return Prediction(x, level, torch.zeros_like(x), kind)

    def _point(self, ask: Ask) -> tuple[Tensor, Level]:
        return (self.ctx.x, self.ctx.level) if ask.at is None else (ask.at.x, ask.at.level)

    def _learn(self, wanted: Sequence[Wanted], answers: Iterable[tuple[Tensor, Parameterization]]) -> None:
        for w, (native, kind) in zip(wanted, answers, strict=True):
            x, level = self._point(w.ask)
            self.evaluations[w.ask.branch] += w.count(x.shape[0])
            mask = None
            if w.rows is not None:
                full, before = self._blank(w.ask, x, native)
                mask = before.index_fill(0, w.rows, True)
                with grad_mode(w.ask.grad):
                    native = full.index_copy(0, w.rows, native)
            self._known[w.ask] = (Prediction(x, level, native, kind), mask)

    def _blank(self, ask: Ask, x: Tensor, native: Tensor) -> tuple[Tensor, Tensor]:
        """Rows that were not evaluated read as zeros; whoever narrowed the ask selects them away."""
        known = self._known.get(ask)
        if known is not None and known[1] is not None:
            return known[0].native, known[1]
        mask = torch.zeros(x.shape[0], dtype=torch.bool, device=x.device)
        return native.new_zeros(x.shape[0], *native.shape[1:]), mask

    def _send(self, answers: Any) -> None:
        try:
            self.asked = as_round(self._generator.send(answers))
        except StopIteration as stop:
            self.asked, self.result = (), stop.value

    def known(self, branch: str) -> Prediction | None:
        """The plain prediction of a branch, when every row of it was evaluated."""
        prediction, mask = self._known.get(Ask(branch), (None, None))
        return prediction if mask is None else None

    def close(self) -> None:
        self._generator.close()
