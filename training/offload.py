"""Activations that wait in the computer's memory until the backward pass wants them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def activations_on_cpu(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Inside, what autograd keeps goes to the computer's memory and comes back when it is used; all but the weights of
    these modules, which are there anyway. (torch's `save_on_cpu` takes those along, a whole network each pass.)"""
    held = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
    weights = {tensor.untyped_storage().data_ptr() for tensor in held}

    def pack(tensor: Tensor) -> Any:
        if tensor.untyped_storage().data_ptr() in weights:
            return tensor
        away = torch.empty(tensor.size(), dtype=tensor.dtype, layout=tensor.layout, pin_memory=tensor.is_cuda)
        away.copy_(tensor)
        return tensor.device, away

    def unpack(packed: Any) -> Tensor:
        if isinstance(packed, Tensor):
            return packed
        device, away = packed
        back: Tensor = away.to(device, non_blocking=True)
        return back

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield
