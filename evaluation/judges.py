"""Judges: pictures -> what they show, captions -> what they state, in the same words."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..errors import UsageError, nearest
from .features import weights_hash


@dataclass(frozen=True)
class Judge:
    """A classifier that scores adherence. It must not be the one that guided: climbing a guide's gradient pleases it.

    predict: uint8 pictures (n, 3, H, W) -> attribute -> n class names. parse: caption -> attribute -> class name,
    for what it states; a UsageError for a caption that it does not understand. identity: a hash of the weights.
    """

    name: str
    predict: Callable[[Tensor], Mapping[str, Sequence[Any]]]
    parse: Callable[[str], Mapping[str, Any]]
    identity: str = "unknown"


def open_judge(judge: str | Judge) -> Judge:
    """A judge by name, or as it is."""
    if isinstance(judge, Judge):
        return judge
    if judge != "embedded":
        raise UsageError(f"unknown judge {judge!r}: {nearest(judge, ['embedded'])}; or give an evaluation.Judge")
    return embedded()


def embedded() -> Judge:
    """The embedded world's clean-picture classifier."""
    world = importlib.import_module("pilotage.zoo.world")
    network = importlib.import_module("pilotage.zoo.embedded").judge()

    def predict(pictures: Tensor) -> dict[str, list[str]]:
        numbers = network.predict(pictures)
        return {head: [world.ATTRIBUTES[head][n] for n in found.tolist()] for head, found in numbers.items()}

    return Judge("embedded", predict, world.parse, weights_hash(network))
