"""Pictures onto the disk: those that were made together, safely, in one wait for it, and then their lines.

A wait costs milliseconds, whatever there is to write; one for each picture would be a tenth of the work of a small
model. A kill before the lines leaves pictures that no manifest names: they are made again.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..storage import disk_errors, whole, wholes
from .manifest import add
from .metadata import png_info, record_of
from .pictures import Sample
from .spec import RunSpec


def save(
    folder: Path, rank: int, samples: Sequence[Sample], spec: RunSpec, now: Mapping[str, Any]
) -> dict[int, dict[str, Any]]:
    """The samples as 000017.png and so on, and their entries by number, which stand in the manifest of this process."""
    paths = [folder / f"{sample.index:06d}.png" for sample in samples]
    contents = [png(sample, spec, now) for sample in samples]
    with disk_errors(folder), wholes(paths) as parts:
        for part, content in zip(parts, contents, strict=True):
            part.write_bytes(content)
    entries = [_entry(*each) for each in zip(samples, paths, contents, strict=True)]
    add(folder, rank, entries)
    return {entry["index"]: entry for entry in entries}


def save_png(path: Path, sample: Sample, spec: RunSpec, now: Mapping[str, Any]) -> None:
    """One picture with its record, whole or not at all."""
    content = png(sample, spec, now)
    with disk_errors(path.parent), whole(path) as part:
        part.write_bytes(content)


def png(sample: Sample, spec: RunSpec, now: Mapping[str, Any]) -> bytes:
    """The file: the picture, and the record that makes it again."""
    held = io.BytesIO()
    info = png_info(record_of(sample, spec, now), sample.image.size)
    sample.image.save(held, format="PNG", pnginfo=info)
    return held.getvalue()


def _entry(sample: Sample, path: Path, content: bytes) -> dict[str, Any]:
    return {
        "index": sample.index,
        "file": path.name,
        "seed": sample.seed,
        "prompt": sample.prompt,
        "bytes": len(content),
        "changed": path.stat().st_mtime_ns,
        "sha256": hashlib.sha256(content).hexdigest(),
        "evaluations": sample.evaluations,
        "batch": asdict(sample.batch),
        "seconds": round(sample.seconds, 4),
    }
