"""pilotage score"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def score(
    generated: Annotated[
        str, typer.Argument(help="A folder of pictures, such as a run folder, or embedded:test:2000.")
    ],
    real: Annotated[str | None, typer.Option(help="What to compare with: a folder, or embedded:test:2000.")] = None,
    metrics: Annotated[
        str | None,
        typer.Option(help="Names with commas, see `pilotage list metrics`; all that are possible without it."),
    ] = None,
    features: Annotated[
        str, typer.Option(help="Feature network of the distances, see `pilotage list features`.")
    ] = "embedded",
    neighbours: Annotated[
        int, typer.Option("--neighbours", "-k", min=1, help="k of precision, recall, density and coverage.")
    ] = 5,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Write the report here; metrics.json in a run folder without it."),
    ] = None,
) -> None:
    """Score pictures: fidelity, diversity, adherence to their prompts, colour.

    pilotage score runs/demo/cells/none-1f0c9a2b --real embedded:test:2000

    pilotage score my-pictures --real their-pictures --metrics frechet,prdc
    """
    import sys

    from rich.console import Console

    from .console import say_notes

    with Console(stderr=True).status("reading") as status:
        from ..evaluation import score as scored

        report = scored(
            generated=generated,
            real=real,
            metrics=None if metrics is None else [name.strip() for name in metrics.split(",") if name.strip()],
            features=features,
            k=neighbours,
            device=device,
            progress=lambda source, done, of: status.update(f"{source}: {done}{f' of {of}' if of else ''} pictures"),
        )
    Console(width=None if sys.stdout.isatty() else 150, highlight=False).print(report.table())
    say_notes(report.warnings)
    if output is not None or Path(generated, "run.yaml").is_file():
        print(report.write(output or Path(generated)))
