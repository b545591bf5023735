"""The rule protocol: frozen settings, and a generator that asks for evaluations and returns one prediction.

    class CFG(Rule):
        def guide(self, ctx):
            cond, uncond = yield Ask(), Ask("uncond")
            return cond.like(uncond.native + self.scale * (cond.native - uncond.native))

A rule *yields* a tuple of `Ask`s (one round) and receives their predictions in order; it may ask for more rounds, and
the second may depend on the first. Equal asks of a step are evaluated once, whoever asks; asks of one round share
network calls. State lives in the run, never in the rule: read it with `ctx.recall`, write it with `ctx.keep`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..errors import UsageError
from ..samplers.prediction import Prediction
from ..samplers.schedule import Level, NoiseSchedule
from .packing import Packing

Origin = Callable[[], Mapping[str, str]]


@dataclass(frozen=True)
class Point:
    """Another place to evaluate the network: x (B, ...) at a level."""

    x: Tensor = field(compare=False)
    level: Level

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Point) and other.x is self.x and other.level == self.level

    def __hash__(self) -> int:
        return hash((id(self.x), self.level))


@dataclass(frozen=True)
class Ask:
    """One wanted evaluation. Settings compare by value, tensors by identity; `rows` is no part of the identity."""

    branch: str = "cond"  # a named condition ("cond", "uncond", ...) or a named network ("weak")
    edit: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None  # of the branch's conditioning
    patch: Any = None  # a hashable object; `with patch.on(network):` perturbs the network
    at: Point | None = None  # None: the step's own x and level
    grad: bool = False  # keep the graph through the network
    rows: Tensor | None = field(default=None, compare=False)  # bool (B,); None is every row


Asks = tuple[Ask, ...]
Guide = Generator[Asks | Ask, tuple[Prediction, ...], Prediction]


@dataclass(frozen=True)
class Context:
    """What a rule sees of one evaluation.

    x: (B, ...) at `level`. The outer step goes from `start` to `goal`; at stage 0 `level` is `start`, later stages of a
    solver look from elsewhere, but decisions about the step (windows, lambda) are made from `start`. step of steps.
    every_row: bool (B,), all true. record: this step's log. packing: how x stands for pictures, where a pipeline packs
    them into tokens. frames: the axis of x along which a film runs, where that is known. origin: what runs, for rules
    that were fitted to it: "network", "scheduler" and "negative". prompts: the pipeline's prompts, one a row, or None
    where it was given embeddings. encode: what a further prompt, by its branch, changes in the network's arguments, one
    row for all pictures; None where the conditions of further prompts were given.
    """

    x: Tensor
    level: Level
    start: Level
    goal: Level
    step: int
    steps: int
    stage: int
    schedule: NoiseSchedule
    memory: Mapping[Any, Any]
    kept: dict[Any, Any] = field(default_factory=dict)
    record: dict[str, Any] = field(default_factory=dict)
    decode: Callable[[Tensor], Tensor] | None = None  # denoised latents -> pictures (B, 3, H, W) in [0, 1]
    scope: tuple[int, ...] = ()
    rows: Tensor | None = None  # the rows a modifier narrowed this rule to
    packing: Packing | None = None
    frames: int | None = None
    origin: Origin | None = None
    prompts: Callable[[], tuple[str, ...] | None] | None = None
    encode: Callable[[str], Mapping[str, Any]] | None = None

    @property
    def every_row(self) -> Tensor:
        return torch.ones(self.x.shape[0], dtype=torch.bool, device=self.x.device)

    @property
    def progress(self) -> float:
        """Share of the run that is done, 0 at the first step."""
        return self.step / self.steps

    def recall(self, rule: Rule, default: Any = None) -> Any:
        """What this rule kept at the last outer step of this run; `default` at the first one.

        Every stage of an outer step sees the same value, so state advances once however often a solver asks.
        """
        return self.memory.get((*self.scope, type(rule).__name__), default)

    def keep(self, rule: Rule, value: Any) -> None:
        """Remember `value` (B, ...) for the next outer step. Rows that a modifier has dropped keep what they had, or
        zeros where they had nothing."""
        if self.stage > 0:
            return
        if self.rows is not None:
            before = self.recall(rule, torch.zeros_like(value))
            value = torch.where(self.column(self.rows, value), value, before)
        self.kept[(*self.scope, type(rule).__name__)] = value

    def column(self, value: Any, like: Tensor | None = None) -> Any:
        """A per-row value, a tuple or tensor (B,), shaped to broadcast against x; a plain number as it is."""
        if isinstance(value, (int, float)):
            return value
        dims = (self.x if like is None else like).dim()
        if not isinstance(value, Tensor):
            if len(value) != self.x.shape[0]:
                raise UsageError(f"{len(value)} scales for {self.x.shape[0]} rows; give one number, or one a row")
            value = torch.tensor(value, dtype=self.x.dtype, device=self.x.device)
        return value.reshape(-1, *[1] * (dims - 1))

    def log(self, **values: Any) -> None:
        """Into this step's record: floats, or tensors (B,). First writer wins; later stages do not overwrite."""
        for name, value in values.items():
            self.record.setdefault(name, value.detach() if isinstance(value, Tensor) else value)

    def scoped(self, index: int) -> Context:
        """The context of the index-th part of a composition, with a memory of its own."""
        return replace(self, scope=(*self.scope, index))

    def narrowed(self, rows: Tensor) -> Context:
        """The context of a rule whose effect is confined to these rows."""
        return replace(self, rows=rows if self.rows is None else rows & self.rows)


class Rule(ABC):
    """Frozen settings; subclasses are frozen dataclasses."""

    passes: ClassVar[int]  # elementwise passes over the latents, asserted by the tests
    needs: ClassVar[tuple[str, ...]] = ("cond",)  # branches it may ask for
    shifts: ClassVar[bool] = False  # does it return predictions with another `base`?
    spatial: ClassVar[bool] = False  # does it need rows and columns of pixels?
    selective: ClassVar[bool] = False  # do the pictures decide whether it asks, and not the step alone?

    @abstractmethod
    def guide(self, ctx: Context) -> Guide:
        """Ask for predictions, return the guided one."""

    def after(self, ctx: Context, x: Tensor) -> Tensor:
        """x (B, ...) at the end of an outer step, moved. A pure function."""
        return x

    def refuse(self, origin: Origin) -> None:  # noqa: B027
        """Raise a UsageError where this rule was fitted to another model or scheduler than what it is attached to, so
        that nothing is begun; origin as in `Context`, without what only the run knows."""

    @property
    def moves(self) -> bool:
        """Does `after` do anything?"""
        return type(self).after is not Rule.after

    def __add__(self, other: Rule) -> Rule:
        from .compose import compose

        return compose(self, other)


@dataclass(frozen=True)
class Modifier(Rule):
    """Wraps a rule and edits, narrows, redirects or answers its asks. `order` sorts a composition, innermost first."""

    inner: Rule | None = field(default=None, kw_only=True)
    order: ClassVar[int] = 0

    @property
    def rule(self) -> Rule:
        """The wrapped rule; plain conditional sampling when there is none."""
        return self.inner or Unguided()

    @property
    def needs(self) -> tuple[str, ...]:  # type: ignore[override]
        return self.rule.needs

    @property
    def shifts(self) -> bool:  # type: ignore[override]
        return self.rule.shifts

    @property
    def spatial(self) -> bool:  # type: ignore[override]
        return self.rule.spatial

    def after(self, ctx: Context, x: Tensor) -> Tensor:
        return self.rule.after(ctx, x)

    def refuse(self, origin: Origin) -> None:
        self.rule.refuse(origin)

    @property
    def moves(self) -> bool:
        return self.rule.moves or type(self).after is not Modifier.after


@dataclass(frozen=True)
class Unguided(Rule):
    """The conditional prediction as it is: one evaluation a step."""

    passes: ClassVar[int] = 0

    def guide(self, ctx: Context) -> Guide:
        (cond,) = yield (Ask(),)
        return cond


def changed(guide: Guide, edit: Callable[[Ask], Ask]) -> Guide:
    """Run a rule's generator with each of its asks passed through `edit`."""
    answers: Any = None
    try:
        while True:
            answers = yield tuple(edit(ask) for ask in as_round(guide.send(answers)))
    except StopIteration as stop:
        return stop.value
    finally:
        guide.close()


def together(*guides: Guide) -> Generator[Asks, tuple[Prediction, ...], tuple[Prediction, ...]]:
    """Run several generators side by side, their asks joined into one round as long as they last."""
    results: list[Any] = [None] * len(guides)
    answers: list[Any] = [None] * len(guides)
    alive = list(range(len(guides)))
    try:
        while alive:
            rounds: dict[int, Asks] = {}
            for i in list(alive):
                try:
                    rounds[i] = as_round(guides[i].send(answers[i]))
                except StopIteration as stop:
                    results[i] = stop.value
                    alive.remove(i)
            if rounds:
                replies = iter((yield tuple(ask for i in rounds for ask in rounds[i])))
                answers = [tuple(next(replies) for _ in rounds.get(i, ())) for i in range(len(guides))]
    finally:
        for guide in guides:
            guide.close()
    return tuple(results)


def narrowed(ask: Ask, rows: Tensor) -> Ask:
    """The same ask for these rows only."""
    return replace(ask, rows=rows if ask.rows is None else rows & ask.rows)


def as_round(asked: Ask | Sequence[Ask]) -> Asks:
    return (asked,) if isinstance(asked, Ask) else tuple(asked)


def settings_of(rule: Rule) -> dict[str, Any]:
    """A rule's own settings by name, without what it wraps."""
    return {f.name: getattr(rule, f.name) for f in fields(rule) if f.name not in ("inner", "parts")}  # type: ignore[arg-type]
