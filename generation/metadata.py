"""The text inside a PNG: everything that is needed to make the picture again, and a line that other tools read."""

from __future__ import annotations

import functools
import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image, PngImagePlugin
from pydantic import BaseModel, ConfigDict, Field

from ..documents import plain_json
from ..errors import UsageError
from ..evaluation.sources.limits import PIXELS
from .consent import one_picture, refuse_unasked
from .pictures import Batch, Sample
from .seeds import Seed
from .spec import NOT_IDENTITY, RunSpec

KEY = "pilotage"
FORMAT = 1


class _Run(BaseModel):
    model_config = ConfigDict(extra="allow")

    revision: str | None = None
    inputs: dict[str, str] = Field(default_factory=dict)
    versions: dict[str, str] = Field(default_factory=dict)
    threads: int | None = None
    device: str = "auto"
    hardware: str = ""


class _Found(BaseModel):
    """The kinds of what a picture says."""

    model_config = ConfigDict(extra="forbid")

    spec: dict[str, Any]
    index: int
    prompt: str
    seed: Seed
    evaluations: dict[str, float]
    batch: Batch
    run: _Run


@dataclass(frozen=True)
class Record:
    """What a PNG of ours says. spec: that of this picture alone. run: revision, inputs, versions, threads, device."""

    spec: RunSpec
    index: int
    prompt: str
    seed: Seed
    evaluations: dict[str, float]
    batch: Batch
    run: dict[str, Any]


def record_of(sample: Sample, spec: RunSpec, run: Mapping[str, Any]) -> Record:
    """The record of a sample of a run. Nothing in it depends on the clock: the same run gives the same file."""
    usual = {key: RunSpec.model_fields[key].default for key in NOT_IDENTITY}
    one = {"prompts": (sample.prompt,), "seeds": (sample.seed,), "paired": False}
    alone = spec.model_copy(update=usual | one)  # valid as the spec is, and quick whatever the number of its prompts
    return Record(alone, sample.index, sample.prompt, sample.seed, sample.evaluations, sample.batch, dict(run))


def png_info(record: Record, size: tuple[int, int]) -> PngImagePlugin.PngInfo:
    """Text chunks for `Image.save(..., pnginfo=)`."""
    text = {"format": FORMAT, **vars(record), "spec": record.spec.plain(), "batch": asdict(record.batch)}
    info = PngImagePlugin.PngInfo()
    info.add_text(KEY, json.dumps(text))
    info.add_text("parameters", parameters_line(record, size))
    return info


def parameters_line(record: Record, size: tuple[int, int]) -> str:
    """As the web UIs write it: prompt, negative prompt, then `Steps: 25, Sampler: ..., CFG scale: 3, Seed: 0, ...`."""
    spec, scale = record.spec, _scale_of(record.spec.guidance)
    settings = {
        "Steps": spec.steps,
        "Sampler": spec.sampler,
        "Schedule type": spec.grid,
        "CFG scale": 1.0 if scale is None else scale,
        "Seed": record.seed,
        "Size": f"{size[0]}x{size[1]}",
        "Model": Path(spec.model).name if "/" in spec.model else spec.model,
        "Model hash": record.run.get("revision"),
        "Denoising strength": spec.strength if spec.image else None,
        "Guidance": spec.guidance,
        "Version": f"pilotage {record.run.get('versions', {}).get('pilotage', '')}".strip(),
    }
    line = ", ".join(f"{name}: {_quoted(value)}" for name, value in settings.items() if value is not None)
    negative = f"Negative prompt: {spec.negative}\n" if spec.negative else ""
    return f"{record.prompt}\n{negative}{line}"


@functools.lru_cache(maxsize=16)
def _scale_of(guidance: str) -> Any:
    """The first scale in a line; parsed once for all pictures."""
    from ..guidance.compose import parts_of
    from ..guidance.grammar import parse

    return next((s for rule in parts_of(parse(guidance))[0] if (s := getattr(rule, "scale", None)) is not None), None)


def _quoted(value: Any) -> str:
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if any(mark in text for mark in ',:\n"') else text


def read_png(path: str | Path, trust: bool = True, own: Collection[str] = frozenset()) -> tuple[Record, Image.Image]:
    """The record and the picture of a PNG that Pilotage wrote. What it says of output and downloads is left out.

    trust: whoever wrote it may name files and models of this disk; without it such a picture is refused before any is
    looked for. own: settings that the caller will replace, so that what the picture says of them does not matter.
    """
    try:
        with Image.open(path, formats=("PNG",)) as opened:
            if opened.width * opened.height > PIXELS:
                raise UsageError(f"{path} has {opened.width} x {opened.height} pixels, more than {PIXELS}")
            opened.load()
            texts = getattr(opened, "text", {})
            picture = opened.copy()
    except FileNotFoundError:
        raise UsageError(f"there is no file {path}") from None
    except UsageError:
        raise
    except Exception:  # decoders of hostile files raise nearly anything
        raise UsageError(f"{path} is no PNG that can be read; it may be cut off, or no picture at all") from None
    if KEY not in texts:
        raise UsageError(f"{path} was not written by pilotage, or its metadata was stripped: there is nothing to rerun")
    found = _found(path, texts[KEY])
    if not trust:
        refuse_unasked(path, found, picture.size, own)
    return _record(path, found), picture


def _found(path: str | Path, text: str) -> dict[str, Any]:
    """The text as plain data of the right kinds; nothing that it names is looked for."""
    try:
        found: dict[str, Any] = plain_json(text)
        if found.pop("format") != FORMAT:
            raise UsageError(f"{path} was written by a newer pilotage; update pilotage to read it")
        found = _Found(**found).model_dump(exclude_unset=True)
        if not one_picture(found["spec"]):
            raise ValueError("it stands for several pictures")
        for key in NOT_IDENTITY:
            found["spec"].pop(key, None)
        return found
    except UsageError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UsageError(f"the metadata of {path} is damaged: there is nothing to rerun") from None


def _record(path: str | Path, found: dict[str, Any]) -> Record:
    try:
        spec, batch = RunSpec(**found["spec"]), Batch(**found["batch"])
        return Record(**{**found, "spec": spec, "batch": batch})
    except UsageError as error:
        raise UsageError(f"the metadata of {path} cannot be used: {error}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UsageError(f"the metadata of {path} is damaged: there is nothing to rerun") from None
