"""One picture file -> uint8 RGB and its caption. Every conversion that changes values is counted, or refused."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from ...errors import UsageError
from .limits import PIXELS
from .names import why
from .npy import read_header

RGB = tuple[int, int, int]
KEY = "pilotage"  # the text chunk of our PNGs, JSON
# Pillow goes by content, not by extension, and some of its readers start other programs.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "PPM")
# Part of the preprocessing id.
DECODER = {"decoder": "pillow", "exif_rotation": False, "sixteen_bit": "grey: round(v / 257), colour: high byte"}


class Decoded(NamedTuple):
    """pixels: uint8 (H, W, 3). text: the caption that the file carries. notes: what was done to it."""

    pixels: np.ndarray
    text: str | None
    notes: list[str]


def read_picture(file: Path | bytes, name: str, background: RGB | None = None) -> Decoded:
    """Decode a picture file or a .npy of bytes, on the disk or in memory. name: what errors call it.

    Transparency is refused without a background, for dropping it changes values; an opaque alpha channel is no
    transparency. Greyscale, palette, CMYK and 16-bit pictures are converted, with a note. EXIF rotation is not applied.
    """
    try:
        with io.BytesIO(file) if isinstance(file, bytes) else file.open("rb") as opened:
            if name.lower().endswith(".npy"):
                size = opened.seek(0, io.SEEK_END)
                opened.seek(0)
                return Decoded(_bytes(opened, name, size), None, [])
            with Image.open(opened, formats=FORMATS) as image:
                return _decoded(image, name, background)
    except UsageError:
        raise
    except UnidentifiedImageError:
        raise UsageError(f"{name} cannot be read as a picture (it is none, or damaged); remove or replace it") from None
    except Exception as error:  # decoders of hostile files raise nearly anything
        raise UsageError(f"{name} cannot be read as a picture ({why(error)}); remove or replace it") from None


def _decoded(image: Image.Image, name: str, background: RGB | None) -> Decoded:
    if image.width * image.height > PIXELS:
        raise UsageError(f"{name} has {image.width} x {image.height} pixels, more than {PIXELS}; scale it down")
    tile = getattr(image, "tile", None)  # gone after loading; Pillow tells 16-bit colour nowhere else
    raw = str(tile[0][3]) if tile else ""
    image.load()
    text, notes = _caption(image)
    pixels, conversions = to_rgb(image, name, background, raw)
    kind = "JPEG" if image.format == "MPO" else image.format or "unknown"  # phones write JPEGs of that name
    return Decoded(pixels, text, [f"{kind} files", *notes, *conversions])


def to_rgb(image: Image.Image, name: str, background: RGB | None = None, raw: str = "") -> tuple[np.ndarray, list[str]]:
    """(uint8 (H, W, 3), notes) of an opened picture. raw: the layout of the file's pixels, where it is known."""
    notes = []
    if getattr(image, "n_frames", 1) > 1:
        notes.append("animated, first frame taken")
    if ";16" in raw or image.mode.startswith("I;16"):
        notes.append("16-bit converted to 8")
    if image.mode.startswith("I;16"):
        grey = np.rint(np.asarray(image).astype(np.float64) / 257).astype(np.uint8)
        return np.stack([grey] * 3, -1), notes
    if image.mode in ("I", "F"):
        raise UsageError(f"{name} has 32-bit pixels of unknown range; save it as 8-bit PNG")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        if rgba.getchannel("A").getextrema() != (255, 255):
            if background is None:
                raise UsageError(f"{name} is transparent; give a background to lay it on, such as (255, 255, 255)")
            canvas = Image.new("RGBA", rgba.size, (*background, 255))
            rgba = Image.alpha_composite(canvas, rgba)
            notes.append("transparent, laid on the background")
        image = rgba
    elif image.mode != "RGB":
        notes.append(f"{_MODES.get(image.mode, image.mode)} converted to RGB")
    return np.array(image if image.mode == "RGB" else image.convert("RGB")), notes


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


def _bytes(file: BinaryIO, name: str, size: int) -> np.ndarray:
    header = read_header(file, name, size)
    if header.dtype != np.uint8 or len(header.shape) != 3 or header.shape[-1] != 3 or not header.bytes:
        raise UsageError(f"{name} must be uint8 (H, W, 3), got {header}; convert or remove it")
    if header.bytes > 3 * PIXELS:
        raise UsageError(f"{name} has {header.bytes // 3} pixels, more than {PIXELS}; scale it down")
    flat = np.frombuffer(file.read(header.bytes), np.uint8)
    return flat.reshape(header.shape, order="F" if header.fortran else "C").copy()
