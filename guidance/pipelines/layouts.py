"""How x and predictions lie in a network's arguments and outputs: one tensor of rows, or a list of samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
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
    pipe: Any = None

    @classmethod
    def of(cls, adapter: Adapter, module: Any, pipe: Any = None) -> Layout:
        taken = getattr(module.config, "in_channels", None)
        given = getattr(module.config, "out_channels", None) or taken
        return cls(adapter, min(taken, given) if taken and given else None, given, pipe)

    @property
    def listed(self) -> bool:
        return self.adapter.layout == "listed"

    def x_of(self, arguments: Arguments, index: Sequence[int]) -> Tensor:
        """x (B, ...) of these rows, in the shape that the scheduler sees."""
        sample = arguments[self.adapter.sample]
        if self.listed:
            return torch.stack([drawn(sample[i]) for i in index]).squeeze(2)
        x = self.split(pick(sample, index))[0]
        return x if self.adapter.part is None else self._part(x).clone()  # for some pipelines write into theirs

    def _part(self, tensor: Tensor) -> Tensor:
        """A view of what the scheduler steps."""
        return tensor if self.adapter.part is None else self.adapter.part(self.pipe, tensor)

    def _whole(self, part: Tensor, like: Tensor) -> Tensor:
        """A tensor like `like` with the scheduler's part replaced."""
        if self.adapter.part is None:
            return part.to(like.dtype)
        whole = like.clone()
        self._part(whole).copy_(part)
        return whole

    def split(self, tensor: Tensor) -> tuple[Tensor, Tensor | None]:
        """The channels of x, and the others if there are any."""
        axis, count = self.adapter.channel_axis, self._channels_of(tensor)
        if count is None or tensor.shape[axis] == count:
            return tensor, None
        return tensor.narrow(axis, 0, count), tensor.narrow(axis, count, tensor.shape[axis] - count)

    def _channels_of(self, tensor: Tensor) -> int | None:
        if self.adapter.channels is not None:
            return self.adapter.channels(self.pipe, tensor)
        return self.channels if tensor.dim() >= 4 else None

    def beyond(self, output: Tensor, native: Tensor) -> Tensor | None:
        """What the pipeline hands to the scheduler besides the prediction: a learned variance."""
        axis = self.adapter.channel_axis
        if native.dim() <= axis or output.dim() != native.dim() or output.shape[axis] <= native.shape[axis]:
            return None
        return output.narrow(axis, native.shape[axis], output.shape[axis] - native.shape[axis])

    def with_x(self, arguments: Arguments, x: Tensor) -> Arguments:
        """The arguments of rows with another x in them."""
        name = self.adapter.sample
        sample = arguments[name]
        if self.listed:
            return {**arguments, name: [redrawn(s, row.unsqueeze(1)) for s, row in zip(sample, x, strict=True)]}
        before, rest = self.split(sample)
        x = self._whole(x, before)
        return {**arguments, name: x if rest is None else torch.cat([x, rest], self.adapter.channel_axis)}

    def native_of(self, output: Any) -> tuple[Tensor, Tensor | None]:
        """The prediction in the scheduler's terms, and the further channels of the output."""
        raw = output[0] if isinstance(output, (tuple, list)) else getattr(output, self.adapter.answer)
        if self.listed:
            native, rest = torch.stack([t.float() for t in raw]).squeeze(2), None
        else:
            native, rest = self.split(raw)
            native = self._part(native)
        return (-native if self.adapter.flip else native), rest

    def output_of(self, native: Tensor, copies: int, rest: Tensor | None, arguments: Arguments) -> Any:
        """What the pipeline expects back: the same prediction for every branch."""
        if self.adapter.flip:
            native = -native
        if self.listed:
            answer: Any = list(native.unsqueeze(2)) * copies
        else:
            if self.adapter.part is not None:
                native = self._whole(native, self.split(arguments[self.adapter.sample][: len(native)])[0])
            rest = self._nothing(native) if rest is None else rest
            if rest is not None:
                native = torch.cat([native, rest.to(native.dtype)], self.adapter.channel_axis)
            answer = native if copies == 1 else native.repeat(copies, *[1] * (native.dim() - 1))
        if not arguments.get("return_dict", True):
            return (answer,)
        if self.adapter.answer == "sample":
            return Transformer2DModelOutput(sample=answer)
        return SimpleNamespace(**{self.adapter.answer: answer})

    def _nothing(self, native: Tensor) -> Tensor | None:
        """Zeros for further channels that no call of the network has filled yet."""
        count = self._channels_of(native)
        if self.given is None or count is None or self.given <= count or self.adapter.channel_axis != 1:
            return None
        return native.new_zeros(len(native), self.given - count, *native.shape[2:])


def drawn(sample: Tensor | Sequence[Tensor]) -> Tensor:
    """What is drawn of a listed sample: pictures that are given come before it."""
    return sample if isinstance(sample, Tensor) else sample[-1]


def redrawn(sample: Tensor | Sequence[Tensor], x: Tensor) -> Tensor | list[Tensor]:
    """The sample with another x."""
    x = x.to(drawn(sample).dtype)
    return x if isinstance(sample, Tensor) else [*sample[:-1], x]


def pick(tensor: Tensor, index: Sequence[int]) -> Tensor:
    """Rows of a tensor; a view when they lie together."""
    if is_range(index):
        return tensor[index[0] : index[0] + len(index)]
    return tensor.index_select(0, torch.as_tensor(index, device=tensor.device))


def is_range(index: Sequence[int]) -> bool:
    return isinstance(index, range) or all(b - a == 1 for a, b in zip(index, index[1:], strict=False))


def pick_rows(tree: Any, index: Sequence[int], rows: int, listed: bool = False, folded: bool = False) -> Any:
    """Rows of every tensor in a tree whose leading size is `rows`; with `listed`, of every list of `rows` samples; with
    `folded`, also of tensors that have several rows (frames) a sample."""
    if isinstance(tree, Tensor):
        if not tree.dim() or tree.shape[0] % rows or (tree.shape[0] != rows and not folded):
            return tree
        return pick(tree, unfolded(index, tree.shape[0] // rows))
    if isinstance(tree, dict):
        return {k: pick_rows(v, index, rows, listed, folded) for k, v in tree.items()}
    if isinstance(tree, (list, tuple)):
        if listed and len(tree) == rows:
            return type(tree)(tree[i] for i in index)
        return type(tree)(pick_rows(t, index, rows, listed, folded) for t in tree)
    return tree


def unfolded(index: Sequence[int], frames: int) -> Sequence[int]:
    """The rows of samples that have `frames` rows each."""
    if frames == 1:
        return index
    if is_range(index):
        return range(index[0] * frames, (index[0] + len(index)) * frames)
    return [i * frames + frame for i in index for frame in range(frames)]


def match_time(time: Any, times: Sequence[float], to_network: Callable[[float], float]) -> int:
    """Where in the scheduler's list a network's time stands (the first place, where it stands twice)."""
    value = float(time.max()) if isinstance(time, Tensor) else float(time)  # given frames have lower times
    return min(range(len(times)), key=lambda i: abs(to_network(times[i]) - value))
