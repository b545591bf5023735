"""pilotage stats"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def stats(
    source: Annotated[str, typer.Argument(help="Pictures: a folder, a zip, shards, an .npz, or embedded:test:2000.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The file of statistics, ending in .npz.")],
    features: Annotated[
        str,
        typer.Option(
            "--features",
            "-f",
            help="Feature network, see `pilotage list features`; settings as in inception:preset=clean.",
        ),
    ] = "embedded",
    format_: Annotated[
        str, typer.Option("--format", help="pilotage, or for other tools: pytorch-fid, clean-fid, edm.")
    ] = "pilotage",
    moments_only: Annotated[
        bool, typer.Option("--moments-only", help="Mean and covariance alone, enough for Frechet distances.")
    ] = False,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
) -> None:
    """Read real pictures once and keep their statistics, for any number of `pilotage score --real FILE`.

    pilotage stats embedded:test:2000 -o real.npz

    pilotage stats photos/ -o photos.npz --features inception:preset=clean

    torchrun --nproc-per-node 4 -m pilotage stats photos.zip -o photos.npz
    """
    from contextlib import ExitStack

    from ..errors import UsageError, nearest
    from ..evaluation.foreign_statistics import FORMATS, write_foreign
    from ..evaluation.processes import Processes
    from ..evaluation.scoring import reference
    from ..evaluation.statistics import write_statistics
    from ..generation.lock import claimed
    from .console import say_notes
    from .progress import reading

    if format_ not in ("pilotage", *FORMATS):
        raise UsageError(f"unknown format {format_!r}: {nearest(format_, ('pilotage', *FORMATS))}")
    if output.suffix != ".npz":
        raise UsageError(f"{output} must end in .npz; statistics are arrays in one file")
    processes = Processes.found()
    with ExitStack() as held:
        processes.by_first(lambda: held.enter_context(claimed(output.parent, f"{output.name}.lock")))
        with reading() as progress:
            shown = progress if processes.rank == 0 else None
            collected = reference(source, features=features, device=device, progress=shown)
        if processes.rank:
            return
        seen = collected.space()
        if format_ != "pilotage" and seen.distance != "fid":
            say_notes(
                [f"{format_} compares features of Inception, and these are {seen.name}: add -f inception:weights=FILE"]
            )
        if format_ == "pilotage":
            print(write_statistics(collected, output, rows=not moments_only))
        else:
            print(write_foreign(collected, output))
