"""The text inside a PNG: everything that is needed to make the picture again, and a line that other tools read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image, PngImagePlugin, UnidentifiedImageError

from ..errors import UsageError
from .pictures import Batch, Sample
from .seeds import Seed
from .spec import NOT_IDENTITY, RunSpec

KEY = "pilotage"
FORMAT = 1


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
    alone = spec.changed(prompts=[sample.prompt], seeds=[sample.seed], paired=False)
    alone = alone.changed(**{key: RunSpec.model_fields[key].default for key in NOT_IDENTITY})
    return Record(alone, sample.index, sample.prompt, sample.seed, sample.evaluations, sample.batch, dict(run))


def png_info(record: Record, size: tuple[int, int]) -> PngImagePlugin.PngInfo:
    """Text chunks for `Image.save(..., pnginfo=)`."""
    text = {"format": FORMAT, **asdict(record), "spec": record.spec.plain()}
    info = PngImagePlugin.PngInfo()
    info.add_text(KEY, json.dumps(text))
    info.add_text("parameters", parameters_line(record, size))
    return info


def parameters_line(record: Record, size: tuple[int, int]) -> str:
    """As the web UIs write it: prompt, negative prompt, then `Steps: 25, Sampler: ..., CFG scale: 3, Seed: 0, ...`."""
    from ..guidance.compose import parts_of
    from ..guidance.grammar import parse

    spec = record.spec
    scales = [s for rule in parts_of(parse(spec.guidance))[0] if (s := getattr(rule, "scale", None)) is not None]
    settings = {
        "Steps": spec.steps,
        "Sampler": spec.sampler,
        "Schedule type": spec.grid,
        "CFG scale": scales[0] if scales else 1.0,
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


def _quoted(value: Any) -> str:
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if any(mark in text for mark in ',:\n"') else text


def read_png(path: str | Path) -> tuple[Record, Image.Image]:
    """The record and the picture of a PNG that Pilotage wrote."""
    try:
        with Image.open(path) as opened:
            opened.load()
            texts = getattr(opened, "text", {})
            picture = opened.copy()
    except FileNotFoundError:
        raise UsageError(f"there is no file {path}") from None
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        raise UsageError(f"{path} is no PNG that can be read; it may be cut off, or no picture at all") from None
    if KEY not in texts:
        raise UsageError(f"{path} was not written by pilotage, or its metadata was stripped: there is nothing to rerun")
    return _record(path, texts[KEY]), picture


def _record(path: str | Path, text: str) -> Record:
    try:
        found = json.loads(text)
        if found.pop("format") != FORMAT:
            raise UsageError(f"{path} was written by a newer pilotage; update pilotage to read it")
        spec, batch = RunSpec(**found.pop("spec")), Batch(**found.pop("batch"))
        return Record(spec=spec, batch=batch, **found)
    except UsageError as error:
        raise UsageError(f"the metadata of {path} cannot be used: {error}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UsageError(f"the metadata of {path} is damaged: there is nothing to rerun") from None
