"""Rules in modular pipelines: `pipe.update_components(guider=as_guider(rule, pipe.scheduler))`.

A guider of diffusers says before a step how many conditional or unconditional calls it wants, each of all rows, and
combines their answers; it sees neither x nor the noise level, and nothing after the step. So the bridge

    - asks the rule for its first round with a blank x, and has those asks evaluated, patches of the attention included;
    - listens to what the network is given, which is x, and reads the levels from the scheduler, for rules that look;
    - refuses what cannot be said this way, when it is made where that shows in a dry run, else in the step.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any, ClassVar

import torch
from diffusers.guiders.guider_utils import BaseGuidance, GuiderOutput
from torch import Tensor

from ...errors import UsageError
from ...samplers.prediction import Parameterization, Prediction, parameterization, predicted_by, working_precision
from ...samplers.schedule import Level, NoiseSchedule, from_scheduler
from ...samplers.stock import Call, calls_of
from ..attention.negative import NegativePatch
from ..compose import parts_of
from ..dialogue import Dialogue, Wanted
from ..dry_run import dry_run
from ..grammar import parse, spell
from ..memory import Memory
from ..modifiers.adaptive import Adaptive
from ..rule import Ask, Context, Rule, as_round

_SLOTS = {"cond": 0, "uncond": 1}  # of the pairs that a modular pipeline hands over
_NAMES = ("pred_cond", "pred_uncond")


def as_guider(rule: Rule | str, scheduler: Any = None, predicts: str | Parameterization | None = None) -> RuleGuider:
    """A guider of diffusers that steers by this rule, or by a line such as "apg:scale=4 + pag".

    scheduler: the pipeline's; needed by rules that look at x or at the noise level (apg, windows in rho, ...).
    predicts: what the network predicts, where the scheduler does not say it. Raises UsageError for rules that a guider
    cannot express: use `attach`.
    """
    rule = parse(rule) if isinstance(rule, str) else rule
    _refuse(rule)
    guider = RuleGuider(rule)
    guider.scheduler, guider.predicts = scheduler, None if predicts is None else parameterization(predicts)
    return guider


class RuleGuider(BaseGuidance):
    """A rule behind the guider interface; made by `as_guider`. Its configuration is the rule's line."""

    _input_predictions: ClassVar[list[str]] = list(_NAMES)

    def __init__(self, guidance: str | Rule = "cfg", enabled: bool = True):
        super().__init__(enabled=enabled)
        self.rule = parse(guidance) if isinstance(guidance, str) else guidance
        self.register_to_config(guidance=spell(self.rule), enabled=enabled)
        self.scheduler: Any = None
        self.predicts: Parameterization | None = None
        self._memory = Memory()
        self._asks: tuple[Ask, ...] = ()
        self._seen: Tensor | None = None  # what the network was given at this step
        self._patched = ExitStack()
        self._hooks: list[Any] = []
        self._calls: list[Call] = []  # from where the run starts

    def new(self, **kwargs: Any) -> RuleGuider:
        """Another guider of the same rule and scheduler, with other settings."""
        made = super().new(**kwargs)
        made.scheduler, made.predicts = self.scheduler, self.predicts
        if "guidance" not in kwargs:
            made.rule = self.rule
        return made

    # -- what the pipeline calls --------------------------------------------------------------------------------------

    def set_state(self, step: int, num_inference_steps: int, timestep: Any) -> None:
        super().set_state(step, num_inference_steps, timestep)
        if step == 0:
            self._memory = Memory()
            self._calls = self._calls_from(timestep) if self.scheduler is not None else []
        self._asks, self._seen = (), None
        self._patched.close()

    def prepare_inputs(self, data: Mapping[str, Any]) -> list[Any]:
        self._asks = self._first_round()
        return [self._prepare_batch(data, _SLOTS[ask.branch], name) for ask, name in self._named()]

    def prepare_inputs_from_block_state(self, data: Any, input_fields: Mapping[str, Any]) -> list[Any]:
        self._asks = self._first_round()
        fields = dict(input_fields)
        return [
            self._prepare_batch_from_block_state(fields, data, _SLOTS[ask.branch], name) for ask, name in self._named()
        ]

    def prepare_models(self, denoiser: torch.nn.Module) -> None:
        """Perturb the network for the call that comes, and listen to what it is given."""
        ask = self._asks[self._count_prepared]
        super().prepare_models(denoiser)
        self._hooks = [
            denoiser.register_forward_pre_hook(self._listen, with_kwargs=True),
            denoiser.register_forward_hook(lambda *_: self._patched.close(), always_call=True),  # also when it raises
        ]
        if ask.patch is not None:
            self._patched.enter_context(ask.patch.on(denoiser))

    def cleanup_models(self, denoiser: torch.nn.Module) -> None:
        self._patched.close()
        while self._hooks:
            self._hooks.pop().remove()

    def forward(self, **answers: Tensor) -> GuiderOutput:
        """The rule's prediction, in the dtype of the network's."""
        if not self._enabled:
            return GuiderOutput(pred=answers["pred_cond"], pred_cond=answers["pred_cond"], pred_uncond=None)
        given = {ask: working_precision(answers[name]) for ask, name in self._named()}
        first = next(iter(answers.values()))
        ctx = self._context(self._x_like(next(iter(given.values()))))
        kind = self._kind()

        def answered(wanted: Sequence[Wanted]) -> list[tuple[Tensor, Parameterization]]:
            for w in wanted:
                _refuse_ask(w.ask)
                if w.ask not in given:
                    raise UsageError(_REFUSED.format("asks anew after it has seen an answer"))
            return [(given[w.ask], kind) for w in wanted]

        result = Dialogue(self.rule, ctx, Counter()).advance(answered)
        assert result is not None
        self._memory, self._asks = self._memory.after(ctx), ()
        if result.kind is not kind and self.scheduler is not None:
            result = Prediction(ctx.x, ctx.level, result.native, kind).with_denoised(result.denoised)
        pred = result.native.to(first.dtype)
        return GuiderOutput(pred=pred, pred_cond=answers.get("pred_cond"), pred_uncond=answers.get("pred_uncond"))

    @property
    def is_conditional(self) -> bool:
        """Is the call that was prepared last one of the conditional branch?"""
        return self._count_prepared == 0 or self._asks[self._count_prepared - 1].branch == "cond"

    @property
    def num_conditions(self) -> int:
        """Calls of this step; between steps and runs, of the dearest step, for pipelines look at it when they decide
        whether to encode a negative prompt."""
        if not self._enabled:
            return 1
        return len(self._asks) or max(len(step.asks) for step in dry_run(self.rule))

    def _calls_from(self, timestep: Any) -> list[Call]:
        """The run's calls; picture-to-picture starts inside the scheduler's list."""
        first = float(torch.as_tensor(timestep).flatten()[0])
        times = self.scheduler.timesteps.tolist()
        return calls_of(self.scheduler)[min(range(len(times)), key=lambda i: abs(times[i] - first)) :]

    # -- what the rule sees -------------------------------------------------------------------------------------------

    def _first_round(self) -> tuple[Ask, ...]:
        """What the rule wants at this step, found with a blank x; it may not hang on the answers."""
        if not self._enabled:
            return (Ask(),)
        guide = self.rule.guide(self._context(torch.zeros(1, 1)))
        try:
            asks = tuple(dict.fromkeys(as_round(next(guide))))
        except StopIteration:
            asks = (Ask(),)  # a guider cannot do without
        finally:
            guide.close()
        for ask in asks:
            _refuse_ask(ask)
        return asks

    def _named(self) -> list[tuple[Ask, str]]:
        """The asks with the names under which their answers come back."""
        plain = {Ask(): _NAMES[0], Ask("uncond"): _NAMES[1]}
        return [(ask, plain.get(ask, f"pred_{ask.branch}_{i}")) for i, ask in enumerate(self._asks)]

    def _context(self, x: Tensor) -> Context:
        steps = self._num_inference_steps
        if not self._calls:
            unknown: Any = _Unknown()
            return Context(x, unknown, unknown, unknown, self._step, steps, 0, unknown, self._memory.seen_at(0))
        call = self._calls[self._step]
        start: Level = self._calls[self._step - call.stage].level
        schedule: NoiseSchedule = from_scheduler(self.scheduler)
        return Context(
            x, call.level, start, call.goal, call.step, self._calls[-1].step + 1, call.stage, schedule,
            self._memory.seen_at(call.stage),
        )  # fmt: skip

    def _kind(self) -> Parameterization:
        if self.predicts is not None:
            return self.predicts
        if self.scheduler is not None:
            return predicted_by(self.scheduler)
        return Parameterization("unknown", _untold, _untold)

    def _listen(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = args[0] if args else kwargs.get("sample", kwargs.get("hidden_states"))
        self._seen = given if isinstance(given, Tensor) else None

    def _x_like(self, native: Tensor) -> Tensor:
        """x, from what the network was given: its first channels, where a mask or a picture follows."""
        if self.scheduler is None:
            return torch.zeros_like(native)
        seen = self._seen
        if seen is not None and seen.dim() == native.dim() and seen.shape[1] > native.shape[1]:
            seen = seen[:, : native.shape[1]]
        if seen is None or seen.shape != native.shape:
            raise UsageError(
                "the network of this modular pipeline is given no x of its prediction's shape; use attach, or rules "
                "that only combine predictions, with as_guider(rule)"
            )
        x, kind = working_precision(seen), self._kind()
        if kind.name.startswith("edm"):  # whose schedulers hand over c_in x
            x = x * math.hypot(self._calls[self._step].level.sigma, self.scheduler.config.sigma_data)
        return x


class _Unknown:
    """A level or schedule that nobody has told."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise UsageError("this rule needs the noise level, which guiders are not told: as_guider(rule, pipe.scheduler)")


def _untold(level: Level) -> tuple[float, float]:
    return level.alpha, level.sigma  # raises


# -- what cannot be said -----------------------------------------------------------------------------------------------

_REFUSED = "a guider of diffusers cannot express this rule: it {}; use attach on an ordinary pipeline"


def _refuse(rule: Rule) -> None:
    """What shows before any run."""
    if any(isinstance(modifier, Adaptive) for modifier in parts_of(rule)[1]):
        raise UsageError(_REFUSED.format("skips row by row"))
    if rule.moves:
        raise UsageError(_REFUSED.format("moves x after the step"))
    if rule.shifts:
        raise UsageError(_REFUSED.format("re-noises with another prediction"))
    for step in dry_run(rule, rows=2):
        for asks in step.rounds:
            for ask in asks:
                _refuse_ask(ask)
        if len(step.rounds) > 1:
            raise UsageError(_REFUSED.format("asks anew after it has seen an answer"))


def _refuse_ask(ask: Ask) -> None:
    reasons = {
        "skips row by row": ask.rows is not None,
        "needs a gradient through the network": ask.grad,
        "looks at another point": ask.at is not None,
        "edits the conditioning": ask.edit is not None,
        "needs two branches in one network call (pass negative= embeddings)": isinstance(ask.patch, NegativePatch)
        and ask.patch.text is None,
        f"needs {ask.branch!r}, and a guider has only a prompt and a negative one": ask.branch not in _SLOTS,
    }
    for reason, true in reasons.items():
        if true:
            raise UsageError(_REFUSED.format(reason))
