"""The arguments of a pipeline's own call, from a spec."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from ..errors import UsageError, nearest
from ..evaluation.sources.decode import FORMATS
from ..evaluation.sources.limits import PIXELS
from .seeds import Seed
from .spec import RunSpec


def pictures_of(spec: RunSpec) -> dict[str, Image.Image]:
    """The input picture and mask by the names of the pipelines, in the size of the spec."""
    found = {}
    if spec.image:
        found["image"] = resized(read_picture(spec.image).convert("RGB"), spec)
    if spec.mask:
        found["mask_image"] = resized(read_picture(spec.mask).convert("L"), spec)
        if found["mask_image"].size != found["image"].size:
            found["mask_image"] = found["mask_image"].resize(found["image"].size)
    return found


def read_picture(path: str) -> Image.Image:
    try:
        with Image.open(Path(path).expanduser(), formats=FORMATS) as opened:
            if opened.width * opened.height > PIXELS:
                raise UsageError(
                    f"{path} has {opened.width} x {opened.height} pixels, more than {PIXELS}; scale it down"
                )
            return ImageOps.exif_transpose(opened)
    except FileNotFoundError:
        raise UsageError(f"there is no picture {path}") from None
    except UsageError:
        raise
    except Exception:  # decoders of hostile files raise nearly anything
        raise UsageError(f"{path} is no picture that can be read; give a PNG, JPEG or WebP") from None


def resized(picture: Image.Image, spec: RunSpec) -> Image.Image:
    size = (spec.width or picture.width, spec.height or picture.height)
    return picture if size == picture.size else picture.resize(size, Image.Resampling.LANCZOS)


def call_arguments(
    spec: RunSpec,
    pipe: Any,
    on: Sequence[tuple[str, Any]],
    needs: Sequence[str],
    prompts: Sequence[str],
    seeds: Sequence[Seed],
    inputs: dict[str, Image.Image],
) -> dict[str, Any]:
    """on: the adapter's settings that make the pipeline prepare every branch. needs: those that the rule asks for."""
    from ..samplers.noise import generator_of

    takes = inspect.signature(type(pipe).__call__).parameters
    count = len(prompts)
    arguments: dict[str, Any] = {
        "num_inference_steps": spec.steps,
        "generator": [generator_of(seed) for seed in seeds],
        **_branches(on, needs, takes, spec.negative, count),
        **({"prompt": list(prompts)} if "prompt" in takes else {"class_labels": _labels(pipe, prompts)}),
        **{name: [picture] * count for name, picture in inputs.items()},
    }
    if spec.image and "strength" in takes:
        arguments["strength"] = spec.strength
    size = inputs["image"].size if "image" in inputs else (spec.width, spec.height)
    arguments |= {name: value for name, value in zip(("width", "height"), size) if name in takes and value}
    return arguments | _further(spec.call, takes, pipe)


def _branches(
    on: Sequence[tuple[str, Any]], needs: Sequence[str], takes: Any, negative: str | None, count: int
) -> dict[str, Any]:
    """The pipeline's own guidance, on when the rule needs its other branch; the rule overrules its value."""
    if not {"uncond", "image"} & set(needs):
        return {name: 1.0 for name, value in on if isinstance(value, float) and name in takes}
    settings = {name: value for name, value in on if name in takes}
    if "negative_prompt" in takes:
        settings["negative_prompt"] = [negative or ""] * count
    return settings


def _labels(pipe: Any, prompts: Sequence[str]) -> list[int]:
    """Class numbers of a class-conditional pipeline; names are looked up where it has a table."""
    if all(prompt.isdecimal() for prompt in prompts):
        return [int(prompt) for prompt in prompts]
    names = getattr(pipe, "labels", None) or {}
    unknown = [prompt for prompt in prompts if prompt not in names]
    if unknown:
        near = nearest(unknown[0], names) if names else "give class numbers"
        raise UsageError(f"{type(pipe).__name__} draws classes and has none called {unknown[0]!r}: {near}")
    return list(pipe.get_label_ids(list(prompts)))


def _further(call: dict[str, Any], takes: Any, pipe: Any) -> dict[str, Any]:
    for name in call:
        if name not in takes:
            raise UsageError(f"{type(pipe).__name__} takes no {name!r} (call.{name}): {nearest(name, takes)}")
    return call
