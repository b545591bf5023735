"""pilotage fit-grid"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import Given, takes_spec


@takes_spec
def fit_grid(
    given: Given,
    file: Annotated[Path, typer.Option("--file", "-f", help="Where the grid goes.")] = Path("grid.json"),
    fine: Annotated[int, typer.Option(min=2, help="Steps of the solution that is aimed at.")] = 100,
    iterations: Annotated[int, typer.Option(min=1, help="At most; each costs about steps + 1 runs.")] = 6,
) -> None:
    """Fit the noise levels of a grid, so that few steps end where many do.

    They belong to the model, rule, sampler and steps given here, and are refused with others. Every fourth picture is
    kept for checking.

      pilotage fit-grid --prompts captions.txt --guidance "cfg:scale=3" --steps 8 --file grid.json

      pilotage generate "two red stars on navy" --guidance "cfg:scale=3" --steps 8 --grid "fitted:file=grid.json"
    """
    from ..errors import UsageError
    from ..generation.environment import threads
    from ..generation.grid_fitting import fit_grid_of
    from ..generation.models import open_model
    from ..generation.spec import RunSpec

    spec = given.resolve(RunSpec)
    if spec.output:
        raise UsageError("fit-grid makes no run folder; say where the grid goes with --file")
    if given.dry_run:
        print(spec.as_yaml(), end="")
        return
    if file.is_dir() or not file.absolute().parent.is_dir():
        raise UsageError(f"cannot write {file}; give --file a name in a folder that is there")
    spec.pictures()
    model = open_model(spec)
    with threads(spec.threads):
        found = fit_grid_of(spec, model, fine=fine, iterations=iterations, told=_say)
    found.grid.save(file)
    for line, loss in found.losses.items():
        print(f"{line:>24}  {loss:.4f}")
    print(f"{file}: {found.grid.steps} steps, fitted in {found.runs} runs; above is the distance to {fine} steps")
    print(
        f'use: --guidance "{spec.guidance}" --sampler "{spec.sampler}" --steps {spec.steps} --grid "fitted:file={file}"'
    )


def _say(iteration: int, loss: float) -> None:
    print(f"iteration {iteration}: distance {loss:.4f}", flush=True)
