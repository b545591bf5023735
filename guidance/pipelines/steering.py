"""One run of a pipeline under a rule: what happens between `set_timesteps` and the last `scheduler.step`."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...errors import UsageError
from ...samplers.noise import purpose_of
from ...samplers.prediction import Parameterization, Prediction, predicted_by, working_precision
from ...samplers.schedule import Level, from_scheduler
from ...samplers.scheduler import PilotageScheduler
from ...samplers.stock import Call, calls_of, keeps_scaled
from ..compose import parts_of
from ..dialogue import Dialogue, Wanted, grad_mode
from ..memory import Memory
from ..packing import Packing
from ..prompts import is_prompt, text_of
from ..rule import Ask, Context, Rule, Unguided
from .adapter import Arguments
from .layouts import Layout, drawn, is_range, match_time, pick, pick_rows
from .origin import origin_of, prompts_of
from .prompts import encoded, with_changes
from .signature import named_arguments

if TYPE_CHECKING:
    from .attach import attach


@dataclass(frozen=True)
class Inputs:
    """The arguments of one of the pipeline's network calls, and where each branch's rows begin."""

    arguments: Arguments
    branches: tuple[str, ...]
    rows: int  # rows of the call; each branch has rows // len(branches)
    module: Any  # the network that was called, where there are several
    forward: Any  # its own

    @property
    def batch(self) -> int:
        return self.rows // len(self.branches)

    def indices(self, branch: str, rows: Tensor | None) -> Sequence[int]:
        start = self.branches.index(branch) * self.batch
        return range(start, start + self.batch) if rows is None else [start + i for i in rows.tolist()]


class Steering:
    """The state of one run. `call` is the denoiser seam, `step` the step seam."""

    def __init__(self, owner: attach):
        self.owner, self.adapter, self.record = owner, owner.adapter, owner.record
        scheduler = owner.scheduler
        self.schedule, self.wanted = from_scheduler(scheduler), predicted_by(scheduler)
        self.kind = self.adapter.kind or self.wanted  # what the network predicts, and what the scheduler is given
        self.layout = Layout.of(self.adapter, owner.module, owner.pipe)
        self.calls = calls_of(scheduler)
        self.times = [float(t) for t in scheduler.timesteps.tolist()]
        self.scaled = keeps_scaled(scheduler)
        self.takes_generator = "generator" in inspect.signature(scheduler.step).parameters
        self.position: int | None = None  # of the next network call in `calls`
        self.memory = Memory()
        self.inputs: list[Inputs] = []
        self.dialogue: Dialogue | None = None
        self.held: set[str] = set()  # branches that the pipeline has prepared in this run
        self.prompts: dict[str, Any] = {}  # what further prompts change in the conditional arguments, by branch
        self.whole: Any = None  # its output, where the call was the very one that the pipeline made
        self.extra: Tensor | None = None  # further output channels of the conditional rows (learned sigma)

    @property
    def idle(self) -> bool:
        """No network call since the last step: nothing to deliver."""
        return self.dialogue is None

    def close(self) -> None:
        if self.dialogue is not None:
            self.dialogue.close()
        self.dialogue, self.inputs, self.whole = None, [], None

    # -- the denoiser seam --------------------------------------------------------------------------------------------

    def call(self, module: Any, original: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.whole = None
        inputs = self._read(named_arguments(module, args, kwargs), module, original)
        self.inputs.append(inputs)
        self.held.update(inputs.branches)
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

    def _read(self, arguments: Arguments, module: Any, forward: Any) -> Inputs:
        if self.adapter.kept is not None:
            arguments = self.adapter.kept(arguments)
        rows = len(arguments[self.adapter.sample])
        branches = self.adapter.branches_of(self.owner.pipe, arguments)
        if self.adapter.layout == "in turn":
            turn = len(self.inputs)
            if turn >= len(branches):
                raise UsageError(
                    f"{type(self.owner.pipe).__name__} made more network calls in a step than its adapter names"
                )
            branches = (branches[turn],)
        return Inputs(arguments, branches, rows, module, forward)

    def _open(self, inputs: Inputs) -> Dialogue:
        if self.position is None:
            self.position = self._first_position(inputs)
        call = self.calls[self.position]
        index = inputs.indices("cond", None)
        x = self._unscaled(working_precision(self.layout.x_of(inputs.arguments, index)), call)
        if self.owner.noise is not None and len(self.owner.noise.seeds) != len(x):
            raise UsageError(f"{len(self.owner.noise.seeds)} seeds for {len(x)} pictures; give one seed a picture")
        ctx = Context(
            x,
            call.level,
            self.calls[self.position - call.stage].level,
            call.goal,
            call.step,
            self.calls[-1].step + 1,
            call.stage,
            self.schedule,
            self.memory.seen_at(call.stage),
            record=self.record.open_step(call.step, call.level.rho) if call.stage == 0 else {},
            decode=self.owner.decode,
            packing=self._packing(inputs, x),
            frames=self.adapter.frames,
            origin=lambda: origin_of(self.owner.module, self.owner.scheduler, self.owner.pipe),
            prompts=lambda: prompts_of(self.owner.pipe, len(x)),
            encode=lambda branch: self._prompt(branch, inputs.arguments),
        )
        rule = self.owner.rule
        if self._switched_off(inputs, rule):
            ctx.log(scale=1.0)
            rule = Unguided()
        return Dialogue(rule, ctx, self.record.evaluations)

    def _packing(self, inputs: Inputs, x: Tensor) -> Packing | None:
        """How tokens stand for pictures. Rules that need pictures are refused where nobody knows."""
        find, rule = self.adapter.packing, self.owner.rule
        packing = find(self.owner.pipe, inputs.arguments, x.shape[1]) if find and x.dim() == 3 else None
        if rule.spatial and x.dim() < 4 and packing is None:
            raise UsageError(
                f"{spatial_part(rule)} needs rows and columns of pixels, and the x of {type(self.owner.pipe).__name__} "
                f"is {tuple(x.shape)}, tokens whose grid its adapter does not know; use a rule such as cfg or apg"
            )
        return packing

    def _switched_off(self, inputs: Inputs, rule: Rule) -> bool:
        """Did the pipeline guide earlier in this run and has now stopped (a callback, a truncation of its own)? Then
        the rest of the run is unguided, as it is without `attach`."""
        if self.adapter.layout == "in turn":
            return False
        return any(branch in self.held and branch not in inputs.branches for branch in rule.needs)

    def _unscaled(self, x: Tensor, call: Call) -> Tensor:
        """x from what the network is given; EDM schedulers hand it c_in x."""
        return x * self._input_scale(call.level) if self.kind.name.startswith("edm") else x

    def _input_scale(self, level: Level) -> float:
        """1 / c_in of EDM preconditioning."""
        return math.hypot(level.sigma, self.owner.scheduler.config.sigma_data)

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
        """A further network gets the conditional inputs; a further prompt changes their text."""
        return "cond" if ask.branch in self.owner.networks or is_prompt(ask.branch) else ask.branch

    def _edit_of(self, ask: Ask, arguments: Arguments) -> Any:
        """The ask's own edit, of the further prompt's conditioning where it is one."""
        if not is_prompt(ask.branch):
            return ask.edit
        changes, edit = self._prompt(ask.branch, arguments), ask.edit
        return lambda given: with_changes(given, changes) if edit is None else edit(with_changes(given, changes))

    def _prompt(self, branch: str, arguments: Arguments) -> Mapping[str, Any]:
        """What a further prompt changes in the conditional arguments, encoded once a run."""
        if branch not in self.prompts:
            text = self.owner.prompts.get(branch, text_of(branch))
            assert self.adapter.encode is not None  # refused when the rule was attached
            self.prompts[branch] = encoded(self.adapter.encode, self.owner.pipe, text, arguments)
        return self.prompts[branch]

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
        """Answers in order. Asks of one network and point share a call, their rows in the pipeline's own order, so that
        a full round is the very call that the pipeline would have made."""
        groups: dict[Any, tuple[Inputs, list[tuple[int, Sequence[int]]]]] = {}
        for i, w in enumerate(wanted):
            source = next(n for n, inputs in enumerate(self.inputs) if self._branch_of(w.ask) in inputs.branches)
            network = w.ask.branch if w.ask.branch in self.owner.networks else None
            with grad_mode(w.ask.grad):
                edit = self._edit_of(w.ask, self.inputs[source].arguments)
                inputs = self._edited(self.inputs[source], self._branch_of(w.ask), edit)
            index = inputs.indices(self._branch_of(w.ask), w.rows)
            key = source, network, w.ask.at, edit and w.ask, w.ask.patch, w.ask.grad
            groups.setdefault(key, (inputs, []))[1].append((i, index))
        answers: dict[int, Tensor] = {}
        for (_, network, at, _, patch, grad), (inputs, members) in groups.items():
            members.sort(key=lambda member: member[1][0])
            rows = members[0][1] if len(members) == 1 else [row for _, index in members for row in index]
            points = [wanted[i].rows for i, _ in members]
            sizes = [len(index) for _, index in members]
            with grad_mode(grad):
                native = self._rows(inputs, network, at, patch, rows, points)
                answers |= zip((i for i, _ in members), native.split(sizes), strict=True)
        return iter((answers[i], self.kind) for i in range(len(wanted)))

    def _edited(self, inputs: Inputs, branch: str, edit: Any) -> Inputs:
        """The inputs of one branch with its conditioning edited: always of all its rows, so that an edit that draws
        per picture does not depend on which rows are evaluated."""
        if edit is None:
            return inputs
        arguments = self._arguments(inputs, inputs.indices(branch, None))
        edited = edit({k: arguments[k] for k in self.adapter.conditioned_by})
        return replace(inputs, arguments={**arguments, **edited}, branches=(branch,), rows=inputs.batch)

    def _rows(
        self, inputs: Inputs, name: str | None, at: Any, patch: Any, rows: Sequence[int], points: list[Any]
    ) -> Tensor:
        """The network's native output for these rows of the inputs, in calls of `rows_per_call`."""
        x = None if at is None else torch.cat([at.x if index is None else at.x[index] for index in points])
        size = self.owner.rows_per_call or len(rows)
        natives, extras = [], []
        for start in range(0, len(rows), size):
            part = rows[start : start + size]
            lacking = size - len(part)
            arguments = self._arguments(inputs, [*part, *[part[-1]] * lacking] if lacking else part)
            if x is not None:
                here = x[start : start + size]
                here = torch.cat([here, here[-1:].expand(lacking, *here.shape[1:])]) if lacking else here
                arguments = self._moved(arguments, at.level, here)
            output = self._call(inputs, name, patch, arguments)
            if arguments is self.inputs[-1].arguments and name is None and patch is None:
                self.whole = output
            native, extra = self.layout.native_of(output)
            natives.append(native[: len(part)])
            extras.append(extra)
        further = [extra for extra in extras if extra is not None]
        if further and name is None and at is None:
            self._keep_extra(torch.cat(further), inputs, rows)
        return working_precision(natives[0] if len(natives) == 1 else torch.cat(natives))

    def _call(self, inputs: Inputs, name: str | None, patch: Any, arguments: Arguments) -> Any:
        network = self.owner.networks[name] if name else inputs.forward
        if patch is None:
            return network(**arguments)
        with patch.on(network if name else inputs.module):
            return network(**arguments)

    def _keep_extra(self, extra: Tensor, inputs: Inputs, rows: Sequence[int]) -> None:
        """Of the conditional branch, as every pipeline does; of another one while that was not evaluated."""
        places = {row: place for place, row in enumerate(rows)}
        for branch in sorted(inputs.branches, key=lambda branch: branch != "cond"):
            wanted = inputs.indices(branch, None)
            if all(row in places for row in wanted):
                self.extra = pick(extra, [places[row] for row in wanted])
                return

    def _arguments(self, inputs: Inputs, rows: Sequence[int]) -> Arguments:
        if len(rows) == inputs.rows and is_range(rows):
            return inputs.arguments
        batched, listed, folded = self.adapter.batched, self.layout.listed, self.adapter.folded
        arguments = {
            k: pick_rows(v, rows, inputs.rows, listed, k in folded) if k in batched else v
            for k, v in inputs.arguments.items()
        }
        if self.adapter.picked is not None:
            arguments |= self.adapter.picked(inputs.arguments, rows, inputs.rows)
        return arguments

    def _moved(self, arguments: Arguments, level: Level, x: Tensor) -> Arguments:
        """The same rows at another x and level."""
        time = arguments[self.adapter.time]
        value = self.adapter.time_at(level)
        if isinstance(time, Tensor):  # whole numbers become floats: the level may lie between two of them
            dtype = time.dtype if time.is_floating_point() else torch.float32
            time = torch.where(time == time.max(), value, time.to(dtype))  # given frames keep their lower time
        else:
            time = value
        if self.kind.name.startswith("edm"):
            x = x / self._input_scale(level)
        return self.layout.with_x({**arguments, self.adapter.time: time}, x)

    def _answer(self, inputs: Inputs, result: Prediction | None) -> Any:
        """What the pipeline gets back: the output of its own call if it was made, for whatever it does with that is
        overruled at the step; else the same prediction for each branch."""
        assert self.dialogue is not None
        if self.whole is not None:
            return self.whole
        prediction = result or self.dialogue.known("cond")
        native = prediction.native if prediction is not None else self.dialogue.ctx.x
        sample = inputs.arguments[self.adapter.sample]
        dtype = drawn(sample[0]).dtype if isinstance(sample, list) else sample.dtype
        copies = len(inputs.branches)
        return self.layout.output_of(native.to(dtype), copies, self.extra, inputs.arguments)

    # -- the step seam ------------------------------------------------------------------------------------------------

    def step(self, stock: Any, arguments: Arguments) -> Any:
        """The stock step on the rule's prediction, then the shift, then the rule's own `after`."""
        dialogue, call = self.dialogue, self.calls[self.position or 0]
        assert dialogue is not None
        result = dialogue.result or self._alone(dialogue)
        own, sample = result.step_on, arguments["sample"]
        copies = sample.shape[0] // own.native.shape[0]  # DiT steps both halves
        arguments = {**arguments, "model_output": self._given(own, arguments["model_output"], copies)}
        if own.x is not dialogue.ctx.x:
            arguments["sample"] = tiled(self._to_state(own.x, call.level), copies).to(sample.dtype)
        if self.owner.noise is not None and self.takes_generator:
            ours = isinstance(self.owner.scheduler, PilotageScheduler)  # draws as our loop does; stock, once a call
            key = (purpose_of(call.stage, call.last), call.step) if ours else ("step", self.position or 0)
            arguments["generator"] = self.owner.noise.generators(*key) * copies
        if result.base is not None:
            self._rest_corrector()
        if own.x is not dialogue.ctx.x:
            self._predict_only()
        out = stock(**arguments)
        before = out[0] if isinstance(out, tuple) else out.prev_sample
        after = self._finished(before, result, dialogue.ctx, call, copies)
        if after is not before:
            self._predict_only()
        self._close_call(dialogue)
        if after is before:
            return out
        return (after, *out[1:]) if isinstance(out, tuple) else replace_sample(out, after)

    def _alone(self, dialogue: Dialogue) -> Prediction:
        """Of a pipeline that calls the network once a branch, and has not called it for some: it has stopped guiding (a
        truncation of its own, a callback), and so does the rule. Where it never guided, that is refused."""
        if not {self._branch_of(wanted.ask) for wanted in dialogue.missing()} <= self.held:
            self._refuse_missing()
        dialogue.close()
        dialogue.ctx.record["scale"] = 1.0  # whatever the rule had said before
        if (known := dialogue.known("cond")) is not None:
            return known
        result = Dialogue(Unguided(), dialogue.ctx, self.record.evaluations).advance(self._evaluate)
        assert result is not None
        return result

    def _given(self, own: Prediction, model_output: Tensor, copies: int) -> Tensor:
        """The prediction in the scheduler's terms, with the learned variance that the pipeline put beside its own."""
        native = own.native
        if self.kind is not self.wanted:
            native = Prediction(own.x, own.level, native, self.wanted).with_denoised(own.denoised).native
        native = tiled(native, copies).to(model_output.dtype)
        if self.adapter.handed is not None:
            native = self.adapter.handed(self.owner.pipe, native)
        variance = self.layout.beyond(model_output, native)
        return native if variance is None else torch.cat([native, variance], self.adapter.channel_axis)

    def _predict_only(self) -> None:
        """A stock corrector (UniPC, SA) rebuilds the sample from its history, which would undo what the rule did to it;
        ours adds to the sample."""
        if getattr(self.owner.scheduler, "last_sample", None) is not None:
            self.owner.scheduler.last_sample = None

    def _rest_corrector(self) -> None:
        """What a corrector knows does not hold for inconsistent predictions."""
        self._predict_only()
        if isinstance(self.owner.scheduler, PilotageScheduler):
            self.owner.scheduler.rest_corrector()

    def _finished(self, x: Tensor, result: Prediction, ctx: Context, call: Call, copies: int) -> Tensor:
        """x at the end of an outer step: shifted by alpha' (denoised - base.denoised), then moved by the rule."""
        if not call.last:
            return x
        if result.base is not None:
            shift = tiled(result.denoised - result.base.denoised, copies).to(x.dtype)
            x = torch.add(x, shift, alpha=1.0 if self.scaled else call.shift)
        if self.owner.rule.moves:
            rows = working_precision(x[: x.shape[0] // copies])
            at = rows * call.end.alpha if self.scaled else rows
            ended = replace(ctx, x=at, level=call.end, memory=self.memory.after(ctx).later)
            moved = self.owner.rule.after(ended, at)
            if moved is not at:
                x = tiled(self._to_state(moved, call.end), copies).to(x.dtype)
        return x

    def _to_state(self, x: Tensor, level: Level) -> Tensor:
        """x in the units in which the pipeline keeps it."""
        return x / level.alpha if self.scaled else x

    def _close_call(self, dialogue: Dialogue) -> None:
        self.record.close_step(dialogue.ctx, dialogue)
        self.memory = self.memory.after(dialogue.ctx)
        self.position = (self.position or 0) + 1
        self.close()


def spatial_part(rule: Rule) -> str:
    """The name of a part of the rule that needs pictures."""
    rules, modifiers = parts_of(rule)
    return next((type(part).__name__ for part in (*rules, *modifiers) if part.spatial), type(rule).__name__)


def tiled(x: Tensor, copies: int) -> Tensor:
    return x if copies == 1 else x.repeat(copies, *[1] * (x.dim() - 1))


def replace_sample(output: Any, x: Tensor) -> Any:
    """A scheduler's output with another prev_sample."""
    output.prev_sample = x
    return output
