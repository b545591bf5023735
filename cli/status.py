"""pilotage status"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def status(
    folders: Annotated[list[Path], typer.Argument(help="Folders of runs, trainings, comparisons or scores.")],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a folder.")] = False,
) -> None:
    """Say how far a run is: what it is, done and to do, speed, time left, who works on it, the last notice.

    Nothing is loaded and nothing is disturbed.

      pilotage status runs/captions

      pilotage status runs/* --json
    """
    import json

    from ..generation.status import status_of

    for folder in folders:
        found = status_of(folder)
        print(json.dumps(found.plain()) if as_json else found.line())
