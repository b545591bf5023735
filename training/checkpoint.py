"""What a run has come to, in one file that is whole or not there: tensors, and the rest as JSON beside them.

Nothing in such a file is executed. The digest in it covers all of it, so that a damaged file is known for one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..errors import UsageError
from ..storage import disk_errors, make_folder, whole

KEPT = 2  # the last one may be damaged
_TENSOR, _TUPLE, _PAIRS = "tensor", "tuple", "pairs"


class Damaged(Exception):
    """The file is not what was written."""


def flattened(tree: Any, name: str = "") -> tuple[Any, dict[str, Tensor]]:
    """A tree of mappings, lists, tuples, numbers, texts and tensors as plain JSON data and tensors by name.

    UsageError for anything else: it would not come back.
    """
    tensors: dict[str, Tensor] = {}

    def plain(value: Any, name: str) -> Any:
        if isinstance(value, Tensor):
            tensors[name] = value.detach().cpu()
            return {_TENSOR: name}
        if isinstance(value, Mapping):
            return {_PAIRS: [[plain(k, ""), plain(v, f"{name}.{i}")] for i, (k, v) in enumerate(value.items())]}
        if isinstance(value, (list, tuple)):
            items = [plain(v, f"{name}.{i}") for i, v in enumerate(value)]
            return {_TUPLE: items} if isinstance(value, tuple) else items
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        raise UsageError(f"a {type(value).__name__} cannot be kept in a checkpoint; use numbers, texts and tensors")

    return plain(tree, name), tensors


def restored(plain: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The inverse of `flattened`."""
    if isinstance(plain, list):
        return [restored(value, tensors) for value in plain]
    if not isinstance(plain, dict):
        return plain
    if _TENSOR in plain:
        return tensors[plain[_TENSOR]]
    if _TUPLE in plain:
        return tuple(restored(value, tensors) for value in plain[_TUPLE])
    return {restored(k, tensors): restored(v, tensors) for k, v in plain[_PAIRS]}


def write(path: Path, state: Any) -> None:
    """A tree of plain data and tensors into a file, atomically."""
    plain, tensors = flattened(state, "state")
    tensors = {name: tensor.contiguous().clone() for name, tensor in tensors.items()}
    text = json.dumps(plain)
    head = json.dumps({"plain": text, "sha256": _digest(text, tensors)})
    with disk_errors(path.parent), whole(path) as part:  # one entry: several come in no fixed order
        save_file(tensors or {"none": torch.zeros(0)}, part, metadata={"state": head})


def read(path: Path) -> Any:
    """What `write` was given. Raises Damaged."""
    try:
        with safe_open(path, "pt") as file:
            head = json.loads(file.metadata()["state"])
            tensors = {name: file.get_tensor(name) for name in file.keys() if name != "none"}  # noqa: SIM118
        if head["sha256"] != _digest(head["plain"], tensors):
            raise Damaged(f"{path} is not what was written")
        return restored(json.loads(head["plain"]), tensors)
    except Exception as error:  # safetensors has its own kinds
        raise Damaged(f"{path} is damaged: {error}") from None


def digest(tree: Any) -> str:
    """Of a tree of plain data and tensors: equal trees have the same, on every process."""
    plain, tensors = flattened(tree)
    return _digest(json.dumps(plain), tensors)


def _digest(text: str, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


# -- a folder of them ------------------------------------------------------------------------------------------------


def keep(folder: Path, update: int, state: Any) -> Path:
    """Write the checkpoint after so many updates, then drop all but the last `KEPT`."""
    make_folder(folder)
    path = folder / f"{update:06d}.safetensors"
    write(path, state)
    for old in _found(folder)[KEPT:]:
        old.unlink()
    return path


def last(folder: Path) -> tuple[Any, list[str]]:
    """The newest state that is whole, and a line for each file that was passed over. None where there is none."""
    said: list[str] = []
    for path in _found(folder):
        try:
            return read(path), said
        except Damaged:
            said.append(f"the checkpoint {path} is damaged and was passed over; the one before it is used")
    if said:
        raise UsageError(f"no checkpoint in {folder} can be read; delete that folder to begin again")
    return None, said


def _found(folder: Path) -> Sequence[Path]:
    """Newest first."""
    return sorted((p for p in folder.glob("*.safetensors") if p.stem.isdecimal()), reverse=True)


def same(one: Any, other: Any) -> bool:
    """Are two trees of plain data and tensors equal?"""
    (plain, tensors), (plain_2, tensors_2) = flattened(one), flattened(other)
    return (plain == plain_2 and tensors.keys() == tensors_2.keys()
            and all(torch.equal(tensor, tensors_2[name]) for name, tensor in tensors.items()))  # fmt: skip
