"""A method shadowed on one instance: the vehicle of both seams."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any


class Shadow:
    """`target.name(...)` becomes `call(original, ...)` until `remove`.

    `inspect.signature` sees the original (pipelines look), other wrappers may be put on top (accelerate), and a deep
    copy of the target made meanwhile has its own plain method: with a hook of diffusers it would run the original's
    weights.
    """

    def __init__(self, target: Any, name: str, call: Callable[..., Any]):
        self.original = getattr(target, name)
        self.own = target.__dict__.get(name)  # what shadowed the class's method before, if anything
        functools.update_wrapper(self, self.original)
        self.target, self.name, self.call = target, name, call
        self.removed = False
        setattr(target, name, self)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.removed:  # a wrapper on top still holds it
            return self.original(*args, **kwargs)
        return self.call(self.original, *args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return copy.deepcopy(self.original, memo)

    @property
    def on_top(self) -> bool:
        return self.target.__dict__.get(self.name) is self

    @property
    def reached(self) -> bool:
        """Is it called at all? Whoever restores a method that he saved earlier throws it out."""
        method = self.target.__dict__.get(self.name)
        while method is not None and method is not self:
            method = getattr(method, "__wrapped__", None)
        return method is self

    def remove(self) -> None:
        """Put the original back. Under somebody's wrapper it only becomes transparent."""
        self.removed = True
        if not self.on_top:
            return
        if self.own is None:
            delattr(self.target, self.name)
        else:
            setattr(self.target, self.name, self.own)


def shadow_of(target: Any, name: str) -> Shadow | None:
    """The active shadow of a method, under other wrappers too."""
    method = target.__dict__.get(name)
    while method is not None and not (isinstance(method, Shadow) and not method.removed):
        method = getattr(method, "__wrapped__", None)
    return method
