"""Attributes of the embedded world as what a classifier is asked for: one of them ("star", "place.left"), or all that
each row's caption states ("caption").

An aim is int64 (B, heads), or one row for all: the wanted class of each head of `zoo.world.ATTRIBUTES`, -1 where the
head is left open.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ...errors import UsageError
from ..rule import Context
from .losses import class_score, embedded_network, fed, head_of

CAPTION = "caption"
GUIDE = "guide"  # the name of the embedded classifier that guides; the judge scores and never guides


def check_guide(who: str, classifier: Any, target: Any) -> None:
    """Refuse a classifier's name that is none, and a target of "guide" that is no attribute."""
    if isinstance(classifier, str) and classifier not in ("", GUIDE):
        raise UsageError(f"{who}: unknown classifier {classifier!r}; use guide, or pass a network in Python")
    if classifier == GUIDE and target not in ("", CAPTION):
        head_of(str(target))


def aim_of(target: Any, ctx: Context | None, who: str) -> Tensor:
    """The aim of "caption", or of an attribute."""
    return aim_of_captions(captions_of(ctx, who)) if target == CAPTION else aim_of_attribute(str(target))


def captions_of(ctx: Context | None, who: str) -> tuple[str, ...]:
    """The run's prompts, one a row."""
    prompts = ctx.prompts() if ctx is not None and ctx.prompts is not None else None
    if prompts is None:
        raise UsageError(
            f"{who}: target=caption needs a pipeline that was given prompts; name an attribute, such as target=star"
        )
    return prompts


def aim_of_captions(captions: Sequence[str]) -> Tensor:
    """(B, heads) of captions of the embedded world's grammar."""
    return torch.tensor([_stated(caption) for caption in captions])


@lru_cache(maxsize=65536)
def _stated(caption: str) -> tuple[int, ...]:
    from ...zoo.world import encode, parse

    return tuple(encode([parse(caption)])[0].tolist())


def aim_of_attribute(attribute: str) -> Tensor:
    """(1, heads) of one attribute."""
    from ...zoo.world import ATTRIBUTES

    head, index = head_of(attribute)
    return torch.tensor([[index if name == head else -1 for name in ATTRIBUTES]])


def attribute_score(
    logits: Mapping[str, Tensor], aim: Tensor, own: float = 1.0, others: float = 1.0, least: float = 0.0
) -> Tensor:
    """The sum over the stated heads of class_score, (B,): log p(what is stated | x) at own = others = 1.

    least: log(p + least) of each head instead, so that none falls below log(least).
    """
    parts = []
    for i, values in enumerate(logits.values()):
        wanted = aim[:, i].to(values.device).expand(len(values))
        score = class_score(values, tuple(wanted.clamp(min=0).tolist()), own, others)
        if least:
            score = torch.logaddexp(score, score.new_tensor(least).log())
        parts.append(torch.where(wanted >= 0, score, torch.zeros_like(score)))
    return torch.stack(parts).sum(0)


def guide_at(z: Tensor, time: float, network: Any = None) -> Mapping[str, Tensor]:
    """The guide's logits by head, (B, classes), of latents with the noise of a time; time 0 is clean data."""
    if z.dim() != 4 or z.shape[1:] != (4, 8, 8):
        raise UsageError(
            f"classifier=guide reads latents (B, 4, 8, 8) of the embedded model, not {tuple(z.shape)}; pass another "
            "classifier in Python"
        )
    times = torch.full((len(z),), float(time), device=z.device)
    answer: Mapping[str, Tensor] = fed(network or embedded_network(GUIDE), z, times)
    return answer
