"""Distillation: students of one step or a few, with any divergence and under teachers guided by any rule.

    trained = distill.train(distill.DistillSpec(method="f-distill:divergence=jensen-shannon"))
    pipe = pilotage.load(trained.result)

The names are loaded on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..training.trainer import Trained
    from .divergences import DIVERGENCES, Divergence, make_divergence
    from .head import Head
    from .method import DistillContext, DistillMethod, Part, Pictures
    from .methods.registry import METHODS, make_method
    from .opening import Opened, open_run
    from .ratio import RatioWeights
    from .roles import Roles
    from .spec import DistillSpec
    from .times import Times
    from .trainer import train

_NAMES = {
    "DIVERGENCES": ".divergences",
    "DistillContext": ".method",
    "DistillMethod": ".method",
    "DistillSpec": ".spec",
    "Divergence": ".divergences",
    "Head": ".head",
    "METHODS": ".methods.registry",
    "Opened": ".opening",
    "Part": ".method",
    "Pictures": ".method",
    "RatioWeights": ".ratio",
    "Roles": ".roles",
    "Times": ".times",
    "Trained": "..training.trainer",
    "make_divergence": ".divergences",
    "make_method": ".methods.registry",
    "open_run": ".opening",
    "train": ".trainer",
}
__all__ = sorted(_NAMES)


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        return getattr(importlib.import_module(_NAMES[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return list(__all__)
