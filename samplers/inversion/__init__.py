"""Inversion: the noise that a sampler turns into a given picture."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .bdia import BDIA
    from .edict import EDICT
    from .editing import Edited, edit
    from .fixed_point import FixedPoint
    from .mccallum_foster import McCallumFoster
    from .naive import Naive
    from .obelm import OBELM
    from .registry import INVERSIONS, make_inversion
    from .reversible import Carried, ReversibleStep
    from .reversible_heun import ReversibleHeun
    from .run import forward, invert

_WHERE = {
    "BDIA": "bdia",
    "EDICT": "edict",
    "Edited": "editing",
    "edit": "editing",
    "FixedPoint": "fixed_point",
    "McCallumFoster": "mccallum_foster",
    "Naive": "naive",
    "OBELM": "obelm",
    "INVERSIONS": "registry",
    "make_inversion": "registry",
    "Carried": "reversible",
    "ReversibleStep": "reversible",
    "ReversibleHeun": "reversible_heun",
    "forward": "run",
    "invert": "run",
}
__all__ = sorted(_WHERE)


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(importlib.import_module(f".{_WHERE[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
