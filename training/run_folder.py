"""The folder of a training run.

run.yaml          the spec and versions
log.jsonl         a line for each update, and one for the model before the first (update 0)
sheets/000010.png the held-out prompts after so many updates, a row for a prompt and a column for a seed
checkpoints/      the last two states, and good.safetensors: the weights when all was last well
lora/             what was learnt, with its card (network/ where all weights train)
index.html        curves and sheets
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from ..documents import Unreadable, plain_json, plain_yaml
from ..errors import UsageError
from ..generation.environment import versions
from ..generation.lock import LOCK
from ..storage import PART, append_line, disk_errors, make_folder, whole, write_text
from .spec import TrainingSpec

RUN, LOG, SHEETS, CHECKPOINTS, GOOD = "run.yaml", "log.jsonl", "sheets", "checkpoints", "good.safetensors"
LORA, NETWORK = "lora", "network"
_COLUMNS = 8


def refuse_other_run(folder: Path, spec: TrainingSpec) -> None:
    """A folder holds one run: refuse another spec, and a folder that is in use for something else. A run without an
    update, such as one whose settings were refused on the way, gives its folder to the next."""
    with disk_errors(folder):
        names = [path.name for path in folder.iterdir()] if folder.exists() else []
    held = [name for name in names if name != LOCK and not name.endswith(PART)]  # what a kill leaves
    if RUN not in held:
        if held:
            raise UsageError(f"{folder} is not empty and holds no training run; choose another output")
        return
    try:
        there = type(spec)(**plain_yaml((folder / RUN).read_text(encoding="utf-8"))["spec"]).identity()
    except (OSError, ValueError, KeyError, TypeError):
        raise UsageError(f"{folder / RUN} is of no training run; choose another output") from None
    said = [f"{key} is {_short(there[key])} there and {_short(here)} here" for key, here in spec.identity().items()
            if there[key] != here]  # fmt: skip
    if said and _learnt(folder):
        raise UsageError(f"{folder} holds another run: {'; '.join(said)}. Choose another output, or those settings")


def _learnt(folder: Path) -> bool:
    """Has an update been made here?"""
    kept = any(path.stem.isdecimal() for path in (folder / CHECKPOINTS).glob("*.safetensors"))
    return kept or any(line["update"] > 0 for line in read_log(folder))


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def begin(folder: Path, spec: TrainingSpec) -> None:
    """The folder with its run.yaml, which stays that of the first update."""
    make_folder(folder)
    if not (folder / RUN).is_file() or not _learnt(folder):
        held = {"kind": spec.kind, "spec": spec.plain(), "versions": versions()}
        write_text(folder / RUN, yaml.safe_dump(held, sort_keys=False, allow_unicode=True, width=110))


# -- the log ---------------------------------------------------------------------------------------------------------


def read_log(folder: Path) -> list[dict[str, Any]]:
    """Its lines; half a line that a kill left, and what is no line of ours, is passed over."""
    path, found = folder / LOG, []
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n") if path.is_file() else []:
        try:
            entry = plain_json(line)
        except Unreadable:
            continue
        if isinstance(entry, dict) and type(entry.get("update")) is int:
            found.append(entry)
    return found


def cut_log(folder: Path, update: int) -> None:
    """Leave out what came after so many updates: it will be computed again. -1 leaves nothing."""
    if (folder / LOG).is_file():
        kept = [json.dumps(line) for line in read_log(folder) if line["update"] <= update]
        write_text(folder / LOG, "".join(f"{line}\n" for line in kept))


def add_to_log(folder: Path, entry: Mapping[str, Any]) -> None:
    with disk_errors(folder):
        append_line(folder / LOG, json.dumps(_finite(entry)))


def _finite(value: Any) -> Any:
    """JSON knows no NaN: such a number is null."""
    if isinstance(value, Mapping):
        return {key: _finite(v) for key, v in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


# -- sheets ----------------------------------------------------------------------------------------------------------


def write_sheet(folder: Path, update: int, shown: Tensor) -> Path:
    """shown: bytes (rows, columns, 3, H, W)."""
    from PIL import Image

    from ..generation.sheet import contact_sheet

    columns = min(_COLUMNS, shown.shape[1])
    pictures = [Image.fromarray(p.permute(1, 2, 0).numpy()) for row in shown for p in row[:columns]]
    make_folder(folder / SHEETS)
    path = folder / SHEETS / f"{update:06d}.png"
    with disk_errors(folder), whole(path) as part:
        contact_sheet(pictures, columns).save(part, format="PNG")
    return path
