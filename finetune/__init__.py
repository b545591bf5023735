"""Reward fine-tuning: a model learns, by adapters, to make pictures that a reward likes.

    trained = finetune.train(finetune.FinetuneSpec(prompts=["embedded:train:200"], reward="colour:target=red"))
    pipe.load_lora_weights(trained.result)

The names are loaded on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..training.learner import Learner
    from ..training.lora import LoraSettings, mixed, read_lora, save_lora, scaled
    from ..training.pipeline_learner import PipelineLearner
    from .method import Method, Part, Sampling, UpdateContext
    from .methods.best_of_n import best_of_n
    from .methods.registry import METHODS, make_method
    from .opening import Opened, open_run
    from .rewards.opening import open_rewards
    from .rewards.registry import REWARDS
    from .rewards.reward import Reward
    from .spec import FinetuneSpec
    from .trainer import train

_NAMES = {
    "FinetuneSpec": ".spec",
    "Learner": "..training.learner",
    "LoraSettings": "..training.lora",
    "METHODS": ".methods.registry",
    "Method": ".method",
    "Opened": ".opening",
    "Part": ".method",
    "PipelineLearner": "..training.pipeline_learner",
    "REWARDS": ".rewards.registry",
    "Reward": ".rewards.reward",
    "Sampling": ".method",
    "Trained": "..training.trainer",
    "UpdateContext": ".method",
    "best_of_n": ".methods.best_of_n",
    "make_method": ".methods.registry",
    "mixed": "..training.lora",
    "open_rewards": ".rewards.opening",
    "open_run": ".opening",
    "read_lora": "..training.lora",
    "save_lora": "..training.lora",
    "scaled": "..training.lora",
    "train": ".trainer",
}
__all__ = sorted(_NAMES)


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        return getattr(importlib.import_module(_NAMES[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return list(__all__)
