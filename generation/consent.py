"""What the metadata of a picture may not do by itself, for a stranger may have written them: `rerun` asks first.

Without consent nothing but the packaged model and models that were downloaded before is opened, by what is named in the
metadata: no folder, LoRA, picture or other file. Nothing is ever downloaded or written because metadata say so.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..grammar import name_and_settings, pieces_of

FILES = ("image", "mask", "teleport")  # settings that name a file
MODELS = ("model", "weak", "lora")  # settings that name weights: "embedded", a hub id, or something on this disk
LINES = ("guidance", "sampler", "grid")
PICTURES, STEPS, REPEATS, THREADS = 64, 1000, 1000, 256  # more may take what this machine has not
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_SEED = re.compile(r"\d{1,40}(:\d{1,40})?")


def refuse_unasked(path: str | Path, found: Mapping[str, Any], size: tuple[int, int], own: Collection[str]) -> None:
    """UsageError where what was found in a picture of this size (width, height) reaches outside of it. own: settings
    that the caller has given himself."""
    asked = {key: value for key, value in found["spec"].items() if key not in own and value is not None}
    said = [*_opened(asked), *_in_lines(asked), *_spent(asked, found, size)]
    if said:
        raise UsageError(
            f"{path} asks for {', '.join(said):.1500}; if you know where the picture comes from, add --trust "
            "(in Python trust=True), or give your own with --set"
        )


def one_picture(asked: Mapping[str, Any]) -> bool:
    """Do the settings stand for a single picture, as a record of ours does?"""
    prompts, seeds = asked.get("prompts"), asked.get("seeds", "0")
    return isinstance(prompts, list) and len(prompts) == 1 and bool(_SEED.fullmatch(str(seeds)[:100]))


def _opened(asked: Mapping[str, Any]) -> Iterator[str]:
    for key in MODELS:
        name = asked.get(key, "embedded")
        if name != "embedded" and (not isinstance(name, str) or not _HUB_ID.fullmatch(name) or _here(name)):
            yield f"the {key} {name!r:.100}"
    for key in FILES:
        if key in asked:
            yield f"the file {asked[key]!r:.100} as {key}"
    if call := asked.get("call"):
        named = ", ".join(map(str, call)) if isinstance(call, (Mapping, list)) else str(call)
        yield f"arguments of the pipeline's call ({named:.100})"
    memory = asked.get("memory")
    if isinstance(memory, Mapping) and memory.get("compile"):
        yield "its network to be compiled"


def _here(name: str) -> bool:
    """A hub id may be a folder below this one as well. It has no .. and begins with no / or ~."""
    return Path(name).exists()


def _in_lines(asked: Mapping[str, Any]) -> Iterator[str]:
    for key in LINES:
        for piece in pieces_of(str(asked.get(key, ""))):
            name, settings = name_and_settings(piece)
            for setting, value in settings.items():
                if isinstance(value, str) and value and (setting == "file" or re.search(r"[/\\~]", value)):
                    yield f"the file {value!r:.100} in {key}"
                if isinstance(value, int) and setting != "seed" and value > REPEATS:
                    yield f"{name}:{setting}={value}"


def _spent(asked: Mapping[str, Any], found: Mapping[str, Any], size: tuple[int, int]) -> Iterator[str]:
    for what, value, most in (
        ("steps", asked.get("steps"), STEPS),
        ("pictures in its batch", _inside(found, "batch", "pictures"), PICTURES),
        ("rows per call", _inside(found, "batch", "rows_per_call"), 4 * PICTURES),
        ("threads", _inside(found, "run", "threads"), THREADS),
        ("pixels in width", asked.get("width"), size[0]),
        ("pixels in height", asked.get("height"), size[1]),
    ):
        if isinstance(value, (int, float)) and value > most:
            yield f"{value:.6g} {what}"


def _inside(found: Mapping[str, Any], block: str, key: str) -> Any:
    inner = found.get(block)
    return inner.get(key) if isinstance(inner, Mapping) else None
