"""pilotage fit-teleport"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import Given, takes_spec


@takes_spec
def fit_teleport(
    given: Given,
    file: Annotated[Path, typer.Option("--file", "-f", help="Where the Gaussian goes.")] = Path("teleport.safetensors"),
    tolerance: Annotated[
        float, typer.Option(min=0.0, help="How far it may be from the network, in deviations of the data.")
    ] = 0.02,
    rank: Annotated[int | None, typer.Option(min=1, help="Principal directions; 256 without it.")] = None,
) -> None:
    """Fit the Gaussian that stands for the first steps of a run.

    It is fitted to the latents of the pictures given here, some hundreds if possible, and belongs to their model, rule
    and size. Published: 15 to 30 % of the steps left out. On the embedded model such a saving was not seen: the same
    number of steps less does as well, and stays nearer to the same pictures; see docs/results.md.

      pilotage fit-teleport --prompts captions.txt --guidance "cfg:scale=3" --file teleport.safetensors

      pilotage generate "two red stars on navy" --guidance "cfg:scale=3" --teleport teleport.safetensors
    """
    from ..errors import UsageError
    from ..generation.environment import threads
    from ..generation.models import open_model
    from ..generation.spec import RunSpec
    from ..generation.teleport_fitting import fit_teleport_of

    spec = given.resolve(RunSpec)
    if spec.output:
        raise UsageError("fit-teleport makes no run folder; say where the Gaussian goes with --file")
    if given.dry_run:
        print(spec.as_yaml(), end="")
        return
    if file.is_dir() or not file.absolute().parent.is_dir():
        raise UsageError(f"cannot write {file}; give --file a name in a folder that is there")
    model = open_model(spec)
    with threads(spec.threads):
        found = fit_teleport_of(spec, model, tolerance=tolerance, rank=rank)
    found.gaussian.save(file)
    for level, error in zip(found.levels, found.errors, strict=True):
        print(f"rho {level.rho:8.3f}  {error:.4f} away from the network")
    if not found.left_out:
        print(f"{file}: no level is within {tolerance:g}, so no step is left out; raise --tolerance to do so anyway")
        return
    print(f"{file}: lands at rho {found.gaussian.landing:.3f}, {found.left_out} of {len(found.levels)} steps left out")
    print(f'use: --guidance "{spec.guidance}" --steps {spec.steps} --teleport {file}')
