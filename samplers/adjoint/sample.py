"""One call for a sample that can be differentiated."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...errors import UsageError
from ...grammar import name_and_settings
from ..denoiser import Denoiser
from ..grids import make_grid
from ..inversion.registry import INVERSIONS, make_inversion
from ..inversion.reversible import ReversibleStep
from ..noise import SeededNoise
from ..registry import make_sampler
from ..sampler import Sampler
from .automatic import chosen
from .chain import Chain, ReversibleChain, SamplerChain
from .full import Full
from .method import Method
from .parameters import wanted
from .registry import make_method


@dataclass
class Record:
    """What `sample` did: the method, and why it was chosen."""

    method: Method | None = None
    reason: str = ""


def sample(
    denoiser: Denoiser,
    x: Tensor,
    *,
    method: str | Method = "auto",
    sampler: str | Sampler | ReversibleStep = "dpmpp-2m",
    grid: Any = "karras",
    steps: int = 20,
    condition: Any = None,
    noise: SeededNoise | None = None,
    parameters: Iterable[Tensor] | None = None,
    record: Record | None = None,
    **settings: Any,
) -> Tensor:
    """x (B, ...) at the end of the run, attached to autograd: loss(x_0).backward() gives gradients in x, in the
    tensors of the condition and in parameters.

    x: (B, ...) at the grid's first level. method: a name of `METHODS`, with settings here or in the line, or "auto".
    sampler: of `samplers.SAMPLERS`, or for "reversible" of `samplers.inversion.INVERSIONS`. parameters: those of the
    networks that need a gradient; None finds them in the denoiser, () says that there are none. record: told the method
    and why. A guided denoiser's rule takes the same decisions on the way back, for they are in the state; what a rule
    computes without a graph (a gradient rule's own gradient, which rows are skipped) is a constant. Half-precision x
    runs in float32. Under no_grad, a plain run. Raises UsageError for a run that the method cannot differentiate.
    """
    chain = chain_of(denoiser, sampler, make_grid(grid, denoiser.schedule, steps), condition, noise, parameters)
    if method == "auto":
        if settings:
            raise UsageError(f"{next(iter(settings))} is a setting of one method: name it with method=")
        made, reason = chosen(chain, x)
    else:
        made, reason = make_method(method, **settings), "asked for"
    if record is not None:
        record.method, record.reason = made, reason
    return made.sample(chain, x) if torch.is_grad_enabled() else Full().sample(chain, x)


def chain_of(
    denoiser: Denoiser,
    sampler: str | Sampler | ReversibleStep,
    levels: Any,
    condition: Any = None,
    noise: SeededNoise | None = None,
    parameters: Iterable[Tensor] | None = None,
) -> Chain:
    """The run as a chain of steps."""
    found = wanted(denoiser, condition, parameters)
    by_hand = parameters is not None
    if isinstance(sampler, str) and name_and_settings(sampler)[0] in INVERSIONS:
        sampler = make_inversion(sampler)
    if isinstance(sampler, ReversibleStep):
        return ReversibleChain(denoiser, levels, condition, found, by_hand, method=sampler)
    return SamplerChain(denoiser, levels, condition, found, by_hand, sampler=make_sampler(sampler), noise=noise)
