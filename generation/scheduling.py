"""The scheduler of a spec: one of our samplers on the model's own noise schedule, or the stock one."""

from __future__ import annotations

from typing import Any

from ..errors import UsageError
from ..grammar import name_and_settings
from ..registry import lookup
from .spec import RunSpec


def scheduler_for(spec: RunSpec, stock: Any) -> Any:
    """A fresh scheduler: its state never leaks from one run into the next."""
    if spec.sampler == "stock":
        if spec.grid is not None:
            raise UsageError("grid has no effect on the stock scheduler; choose a sampler such as dpmpp-2m")
        return type(stock).from_config(stock.config)
    name, settings = name_and_settings(spec.sampler)
    given = {"grid": spec.grid, "settings": settings}
    return _scheduler_class(name).from_config(stock.config, **{key: value for key, value in given.items() if value})


def _scheduler_class(name: str) -> Any:
    """The diffusers scheduler that drives this sampler."""
    from ..samplers import diffusers_schedulers
    from ..samplers.registry import SAMPLERS
    from ..samplers.scheduler import PilotageScheduler

    wanted = lookup("samplers", SAMPLERS, name, "sampler").load()
    for cls in vars(diffusers_schedulers).values():
        if isinstance(cls, type) and getattr(cls, "sampler_class", None) is wanted:
            return cls
    return type(wanted.__name__, (PilotageScheduler,), {"sampler_class": wanted})
