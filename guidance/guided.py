"""A guided model is a denoiser: networks, a rule and conditions in; predictions out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

from torch import Tensor

from ..errors import UsageError, nearest
from ..samplers.denoiser import Denoiser
from ..samplers.prediction import Parameterization, Prediction, working_precision
from ..samplers.sampler import State
from ..samplers.schedule import Level
from .dialogue import Dialogue, Wanted, grad_mode
from .memory import Memory
from .record import RunRecord
from .rule import Ask, Context, Rule
from .trees import form_of, joined, rows_of


class Guided:
    """`Guided({"main": net, "weak": small}, rule, conditions={"cond": c, "uncond": u})` is a denoiser.

    networks: denoisers by name; "main" answers the named conditions, any other name is a branch that gets the "cond"
    condition. conditions: trees of tensors (B, ...), or (1, ...) shared by all rows.
    decode: denoised -> pictures (B, 3, H, W) in [0, 1], for rules that look at pictures. prompts: the texts of "cond",
    one a row, for rules that read them.
    The run's record (evaluations, steps) starts anew with each run.
    """

    def __init__(
        self,
        networks: Mapping[str, Denoiser] | Denoiser,
        rule: Rule,
        conditions: Mapping[str, Any] | None = None,
        decode: Any = None,
        prompts: Sequence[str] | None = None,
    ):
        self.networks: dict[str, Any] = dict(networks) if isinstance(networks, Mapping) else {"main": networks}
        if "main" not in self.networks:
            raise UsageError('Guided needs a network called "main": Guided({"main": net}, rule, conditions=...)')
        self.rule, self.decode = rule, decode
        self.prompts = None if prompts is None else tuple(prompts)
        self.conditions: dict[str, Any] = {"cond": None, **(conditions or {})}
        self.schedule = self.networks["main"].schedule
        self.record = RunRecord()

    @property
    def evaluations(self) -> dict[str, int]:
        return dict(self.record.evaluations)

    @property
    def steps(self) -> list[dict[str, Any]]:
        return self.record.steps

    def __call__(self, x: Tensor, level: Level, condition: Any = None) -> Prediction:
        """One evaluation outside a run: no memory, and a step that ends at clean data."""
        x, clean = working_precision(x), self.schedule.clean
        ctx = Context(
            x, level, level, clean, 0, 1, 0, self.schedule, {}, decode=self.decode, prompts=lambda: self.prompts
        )
        return self._answer(ctx, condition)

    def guide(self, state: State, condition: Any = None) -> tuple[Prediction, Memory]:
        """The prediction at a sampler's state, and the rule's memory after it."""
        memory = state.memory or Memory()
        if state.step == 0 and state.stage == 0:
            self.record.clear()
        ctx = self._context(state, memory)
        return self._answer(ctx, condition), memory.after(ctx)

    def after(self, state: State) -> Tensor:
        """x at the end of an outer step, as the rule leaves it. `state` is the one after the step."""
        if not self.rule.moves:
            return state.x
        memory = state.memory or Memory()
        leg = state.legs[state.step - 1]
        ctx = Context(
            state.x,
            state.levels[state.step],
            leg.level,
            leg.goal,
            state.step - 1,
            len(state.legs),
            0,
            self.schedule,
            memory.later,
            decode=self.decode,
            prompts=lambda: self.prompts,
        )
        return self.rule.after(ctx, state.x)

    def _context(self, state: State, memory: Memory) -> Context:
        return Context(
            working_precision(state.x),
            state.level,
            state.leg.level,
            state.goal,
            state.step,
            len(state.legs),
            state.stage,
            self.schedule,
            memory.seen_at(state.stage),
            record=self.record.open_step(state.step, state.level.rho) if state.stage == 0 else {},
            decode=self.decode,
            prompts=lambda: self.prompts,
        )

    def _answer(self, ctx: Context, condition: Any) -> Prediction:
        dialogue = Dialogue(self.rule, ctx, self.record.evaluations)
        result = dialogue.advance(lambda wanted: self._evaluate(wanted, ctx, condition))
        assert result is not None
        self.record.close_step(ctx, dialogue)
        return result

    def _evaluate(
        self, wanted: Sequence[Wanted], ctx: Context, condition: Any
    ) -> Iterator[tuple[Tensor, Parameterization]]:
        """Answers in order; asks of one network, point and patch share a call where their conditions are alike."""
        groups: dict[Any, list[int]] = {}
        conditions = [self._condition(w.ask, condition) for w in wanted]
        for i, w in enumerate(wanted):
            how = self._network_of(w.ask), w.ask.at, w.ask.patch, w.ask.grad
            groups.setdefault((how, form_of(conditions[i])), []).append(i)
        answers: dict[int, tuple[Tensor, Parameterization]] = {}
        for (how, _), members in groups.items():
            parts = [wanted[i] for i in members]
            sizes = [w.count(ctx.x.shape[0]) for w in parts]
            with grad_mode(how[-1]):
                prediction = self._call(how, parts, [conditions[i] for i in members], ctx)
                answers |= {
                    i: (n, prediction.kind) for i, n in zip(members, prediction.native.split(sizes), strict=True)
                }
        return iter(answers[i] for i in range(len(wanted)))

    def _call(self, how: tuple[Any, ...], parts: list[Wanted], conditions: list[Any], ctx: Context) -> Prediction:
        name, at, patch, _ = how
        network = self.networks[name]
        batch = ctx.x.shape[0]
        x, level = (ctx.x, ctx.level) if at is None else (at.x, at.level)
        rows = joined([rows_of(x, w.rows, batch) for w in parts])
        given = joined([rows_of(c, w.rows, batch) for c, w in zip(conditions, parts, strict=True)])
        with patch.on(network) if patch else nullcontext():
            return network(rows, level, given)

    def _network_of(self, ask: Ask) -> str:
        return ask.branch if ask.branch in self.networks else "main"

    def _condition(self, ask: Ask, condition: Any) -> Any:
        if ask.branch in self.networks or (ask.branch == "cond" and condition is not None):
            value = self.conditions["cond"] if condition is None else condition
        elif ask.branch in self.conditions:
            value = self.conditions[ask.branch]
        else:
            known = [*self.conditions, *(n for n in self.networks if n != "main")]
            raise UsageError(
                f"{type(self.rule).__name__} asks for the branch {ask.branch!r}, which is neither a condition nor a "
                f"network here: {nearest(ask.branch, known)}"
            )
        return ask.edit(value) if ask.edit else value
