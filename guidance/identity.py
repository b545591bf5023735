"""Randomness of rules belongs to the picture: each row is known by the noise that it started from.

A context does not tell the seeds, so a row's identity is a hash of its x at the run's first evaluation, the initial
noise. That is bitwise the same alone and in any batch, and after a resume, for it travels with the rule's memory.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..samplers.noise import derived_seed
from .rule import Context, Rule


def identities(ctx: Context, rule: Rule) -> tuple[int, ...]:
    """One number a row, the same through the run; kept in the rule's memory beside whatever else it keeps.

    The later stages of a run's very first step cannot know it yet: there every row is 0.
    """
    place = replace(ctx, rows=None).scoped(-1)  # who a row is does not depend on a modifier that rests it
    known = place.recall(rule)
    if known is None:
        first = [_hashed(row) if ctx.stage == 0 else 0 for row in ctx.x.detach().cpu()]
        known = torch.tensor(first, dtype=torch.int64)
        place.keep(rule, known)
    return tuple(known.tolist())


def row_noise(who: Sequence[int], like: Tensor, *purpose: object) -> Tensor:
    """Unit noise in the shape, dtype and device of `like` (B, ...), row b from who[b] and the purpose alone."""
    rows = [
        torch.randn(like.shape[1:], generator=torch.Generator().manual_seed(derived_seed(one, *purpose))) for one in who
    ]
    return torch.stack(rows).to(like.device, like.dtype)


def _hashed(row: Tensor) -> int:
    digest = hashlib.blake2b(row.contiguous().numpy().tobytes(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
