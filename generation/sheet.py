"""The labelled grid: a row for each cell, a column for each picture."""

from __future__ import annotations

import textwrap
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from .comparison import Cell, Comparison

INK, FAINT, PAPER, LINE = (28, 30, 36), (112, 116, 128), (255, 255, 255), (226, 228, 234)
GAP, MARGIN, LABEL = 8, 20, 216
MOST = 384  # the longest side of a picture on the sheet


def write_sheet(result: Comparison, path: Path) -> None:
    """Write the grid as a PNG."""
    draw_sheet(result).save(path, format="PNG")


def draw_sheet(result: Comparison) -> Image.Image:
    rows = [
        [shown(Image.open(cell.run.folder / cell.run.items[i]["file"])) for i in result.shown] for cell in result.cells
    ]
    width = max(picture.width for row in rows for picture in row)
    height = max(picture.height for row in rows for picture in row)
    columns = [headed(prompt, seed, width) for prompt, seed in result.columns]
    head = 18 * max(text.count("\n") + 1 for text in columns) + GAP
    sheet = Image.new(
        "RGB",
        (2 * MARGIN + LABEL + len(columns) * (width + GAP), 2 * MARGIN + head + len(rows) * (height + GAP)),
        PAPER,
    )
    draw = ImageDraw.Draw(sheet)
    for column, text in enumerate(columns):
        x = MARGIN + LABEL + column * (width + GAP)
        draw.multiline_text((x, MARGIN + head - GAP), text, FAINT, font(13), anchor="ld", spacing=4)
    for number, (cell, pictures) in enumerate(zip(result.cells, rows, strict=True)):
        y = MARGIN + head + number * (height + GAP)
        _label(draw, cell, y)
        for column, picture in enumerate(pictures):
            sheet.paste(picture, (MARGIN + LABEL + column * (width + GAP), y))
    return sheet


def _label(draw: ImageDraw.ImageDraw, cell: Cell, y: int) -> None:
    text = textwrap.fill(cell.label, 25)
    draw.multiline_text((MARGIN, y), text, INK, font(16), spacing=4)
    below = y + 22 * (text.count("\n") + 1) + 4
    facts = [f"{sum(cell.run.evaluations.values()):.4g} evaluations", f"{cell.run.seconds:.2f} s a picture"]
    facts += [f"{name} {score.text}" for name, score in list(cell.scores.items())[:3]]
    draw.multiline_text((MARGIN, below), "\n".join(facts), FAINT, font(13), spacing=4)


def headed(prompt: str, seed: str, width: int) -> str:
    """A prompt broken to the width of its column, with its seed below."""
    lines = textwrap.wrap(prompt, max(8, width // 7), max_lines=4, placeholder=" …") or ["(no prompt)"]
    return "\n".join([*lines, f"seed {seed}"])


def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def shown(picture: Image.Image) -> Image.Image:
    """In a size to look at: small pictures four times as large or so, big ones within `MOST`."""
    picture = picture.convert("RGB")
    side = max(picture.size)
    if 128 <= side <= MOST:
        return picture
    factor = max(1, round(128 / side)) if side < 128 else MOST / side
    size = round(picture.width * factor), round(picture.height * factor)
    return picture.resize(size, Image.Resampling.LANCZOS)


def contact_sheet(pictures: list[Image.Image], columns: int = 8) -> Image.Image:
    """Pictures side by side without labels."""
    tiles = [shown(picture) for picture in pictures]
    width, height = max(t.width for t in tiles) + 4, max(t.height for t in tiles) + 4
    across = min(columns, len(tiles))
    sheet = Image.new("RGB", (across * width, -(-len(tiles) // across) * height), PAPER)
    for number, tile in enumerate(tiles):
        sheet.paste(tile, (number % across * width, number // across * height))
    return sheet
