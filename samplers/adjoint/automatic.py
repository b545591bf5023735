"""The method that fits a run: exact always, and the fastest whose states fit into a quarter of the free memory."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor

from .chain import Chain, ReversibleChain
from .checkpoint import Checkpoint
from .full import Full
from .method import Method
from .reversible import Reversible
from .segments import Segments, root

SHARE = 0.25  # of the free memory that states may take; activations and gradients need the rest
TENSORS = 3  # a state is x and, mostly, one tensor each of history and of a rule's memory


def chosen(chain: Chain, x: Tensor, free: float | None = None) -> tuple[Method, str]:
    """The method for x (B, ...) and why. free: bytes; None asks the device."""
    steps = chain.steps(chain.begin(x))
    if steps <= 1:
        return Full(), "one step: nothing to save"
    room = SHARE * (free_bytes(x.device) if free is None else free)
    state = TENSORS * x.numel() * max(x.element_size(), 4)
    what = f"{steps} states of {megabytes(state)} in {megabytes(room)}"
    if steps * state <= room:
        return Checkpoint(), f"{what}: all fit"
    if isinstance(chain, ReversibleChain) and chain.method.exact:
        return Reversible(), f"{what}: too many, and the steps can be undone"
    if 2 * root(steps) * state <= room:
        return Segments(), f"{what}: only their root fits"
    return Segments(width=2), f"{what}: only their logarithm fits"


def free_bytes(device: torch.device) -> float:
    """Free memory of the device; of the machine where the device does not say, and without bound where nobody does."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    names: Any = getattr(os, "sysconf_names", {})
    if {"SC_AVPHYS_PAGES", "SC_PAGE_SIZE"} <= set(names):
        return float(os.sysconf("SC_AVPHYS_PAGES")) * os.sysconf("SC_PAGE_SIZE")
    return float("inf")


def megabytes(count: float) -> str:
    return f"{count / 2**20:.3g} MB"
