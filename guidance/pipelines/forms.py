"""Conditions of a network as trees of rows, and the network called with them.

A condition holds the arguments that have a row a sample, and under "form" what all rows of such shapes share (position
tables, sizes, flags). Rows whose texts have different lengths are called apart, each at its own length, so that no row
is padded for the sake of another.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from ...errors import UsageError
from ...samplers.denoiser import raw_output
from ..trees import form_of, joined, map_tensors
from .adapter import Arguments
from .arrangement import Arrangement
from .capture import Told

FORM, LENGTHS = "form", "lengths"


@dataclass(frozen=True, eq=False)
class Form:
    """What rows of one shape share.

    shared: arguments without rows. listed: those that the network takes as a list of samples. arrangement: from
    pictures (B, C, H, W) to the x of the network. time: the captured time, whose shape is kept. dtype: that of the
    network when it was captured; tensors of it follow the network.
    """

    told: Told
    shared: Arguments
    listed: tuple[str, ...]
    arrangement: Arrangement
    dtype: torch.dtype

    def call(self, network: Callable[..., Any], x: Tensor, time: Tensor, rows: Mapping[str, Any]) -> Tensor:
        """The network's prediction for pictures x (B, C, H, W) at the scheduler's times (B,), in the shape of x."""
        layout, adapter = self.told.layout, self.told.layout.adapter
        given = dict(rows)
        if not torch.is_autocast_enabled(x.device.type):
            given = map_tensors(given, lambda t: t.to(x.dtype) if t.dtype == self.dtype else t)
        given |= {name: list(given[name].unbind()) for name in self.listed}
        packed = self.arrangement.pack(x)
        arguments = {**self.shared, **given, adapter.time: self._time(time)}
        if adapter.sample not in arguments:
            arguments[adapter.sample] = list(packed.unsqueeze(2)) if layout.listed else packed
        native, _ = layout.native_of(network(**layout.with_x(arguments, packed)))
        return self.arrangement.unpack(native)

    def _time(self, time: Tensor) -> Tensor:
        """The network's time, of as many dimensions as the pipeline gives it; (B,) at least."""
        adapter = self.told.layout.adapter
        clock: Any = adapter.network_time
        value: Tensor = time if clock is float else clock(time)
        like = self.told.arguments[adapter.time]
        if not isinstance(like, Tensor) or like.dim() < 2:
            return value
        return value.view(-1, *[1] * (like.dim() - 1)).expand(-1, *like.shape[1:])


def weights_of(network: nn.Module) -> torch.dtype:
    """The dtype of the weights, not of adapters on them."""
    return next(p.dtype for name, p in network.named_parameters() if "lora_" not in name)


def rows_and_shared(told: Told) -> tuple[Arguments, Arguments, tuple[str, ...]]:
    """The arguments with a row a sample, as trees of tensors (1, ...); the others; and which rows were lists."""
    layout, adapter = told.layout, told.layout.adapter
    rows: Arguments = {}
    shared, listed = dict(told.arguments), []
    for name in (name for name in adapter.batched if name in told.arguments):
        value = told.arguments[name]
        if name in (adapter.sample, adapter.time):
            shared.pop(name)
            if name == adapter.sample and not layout.listed and layout.split(value)[1] is not None:
                rows[name] = value  # it holds more than x
        elif layout.listed and isinstance(value, list) and isinstance(value[0], Tensor):
            rows[name] = shared.pop(name)[0].unsqueeze(0)
            listed.append(name)
        elif _has_rows(value):
            rows[name] = shared.pop(name)
    return rows, shared, tuple(listed)


def _has_rows(tree: Any) -> bool:
    """Are there tensors in it, and has each one row?"""
    found = leaves(tree)
    return bool(found) and all(leaf.dim() > 0 and len(leaf) == 1 for leaf in found)


def leaves(tree: Any) -> list[Tensor]:
    """Its tensors, in the order of `map_tensors`."""
    if isinstance(tree, Tensor):
        return [tree]
    parts = tree.values() if isinstance(tree, Mapping) else tree if isinstance(tree, (list, tuple)) else ()
    return [leaf for part in parts for leaf in leaves(part)]


def together(conditions: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Conditions of single rows as one, a row each. Where their shapes differ, tensors are filled up with zeros and
    "lengths" (B, n) holds every tensor's own sizes."""
    first = conditions[0]
    if FORM not in first or all(form_of(c) == form_of(first) for c in conditions):
        whole: dict[str, Any] = joined(conditions)
        return whole
    rows = [{k: v for k, v in c.items() if k != FORM} for c in conditions]
    sizes = [_sizes(row) for row in rows]
    largest = [max(column) for column in zip(*sizes, strict=True)]
    device = next(iter(leaves(rows[0]))).device
    forms: dict[tuple[int, ...], Form] = {}
    for size, condition in zip(sizes, conditions, strict=True):
        if forms.setdefault(tuple(size), condition[FORM]) is not condition[FORM]:
            raise UsageError("this network is told things of each prompt that have no row; give one prompt at a time")
    filled = joined([_resized(row, largest) for row in rows])
    return {**filled, LENGTHS: torch.tensor(sizes, device=device), FORM: _Forms(tuple(forms.items()))}


@dataclass(frozen=True)
class _Forms:
    """The forms of rows of different shapes, by their tensors' sizes."""

    known: tuple[tuple[tuple[int, ...], Form], ...]


def _sizes(row: Any) -> list[int]:
    """The sizes of all tensors of a row, but for the first axis, one after another."""
    return [size for leaf in leaves(row) for size in leaf.shape[1:]]


def _resized(tree: Any, sizes: Sequence[int]) -> Any:
    """Each tensor filled up with zeros, or cut, to the sizes."""
    left = iter(sizes)

    def resize(tensor: Tensor) -> Tensor:
        wanted = [next(left, size) for size in tensor.shape[1:]]  # what was added later stays as it is
        lacking = [n for size, have in zip(reversed(wanted), reversed(tensor.shape[1:]), strict=True)
                   for n in (0, size - have)]  # fmt: skip
        return pad(tensor, lacking) if any(lacking) else tensor

    return map_tensors(tree, resize)


def evaluate(network: Callable[..., Any], x: Tensor, time: Tensor, **condition: Any) -> Tensor:
    """The network's prediction (B, ...) in the shape of x, whatever pipeline the condition is of. time: (B,)."""
    form, lengths = condition.pop(FORM, None), condition.pop(LENGTHS, None)
    if form is None:
        return raw_output(network(x, time, **condition))
    if lengths is None:
        answer: Tensor = form.call(network, x, time, condition)
        return answer
    places: dict[tuple[int, ...], list[int]] = {}
    for row, sizes in enumerate(lengths.tolist()):
        places.setdefault(tuple(sizes), []).append(row)
    known, parts, order = dict(form.known), [], []
    for sizes, members in places.items():
        index = torch.tensor(members, device=x.device)
        rows = _resized({name: _picked(value, index) for name, value in condition.items()}, sizes)
        parts.append(known[sizes].call(network, x[index], time[index], rows))
        order += members
    return torch.cat(parts).index_select(0, torch.tensor(order, device=x.device).argsort())


def _picked(tree: Any, index: Tensor) -> Any:
    return map_tensors(tree, lambda tensor: tensor.index_select(0, index))
