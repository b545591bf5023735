"""Pilotage: steering diffusion and flow models.

A model becomes a denoiser; a rule turns denoisers into a denoiser; a sampler integrates any denoiser along a noise
schedule; everything that trains or scores uses the same four.

The names below are loaded on first use: `import pilotage` imports neither torch nor transformers.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .version import __version__

# In a clone the sub-packages lie beside this folder, not below it.
if (_root := Path(__file__).resolve().parent.parent).joinpath("pyproject.toml").is_file():
    __path__.append(str(_root))

if TYPE_CHECKING:
    from . import distill, evaluation, finetune, generation, guidance, samplers, training, zoo
    from .generation import RunSpec, generate, load
    from .guidance.pipelines import attach

_PACKAGES = ("samplers", "guidance", "finetune", "distill", "training", "evaluation", "generation", "zoo")
_NAMES = {
    "attach": "guidance.pipelines",
    "load": "generation",
    "generate": "generation",
    "RunSpec": "generation",
}
__all__ = [
    "RunSpec",
    "__version__",
    "attach",
    "distill",
    "evaluation",
    "finetune",
    "generate",
    "generation",
    "guidance",
    "load",
    "samplers",
    "training",
    "zoo",
]


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        return importlib.import_module(f".{name}", __name__)
    if name in _NAMES:
        return getattr(importlib.import_module(f".{_NAMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
