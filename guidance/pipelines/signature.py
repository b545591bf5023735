"""How a network is called: where a call enters it, and its arguments by name."""

from __future__ import annotations

import functools
import inspect
from typing import Any

from torch import nn


def entry_of(module: nn.Module) -> str:
    """Where a call of the module enters. After `module.compile()` that is no longer `forward`: a seam there would be
    traced by the compiler instead of standing before it."""
    return "forward" if module._compiled_call_impl is None else "_compiled_call_impl"


@functools.cache
def argument_names(function: Any) -> tuple[str, ...]:
    """Of a method as its class has it, without self."""
    return tuple(inspect.signature(function).parameters)[1:]


def named_arguments(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The call's arguments by name."""
    if not args:
        return dict(kwargs)
    inner: Any = getattr(module, "_orig_mod", module)
    if hasattr(inner, "get_base_model"):  # peft
        inner = inner.get_base_model()
    cls: Any = type(inner)
    return {**dict(zip(argument_names(cls.forward), args, strict=False)), **kwargs}
