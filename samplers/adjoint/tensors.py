"""The tensors of a run's state, and the state of other tensors.

A state is a tree: dataclasses, mappings, tuples and lists with tensors in them, whatever a sampler's history and a
rule's memory hold. A backward pass takes it apart into a list of tensors and what is left, its form.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any

from torch import Tensor

PLANS = "legs"  # a field that holds numbers only


class Hole:
    """Where a tensor was."""


def mapped(tree: Any, change: Callable[[Any], Any]) -> Any:
    """The same tree with `change` applied to its tensors and holes, in a fixed order."""
    if isinstance(tree, (Tensor, Hole)):
        return change(tree)
    if isinstance(tree, Mapping):
        return {key: mapped(value, change) for key, value in tree.items()}
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(mapped(value, change) for value in tree))
    if isinstance(tree, (list, tuple)):
        return type(tree)(mapped(value, change) for value in tree)
    if is_dataclass(tree) and not isinstance(tree, type):
        names = [field.name for field in fields(tree) if field.init and field.name != PLANS]
        return replace(tree, **{name: mapped(getattr(tree, name), change) for name in names})
    return tree


def taken_apart(tree: Any) -> tuple[list[Tensor], Any]:
    """The tensors of a tree, and its form: the tree with holes for them."""
    tensors: list[Tensor] = []

    def take(tensor: Tensor) -> Hole:
        tensors.append(tensor)
        return Hole()

    return tensors, mapped(tree, take)


def tensors_of(tree: Any) -> list[Tensor]:
    return taken_apart(tree)[0]


def put_together(form: Any, tensors: Iterable[Tensor]) -> Any:
    """The tree of this form with these tensors."""
    rest = iter(tensors)
    return mapped(form, lambda hole: next(rest))


def bytes_of(tensors: Sequence[Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)
