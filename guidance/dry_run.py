"""What a rule asks for in a run, found by asking it: no network, tiny pictures, answers of a Gaussian.

For the explanation of a line, for what a guider of diffusers must know beforehand, and for the tests of what a rule
says about its cost. Where a decision hangs on the answers (adaptive), so does what is found here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ..samplers.noise import derived_seed
from ..samplers.prediction import FLOW_PREDICTION, Parameterization, Prediction
from ..samplers.schedule import Level, RectifiedFlow
from .dialogue import Dialogue, Wanted, grad_mode
from .memory import Memory
from .rule import Ask, Context, Rule

_SHAPE = (4, 8, 8)
_FIRST, _LAST = 12.0, 0.05  # rho of the run's ends


@dataclass(frozen=True)
class Step:
    """What one step of the dry run asked for: its rounds, each with the asks that had to be evaluated."""

    rounds: tuple[tuple[Ask, ...], ...]

    @property
    def asks(self) -> tuple[Ask, ...]:
        return tuple(ask for asks in self.rounds for ask in asks)

    @property
    def kinds(self) -> Counter[str]:
        """How many evaluations of each kind, such as {"cond": 1, "cond perturbed": 1}."""
        return Counter(map(kind_of, self.asks))


def kind_of(ask: Ask) -> str:
    """The branch, and what is special about the evaluation."""
    words = [
        ask.branch,
        "with another condition" if ask.edit is not None else "",
        "perturbed" if ask.patch is not None and not hasattr(ask.patch, "heard") else "",
        "elsewhere" if ask.at is not None and not ask.grad else "",
        "with its gradient" if ask.grad else "",
    ]
    return " ".join(word for word in words if word)


def dry_run(rule: Rule, steps: int = 20, rows: int = 1) -> list[Step]:
    """The asks of a run of so many steps on a rectified-flow path, step by step. Raises what the rule raises."""
    return list(_steps(rule, steps, rows))


def _steps(rule: Rule, steps: int, rows: int) -> Iterator[Step]:
    schedule, memory = RectifiedFlow(), Memory()
    ratio = (_LAST / _FIRST) ** (1 / (steps - 1))
    levels = [*(schedule.level_of_rho(_FIRST * ratio**i) for i in range(steps)), schedule.clean]
    x = _drawn("x", rows)
    for i, (level, goal) in enumerate(zip(levels, levels[1:], strict=False)):
        ctx = Context(x, level, level, goal, i, steps, 0, schedule, memory.seen_at(0), decode=_decoded)
        rounds: list[tuple[Ask, ...]] = []
        dialogue = Dialogue(rule, ctx, Counter())
        result = dialogue.advance(partial(_answers, ctx, rounds))
        assert result is not None
        yield Step(tuple(rounds))
        memory = memory.after(ctx)
        x = goal.alpha * result.denoised.detach() + goal.sigma * result.step_on.noise.detach()


def _answers(
    ctx: Context, rounds: list[tuple[Ask, ...]], wanted: Sequence[Wanted]
) -> list[tuple[Tensor, Parameterization]]:
    rounds.append(tuple(w.ask for w in wanted))
    return [(_answer(w, ctx), FLOW_PREDICTION) for w in wanted]


def _answer(wanted: Wanted, ctx: Context) -> Tensor:
    """The exact prediction for data N(mean of the kind of ask, 1/4), of the rows that are wanted."""
    ask = wanted.ask
    x, level = (ctx.x, ctx.level) if ask.at is None else (ask.at.x, ask.at.level)
    if hasattr(ask.patch, "heard"):
        ask.patch.heard.parts.append(_drawn("heard", wanted.count(len(x)))[:, 0].abs())
    with grad_mode(ask.grad):
        mean = _drawn(kind_of(Ask(ask.branch, ask.edit, ask.patch)), len(x))
        denoised = mean + _gain(level) * (x - level.alpha * mean)
        native = Prediction(x, level, x, FLOW_PREDICTION).with_denoised(denoised).native
        return native if wanted.rows is None else native[wanted.rows]


def _gain(level: Level) -> float:
    return level.alpha / 4 / (level.alpha**2 / 4 + level.sigma**2)


def _drawn(name: str, rows: int) -> Tensor:
    """Unit noise (rows, ...) that belongs to the name; more different from row to row for later rows."""
    generator = torch.Generator().manual_seed(derived_seed(0, name))
    return torch.randn(rows, *_SHAPE, generator=generator) * torch.linspace(1, 3, rows).reshape(-1, 1, 1, 1)


def _decoded(z: Tensor) -> Tensor:
    return z[:, :3].sigmoid()
