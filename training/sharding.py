"""Weights sharded over the processes, so that no GPU holds a whole network: FSDP of torch, set up as accelerate is.

    accelerate launch --config_file configs/accelerate/fsdp.yaml -m pilotage finetune --preset finetune-flux ...

Each process keeps a part of every weight; a block of the network is put together when it is called and let go after it
(ZeRO stage 3, Rajbhandari et al. 2019, arXiv 1910.02054; FSDP, Zhao et al. 2023, arXiv 2304.11277). With adapters the
frozen weights are sharded, and what learns is small, whole everywhere and averaged as ever. Where all weights learn,
their gradients, average and optimiser's state are sharded too.

A block is put together by all processes at once: all must call a network equally often, or they wait for each other for
ever. What cannot promise that is refused.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UsageError

ASKED, OTHERS = (
    "ACCELERATE_USE_FSDP",
    {"ACCELERATE_USE_DEEPSPEED": "DeepSpeed", "ACCELERATE_USE_MEGATRON_LM": "Megatron"},
)
FIX = "launch with configs/accelerate/fsdp.yaml"


def _is_on(variable: str) -> bool:
    return os.environ.get(variable, "false").lower() in ("true", "1")


def refuse_other_engines() -> None:
    """UsageError for engines that own the backward pass and the step: an update here has several losses, and several
    optimisers over one network."""
    for variable, name in OTHERS.items():
        if _is_on(variable):
            raise UsageError(f"{name} takes one loss and one optimiser a network, and trainings here have several; "
                             f"{FIX}, which shards as much")  # fmt: skip


@dataclass(frozen=True, eq=False)
class Sharding:
    """device: where a process computes. mesh: the processes, (N,), or (copies, N) where hosts hold a copy each.

    policy: torch's, of where parts wait. blocks: names of classes that are put together as one, those of the network's
    own class by default.
    """

    device: torch.device
    mesh: Any
    policy: Any = None
    blocks: Sequence[str] = ()

    @classmethod
    def found(cls, accelerator: Any) -> Sharding | None:
        """What accelerate was told, by its file or its variables; None for whole weights. UsageError for version 1."""
        if not _is_on(ASKED) or accelerator.num_processes == 1:
            return None
        from accelerate import FullyShardedDataParallelPlugin

        told = FullyShardedDataParallelPlugin()
        _refuse(told)
        names = told.transformer_cls_names_to_wrap or ()
        return cls(accelerator.device, _mesh(accelerator), told.cpu_offload or None, tuple(names))

    def place(self, pipe: Any, networks: Sequence[nn.Module]) -> None:
        """Shard these networks, block by block from the computer's memory, and put everything else of the pipeline
        onto the device, whole."""
        for network in networks:
            self.shard(network)
        for part in pipe.components.values():
            if isinstance(part, nn.Module) and not is_sharded(part):
                part.to(self.device)
        if torch.device(pipe.device).type != self.device.type:
            raise UsageError(f"{type(pipe).__name__} computes where its network waits; leave fsdp_offload_params out")

    def shard(self, network: nn.Module) -> None:
        """In place. UsageError for a network without such blocks."""
        from torch.distributed.fsdp import fully_shard

        further = {} if self.policy is None else {"offload_policy": self.policy}
        for part in (*self._blocks_of(network), network):
            fully_shard(part, mesh=self.mesh, reshard_after_forward=True, **further)

    def _blocks_of(self, network: nn.Module) -> list[nn.Module]:
        """Inner ones before those around them."""
        own = getattr(network, "_no_split_modules", None) or getattr(network, "_repeated_blocks", None)
        names = self.blocks or own or ()
        found = [part for part in network.modules() if type(part).__name__ in names and part is not network]
        if not found or set(self.blocks) - {type(part).__name__ for part in found}:
            raise UsageError(f"{type(network).__name__} has no blocks called {', '.join(names) or 'anything'}; name "
                             "their classes with fsdp_transformer_layer_cls_to_wrap")  # fmt: skip
        return found[::-1]

    def check(
        self, method: Any, guidance: str, precision: str, optimizer: str = "adamw", offload: bool = False
    ) -> None:
        """UsageError for what calls a network more often on one process than on another, and for what cannot stand
        parts of weights."""
        from ..guidance.compose import parts_of
        from ..guidance.grammar import parse

        if optimizer != "adamw":
            raise UsageError(f"{optimizer} is not known to work on parts of weights; take optimizer=adamw")
        if offload:
            raise UsageError("offload would take the weights along that a call puts together; give --set offload=false")
        if precision == "fp16":
            raise UsageError("fp16 scales its losses over whole gradients; with sharded weights take precision=bf16")
        if not method.alike:
            name = type(method).__name__
            raise UsageError(f"{name} asks the network more often on one process than on another, and sharded "
                             "weights need equal calls; take another method, or launch without FSDP")  # fmt: skip
        rules, modifiers = parts_of(parse(guidance))
        if any(part.selective for part in (*rules, *modifiers)):
            raise UsageError(f"{guidance!r} decides by the pictures whether it asks the network, and sharded "
                             "weights need equal calls; take a rule that decides by the step")  # fmt: skip

    def check_prompts(self, learner: Any, rows: int) -> None:
        """UsageError for a model whose prompts go through the network one by one where their lengths differ."""
        if rows > 1 and learner.has_lengths(["", "a text of several words, so that it is longer"]):
            raise UsageError("prompts of different lengths go through this network one by one, and sharded weights "
                             "need equal calls on all processes; give rows=1")  # fmt: skip


def _refuse(told: Any) -> None:
    """UsageError for what accelerate's settings cannot say here, with what they should."""
    should = {
        "fsdp_version: 2": (told.fsdp_version == 2, "version 1 has one precision for frozen and trained weights"),
        "fsdp_reshard_after_forward: true": (
            bool(told.reshard_after_forward), "a look at averaged weights would leave them behind"
        ),
        "fsdp_cpu_ram_efficient_loading: false": (
            not told.cpu_ram_efficient_loading, "text encoders are whole everywhere, and would be read by one process"
        ),
        "fsdp_activation_checkpointing: false": (
            not told.activation_checkpointing, "say network_checkpoints: true in the spec instead"
        ),
    }  # fmt: skip
    for setting, (holds, why) in should.items():
        if not holds:
            raise UsageError(f"accelerate's file needs {setting} ({why}); or {FIX}")


def _mesh(accelerator: Any) -> Any:
    """accelerate's, where it was given sizes of copies and parts; otherwise one part for each process."""
    asked = getattr(accelerator, "parallelism_config", None)
    made = getattr(accelerator, "torch_device_mesh", None)
    if asked is not None and made is not None:
        return made[tuple(asked.fsdp_dim_names)]
    from torch.distributed.device_mesh import init_device_mesh

    return init_device_mesh(accelerator.device.type, (accelerator.num_processes,))


# -- tensors of which every process has a part ---------------------------------------------------------------------


def is_part(tensor: Any) -> bool:
    """Is it a tensor of which every process has a part?"""
    if not torch.distributed.is_available():
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def is_sharded(network: nn.Module) -> bool:
    return any(map(is_part, network.parameters()))


def full(tensor: Tensor) -> Tensor:
    """The tensor that the parts of all processes make; all must ask."""
    return tensor.full_tensor() if is_part(tensor) else tensor  # type: ignore[attr-defined, unused-ignore]


def gathered(tree: Any, keep: bool = True) -> Any:
    """A tree of plain data with its tensors whole, those that lay in parts in the computer's memory; all must ask.
    Without keep their places stay empty: only one process has room for all of them."""

    def put_together(part: Tensor) -> Tensor:
        found = full(part.detach())
        return found.cpu() if keep else torch.empty(0)

    return _exchanged(tree, put_together)


def without_parts(tree: Any) -> Any:
    """A tree of plain data with nothing where tensors lie in parts."""
    return _exchanged(tree, lambda part: torch.empty(0))


def _exchanged(tree: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same with the tensors exchanged that lie in parts."""
    if isinstance(tree, Mapping):
        return {name: _exchanged(value, change) for name, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return type(tree)(_exchanged(value, change) for value in tree)
    return change(tree) if is_part(tree) else tree


def part_like(value: Tensor, like: Tensor) -> Tensor:
    """Of a whole tensor what `like` holds of its own; nothing is sent."""
    if not is_part(like) or is_part(value):
        return value
    from torch.distributed.tensor import distribute_tensor

    mesh, placements = like.device_mesh, like.placements  # type: ignore[attr-defined, unused-ignore]
    return distribute_tensor(value.to(like.device), mesh, placements, src_data_rank=None)


def let_go(network: nn.Module) -> None:
    """What a call left put together that did not come to its end."""
    from torch.distributed.fsdp import FSDPModule

    if isinstance(network, FSDPModule) and network._get_fsdp_state()._is_root is not None:  # once it was called
        network.reset_iter_state()


def make_whole(network: nn.Module, keep: bool) -> None:
    """A sharded network as it was before, in the computer's memory, to be saved and not to be called; all must ask.
    Without keep it has no weights any more."""
    let_go(network)
    for part in list(network.modules()):
        for name, parameter in list(part._parameters.items()):
            if parameter is not None and is_part(parameter):
                part._parameters[name] = nn.Parameter(gathered(parameter, keep), requires_grad=False)
        part.__class__ = _plain_class(type(part))


def _plain_class(cls: type) -> type:
    """fully_shard gives each module a class of its own: (FSDPModule, the class before)."""
    from torch.distributed.fsdp import FSDPModule

    return cls.__bases__[1] if cls.__bases__[:1] == (FSDPModule,) else cls
