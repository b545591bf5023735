"""rerun: a picture again, from the PNG alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UsageError
from ..storage import make_folder
from .environment import differences, environment, threads
from .folder import input_hashes
from .metadata import Record, read_png
from .models import device_named, open_model
from .pictures import Sample, generate
from .saving import save_png
from .spec import RunSpec

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True)
class Rerun:
    """What came of it. largest: the largest difference of a pixel value (0 .. 255); None when settings of the picture
    were changed."""

    file: Path
    sample: Sample
    largest: int | None
    changed_values: int = 0
    notes: list[str] = field(default_factory=list)


def rerun(
    path: str | Path,
    changes: Mapping[str, Any] | None = None,
    output: str | Path | None = None,
    trust: bool = False,
) -> Rerun:
    """Make the picture of a PNG again, with its rows per call, threads, dtype and device, and compare the pixels.

    changes: settings to change, for a variation. output: the new file, a .png; beside the old one as NAME-rerun.png
    without it.
    trust: open the folders and files that the picture names. Without it a picture that names any is refused: a stranger
    may have written it. Nothing is downloaded unless `changes` allow it.
    """
    target = Path(output) if output else Path(path).with_name(f"{Path(path).stem}-rerun.png")
    if target.suffix.lower() != ".png":
        raise UsageError(f"{target} must end in .png: only a PNG keeps the pixels and the recipe")
    record, before = read_png(path, trust, changes or ())
    spec = spec_of(record, changes or {})
    said = _device_notes(spec, record)
    spec = spec if not said else spec.changed(device="auto")
    model = open_model(spec)
    with threads(spec.threads):
        now = {"revision": model.revision, "inputs": input_hashes(spec), **environment(model.key[2])}
    said += mismatches(record, now)
    make_folder(target.parent)
    (sample,) = generate(spec, model=model, fill=True)
    save_png(target, sample, spec, now)
    if set(changes or ()) - {"allow_download"}:
        return Rerun(target, sample, None, notes=said)
    largest, count = pixel_difference(before, sample.image)
    return Rerun(target, sample, largest, count, said + (_dropped_rows(record) if largest else []))


def spec_of(record: Record, changes: Mapping[str, Any]) -> RunSpec:
    """The spec that repeats the arithmetic: a batch of as many pictures, the recorded threads and device."""
    settings: dict[str, Any] = {"batch_size": record.batch.pictures}
    settings |= {"threads": record.run.get("threads"), "device": record.run.get("device", "auto")}
    if record.spec.exact:
        settings["rows_per_call"] = record.batch.rows_per_call
    spec = record.spec.changed(**(settings | dict(changes)))
    if len(spec.pictures()) != 1:
        raise UsageError(
            "rerun makes one picture; for several prompts or seeds use generate --config with the run.yaml"
        )
    return spec


def _device_notes(spec: RunSpec, record: Record) -> list[str]:
    try:
        device_named(spec.device)
    except UsageError:
        return [f"the picture was made on {record.run.get('device')}, which is not here"]
    return []


def mismatches(record: Record, now: Mapping[str, Any]) -> list[str]:
    """What is not as it was; the pixels may then differ."""
    said = differences(record.run, now)
    if record.run.get("revision") != now["revision"]:
        said.append(
            f"the weights of {record.spec.model} have changed: {record.run.get('revision')} then, {now['revision']} now"
        )
    for name, then in record.run.get("inputs", {}).items():
        if now["inputs"].get(name) != then:
            said.append(f"the input {name!r} has changed")
    return said


def _dropped_rows(record: Record) -> list[str]:
    """Why an inexact picture may differ: rows that its batch mates dropped changed the size of the calls."""
    if record.spec.exact:
        return []
    return ["it was not made in exact mode; calls with dropped rows may have had another size"]


def pixel_difference(one: Image.Image, other: Image.Image) -> tuple[int, int]:
    """The largest difference of a value and how many values differ; a different size counts as all different."""
    import numpy as np

    if one.size != other.size:
        return 255, one.width * one.height * 3
    a, b = (np.asarray(picture.convert("RGB"), dtype=np.int16) for picture in (one, other))
    difference = np.abs(a - b)
    return int(difference.max()), int((difference > 0).sum())
