"""One run of a pipeline under a rule: what happens between `set_timesteps` and the last `scheduler.step`."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...errors import UsageError
from ...samplers.prediction import Parameterization, Prediction, predicted_by, working_precision
from ...samplers.schedule import Level, from_scheduler
from ...samplers.stock import Call, calls_of, keeps_scaled
from ..dialogue import Dialogue, Wanted
from ..memory import Memory
from ..rule import Ask, Context, Point, Rule
from .adapter import Arguments
from .layouts import Layout, match_time, pick_rows

if TYPE_CHECKING:
    from .attach import attach


@dataclass(frozen=True)
class Inputs:
    """The arguments of one of the pipeline's network calls, and where each branch's rows begin."""

    arguments: Arguments
    branches: tuple[str, ...]
    rows: int  # rows of the call; each branch has rows // len(branches)

    @property
    def batch(self) -> int:
        return self.rows // len(self.branches)

    def indices(self, branch: str, rows: Tensor | None) -> list[int]:
        start = self.branches.index(branch) * self.batch
        return list(range(start, start + self.batch)) if rows is None else [start + int(i) for i in rows]


class Steering:
    """The state of one run. `call` is the denoiser seam, `step` the step seam."""

    def __init__(self, owner: attach, original: Any):
        self.owner, self.adapter, self.record = owner, owner.adapter, owner.record
        scheduler = owner.scheduler
        self.schedule, self.kind = from_scheduler(scheduler), predicted_by(scheduler)
        self.layout = Layout.of(self.adapter, owner.module)
        self.calls = calls_of(scheduler)
        self.times = [float(t) for t in scheduler.timesteps.tolist()]
        self.scaled = keeps_scaled(scheduler)
        self.takes_generator = "generator" in inspect.signature(scheduler.step).parameters
        self.position: int | None = None  # of the next network call in `calls`
        self.memory = Memory()
        self.inputs: list[Inputs] = []
        self.dialogue: Dialogue | None = None
        self.original = original
        self.extra: Tensor | None = None  # further output channels of the conditional rows (learned sigma)

    @property
    def idle(self) -> bool:
        """No network call since the last step: nothing to deliver."""
        return self.dialogue is None

    def close(self) -> None:
        if self.dialogue is not None:
            self.dialogue.close()
        self.dialogue, self.inputs = None, []

    # -- the denoiser seam --------------------------------------------------------------------------------------------

    def call(self, original: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        from .attach import bound_arguments

        self.original = original
        arguments = bound_arguments(self.owner.module, args, kwargs)
        inputs = self._read(arguments)
        self.inputs.append(inputs)
        if self.dialogue is None:
            self.dialogue = self._open(inputs)
        try:
            result = self.dialogue.advance(self._evaluate, self._available)
        except BaseException:
            self.close()
            raise
        if result is None and self.adapter.layout != "in turn":
            self._refuse_missing()
        return self._answer(inputs, result)

    def _read(self, arguments: Arguments) -> Inputs:
        rows = len(arguments[self.adapter.sample])
        branches = self.adapter.branches_of(self.owner.pipe, arguments)
        if self.adapter.layout == "in turn":
            turn = len(self.inputs)
            if turn >= len(branches):
                raise UsageError(
                    f"{type(self.owner.pipe).__name__} made more network calls in a step than its adapter names"
                )
            branches = (branches[turn],)
        return Inputs(arguments, branches, rows)

    def _open(self, inputs: Inputs) -> Dialogue:
        if self.position is None:
            self.position = self._first_position(inputs)
        call = self.calls[self.position]
        index = inputs.indices("cond", None)
        x = self._unscaled(working_precision(self.layout.x_of(inputs.arguments, index)), call)
        ctx = Context(
            x,
            call.level,
            self._start_of(call),
            call.goal,
            call.step,
            self.calls[-1].step + 1,
            call.stage,
            self.schedule,
            self.memory.seen_at(call.stage),
            record=self.record.open_step(call.level.rho) if call.stage == 0 else {},
            decode=self.owner.decode,
        )
        return Dialogue(self.owner.rule, ctx, self.record.evaluations)

    def _start_of(self, call: Call) -> Level:
        assert self.position is not None
        return self.calls[self.position - call.stage].level

    def _unscaled(self, x: Tensor, call: Call) -> Tensor:
        """x from what the network is given; EDM schedulers hand it c_in x."""
        if not self.kind.name.startswith("edm"):
            return x
        return x * math.hypot(call.level.sigma, self.owner.scheduler.config.sigma_data)

    def _first_position(self, inputs: Inputs) -> int:
        """Image-to-image starts inside the list: by the scheduler's index, else by the time of the first call."""
        for name in ("step_index", "begin_index"):
            if (index := getattr(self.owner.scheduler, name, None)) is not None:
                return int(index)
        return match_time(inputs.arguments[self.adapter.time], self.times, self.adapter.network_time)

    def _available(self, ask: Ask) -> bool:
        """Can it be evaluated with the inputs that are here?"""
        return any(self._branch_of(ask) in inputs.branches for inputs in self.inputs)

    def _branch_of(self, ask: Ask) -> str:
        """A further network gets the conditional inputs."""
        return "cond" if ask.branch in self.owner.networks else ask.branch

    def _refuse_missing(self) -> None:
        assert self.dialogue is not None
        missing = sorted({w.ask.branch for w in self.dialogue.missing()})
        self.close()
        raise UsageError(
            f"{type(self.owner.rule).__name__} needs the branch {missing[0]!r}, but this call of "
            f"{type(self.owner.pipe).__name__} prepared none; pass {self.adapter.on}"
        )

    # -- evaluating ---------------------------------------------------------------------------------------------------

    def _evaluate(self, wanted: Sequence[Wanted]) -> Iterator[tuple[Tensor, Parameterization]]:
        """Answers in order. Asks of one network and point share a call, their rows in the pipeline's own order, so that a
        full round is the very call that the pipeline would have made."""
        groups: dict[Any, list[tuple[int, list[int]]]] = {}
        for i, w in enumerate(wanted):
            source = next(n for n, inputs in enumerate(self.inputs) if self._branch_of(w.ask) in inputs.branches)
            network = w.ask.branch if w.ask.branch in self.owner.networks else None
            index = self.inputs[source].indices(self._branch_of(w.ask), w.rows)
            groups.setdefault((source, network, w.ask.at, w.ask.edit, w.ask.patch, w.ask.grad), []).append((i, index))
        answers: dict[int, Tensor] = {}
        for (source, network, *how), members in groups.items():
            members.sort(key=lambda member: member[1][0])
            rows = [row for _, index in members for row in index]
            points = [wanted[i].rows for i, _ in members]
            native = self._call(self.inputs[source], network, how, rows, points)
            sizes = [len(index) for _, index in members]
            answers |= zip((i for i, _ in members), native.split(sizes), strict=True)
        return iter((answers[i], self.kind) for i in range(len(wanted)))

    def _call(self, inputs: Inputs, name: str | None, how: list[Any], rows: list[int], points: list[Any]) -> Tensor:
        at, edit, patch, grad = how
        padded = rows + rows[-1:] * max(0, (self.owner.rows_per_call or 0) - len(rows))
        arguments = self._arguments(inputs, padded)
        if edit is not None:
            arguments |= edit({k: arguments[k] for k in self.adapter.conditioned_by})
        if at is not None:
            arguments = self._moved(arguments, at, points, len(padded))
        module = self.owner.networks[name] if name else self.owner.module
        with torch.enable_grad() if grad else nullcontext(), patch.on(module) if patch else nullcontext():
            output = (module if name else self.original)(**arguments)
        native, extra = self.layout.native_of(output)
        if extra is not None and name is None:
            start = rows.index(first) if (first := inputs.indices("cond", None)[0]) in rows else None
            self.extra = self.extra if start is None else extra[start : start + inputs.batch]
        return working_precision(native[: len(rows)])

    def _arguments(self, inputs: Inputs, rows: list[int]) -> Arguments:
        if rows == list(range(inputs.rows)):
            return dict(inputs.arguments)
        batched, listed = self.adapter.batched, self.layout.listed
        return {k: pick_rows(v, rows, inputs.rows, listed) if k in batched else v for k, v in inputs.arguments.items()}

    def _moved(self, arguments: Arguments, at: Point, points: list[Any], rows: int) -> Arguments:
        """The same rows at another x and level."""
        x = torch.cat([at.x if index is None else at.x[index] for index in points])
        x = torch.cat([x, x[-1:].expand(rows - len(x), *x.shape[1:])])
        time = arguments[self.adapter.time]
        value = self.adapter.network_time(at.level.time)
        time = torch.full_like(time, value) if isinstance(time, Tensor) and time.is_floating_point() else value
        return self.layout.with_x({**arguments, self.adapter.time: time}, x)

    def _answer(self, inputs: Inputs, result: Prediction | None) -> Any:
        """What the pipeline gets back: the same prediction for each branch of this call."""
        assert self.dialogue is not None
        prediction = result or self.dialogue.known("cond")
        native = prediction.native if prediction is not None else self.dialogue.ctx.x
        sample = inputs.arguments[self.adapter.sample]
        dtype = sample[0].dtype if isinstance(sample, list) else sample.dtype
        copies = len(inputs.branches)
        return self.layout.output_of(native.to(dtype), copies, self.extra, inputs.arguments)

    # -- the step seam ------------------------------------------------------------------------------------------------

    def step(self, stock: Any, model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any) -> Any:
        """The stock step on the rule's prediction, then the shift, then the rule's own `after`."""
        dialogue, call = self.dialogue, self.calls[self.position or 0]
        assert dialogue is not None
        if dialogue.result is None:
            self._refuse_missing()
        result = dialogue.result
        assert result is not None
        own = result.step_on
        copies = sample.shape[0] // own.native.shape[0]  # DiT steps both halves
        if own.x is not dialogue.ctx.x:
            sample = tiled(self._to_state(own.x, call.level), copies).to(sample.dtype)
        if self.owner.noise is not None and self.takes_generator:
            kwargs["generator"] = self.owner.noise.generators("step", self.position or 0) * copies
        if result.base is not None and hasattr(self.owner.scheduler, "last_sample"):
            self.owner.scheduler.last_sample = None  # a corrector would undo the shift: predictor only
        out = stock(tiled(own.native, copies).to(model_output.dtype), timestep, sample, *args, **kwargs)
        before = out[0] if isinstance(out, tuple) else out.prev_sample
        after = self._finished(before, result, dialogue.ctx, call, copies)
        self._close_call(dialogue, call)
        if after is before:
            return out
        return (after, *out[1:]) if isinstance(out, tuple) else replace_sample(out, after)

    def _finished(self, x: Tensor, result: Prediction, ctx: Context, call: Call, copies: int) -> Tensor:
        """x at the end of an outer step: shifted by alpha' (denoised - base.denoised), then moved by the rule."""
        if not call.last:
            return x
        if result.base is not None:
            shift = tiled(result.denoised - result.base.denoised, copies).to(x.dtype)
            x = torch.add(x, shift, alpha=1.0 if self.scaled else call.goal.alpha)
        if type(self.owner.rule).after is not Rule.after:
            rows = working_precision(x[: x.shape[0] // copies])
            at = rows * call.goal.alpha if self.scaled else rows
            ended = replace(ctx, x=at, level=call.goal, memory=self.memory.after(ctx).later)
            moved = self._to_state(self.owner.rule.after(ended, at), call.goal)
            x = tiled(moved, copies).to(x.dtype)
        return x

    def _to_state(self, x: Tensor, level: Level) -> Tensor:
        """x in the units in which the pipeline keeps it."""
        return x / level.alpha if self.scaled else x

    def _close_call(self, dialogue: Dialogue, call: Call) -> None:
        self.record.close_step(dialogue.ctx, dialogue)
        self.memory = self.memory.after(dialogue.ctx)
        self.position = (self.position or 0) + 1
        self.close()


def tiled(x: Tensor, copies: int) -> Tensor:
    return x if copies == 1 else x.repeat(copies, *[1] * (x.dim() - 1))


def replace_sample(output: Any, x: Tensor) -> Any:
    """A scheduler's output with another prev_sample."""
    output.prev_sample = x
    return output
