"""Pictures side by side, each with a label above it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from ...generation.inversion import image_of
from ...generation.sheet import GAP, INK, MARGIN, PAPER, font, shown

HEAD = 22  # a label's height


def images_of(pictures: Tensor) -> list[Image.Image]:
    """(n, 3, H, W) in [0, 1] as n images of 8 bits."""
    return [image_of(one) for one in torch.clamp(pictures, 0, 1).split(1)]


def sheet_of(pictures: Tensor | Sequence[Image.Image], labels: Sequence[str], across: int = 4) -> Image.Image:
    """Labelled tiles in rows of `across`."""
    images = images_of(pictures) if isinstance(pictures, Tensor) else pictures
    tiles = [shown(image) for image in images]
    width, height = max(t.width for t in tiles) + GAP, max(t.height for t in tiles) + HEAD + GAP
    columns, rows = min(across, len(tiles)), -(-len(tiles) // across)
    sheet = Image.new("RGB", (2 * MARGIN + columns * width - GAP, 2 * MARGIN + rows * height - GAP), PAPER)
    draw = ImageDraw.Draw(sheet)
    for number, (tile, label) in enumerate(zip(tiles, labels, strict=True)):
        x, y = MARGIN + number % across * width, MARGIN + number // across * height
        draw.text((x, y), label, INK, font(14))
        sheet.paste(tile, (x, y + HEAD))
    return sheet
