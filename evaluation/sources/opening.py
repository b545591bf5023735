"""From what a user gives to a source: by its kind, and for files by their content."""

from __future__ import annotations

import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...errors import UsageError
from .array_files import ArrayFileSource, holds_arrays
from .captioned import Captioned
from .decode import RGB
from .embedded import EmbeddedSource
from .folder import FolderSource, listed
from .memory import ArraySource, DatasetSource, IteratorSource, is_dataset
from .names import is_picture, shown, why
from .source import ImageSource
from .tar_reader import COMPRESSED
from .tar_shards import SUFFIXES, TarSource, is_pattern, shards_of
from .zip_archive import ZipSource

Range = tuple[float, float] | None


def open_source(
    source: Any,
    *,
    value_range: tuple[float, float] | None = None,
    background: RGB | None = None,
    captions: Iterable[str] | None = None,
    workers: int = 1,
) -> ImageSource:
    """A source from what a user gives.

    source: a folder ("./embedded" if it is called so), of pictures or of tars; a zip; a .npz or .npy of pictures; a
    tar, or webdataset shards as "data-{000..012}.tar" or "data-*.tar"; "embedded:test:2000" (also train, heldout);
    uint8 pictures (N, H, W, 3) or (N, 3, H, W), or floats with `value_range`; a dataset of rows with "image"; an
    iterable of pictures, batches or PIL images, alone or with captions. For a running generator see `SamplerSource`.

    background: what transparent pictures are laid on; without it they are refused. captions: one for each picture, in
    order, instead of those that the source knows. workers: threads that decode files; order and notes are the same.

    Errors: nothing there, no pictures, not the shape of a picture, and files that cannot be trusted.
    """
    opened = _open(source, value_range, background, workers)
    return opened if captions is None else Captioned(opened, list(captions))


def _open(source: Any, value_range: Range, background: RGB | None, workers: int) -> ImageSource:
    if isinstance(source, str) and source.split(":")[0] == "embedded":
        return EmbeddedSource.parse(source)
    if isinstance(source, (str, Path)):
        return _open_path(source, value_range, background, workers)
    if isinstance(source, (torch.Tensor, np.ndarray)):
        return ArraySource(source, value_range)
    if isinstance(source, ImageSource):
        return source
    if isinstance(source, (bytes, dict)):
        raise UsageError(f"{type(source).__name__} is no source of pictures; give a folder, an array, or an iterable")
    if is_dataset(source):
        return DatasetSource(source, value_range, background)
    if isinstance(source, Iterable):
        return IteratorSource(source, value_range, background)
    if callable(source):
        raise UsageError("a sampler does not say how many pictures to make; give SamplerSource(sampler, count=50000)")
    raise UsageError(f"{type(source).__name__} is no source of pictures; give a folder, an array, or an iterable")


def _open_path(source: str | Path, value_range: Range, background: RGB | None, workers: int) -> ImageSource:
    path = Path(source)
    try:
        if not path.exists() and is_pattern(str(source)):
            return TarSource(shards_of(str(source)), str(source), background, workers)
        if path.is_dir():
            tars = _tars_alone(path)
            return TarSource(tars, str(path), background, workers) if tars else FolderSource(path, background, workers)
        if path.is_file():
            return _open_file(path, value_range, background, workers)
        return FolderSource(path, background, workers)  # says that it is not there
    except (OSError, ValueError) as error:  # a name that no file can have, or no permission
        if isinstance(error, UsageError):
            raise
        raise UsageError(f"{shown(path)} cannot be opened ({why(error)}); check the path") from None


def _open_file(file: Path, value_range: Range, background: RGB | None, workers: int) -> ImageSource:
    with file.open("rb") as opened:
        start = opened.read(tarfile.BLOCKSIZE)
    suffix = file.suffix.lower()
    if start.startswith(b"\x93NUMPY") or suffix in (".npy", ".npz"):
        return ArrayFileSource(file, value_range)
    if start.startswith(b"PK") or suffix == ".zip":
        if suffix != ".zip" and holds_arrays(file):
            return ArrayFileSource(file, value_range)
        return ZipSource(file, background, workers)
    packed = start.startswith((b"\x1f\x8b", *COMPRESSED))
    if start[257:262] == b"ustar" or packed or file.name.lower().endswith(SUFFIXES):
        return TarSource([file], str(file), background, workers)
    return FolderSource(file, background, workers)  # says that it is no folder


def _tars_alone(folder: Path) -> list[Path]:
    """The tars of a folder that holds no pictures of its own, sorted."""
    names = listed(folder).names
    tars = [folder / name for name in names if name.lower().endswith(SUFFIXES)]
    return [] if any(map(is_picture, names)) else tars
