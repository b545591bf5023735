"""Randomness belongs to the picture, not to the batch.

A picture's identity is its seed. Its initial noise is that of `torch.Generator("cpu").manual_seed(seed)`, the same as
`pipe(generator=[...])`; every later draw comes from a generator seeded by a hash of (seed, purpose, step). So the noise
is bitwise the same alone, in any batch, on any rank and after a resume.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import UsageError

Seed = int | str


def derived_seed(*parts: object) -> int:
    """A 63-bit seed from anything that prints the same everywhere."""
    digest = hashlib.blake2b("/".join(str(p) for p in parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def parse_seed(seed: Seed) -> tuple[int, int]:
    """(number, repeat) of a seed: 17 and "17:0" are (17, 0), "17:2" is (17, 2)."""
    number, _, repeat = str(seed).partition(":")
    plain = number.isdecimal() and (repeat.isdecimal() or ":" not in str(seed))
    if not plain or int(number) >= 2**64:
        raise UsageError(f"a seed is a whole number below 2^64, or seed:repeat such as 17:2, not {seed!r}")
    return int(number), int(repeat or 0)


def purpose_of(stage: int, last: bool) -> str:
    """Of the noise that a stage of an outer step takes: the last one's is the step's, those inside have their own."""
    return "step" if last else f"stage {stage}"


def generator_of(seed: Seed) -> torch.Generator:
    """The generator of a picture's initial noise. `"17:2"` is the second repeat of seed 17; `"17:0"` is seed 17."""
    number, repeat = parse_seed(seed)
    return torch.Generator("cpu").manual_seed(derived_seed(number, "repeat", repeat) if repeat else number)


@dataclass(frozen=True)
class SeededNoise:
    """A noise source for a batch: row b belongs to seeds[b]."""

    seeds: tuple[Seed, ...]

    def __init__(self, seeds: Sequence[Seed]):
        object.__setattr__(self, "seeds", tuple(f"{n}:{r}" if r else n for n, r in map(parse_seed, seeds)))

    def initial(self, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        """(B, *shape) unit noise; `shape` is that of one picture."""
        return torch.stack([torch.randn(*shape, generator=generator_of(s), dtype=dtype) for s in self.seeds])

    def generators(self, purpose: str, step: int) -> list[torch.Generator]:
        """One fresh generator a row for this purpose and step."""
        return [torch.Generator("cpu").manual_seed(derived_seed(s, purpose, step)) for s in self.seeds]

    def draw(self, purpose: str, step: int, like: Tensor) -> Tensor:
        """Unit noise in the shape, dtype and device of `like` (B, ...)."""
        if like.shape[0] != len(self.seeds):
            raise UsageError(f"{len(self.seeds)} seeds for {like.shape[0]} rows; give one seed a picture")
        rows = [torch.randn(*like.shape[1:], generator=g, dtype=like.dtype) for g in self.generators(purpose, step)]
        return torch.stack(rows).to(like.device)
