"""run: a spec into a folder that can be resumed. The same command again finishes what is missing.

run.yaml          the spec, versions, revision of the model, hashes of the input pictures
manifest.jsonl    a line for each finished picture, appended after the picture is safely on the disk
000017.png        written under a temporary name, then renamed; carries the spec, seed and evaluations
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from ..errors import UsageError
from ..storage import append_line, check_space, disk_errors, make_folder, whole, write_text
from .environment import differences, environment, threads
from .metadata import png_info, record_of
from .pictures import Sample, Watch, generate
from .spec import RunSpec

if TYPE_CHECKING:
    from .models import Loaded

RUN, MANIFEST = "run.yaml", "manifest.jsonl"


@dataclass
class Finished:
    """A run folder as it is after `run`. items: the manifest's entries by number. made: how many of them are new."""

    folder: Path
    spec: RunSpec
    items: dict[int, dict[str, Any]]
    made: int = 0
    notes: list[str] = field(default_factory=list)

    @property
    def files(self) -> list[Path]:
        return [self.folder / self.items[index]["file"] for index in sorted(self.items)]

    @property
    def evaluations(self) -> dict[str, float]:
        """Evaluations a picture, by branch, on average."""
        branches = dict.fromkeys(b for item in self.items.values() for b in item["evaluations"])
        return {b: sum(i["evaluations"].get(b, 0) for i in self.items.values()) / len(self.items) for b in branches}

    @property
    def seconds(self) -> float:
        """Seconds a picture, on average."""
        return sum(item["seconds"] for item in self.items.values()) / max(1, len(self.items))


def default_folder(spec: RunSpec) -> Path:
    """runs/<words of the first prompt>-<hash of the spec>: the same command finds the same folder."""
    words = re.sub(r"[^a-z0-9]+", "-", spec.pictures()[0][0].lower()).strip("-")[:40].strip("-")
    digest = hashlib.sha256(json.dumps(spec.identity(), sort_keys=True).encode()).hexdigest()[:8]
    return Path("runs") / "-".join(part for part in (words, digest) if part)


def run(
    spec: RunSpec,
    *,
    model: Loaded | None = None,
    watch: Watch | None = None,
    told: Callable[[Sample], None] | None = None,
    begun: Callable[[int, int], None] | None = None,
) -> Finished:
    """Make the pictures of a spec that its folder does not hold yet. Calling it again resumes.

    told(sample) after each picture is on the disk. begun(finished, of) before the first.
    """
    from .models import open_model

    folder = Path(spec.output) if spec.output else default_folder(spec)
    pictures = spec.pictures()
    refuse_other_run(folder, spec)
    items = finished_items(folder, pictures)
    if len(items) == len(pictures):
        return Finished(folder, spec, items)
    model = model or open_model(spec)
    missing = [index for index in range(len(pictures)) if index not in items]
    samples = generate(spec, model=model, only=missing, watch=watch)  # refuses what is wrong before anything is written
    with threads(spec.threads):
        now = {"revision": model.revision, "inputs": input_hashes(spec), **environment(model.key[2])}
    with _nothing_if_refused(folder):
        make_folder(folder)
        said = _begin(folder, spec, now)
        check_space(folder, len(missing) * _bytes_each(spec, model.pipe) + 1_000_000)
        if begun:
            begun(len(items), len(pictures))
        for sample in samples:
            items[sample.index] = _save(folder, sample, spec, now)
            if told:
                told(sample)
    return Finished(folder, spec, items, len(missing), said)


# -- beginning and resuming ----------------------------------------------------------------------------------


def refuse_other_run(folder: Path, spec: RunSpec) -> None:
    """A folder holds one run: refuse another spec, and a folder that is in use for something else."""
    with disk_errors(folder):
        if not folder.exists():
            return
        found = list(folder.iterdir())
    if not (folder / RUN).is_file():
        if any(path.suffix.lower() == ".png" or path.name == MANIFEST for path in found):
            raise UsageError(f"{folder} holds pictures but no {RUN}; choose another output")
        return
    differing = differing_fields(_recorded(folder).get("spec", {}), spec)
    if differing:
        raise UsageError(
            f"{folder} holds another run: {'; '.join(differing)}. Choose another output, or the settings of that run"
        )


def _recorded(folder: Path) -> dict[str, Any]:
    try:
        found = yaml.safe_load((folder / RUN).read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError):
        found = None
    if not isinstance(found, dict):
        raise UsageError(f"{folder / RUN} cannot be read; choose another output, or delete that folder")
    return found


def differing_fields(recorded: dict[str, Any], spec: RunSpec) -> list[str]:
    """`steps is 20 there and 25 here` for each field."""
    said = []
    for key, here in spec.identity().items():
        there = recorded.get(key, RunSpec.model_fields[key].default)
        if there != here:
            said.append(f"{key} is {_short(there)} there and {_short(here)} here")
    return said


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


@contextmanager
def _nothing_if_refused(folder: Path) -> Iterator[None]:
    """A run that ends before its first picture leaves nothing that it wrote: a refusal may come as late as the first
    network call, and the folder would then refuse the command that mends it."""
    existed, resumed = folder.exists(), (folder / RUN).is_file()
    try:
        yield
    except BaseException:
        if not resumed and not any(folder.glob("*.png")):
            (folder / RUN).unlink(missing_ok=True)
            if not existed:
                with suppress(OSError):  # somebody else has put something there
                    folder.rmdir()
        raise


def _begin(folder: Path, spec: RunSpec, now: dict[str, Any]) -> list[str]:
    """Write run.yaml, or when it is there, say how this machine differs from the one that began."""
    if (folder / RUN).is_file():
        for leftover in folder.glob("*.part"):
            leftover.unlink()
        recorded = _recorded(folder)
        said = differences(recorded, now)
        for what in ("revision", "inputs"):
            if recorded.get(what) != now[what]:
                raise UsageError(
                    f"{folder} was begun with another {what} of the model or input pictures; choose another output"
                )
        return (
            [f"this run was begun elsewhere, pictures may differ in their last digits: {', '.join(said)}"]
            if said
            else []
        )
    text = yaml.safe_dump({"spec": spec.plain(), **now}, sort_keys=False, allow_unicode=True, width=110)
    write_text(folder / RUN, text)
    return []


def finished_items(folder: Path, pictures: list[Any]) -> dict[int, dict[str, Any]]:
    """Entries of the manifest whose picture is really there, unchanged. A line cut off by a kill is passed over."""
    items = {}
    manifest = folder / MANIFEST
    for line in manifest.read_text(encoding="utf-8").splitlines() if manifest.is_file() else []:
        try:
            item = json.loads(line)
            index, path = item["index"], folder / Path(item["file"]).name
            if index < len(pictures) and path.stat().st_size == item["bytes"] and hash_of(path) == item["sha256"]:
                items[index] = item
        except (ValueError, KeyError, TypeError, OSError):
            continue
    _mend_last_line(manifest)
    return items


def _mend_last_line(manifest: Path) -> None:
    """A kill may leave half a line; end it, so that the next one starts fresh."""
    if manifest.is_file() and (held := manifest.read_bytes()) and not held.endswith(b"\n"):
        with disk_errors(manifest.parent), manifest.open("ab") as file:
            file.write(b"\n")


def hash_of(path: Path | str) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def input_hashes(spec: RunSpec) -> dict[str, str]:
    """Hashes of the input pictures, so that a rerun knows whether they are still the same."""
    named = {"image": spec.image, "mask": spec.mask}
    return {name: hash_of(Path(path).expanduser()) for name, path in named.items() if path and Path(path).is_file()}


# -- one picture ---------------------------------------------------------------------------------------------


def _bytes_each(spec: RunSpec, pipe: Any) -> int:
    """A PNG is at most a little larger than its pixels."""
    default = getattr(pipe, "default_sample_size", None) or 64
    side = default * (getattr(pipe, "vae_scale_factor", None) or 8) if isinstance(default, int) else 1024
    return 3 * (spec.width or side) * (spec.height or side) + 16_384


def _save(folder: Path, sample: Sample, spec: RunSpec, now: dict[str, Any]) -> dict[str, Any]:
    path = folder / f"{sample.index:06d}.png"
    save_png(path, sample, spec, now)
    item = {
        "index": sample.index,
        "file": path.name,
        "seed": sample.seed,
        "prompt": sample.prompt,
        "bytes": path.stat().st_size,
        "sha256": hash_of(path),
        "evaluations": sample.evaluations,
        "batch": asdict(sample.batch),
        "seconds": round(sample.seconds, 4),
    }
    with disk_errors(folder):
        append_line(folder / MANIFEST, json.dumps(item))
    return item


def save_png(path: Path, sample: Sample, spec: RunSpec, now: dict[str, Any]) -> None:
    """The picture with its record, whole or not at all."""
    info = png_info(record_of(sample, spec, now), sample.image.size)
    with disk_errors(path.parent), whole(path) as part:
        sample.image.save(part, format="PNG", pnginfo=info)
