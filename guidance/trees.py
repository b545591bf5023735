"""Conditionings are trees: tensors with a row a sample, in dicts, tuples and lists."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


def map_tensors(tree: Any, f: Callable[[Tensor], Tensor]) -> Any:
    """The same tree with `f` applied to its tensors."""
    if isinstance(tree, Tensor):
        return f(tree)
    if isinstance(tree, Mapping):
        return {k: map_tensors(v, f) for k, v in tree.items()}
    if isinstance(tree, (list, tuple)):
        return type(tree)(map_tensors(v, f) for v in tree)
    return tree


def rows_of(tree: Any, index: Tensor | None, batch: int) -> Any:
    """Those rows of every tensor whose leading size is `batch`; a leading size of 1 is spread first."""

    def pick(t: Tensor) -> Tensor:
        if t.dim() == 0:
            return t
        if t.shape[0] == 1 and batch > 1:
            t = t.expand(batch, *t.shape[1:])
        return t if index is None or t.shape[0] != batch else t.index_select(0, index)

    return map_tensors(tree, pick)


def form_of(tree: Any) -> Any:
    """What two trees must share to be joined, hashable: structure, row shapes, and the values that are not tensors."""
    if isinstance(tree, Tensor):
        return ("tensor", tree.dtype, tree.shape[1:] if tree.dim() else id(tree))
    if isinstance(tree, Mapping):
        return ("mapping", tuple((k, form_of(v)) for k, v in tree.items()))
    if isinstance(tree, (list, tuple)):
        return (type(tree), tuple(form_of(v) for v in tree))
    try:
        hash(tree)
    except TypeError:
        return ("object", id(tree))
    return (type(tree), tree)


def joined(trees: Sequence[Any]) -> Any:
    """Trees of one shape, concatenated along the rows."""
    first = trees[0]
    if len(trees) == 1:
        return first
    if isinstance(first, Tensor):
        return torch.cat(list(trees)) if first.dim() else first
    if isinstance(first, Mapping):
        return {k: joined([t[k] for t in trees]) for k in first}
    if isinstance(first, (list, tuple)):
        return type(first)(joined(list(parts)) for parts in zip(*trees, strict=True))
    return first
