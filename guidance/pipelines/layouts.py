"""How x and predictions lie in a network's arguments and outputs: one tensor of rows, or a list of samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from torch import Tensor

from .adapter import Adapter, Arguments


@dataclass(frozen=True)
class Layout:
    """channels: of x; further channels of the input (mask, picture) and of the output (learned sigma) are kept apart.
    None where x is packed into tokens. given: channels of the output."""

    adapter: Adapter
    channels: int | None
    given: int | None

    @classmethod
    def of(cls, adapter: Adapter, module: Any) -> Layout:
        taken = getattr(module.config, "in_channels", None)
        given = getattr(module.config, "out_channels", None) or taken
        return cls(adapter, min(taken, given) if taken and given else None, given)

    @property
    def listed(self) -> bool:
        return self.adapter.layout == "listed"

    def x_of(self, arguments: Arguments, index: Sequence[int]) -> Tensor:
        """x (B, ...) of these rows, in the shape that the scheduler sees."""
        sample = arguments[self.adapter.sample]
        if self.listed:
            return torch.stack([sample[i] for i in index]).squeeze(2)
        return self.split(pick(sample, index))[0]

    def split(self, tensor: Tensor) -> tuple[Tensor, Tensor | None]:
        """The channels of x, and the others if there are any."""
        if tensor.dim() < 4 or self.channels is None or tensor.shape[1] == self.channels:
            return tensor, None
        return tensor[:, : self.channels], tensor[:, self.channels :]

    def with_x(self, arguments: Arguments, x: Tensor) -> Arguments:
        """The arguments of rows with another x in them."""
        name = self.adapter.sample
        sample = arguments[name]
        if self.listed:
            return {**arguments, name: [row.unsqueeze(1).to(sample[0].dtype) for row in x]}
        rest = self.split(sample)[1]
        x = x.to(sample.dtype)
        return {**arguments, name: x if rest is None else torch.cat([x, rest], 1)}

    def native_of(self, output: Any) -> tuple[Tensor, Tensor | None]:
        """The prediction in the scheduler's terms, and the further channels of the output."""
        raw = output[0] if isinstance(output, (tuple, list)) else output.sample
        if self.listed:
            native, rest = torch.stack([t.float() for t in raw]).squeeze(2), None
        else:
            native, rest = self.split(raw)
        return (-native if self.adapter.flip else native), rest

    def output_of(self, native: Tensor, copies: int, rest: Tensor | None, arguments: Arguments) -> Any:
        """What the pipeline expects back: the same prediction for every branch."""
        if self.adapter.flip:
            native = -native
        if self.listed:
            answer: Any = list(native.unsqueeze(2)) * copies
        else:
            lacking = 0 if self.channels is None or self.given is None else self.given - self.channels
            if lacking > 0 and native.dim() >= 4:
                rest = rest if rest is not None else native.new_zeros(len(native), lacking, *native.shape[2:])
                native = torch.cat([native, rest.to(native.dtype)], 1)
            answer = native if copies == 1 else native.repeat(copies, *[1] * (native.dim() - 1))
        return Transformer2DModelOutput(sample=answer) if arguments.get("return_dict", True) else (answer,)


def pick(tensor: Tensor, index: Sequence[int]) -> Tensor:
    """Rows of a tensor; a view when they lie together."""
    if is_range(index):
        return tensor[index[0] : index[0] + len(index)]
    return tensor.index_select(0, torch.as_tensor(index, device=tensor.device))


def is_range(index: Sequence[int]) -> bool:
    return isinstance(index, range) or all(b - a == 1 for a, b in zip(index, index[1:], strict=False))


def pick_rows(tree: Any, index: Sequence[int], rows: int, listed: bool = False) -> Any:
    """Rows of every tensor in a tree whose leading size is `rows`; with `listed`, of every list of `rows` samples."""
    if isinstance(tree, Tensor):
        return pick(tree, index) if tree.dim() and tree.shape[0] == rows else tree
    if isinstance(tree, dict):
        return {k: pick_rows(v, index, rows, listed) for k, v in tree.items()}
    if isinstance(tree, (list, tuple)):
        if listed and len(tree) == rows:
            return type(tree)(tree[i] for i in index)
        return type(tree)(pick_rows(t, index, rows, listed) for t in tree)
    return tree


def match_time(time: Any, times: Sequence[float], to_network: Callable[[float], float]) -> int:
    """Where in the scheduler's list a network's time stands (the first place, where it stands twice)."""
    value = float(time.reshape(-1)[0]) if isinstance(time, Tensor) else float(time)
    return min(range(len(times)), key=lambda i: abs(to_network(times[i]) - value))
