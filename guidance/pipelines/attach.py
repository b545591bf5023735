"""attach: swap the rule under an unmodified diffusers call.

Two seams. The *denoiser seam* (the network's `forward`, shadowed on the instance) sees the batch that the pipeline
prepared, evaluates what the rule asks for and nothing else. The *step seam* (`scheduler.step`, likewise) delivers: the
stock step gets the rule's prediction, and, if the rule moved it, its x; the CFG++ shift is added; noise is drawn per
picture; `after` is called once per outer step. Whatever the pipeline computed in between is overruled, which is exact
because its own combination is affine.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from torch import nn

from ...errors import UsageError, nearest
from ...samplers.noise import Seed, SeededNoise
from ..grammar import parse
from ..prompts import branch_of, is_prompt, text_of
from ..record import RunRecord
from ..rule import Rule
from .adapter import Adapter
from .adapters import ADAPTERS, REFUSED
from .origin import origin_of
from .shadow import Shadow, shadow_of
from .signature import argument_names, entry_of, named_arguments
from .steering import Steering


def adapter_of(pipe: Any) -> Adapter:
    """The row of a pipeline's class, or of the nearest parent that has one."""
    for cls in type(pipe).__mro__:
        if cls.__name__ in ADAPTERS:
            return ADAPTERS[cls.__name__]
        if cls.__name__ in REFUSED:
            raise UsageError(f"{cls.__name__}: {REFUSED[cls.__name__]}")
    name = type(pipe).__name__
    raise UsageError(
        f"no adapter for {name} ({nearest(name, ADAPTERS)}); add a row for it in guidance/pipelines/*_rows.py, "
        "as CONTRIBUTING.md shows"
    )


class attach(AbstractContextManager):
    """`with attach(pipe, rule) as run: pipe(...)`; then `run.evaluations` and `run.steps`.

    rule: a Rule, or a line such as "apg:scale=10 + interval:low=0.3". networks: further networks by branch name,
    {"weak": unet2}, called with the conditional inputs. seeds: one a picture; later noise is then drawn per picture, so
    that a picture does not depend on its batch. rows_per_call: pad or split every network call to so many rows (bitwise
    equal pictures whatever the batch). decode: denoised latents -> pictures, for rules that look at pictures. prompts:
    texts by name, {"hat": "a man with a red hat"}, for rules with further prompts; without one, the name is the text.

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
        prompts: Mapping[str, str] | None = None,
    ):
        self.pipe, self.adapter = pipe, adapter_of(pipe)
        self.rule = parse(rule) if isinstance(rule, str) else rule
        self.networks = dict(networks or {})
        self.prompts = {branch_of(name): text for name, text in (prompts or {}).items()}
        self.noise = SeededNoise(seeds) if seeds is not None else None
        self.rows_per_call, self.decode = rows_per_call, decode
        self.record = RunRecord()
        self.scheduler: Any = None
        self.steering: Steering | None = None
        self._evaluating = False
        if not isinstance(self.rule, Rule):
            raise UsageError(f"attach takes a rule or a line such as 'cfg:scale=5', not {rule!r}")
        self._refuse_what_cannot_work()

    def _refuse_what_cannot_work(self) -> None:
        further = [branch for branch in self.rule.needs if is_prompt(branch)]
        if further and self.adapter.encode is None:
            raise UsageError(
                f"{type(self.pipe).__name__} cannot be given the further prompt {text_of(further[0])!r}: its adapter "
                "row has no encode=; use Stable Diffusion, SDXL, SD3, Flux or DiT, or Guided with conditions"
            )
        known = (*self.adapter.branches, "cond", *self.networks, *further)
        missing = [branch for branch in self.rule.needs if branch not in known]
        if missing:
            raise UsageError(
                f"{type(self.rule).__name__} needs the network {missing[0]!r}: "
                f"attach(pipe, rule, networks={{{missing[0]!r}: ...}})"
                if missing[0] not in ("image", "uncond")
                else f"{type(self.pipe).__name__} has no {missing[0]!r} branch; choose another rule"
            )
        self.rule.refuse(lambda: origin_of(self.module, self.pipe.scheduler))
        config = getattr(self.module, "config", None)
        distilled = getattr(config, "time_cond_proj_dim", None) is not None
        distilled = distilled and "timestep_cond" not in self.adapter.conditioned_by  # where it holds text
        if distilled and "uncond" in self.rule.needs:
            raise UsageError(
                f"this {type(self.module).__name__} is guidance-distilled: its scale is an input and it has no "
                "negative branch; use the rule 'none' and the pipeline's own guidance_scale, or autoguidance"
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
    def modules(self) -> tuple[nn.Module, ...]:
        """The pipeline's networks: one, or experts for different levels, of which some may be absent."""
        named = (getattr(self.pipe, name, None) for name in (self.adapter.network, *self.adapter.experts))
        modules = tuple(module for module in named if module is not None)
        if not modules:
            raise UsageError(f"this {type(self.pipe).__name__} has no {self.adapter.network}; load it before attaching")
        return modules

    @property
    def module(self) -> nn.Module:
        return self.modules[0]

    # -- installing ---------------------------------------------------------------------------------------------------

    def __enter__(self) -> attach:
        if any(shadow_of(module, name) for module in self.modules for name in ("forward", "_compiled_call_impl")):
            raise UsageError("a rule is already attached to this pipeline's network; leave its `with` block first")
        self._shadow_networks()
        self._shadow_scheduler()
        return self

    def __exit__(self, *exception: Any) -> None:
        for shadow in (*self._forwards, *self._schedulers):
            shadow.remove()
        self._forget()

    def _shadow_networks(self) -> None:
        self._forwards = tuple(
            Shadow(module, entry_of(module), functools.partial(self._on_call, module)) for module in self.modules
        )

    def _shadow_scheduler(self) -> None:
        self.scheduler = scheduler = self.pipe.scheduler
        self._schedulers = (
            Shadow(scheduler, "step", self._on_step),
            Shadow(scheduler, "set_timesteps", self._on_set_timesteps),
        )

    def _forget(self) -> None:
        if self.steering is not None:
            self.steering.close()
        self.steering = None

    def _new_run(self) -> None:
        """A call of the pipeline begins: forget the last one, and see that the seam is still there (accelerate restores
        the forward that it saved when its own hook is removed; the user may exchange or compile the network)."""
        self._forget()
        places = [(module, entry_of(module)) for module in self.modules]
        if [(seam.target, seam.name) for seam in self._forwards if seam.reached] != places:
            for seam in self._forwards:
                seam.remove()
            self._shadow_networks()

    # -- the seams ----------------------------------------------------------------------------------------------------

    def _on_set_timesteps(self, stock: Any, *args: Any, **kwargs: Any) -> Any:
        self._new_run()
        return stock(*args, **kwargs)

    def _on_call(self, module: nn.Module, original: Any, *args: Any, **kwargs: Any) -> Any:
        """A network is called: what the pipeline expects of it."""
        if self._evaluating:  # by us, as the network of another branch
            return original(*args, **kwargs)
        if self.adapter.aside is not None and self.adapter.aside(named_arguments(module, args, kwargs)):
            return original(*args, **kwargs)
        if self.pipe.scheduler is not self.scheduler:  # the user exchanged it inside the block
            for shadow in self._schedulers:
                shadow.remove()
            self._shadow_scheduler()
            self._new_run()
        if self.steering is None:
            self.record = RunRecord()  # only now: some pipelines set their timesteps once more when they are done
            self.steering = Steering(self)
        self._evaluating = True
        try:
            return self.steering.call(module, original, args, kwargs)
        finally:
            self._evaluating = False

    def _on_step(self, stock: Any, *args: Any, **kwargs: Any) -> Any:
        if self.steering is None:
            raise UsageError(
                f"the scheduler steps, but {type(self.pipe).__name__}.{self.adapter.network} was not called through "
                "the attached rule; attach after the network is exchanged or wrapped"
            )
        if self.steering.idle:
            return stock(*args, **kwargs)
        names = argument_names(type(self.scheduler).step)  # CogVideoX's DPM scheduler has an order of its own
        return self.steering.step(stock, {**dict(zip(names, args, strict=False)), **kwargs})
