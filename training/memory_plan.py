"""What a run will need of the device's memory, before it starts: alone, or with weights sharded over processes.

FSDP2 cuts a tensor along its first dimension into equal pieces, the last padded. With N processes one holds of

    weights that are cut        ceil(rows / N) rows of each
    their gradients             the same in float32
    the optimiser's state       8 bytes for each of those numbers (AdamW), and 4 where an average is kept
    what is gathered            all that is in no block; for a moment a few blocks, and their gradients where they
                                learn, until each process has its piece (`gathered_bytes`)

and all of what is not cut. Adam's count of steps, 4 bytes a tensor in the computer's memory, is left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .learner import Learner
from .optimisers import BYTES
from .sharding import is_part, is_sharded, let_go
from .spec import TrainingSpec

_FUNCTION = "_gradient_checkpointing_func"  # how diffusers' modules call the one that stores a block's inputs only


@dataclass(frozen=True)
class Sharded:
    """What is cut among processes. tensors: those that are, or will be; of either the size of the whole counts.
    gathered: bytes, as `gathered_bytes` counts them. offload: the pieces, their gradients and their optimiser wait in
    the computer's memory."""

    processes: int = 1
    tensors: Sequence[Tensor] = ()
    gathered: int = 0
    offload: bool = False

    @classmethod
    def found(cls, modules: Sequence[nn.Module], device: torch.device) -> Sharded:
        """In modules whose networks are sharded already; those that are not count as whole. What a pass has left put
        together is let go."""
        for module in modules:
            if is_sharded(module):
                let_go(module)
        tensors: list[Any] = [p for module in modules for p in module.parameters() if is_part(p)]
        if not tensors:
            return cls()
        first = tensors[0]
        sizes = [n for n, placed in zip(first.device_mesh.shape, first.placements, strict=True) if placed.is_shard()]
        networks = [(module, _fully_sharded(module)) for module in modules if is_sharded(module)]
        return cls(math.prod(sizes), tensors, gathered_bytes(networks), first.to_local().device.type != device.type)

    def bytes_of(self, tensors: Iterable[Tensor], each: int | None = None) -> tuple[int, int]:
        """(on the device, in the computer's memory) of the first process, which has the largest pieces. each: bytes a
        number, those of the tensor by default."""
        cut, device, host = {id(tensor) for tensor in self.tensors}, 0, 0
        for tensor in tensors:
            is_cut = id(tensor) in cut
            size = piece(tensor, self.processes if is_cut else 1) * (each or tensor.element_size())
            device, host = (device, host + size) if is_cut and self.offload else (device + size, host)
        return device, host


def _fully_sharded(network: nn.Module) -> list[nn.Module]:
    """The blocks that FSDP puts together one by one."""
    from torch.distributed.fsdp import FSDPModule

    return [part for part in network.modules() if isinstance(part, FSDPModule) and part is not network]


def piece(tensor: Tensor, processes: int) -> int:
    """Numbers in the largest part of a tensor that is cut along its first dimension."""
    rows = tensor.shape[0] if tensor.dim() else 1
    return math.ceil(rows / processes) * (tensor.numel() // rows if rows else 0)


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes of one process. weights: of everything that is loaded. training: gradients, the optimiser's state and an
    average. gathered: whole for a moment of what is sharded. updating: what the optimiser uses while it steps. host:
    pieces in the computer's memory, of one process.

    step: what a step of the network leaves for its backward pass, with the states of the run, and the activations of
    the largest block that is computed again. decode: the same of the VAE. The two are not there together. A step is
    recorded once with one row and multiplied; rewards that bring a network of their own come on top, and so does what
    the kernels use for a moment.
    """

    weights: int
    training: int
    step: int
    decode: int
    gathered: int = 0
    updating: int = 0
    host: int = 0

    @property
    def peak(self) -> int:
        return self.weights + self.training + max(max(self.step, self.decode) + self.gathered, self.updating)

    def lines(self) -> list[str]:
        """For the terminal."""
        parts = {
            "weights": self.weights,
            "gradients and optimiser": self.training,
            "a step of the network, and the states": self.step,
            "gathered for a moment": self.gathered,
            "decoding": self.decode,
            "while the optimiser steps": self.updating,
            "peak, about": self.peak,
            "in the computer's memory, a process": self.host,
        }
        always = list(parts)[:3]
        return [f"{name}: {spelled(value)}" for name, value in parts.items() if value or name in always]


def spelled(size: float) -> str:
    """1.2 GB, 340 MB."""
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def plan(
    learner: Learner,
    spec: TrainingSpec,
    modules: Sequence[nn.Module],
    *,
    further: Sequence[nn.Parameter] = (),
    guidance: str | None = None,
) -> MemoryPlan:
    """For one checkpoint a step, as most methods compute gradients: the activations of one step at a time.

    modules: what is loaded beside the learner's parameters, such as a pipeline's parts. further: what learns beside
    them, such as a fake's and a head's parameters, of which no average is kept. guidance: that is trained through, the
    spec's by default. Where networks are sharded all processes must ask, for the network is called.
    """
    sharded = Sharded.found(modules, learner.device)
    held = [*learner.parameters, *further, *(t for m in modules for t in (*m.parameters(), *m.buffers()))]
    states = (spec.steps + 1) * math.prod(learner.shape) * 4 * spec.rows
    return of_parts(
        held,
        [*further, *([] if spec.ema else learner.parameters)],
        spec.optimizer,
        averaged=learner.parameters if spec.ema else (),
        step=states + _step(learner, spec, held, spec.guidance if guidance is None else guidance),
        decode=_decoding(learner, spec, held) * spec.rows,
        sharded=sharded,
    )


def of_parts(
    held: Iterable[Tensor],
    learning: Sequence[Tensor],
    optimiser: str = "adamw",
    *,
    averaged: Sequence[Tensor] = (),
    step: int = 0,
    decode: int = 0,
    sharded: Sharded = Sharded(),
) -> MemoryPlan:
    """The arithmetic alone, of tensors that may be on the meta device.

    held: every tensor that is loaded, some perhaps twice. learning: those of them that learn; averaged: further ones,
    of which an average is kept. step, decode: bytes of activations.
    """
    state = 4 + BYTES[optimiser]  # with the gradient
    weights, pieces = sharded.bytes_of({id(tensor): tensor for tensor in held}.values())
    plain, plain_pieces = sharded.bytes_of(learning, state)
    kept, kept_pieces = sharded.bytes_of(averaged, state + 4)
    updating, _ = sharded.bytes_of([*learning, *averaged], 4)  # the square root of the second moments, of all at once
    host = pieces + plain_pieces + kept_pieces
    return MemoryPlan(weights, plain + kept, step, decode, sharded.gathered, updating, host)


def gathered_bytes(networks: Iterable[tuple[nn.Module, Sequence[nn.Module]]]) -> int:
    """Bytes that are whole at once, of (network, its blocks), sharded or before it and then without adapters. One
    network is at work at a time.

    All that is in none of its blocks; for a moment three blocks, the one at work, the buffer that it came in and the
    one fetched meanwhile; of what learns two blocks, with gradients. Blocks may contain each other: a tensor belongs to
    the innermost.
    """
    most = [0]
    for network, blocks in networks:
        *inside, (rest, rest_learns) = _groups(network, blocks)
        sizes, learning = sorted(size for size, _ in inside), sorted(size for size, learns in inside if learns)
        most.append(rest * (2 if rest_learns else 1) + max(sum(sizes[-3:]), 2 * sum(learning[-2:])))
    return max(most)


def _groups(network: nn.Module, blocks: Sequence[nn.Module]) -> list[tuple[int, bool]]:
    """(bytes, do they learn?) of what is put together at once: each block, the inner ones first, and the rest."""
    parts = [parameter for parameter in network.parameters() if is_part(parameter)]
    chosen, left = {id(block) for block in blocks}, {id(parameter) for parameter in parts or network.parameters()}
    found = []
    for module in reversed(list(network.modules())):  # children come after their parents
        if id(module) in chosen or module is network:
            own = [parameter for parameter in module.parameters() if id(parameter) in left]
            found.append((sum(p.numel() * p.element_size() for p in own), any(p.requires_grad for p in own)))
            left -= {id(parameter) for parameter in own}
    return found


# -- activations -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Step:
    """Bytes of a step of the network. stored: for its backward pass. again: of the largest block that is computed again
    meanwhile, where the network stores its blocks' inputs only; these never wait in the computer's memory."""

    stored: int
    again: int

    @property
    def both(self) -> int:
        return self.stored + self.again


def step_of(function: Callable[[], Tensor], network: Any, kept: Iterable[Tensor]) -> Step:
    """Of a function that calls a network. kept: tensors that are there anyway."""
    kept = list(kept)
    with _watched(network, kept) as blocks:
        stored = saved_bytes(function, kept, network)
    return Step(stored, max(blocks.values(), default=0))


def _step(learner: Learner, spec: TrainingSpec, held: Sequence[Tensor], guidance: str) -> int:
    """Of the rows that go through the network together."""
    one = _of_rows(learner, spec, held, guidance, 1)
    more = one.stored
    if spec.train == "all" and spec.precision != "no" and spec.rows > 1:  # weights in half precision, once for all rows
        more = _of_rows(learner, spec, held, guidance, 2).stored - one.stored
    stored = one.stored + (spec.rows - 1) * more
    return (0 if spec.offload else stored) + spec.rows * one.again


def _of_rows(learner: Learner, spec: TrainingSpec, held: Sequence[Tensor], guidance: str, rows: int) -> Step:
    levels = learner.levels(spec.sampling.grid, spec.steps)
    x = learner.start([str(i) for i in range(rows)], levels).requires_grad_()
    denoiser = learner.denoiser([""] * rows, guidance)
    return step_of(lambda: denoiser(x, levels[0]).native, getattr(learner, "network", None), held)


def _decoding(learner: Learner, spec: TrainingSpec, held: Sequence[Tensor]) -> int:
    """Of one row. A decoder in a checkpoint is computed again as a whole in the backward pass."""
    inner: Any = getattr(learner, "_decode", None)
    if inner is None and spec.offload:
        return 0
    x = torch.zeros(1, *learner.shape, device=learner.device, requires_grad=True)
    vae = getattr(getattr(learner, "model", None), "vae", None)
    return step_of(lambda: (inner or learner.decode)(x), vae, held).both


@contextmanager
def _watched(network: Any, kept: Sequence[Tensor]) -> Iterator[dict[Any, int]]:
    """Inside, blocks of which the network stores the inputs only are also run with everything kept, one of each kind
    and size; how many bytes that is."""
    sizes: dict[Any, int] = {}
    parts = [part for part in network.modules() if hasattr(part, _FUNCTION)] if isinstance(network, nn.Module) else []
    before = [getattr(part, _FUNCTION) for part in parts]

    def watching(function: Callable[..., Any]) -> Callable[..., Any]:
        def run(block: Any, *inputs: Any, **further: Any) -> Any:
            kind = type(block), *(tuple(i.shape) for i in inputs if isinstance(i, Tensor))
            if kind not in sizes:
                sizes[kind] = saved_bytes(lambda: block(*inputs), kept)
            return function(block, *inputs, **further)

        return run

    for part, function in zip(parts, before):
        setattr(part, _FUNCTION, watching(function))
    try:
        yield sizes
    finally:
        for part, function in zip(parts, before):
            setattr(part, _FUNCTION, function)


def saved_bytes(function: Callable[[], Any], kept: Iterable[Tensor] = (), network: Any = None) -> int:
    """Bytes that autograd keeps of a function for its backward pass, each storage once. kept: tensors left out, such as
    weights, which are there anyway. network: whose weights may be put together meanwhile; they are left out too."""
    own = _storages(kept)
    seen: dict[int, Any] = {}  # of storages that are alive, so that no address is used twice

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        seen[storage._cdata] = storage
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = function()
    del out
    own |= _storages(network.parameters() if isinstance(network, nn.Module) else ())
    return sum(storage.nbytes() for key, storage in seen.items() if key not in own)


def _storages(tensors: Iterable[Tensor]) -> set[int]:
    return {getattr(tensor, "_local_tensor", tensor).untyped_storage()._cdata for tensor in tensors}
