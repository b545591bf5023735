"""Clean latents to learn from: what the teacher makes of known noise, captions of the embedded world, or a folder.

They are made once into the run's folder, in shards that are whole or not there, and read row by row afterwards. A line
says where they come from: `teacher:2000`, `embedded:train:2000`, or a folder of pictures with captions (metadata.jsonl
with file_name and text, or a .txt of the picture's name beside it).
"""

from __future__ import annotations

import hashlib
import importlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..documents import plain_json
from ..errors import UsageError
from ..evaluation.processes import Processes
from ..evaluation.sources.decode import FORMATS
from ..evaluation.sources.limits import PIXELS
from ..samplers.loop import sample
from ..samplers.noise import SeededNoise, derived_seed
from ..storage import disk_errors, make_folder, whole
from ..training.learner import Learner
from ..training.update import Sampling

SHARD = 128  # items of a file
_SOURCE = re.compile(r"(teacher|embedded:(?:train|test|heldout)):([1-9]\d{0,6})")
_PICTURES = (".png", ".jpg", ".jpeg", ".webp")

Make = Callable[[list[int]], Tensor]  # numbers of items -> clean latents


@dataclass(frozen=True)
class Items:
    """What a data set is made of. prompts: one an item. starts: the seeds of the teacher's noise, or None. make: the
    clean latents of some items, by their numbers. origin: what they are made by, the same for the same latents.
    sources: further words for each item, such as its file."""

    prompts: Sequence[str]
    starts: Sequence[str] | None
    make: Make
    origin: str = ""
    sources: Sequence[str] | None = None

    def digest(self, numbers: Sequence[int]) -> str:
        """Of everything that some items depend on."""
        told = [[self.prompts[i], (self.starts or {i: ""})[i], (self.sources or {i: ""})[i]] for i in numbers]
        return hashlib.sha256(json.dumps([self.origin, told]).encode()).hexdigest()


def is_of_teacher(line: str) -> bool:
    """Are these what the teacher makes of known noise?"""
    return line.startswith("teacher:")


def check_line(line: str) -> None:
    """UsageError for a line that stands for no data, and a folder that cannot be read."""
    if _SOURCE.fullmatch(line) is None:
        _captions(Path(line))


def items(
    line: str, teacher: Learner, how: Sampling, prompts: Sequence[str], rows: int, seed: int, model: str = ""
) -> Items:
    """What a line stands for. how, prompts, rows, seed: of the teacher's pictures. model: whose latents they are.
    UsageError for what it is not."""
    named = _SOURCE.fullmatch(line)
    if named is None:
        return _folder(Path(line), teacher, model)
    count = int(named[2])
    if named[1] == "teacher":
        told = [prompts[i % len(prompts)] for i in range(count)]
        return taught(teacher, how, told, [str(derived_seed(seed, "pair", i)) for i in range(count)], rows, model)
    world = importlib.import_module(f"{__package__.rpartition('.')[0]}.zoo.world")
    split = named[1].partition(":")[2]
    width, height = _size(teacher)
    if width != height:
        raise UsageError(f"the embedded world draws squares and this model {width}x{height}; give a width and height "
                         "that are alike, data=teacher:1000, or a folder of pictures")  # fmt: skip

    def make(numbers: list[int]) -> Tensor:
        return teacher.encode(_tensor(world.pictures(numbers, split, width)).to(teacher.device))

    return Items(world.captions(range(count), split), None, make, f"{model} of {named[1]} {teacher.shape}")


def taught(
    teacher: Learner, how: Sampling, prompts: Sequence[str], seeds: Sequence[str], rows: int, model: str = ""
) -> Items:
    """What the guided teacher makes of the noise of those seeds."""

    def make(numbers: list[int]) -> Tensor:
        levels, found = teacher.levels(how.grid, how.steps), []
        for first in range(0, len(numbers), rows):
            some = numbers[first : first + rows]
            named = [seeds[i] for i in some]
            denoiser = teacher.denoiser([prompts[i] for i in some], how.guidance)
            x, noise = teacher.start(named, levels), SeededNoise(named)
            found.append(sample(denoiser, x, sampler=how.sampler, grid=levels, noise=noise))
        return torch.cat(found)

    made_by = f"{model} by {how.sampler} on {how.grid} in {how.steps} with {how.guidance} {teacher.shape}"
    return Items(list(prompts), list(seeds), make, made_by)


def _folder(folder: Path, teacher: Learner, model: str) -> Items:
    """Pictures, each scaled until it covers the model's size, and the middle cut out."""
    captions = _captions(folder)
    files, size = sorted(captions), _size(teacher)

    def make(numbers: list[int]) -> Tensor:
        pictures = [_fitted(folder / files[i], size) for i in numbers]
        return teacher.encode(_tensor(np.stack(pictures)).to(teacher.device))

    stamps = [f"{name} {(folder / name).stat().st_size} {(folder / name).stat().st_mtime_ns}" for name in files]
    return Items(
        [captions[name] for name in files], None, make, f"{model} of {folder.resolve()} {teacher.shape}", stamps
    )


def _captions(folder: Path) -> dict[str, str]:
    """File name -> caption."""
    if not folder.is_dir():
        raise UsageError(f"there is no data {folder}: give teacher:1000, embedded:train:1000, or a folder of pictures")
    listed = folder / "metadata.jsonl"
    try:
        if listed.is_file():
            lines = [plain_json(line) for line in listed.read_text(encoding="utf-8").splitlines() if line.strip()]
            found = {str(line["file_name"]): str(line["text"]) for line in lines}
        else:
            named = [path for path in folder.iterdir() if path.suffix.lower() in _PICTURES]
            found = {path.name: path.with_suffix(".txt").read_text(encoding="utf-8").strip() for path in named}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"cannot read the captions of {folder}: {error}; give metadata.jsonl with file_name and text, "
                         "or a .txt beside each picture") from None  # fmt: skip
    beside = [] if listed.is_file() else [Path(name).with_suffix(".txt").name for name in found]
    read = [*found, *beside]
    astray = next((file for file in read if not _inside(folder, file)), None)
    if astray is not None:
        raise UsageError(f"{astray} in the captions of {folder} lies outside of that folder; copy it there")
    gone = next((name for name in found if not (folder / name).is_file()), None)
    if gone is not None:
        raise UsageError(f"{gone!r} in the captions of {folder} is no file there; take its line away")
    if not found:
        raise UsageError(f"{folder} holds no pictures with captions")
    return found


def _inside(folder: Path, name: str) -> bool:
    """Also of a link: what it leads to."""
    try:
        return (folder / name).resolve().is_relative_to(folder.resolve())
    except (OSError, ValueError, RuntimeError):  # no name of a file, or links in a circle
        return False


def _fitted(path: Path, size: tuple[int, int]) -> Any:
    """uint8 (H, W, 3). size: (width, height)."""
    from PIL import Image, ImageOps

    try:
        with Image.open(path, formats=FORMATS) as opened:
            if opened.width * opened.height > PIXELS:
                raise ValueError(f"more than {PIXELS} pixels")
            return np.asarray(ImageOps.fit(opened.convert("RGB"), size, Image.Resampling.LANCZOS))
    except Exception:  # decoders of hostile files raise nearly anything
        raise UsageError(f"{path} is no picture that can be read; take it out of the data") from None


def _tensor(pictures: Any) -> Tensor:
    """uint8 (B, H, W, 3) -> float (B, 3, H, W) in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).float() / 255


def _size(teacher: Learner) -> tuple[int, int]:
    """(width, height) of its pictures, in pixels."""
    with torch.no_grad():
        height, width = teacher.decode(torch.zeros(1, *teacher.shape, device=teacher.device)).shape[-2:]
    return int(width), int(height)


class Latents:
    """A data set in a folder. Items are made where a shard of them is missing, shards dealt to the processes."""

    def __init__(self, folder: Path, items: Items, processes: Processes = Processes()):  # noqa: B008, frozen
        self.folder, self.items, self.processes = folder, items, processes
        self._open: dict[int, Any] = {}

    def __len__(self) -> int:
        return len(self.items.prompts)

    def make(self, told: Callable[[int, int], None] = lambda done, of: None) -> None:
        """Whatever is missing. told: how many items are there, of how many."""
        make_folder(self.folder)
        missing = self.processes.by_first(self._missing)
        there = len(self) - sum(len(self._range(shard)) for shard in missing)
        told(there, len(self))
        for first in range(0, len(missing), self.processes.world):
            some = missing[first : first + self.processes.world]
            self._make_of(some)
            there += sum(len(self._range(shard)) for shard in some)
            told(there, len(self))
        self._open.clear()

    def of(self, numbers: Sequence[int]) -> Tensor:
        """(B, *shape) of items."""
        rows = [self._file(i // SHARD).get_slice("clean")[i % SHARD : i % SHARD + 1] for i in numbers]
        return torch.cat(rows)

    def _range(self, shard: int) -> list[int]:
        return list(range(shard * SHARD, min(len(self), (shard + 1) * SHARD)))

    def _path(self, shard: int) -> Path:
        return self.folder / f"{shard:06d}.safetensors"

    def _whole(self, shard: int) -> bool:
        try:
            file, numbers = self._file(shard), self._range(shard)
            made_of = (file.metadata() or {}).get("of") == self.items.digest(numbers)
            return bool(made_of and file.get_slice("clean").get_shape()[0] == len(numbers))
        except Exception:  # safetensors has its own kinds; a damaged shard is made again
            return False

    def _file(self, shard: int) -> Any:
        if shard not in self._open:
            self._open[shard] = safe_open(self._path(shard), "pt")
        return self._open[shard]

    def _missing(self) -> list[int]:
        return [shard for shard in range(-(-len(self) // SHARD)) if not self._whole(shard)]

    def _make_of(self, shards: Sequence[int]) -> None:
        """One of these, a process each. All make as many items, so that all call the network equally often; what is too
        much of a short shard, and what nobody wanted, is dropped."""
        rank, most = self.processes.rank, max(len(self._range(shard)) for shard in shards)
        shard = shards[min(rank, len(shards) - 1)]
        numbers = self._range(shard)
        with torch.no_grad():
            made = self.items.make(numbers + numbers[-1:] * (most - len(numbers)))
        if rank < len(shards):
            self._write(shard, made[: len(numbers)].float().cpu().contiguous())

    def _write(self, shard: int, clean: Tensor) -> None:
        with disk_errors(self.folder), whole(self._path(shard)) as part:
            save_file({"clean": clean}, part, metadata={"of": self.items.digest(self._range(shard))})
