"""pilotage rerun"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def rerun(
    picture: Annotated[Path, typer.Argument(help="A PNG that pilotage wrote.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The new file; NAME-rerun.png beside the old one without it.")
    ] = None,
    assignments: Annotated[list[str] | None, typer.Option("--set", help="Change a setting, for a variation.")] = None,
    trust: Annotated[
        bool, typer.Option("--trust", help="Open the folders and files that the picture names: you know who made it.")
    ] = False,
    allow_download: Annotated[
        bool, typer.Option("--allow-download", help="Fetch the model that it names from the hub if need be.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the settings and stop.")] = False,
) -> None:
    """Make a picture again from its PNG alone, and compare the pixels.

    pilotage rerun runs/two-red-stars-on-navy-1f0c9a2b/000000.png

    pilotage rerun runs/mine/000000.png --trust    (of a model or a LoRA in a folder)

    pilotage rerun 000017.png --set guidance=apg -o variation.png
    """
    from ..generation.metadata import read_png
    from ..generation.repeat import rerun as again
    from ..generation.repeat import spec_of
    from ..generation.settings import read_set
    from .console import say_notes

    changes = read_set(assignments or []) | ({"allow_download": True} if allow_download else {})
    if dry_run:
        print(spec_of(read_png(picture, trust, changes)[0], changes).as_yaml(), end="")
        return
    done = again(picture, changes, output, trust)
    say_notes(done.notes)
    if done.largest is None:
        print(f"{done.file}: a variation")
    elif done.largest == 0:
        print(f"{done.file}: the same pixels")
    else:
        print(f"{done.file}: {done.changed_values} pixel values differ, by {done.largest} of 255 at most")
