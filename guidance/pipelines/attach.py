"""attach: swap the rule under an unmodified diffusers call.

Two seams. The *denoiser seam* (a forward hook) sees the batch that the pipeline prepared, evaluates what the rule asks for
and nothing else. The *step seam* (`scheduler.step` on the instance) delivers: the stock step gets the rule's prediction, and,
if the rule moved it, its x; the CFG++ shift is added; noise is drawn per picture; `after` is called once per outer step.
Whatever the pipeline computed in between is overruled, which is exact because its own combination is affine.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from diffusers.hooks import HookRegistry, ModelHook
from torch import Tensor, nn

from ...errors import UsageError, nearest
from ...samplers.noise import Seed, SeededNoise
from ..grammar import parse
from ..record import RunRecord
from ..rule import Rule
from .adapter import Adapter
from .adapters import ADAPTERS
from .steering import Steering

_HOOK = "pilotage"


def adapter_of(pipe: Any) -> Adapter:
    """The row of a pipeline's class, or of the nearest parent that has one."""
    for cls in type(pipe).__mro__:
        if cls.__name__ in ADAPTERS:
            return ADAPTERS[cls.__name__]
    name = type(pipe).__name__
    raise UsageError(
        f"no adapter for {name} ({nearest(name, ADAPTERS)}); add a row for it in guidance/pipelines/adapters.py, "
        "as CONTRIBUTING.md shows"
    )


class attach(AbstractContextManager):
    """`with attach(pipe, rule) as run: pipe(...)`; then `run.evaluations` and `run.steps`.

    rule: a Rule, or a line such as "apg:scale=10 + interval:low=0.3". networks: further networks by branch name,
    {"weak": unet2}, called with the conditional inputs. seeds: one a picture; later noise is then drawn per picture, so
    that a picture does not depend on its batch. rows_per_call: pad every network call to so many rows (bitwise equal
    pictures whatever the batch). decode: denoised latents -> pictures, for rules that look at pictures.

    Each call of the pipeline is a run of its own: memory and record start anew. Leaving the block restores everything,
    whatever happened inside.
    """

    def __init__(
        self,
        pipe: Any,
        rule: Rule | str,
        networks: Mapping[str, nn.Module] | None = None,
        *,
        seeds: Sequence[Seed] | None = None,
        rows_per_call: int | None = None,
        decode: Any = None,
    ):
        self.pipe, self.adapter = pipe, adapter_of(pipe)
        self.rule = parse(rule) if isinstance(rule, str) else rule
        self.networks = dict(networks or {})
        self.noise = SeededNoise(seeds) if seeds is not None else None
        self.rows_per_call, self.decode = rows_per_call, decode
        self.record = RunRecord()
        self.scheduler: Any = None
        self.steering: Steering | None = None
        self._refuse_what_cannot_work()

    def _refuse_what_cannot_work(self) -> None:
        missing = [b for b in self.rule.needs if b not in (*self.adapter.branches, "cond", *self.networks)]
        if missing:
            raise UsageError(
                f"{type(self.rule).__name__} needs the network {missing[0]!r}: "
                f"attach(pipe, rule, networks={{{missing[0]!r}: ...}})"
                if missing[0] not in ("image", "uncond")
                else f"{type(self.pipe).__name__} has no {missing[0]!r} branch; choose another rule"
            )
        config = getattr(self.module, "config", None)
        distilled = getattr(config, "time_cond_proj_dim", None) is not None
        if distilled and "uncond" in self.rule.needs:
            raise UsageError(
                f"this {type(self.module).__name__} is guidance-distilled: its scale is an input and it has no negative "
                "branch; use the rule 'none' and the pipeline's own guidance_scale, or autoguidance"
            )

    # -- results ------------------------------------------------------------------------------------------------------

    @property
    def evaluations(self) -> dict[str, int]:
        """Rows really evaluated in the last call of the pipeline, by branch, before padding."""
        return dict(self.record.evaluations)

    @property
    def steps(self) -> list[dict[str, Any]]:
        """One record an outer step of the last call."""
        return self.record.steps

    @property
    def module(self) -> nn.Module:
        return getattr(self.pipe, self.adapter.network)

    # -- installing ---------------------------------------------------------------------------------------------------

    def __enter__(self) -> attach:
        registry = HookRegistry.check_if_exists_or_initialize(self.module)
        if registry.get_hook(_HOOK) is not None:
            raise UsageError("a rule is already attached to this pipeline; leave its `with` block first")
        self._hooked = self.module
        self._install_hook()
        self._wrap_scheduler()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._unwrap_scheduler()
        HookRegistry.check_if_exists_or_initialize(self._hooked).remove_hook(_HOOK, recurse=False)
        if self.steering is not None:
            self.steering.close()

    def _install_hook(self) -> None:
        registry = HookRegistry.check_if_exists_or_initialize(self._hooked)
        registry.register_hook(_Seam(self), _HOOK)
        self._forward = self._hooked.forward

    def _wrap_scheduler(self) -> None:
        """Shadow two methods on the instance; pipelines inspect their signatures, which `wraps` keeps."""
        self.scheduler = scheduler = self.pipe.scheduler
        stock_step, stock_set = scheduler.step, scheduler.set_timesteps

        @functools.wraps(stock_step)
        def step(model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any) -> Any:
            if self.steering is None or self.steering.idle:
                return stock_step(model_output, timestep, sample, *args, **kwargs)
            return self.steering.step(stock_step, model_output, timestep, sample, *args, **kwargs)

        @functools.wraps(stock_set)
        def set_timesteps(*args: Any, **kwargs: Any) -> Any:
            self._new_run()
            return stock_set(*args, **kwargs)

        scheduler.step, scheduler.set_timesteps = step, set_timesteps

    def _unwrap_scheduler(self) -> None:
        for name in ("step", "set_timesteps"):
            self.scheduler.__dict__.pop(name, None)

    def _new_run(self) -> None:
        """A call of the pipeline begins: forget the last one, and see that the hook is still on (accelerate restores
        the forward that it saved when its own hook is removed)."""
        if self.steering is not None:
            self.steering.close()
        self.steering = None
        self.record = RunRecord()
        if self._hooked.forward is not self._forward:
            registry = HookRegistry.check_if_exists_or_initialize(self._hooked)
            registry.remove_hook(_HOOK, recurse=False)
            self._install_hook()

    # -- the denoiser seam --------------------------------------------------------------------------------------------

    def call(self, original: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The hooked network call: returns what the pipeline expects of it."""
        if self.pipe.scheduler is not self.scheduler:  # the user exchanged it inside the block
            self._unwrap_scheduler()
            self._wrap_scheduler()
            self._new_run()
        if self.steering is None:
            self.steering = Steering(self, original)
        return self.steering.call(original, args, kwargs)


class _Seam(ModelHook):
    def __init__(self, owner: attach):
        super().__init__()
        self.owner = owner

    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return self.owner.call(self.fn_ref.original_forward, args, kwargs)


@functools.cache
def forward_signature(cls: type) -> inspect.Signature:
    """Signature of a network class's forward, without self."""
    signature = inspect.signature(cls.forward)  # type: ignore[attr-defined]
    return signature.replace(parameters=list(signature.parameters.values())[1:])


def bound_arguments(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The call's arguments by name."""
    inner = getattr(module, "_orig_mod", module)
    if hasattr(inner, "get_base_model"):  # peft
        inner = inner.get_base_model()
    bound = forward_signature(type(inner)).bind(*args, **kwargs)
    return dict(bound.arguments)
