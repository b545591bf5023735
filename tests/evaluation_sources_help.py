"""Small pictures and archives for the tests of sources."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pilotage.errors import UsageError
from pilotage.evaluation import Picture, open_source


def pixels(seed: int = 0, size: int = 6) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)


def encoded(seed: int = 0, kind: str = "PNG", array: np.ndarray | None = None) -> bytes:
    held = io.BytesIO()
    Image.fromarray(pixels(seed) if array is None else array).save(held, kind)
    return held.getvalue()


def make_zip(path: Path, files: Mapping[str, bytes], method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as packed:
        for name, content in files.items():
            packed.writestr(name, content)
    return path


def make_tar(path: Path, files: Mapping[str, bytes], mode: str = "w", **options: Any) -> Path:
    with tarfile.open(path, mode, **options) as packed:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            packed.addfile(info, io.BytesIO(content))
    return path


def refused(source: Any, says: str, **options: Any) -> None:
    """Opening or reading is refused in one line."""
    with pytest.raises(UsageError, match=says) as caught:
        list(open_source(source, **options))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000


def same(found: list[Picture], expected: list[Picture]) -> bool:
    return len(found) == len(expected) and all(
        a[1:] == b[1:] and (a.pixels == b.pixels).all() for a, b in zip(found, expected)
    )
