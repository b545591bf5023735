"""Pictures from a spec: runs, their folders, reruns and comparisons. Loaded on first use.

A module is never called like the function in it: importing `generation.generate` would hide the function.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .comparison import CompareSpec, compare
    from .folder import run
    from .metadata import read_png
    from .models import load
    from .pictures import Sample, generate
    from .repeat import rerun
    from .spec import RunSpec

_WHERE = {
    "CompareSpec": "comparison",
    "compare": "comparison",
    "run": "folder",
    "read_png": "metadata",
    "load": "models",
    "Sample": "pictures",
    "generate": "pictures",
    "rerun": "repeat",
    "RunSpec": "spec",
}
__all__ = ["CompareSpec", "RunSpec", "Sample", "compare", "generate", "load", "read_png", "rerun", "run"]


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(importlib.import_module(f".{_WHERE[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
