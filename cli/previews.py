"""preview.png: the batch that is being made, as far as it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image


def preview_to(folder: Path) -> Callable[[list[Image.Image]], None]:
    """A watcher that keeps one contact sheet up to date."""

    def write(pictures: list[Image.Image]) -> None:
        from ..generation.sheet import contact_sheet
        from ..storage import disk_errors, whole

        with disk_errors(folder), whole(folder / "preview.png") as part:
            contact_sheet(pictures).save(part, format="PNG")

    return write
