"""One picture file -> uint8 RGB and its caption. Every conversion that changes values is counted, or refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..errors import UsageError

RGB = tuple[int, int, int]
KEY = "pilotage"  # the text chunk of our PNGs, JSON
# Part of the preprocessing id.
DECODER = {"decoder": "pillow", "exif_rotation": False, "sixteen_bit": "grey: round(v / 257), colour: high byte"}


def read_picture(file: Path, background: RGB | None = None) -> tuple[np.ndarray, str | None, list[str]]:
    """(uint8 (H, W, 3), caption or None, notes) of a picture file or a .npy of bytes.

    Transparency is refused without a background, for dropping it changes values; an opaque alpha channel is no
    transparency. Greyscale, palette, CMYK and 16-bit pictures are converted, with a note. EXIF rotation is not applied.
    """
    try:
        if file.suffix.lower() == ".npy":
            return _bytes(np.load(file, allow_pickle=False), file), None, []
        with Image.open(file) as image:
            note = f"{image.format or 'unknown'} files"
            raw = str(image.tile[0][3]) if getattr(image, "tile", None) else ""
            image.load()
            text, notes = _caption(image)
            pixels, conversions = _rgb(image, raw, background, file)
            return pixels, text, [note, *notes, *conversions]
    except UsageError:
        raise
    except Exception as error:  # decoders of hostile files raise nearly anything
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UsageError(f"{file} cannot be read as a picture ({why}); remove or replace it") from None


def _rgb(image: Image.Image, raw: str, background: RGB | None, file: Path) -> tuple[np.ndarray, list[str]]:
    notes = []
    if getattr(image, "n_frames", 1) > 1:
        notes.append("animated, first frame taken")
    if ";16" in raw or image.mode.startswith("I;16"):
        notes.append("16-bit converted to 8")
    if image.mode.startswith("I;16"):
        grey = np.rint(np.asarray(image).astype(np.float64) / 257).astype(np.uint8)
        return np.stack([grey] * 3, -1), notes
    if image.mode in ("I", "F"):
        raise UsageError(f"{file} has 32-bit pixels of unknown range; save it as 8-bit PNG")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        if rgba.getchannel("A").getextrema() != (255, 255):
            if background is None:
                raise UsageError(f"{file} is transparent; give a background to lay it on, such as (255, 255, 255)")
            canvas = Image.new("RGBA", rgba.size, (*background, 255))
            rgba = Image.alpha_composite(canvas, rgba)
            notes.append("transparent, laid on the background")
        image = rgba
    elif image.mode != "RGB":
        notes.append(f"{_MODES.get(image.mode, image.mode)} converted to RGB")
    return np.array(image.convert("RGB")), notes


_MODES = {"L": "greyscale", "1": "black and white", "P": "palette", "LA": "greyscale"}


def _caption(image: Image.Image) -> tuple[str | None, list[str]]:
    """What our PNG chunk says under "prompt"; metadata of others are not looked at."""
    chunk = getattr(image, "text", {}).get(KEY)
    if chunk is None:
        return None, []
    try:
        found: Any = json.loads(chunk)
    except (ValueError, RecursionError):
        found = None
    prompt = found.get("prompt") if isinstance(found, dict) else None
    return (prompt, []) if isinstance(prompt, str) else (None, ["metadata without a prompt"])


def _bytes(array: np.ndarray, file: Path) -> np.ndarray:
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[-1] != 3:
        raise UsageError(f"{file} must be uint8 (H, W, 3), got {array.dtype} {array.shape}; convert or remove it")
    return array
