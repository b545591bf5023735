"""Which tensors beside x a run depends on: those of the condition, and the parameters of the denoiser's networks."""

from __future__ import annotations

import functools
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import UsageError
from .tensors import tensors_of

LEAVES = (str, bytes, int, float, complex, bool, type(None), type, types.ModuleType, torch.dtype, torch.device)
DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


def wanted(denoiser: Any, condition: Any, parameters: Iterable[Tensor] | None) -> tuple[Tensor, ...]:
    """The tensors that need a gradient: of the condition, and `parameters`, or all that the denoiser holds."""
    others = reached(denoiser) if parameters is None else parameters
    found = {id(t): t for t in (*tensors_of(condition), *others) if t.requires_grad}
    return tuple(found.values())


def reached(thing: Any) -> Iterator[Tensor]:
    """Every tensor that is reached through attributes, containers, modules, partial functions and closures."""
    for item in _walk(thing, set()):
        if isinstance(item, nn.Module):
            yield from item.parameters()
        else:
            yield item


def modules_of(thing: Any) -> list[nn.Module]:
    return [item for item in _walk(thing, set()) if isinstance(item, nn.Module)]


def _walk(thing: Any, seen: set[int]) -> Iterator[Any]:
    """Tensors and modules, each once."""
    if isinstance(thing, LEAVES) or id(thing) in seen:
        return
    seen.add(id(thing))
    if isinstance(thing, (Tensor, nn.Module)):
        yield thing
    if not isinstance(thing, Tensor):
        for part in _parts(thing):
            yield from _walk(part, seen)


def _parts(thing: Any) -> Iterable[Any]:
    if isinstance(thing, Mapping):
        return thing.values()
    if isinstance(thing, (list, tuple, set, frozenset)):
        return thing
    if isinstance(thing, functools.partial):
        return (thing.func, thing.args, thing.keywords)
    if isinstance(thing, types.MethodType):
        return (thing.__self__, thing.__func__)
    if isinstance(thing, types.FunctionType):
        cells = thing.__closure__ or ()
        return [content for cell in cells for content in _content(cell)]
    if isinstance(thing, nn.Module):  # its own parameters are known; what else hangs on it is not followed
        return ()
    return list(vars(thing).values()) if hasattr(thing, "__dict__") else ()


def _content(cell: types.CellType) -> tuple[Any, ...]:
    try:
        return (cell.cell_contents,)
    except ValueError:  # a name that has no value yet
        return ()


def refuse_dropout(denoiser: Any) -> None:
    """A sweep of our own evaluates a network again without the random numbers of the first time."""
    for module in modules_of(denoiser):
        for name, part in module.named_modules():
            if isinstance(part, DROPOUTS) and part.training and part.p > 0:
                raise UsageError(
                    f'{type(module).__name__} is in training mode and has dropout ({name}): use method="checkpoint", '
                    "or network.eval()"
                )


def refuse_unknown(outputs: Iterable[Tensor], known: Iterable[Tensor]) -> None:
    """Raise if the graph of `outputs` ends in a tensor that is not among `known`: its gradient would be lost."""
    ids = {id(t) for t in known}
    ends = {t.grad_fn for t in known if t.grad_fn is not None}
    todo = [t.grad_fn for t in outputs if t.grad_fn is not None]
    seen = set(todo)
    while todo:
        node = todo.pop()
        if node in ends:
            continue
        leaf = getattr(node, "variable", None)
        if leaf is not None and id(leaf) not in ids:
            raise UsageError(
                f"the network depends on a tensor {tuple(leaf.shape)} that needs a gradient and was not found in the "
                'denoiser: pass parameters=[...], requires_grad_(False) it, or use method="checkpoint"'
            )
        for before, _ in node.next_functions:
            if before is not None and before not in seen:
                seen.add(before)
                todo.append(before)


def add_up_themselves(parameters: Sequence[Tensor]) -> bool:
    """Are they parts of weights that FSDP shards? Then whole weights that are made for a call stand in its graph,
    and a backward pass brings their gradients into those of the parts."""
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return False
    from torch.distributed.tensor import DTensor

    return any(isinstance(parameter, DTensor) for parameter in parameters)
