"""The scheduler of a spec: one of our samplers on the model's own noise schedule, or the stock one."""

from __future__ import annotations

from typing import Any

from ..errors import UsageError
from ..grammar import name_and_settings, pieces_of
from ..registry import lookup
from .spec import RunSpec


def scheduler_for(spec: RunSpec, stock: Any) -> Any:
    """A fresh scheduler: its state never leaks from one run into the next."""
    if spec.sampler == "stock":
        if spec.grid is not None:
            raise UsageError("grid has no effect on the stock scheduler; choose a sampler such as dpmpp-2m")
        return type(stock).from_config(stock.config)
    _refuse_other_fit(spec)
    name, settings = name_and_settings(spec.sampler)
    given = {"grid": spec.grid, "settings": settings}
    return scheduler_class(name).from_config(stock.config, **{key: value for key, value in given.items() if value})


def _refuse_other_fit(spec: RunSpec) -> None:
    """A grid fitted to another model, sampler or rule would do worse than one that was not fitted at all."""
    from ..guidance.grammar import parse
    from ..samplers.fit_grid import loaded
    from ..samplers.registry import make_sampler

    first, settings = name_and_settings(pieces_of(spec.grid)[0]) if spec.grid else ("", {})
    if first != "fitted":
        return
    fit = loaded(settings["file"])
    alike = {
        "model": (fit.model, spec.model, fit.model in ("", spec.model)),
        "sampler": (
            fit.sampler,
            spec.sampler,
            not fit.sampler or make_sampler(fit.sampler) == make_sampler(spec.sampler),
        ),
        "guidance": (fit.rule, spec.guidance, not fit.rule or parse(fit.rule) == parse(spec.guidance)),
    }
    for what, (then, now, same) in alike.items():
        if not same:
            raise UsageError(f"{settings['file']} was fitted for {what} {then!r}, not {now!r}; fit it again")


def scheduler_class(name: str) -> Any:
    """The diffusers scheduler that drives this sampler."""
    from ..samplers import diffusers_schedulers
    from ..samplers.registry import SAMPLERS
    from ..samplers.scheduler import PilotageScheduler

    wanted = lookup("samplers", SAMPLERS, name, "sampler").load()
    for cls in vars(diffusers_schedulers).values():
        if isinstance(cls, type) and getattr(cls, "sampler_class", None) is wanted:
            return cls
    return type(wanted.__name__, (PilotageScheduler,), {"sampler_class": wanted})
