"""Guidance: rules that turn denoisers into a denoiser, and the door to diffusers pipelines."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .apg import APG
    from .autoguidance import Autoguidance
    from .calibrate import calibrate_adaptive
    from .cfg import CFG
    from .cfgpp import CFGPP
    from .compose import Sum, compose
    from .explain import explain
    from .grammar import make, parse, spell
    from .guided import Guided
    from .image_cfg import ImageCFG
    from .modifiers.adaptive import Adaptive
    from .modifiers.interval import Interval
    from .modifiers.rescale import Rescale
    from .modifiers.schedule import WeightSchedule
    from .pipelines import attach
    from .registry import RULES
    from .rule import Ask, Context, Modifier, Point, Rule, Unguided, changed, together

_WHERE = {
    "APG": "apg",
    "Autoguidance": "autoguidance",
    "calibrate_adaptive": "calibrate",
    "CFG": "cfg",
    "CFGPP": "cfgpp",
    "Sum": "compose",
    "compose": "compose",
    "explain": "explain",
    "make": "grammar",
    "parse": "grammar",
    "spell": "grammar",
    "Guided": "guided",
    "ImageCFG": "image_cfg",
    "Adaptive": "modifiers.adaptive",
    "Interval": "modifiers.interval",
    "Rescale": "modifiers.rescale",
    "WeightSchedule": "modifiers.schedule",
    "attach": "pipelines",
    "RULES": "registry",
    "Ask": "rule",
    "Context": "rule",
    "Modifier": "rule",
    "Point": "rule",
    "Rule": "rule",
    "Unguided": "rule",
    "changed": "rule",
    "together": "rule",
}
__all__ = sorted(_WHERE)


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(importlib.import_module(f".{_WHERE[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
