"""What people call a picture, in memory: arrays, tensors, PIL images, rows of a dataset, alone or with captions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from PIL import Image

from ...errors import UsageError
from ..arrays import as_pictures, as_tensor
from .decode import RGB, to_rgb
from .picture import Picture
from .source import Read

IMAGE, TEXT, LABEL = ("image", "img", "jpg", "png"), ("caption", "text", "prompt"), ("label", "class", "cls")


def pictures_of(
    item: Any, number: int, value_range: tuple[float, float] | None = None, background: RGB | None = None
) -> Iterator[Read]:
    """The pictures of an item, called by their numbers from `number` on.

    item: a Picture; (H, W, 3), (3, H, W), a batch of those, a PIL image, a list of such; a pair of one and its
    caption(s) or its class number; a mapping with "image" and perhaps "caption" and "label".
    """
    if isinstance(item, Picture):
        yield item, []
        return
    texts: Any = None
    label: Any = None
    if isinstance(item, Mapping):
        item, texts, label = _row(item, number)
    elif isinstance(item, (tuple, list)) and len(item) == 2 and _are_texts(item[1]):
        item, texts = item
    elif isinstance(item, (tuple, list)) and len(item) == 2 and type(item[1]) is int:
        item, label = item
    found = _pixels(item, number, value_range, background)
    if texts is None or isinstance(texts, str):
        texts = [texts] * len(found)
    if len(texts) != len(found):
        raise UsageError(f"{len(found)} pictures but {len(texts)} captions; give one caption a picture")
    for i, ((pixels, notes), text) in enumerate(zip(found, texts, strict=True)):
        yield Picture(np.ascontiguousarray(pixels), str(number + i), text, label), notes


def _pixels(
    item: Any, number: int, value_range: tuple[float, float] | None, background: RGB | None
) -> list[tuple[np.ndarray, list[str]]]:
    """(uint8 (H, W, 3), notes) of each picture."""
    if isinstance(item, Image.Image):
        return [to_rgb(item, f"picture {number}", background)]
    if isinstance(item, (list, tuple)) and item and not isinstance(item[0], (int, float, list, tuple)):
        return [found for i, one in enumerate(item) for found in _pixels(one, number + i, value_range, background)]
    try:
        array = as_tensor(item)
    except (TypeError, ValueError):
        raise UsageError(f"picture {number} is of {type(item).__name__}; give an array, a tensor or an image") from None
    if array.ndim not in (3, 4):
        raise UsageError(f"picture {number} must be (H, W, 3), (3, H, W) or a batch, got {tuple(array.shape)}")
    batch = as_pictures(array if array.ndim == 4 else array[None], value_range)
    return [(pixels, []) for pixels in batch.permute(0, 2, 3, 1).cpu().numpy()]


def _row(row: Mapping[Any, Any], number: int) -> tuple[Any, str | None, str | int | None]:
    """(image, caption, label) of a row of a dataset."""
    image = next((row[name] for name in IMAGE if row.get(name) is not None), None)
    if image is None:
        raise UsageError(f"item {number} has {', '.join(map(str, row))} but no image; rename the column to 'image'")
    text = next((row[name] for name in TEXT if isinstance(row.get(name), str)), None)
    label = next((row[name] for name in LABEL if type(row.get(name)) in (int, str)), None)
    return image, text, label


def _are_texts(what: Any) -> bool:
    return what is None or isinstance(what, str) or (isinstance(what, (list, tuple)) and all(map(_are_texts, what)))
