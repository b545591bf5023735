"""What a run will need of the device's memory, before it starts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .learner import Learner
from .optimisers import BYTES
from .spec import TrainingSpec


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes. weights: of everything that is loaded. training: gradients, the optimiser's state and an average.

    step: what a step of the network leaves for its backward pass, with the states of the run. decode: the same of the
    VAE. The two are not there together. A step is recorded once with one row and multiplied; rewards that bring a
    network of their own come on top, and so does what the kernels use for a moment.
    """

    weights: int
    training: int
    step: int
    decode: int

    @property
    def peak(self) -> int:
        return self.weights + self.training + max(self.step, self.decode)

    def lines(self) -> list[str]:
        """For the terminal."""
        parts = {
            "weights": self.weights,
            "gradients and optimiser": self.training,
            "a step of the network, and the states": self.step,
            "decoding": self.decode,
            "peak, about": self.peak,
        }
        return [f"{name}: {spelled(value)}" for name, value in parts.items()]


def spelled(size: float) -> str:
    """1.2 GB, 340 MB."""
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def plan(learner: Learner, spec: TrainingSpec, modules: list[nn.Module]) -> MemoryPlan:
    """For one checkpoint a step, as most methods compute gradients: the activations of one step at a time.

    modules: what is loaded beside the learner's parameters, such as a pipeline's parts.
    """
    known = {id(p): p for module in modules for p in (*module.parameters(), *module.buffers())}
    known |= {id(p): p for p in learner.parameters}
    trained = sum(p.numel() for p in learner.parameters)
    levels, rows = learner.levels(spec.sampling.grid, spec.steps), spec.rows
    x = learner.start(["0"], levels).requires_grad_()
    denoiser = learner.denoiser([""], spec.guidance)
    kept = {p.untyped_storage().data_ptr() for p in known.values()}
    one = saved_bytes(lambda: denoiser(x, levels[0]).native, kept)
    picture = saved_bytes(lambda: _undecorated(learner)(x), kept)
    states = (spec.steps + 1) * x.numel() * x.element_size() * rows
    return MemoryPlan(
        weights=sum(p.numel() * p.element_size() for p in known.values()),
        training=trained * (4 + BYTES[spec.optimizer] + (4 if spec.ema else 0)),
        step=(0 if spec.offload else one * rows) + states,
        decode=0 if spec.offload else picture * rows,
    )


def _undecorated(learner: Learner) -> Callable[[Tensor], Tensor]:
    """The decoder inside its checkpoint: the backward pass holds all of it for a while."""
    inner: Any = getattr(learner, "_decode", learner.decode)
    decode: Callable[[Tensor], Tensor] = inner
    return decode


def saved_bytes(function: Callable[[], Tensor], kept: set[int]) -> int:
    """Bytes that autograd keeps of a function for its backward pass, each storage once. kept: places left out."""
    seen: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in kept:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = function()
    del out
    return sum(seen.values())
