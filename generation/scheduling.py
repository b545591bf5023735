"""The scheduler of a spec: one of our samplers on the model's own noise schedule, or the stock one."""

from __future__ import annotations

from typing import Any

from ..errors import UsageError
from ..registry import lookup
from .spec import RunSpec


def scheduler_for(spec: RunSpec, stock: Any) -> Any:
    """A fresh scheduler: its state never leaks from one run into the next."""
    if spec.sampler == "stock":
        if spec.grid is not None:
            raise UsageError("grid has no effect on the stock scheduler; choose a sampler such as dpmpp-2m")
        return type(stock).from_config(stock.config)
    return _scheduler_class(spec.sampler).from_config(stock.config, **({"grid": spec.grid} if spec.grid else {}))


def _scheduler_class(name: str) -> Any:
    """The diffusers scheduler that drives this sampler."""
    from ..samplers import diffusers_schedulers
    from ..samplers.registry import SAMPLERS

    wanted = lookup("samplers", SAMPLERS, name, "sampler").load()
    for cls in vars(diffusers_schedulers).values():
        if isinstance(cls, type) and getattr(cls, "sampler_class", None) is wanted:
            return cls
    return type(wanted.__name__, (diffusers_schedulers.PilotageScheduler,), {"sampler_class": wanted})
