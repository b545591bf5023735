"""Options that every training has, and what they come to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

WHAT, HOW, RUN = "What is learnt", "How", "The run"

Prompt = Annotated[
    list[str] | None,
    typer.Argument(
        help="Prompts to train on; captions of the embedded world as embedded:SPLIT:COUNT.", show_default=False
    ),
]
Prompts = Annotated[
    Path | None, typer.Option(help="Prompts from a text file (one a line) or a CSV.", rich_help_panel=WHAT)
]
Model = Annotated[
    str | None, typer.Option(help="embedded, a folder, or a hub id such as owner/name.", rich_help_panel=WHAT)
]
AllowDownload = Annotated[
    bool | None,
    typer.Option(
        "--allow-download/--no-download", help="Fetch the model from the hub if need be.", rich_help_panel=WHAT
    ),
]
Updates = Annotated[int | None, typer.Option(help="Updates of the weights.", rich_help_panel=HOW)]
Batch = Annotated[int | None, typer.Option(help="Prompts of an update, over all processes.", rich_help_panel=HOW)]
Rows = Annotated[int | None, typer.Option(help="Pictures that go through the network together.", rich_help_panel=HOW)]
LearningRate = Annotated[float | None, typer.Option(help="Of AdamW.", rich_help_panel=HOW)]
Seed = Annotated[int | None, typer.Option(help="Of everything that is drawn.", rich_help_panel=HOW)]
Device = Annotated[str | None, typer.Option(help="auto, cpu or cuda.", rich_help_panel=RUN)]
Output = Annotated[
    str | None, typer.Option("--output", "-o", help="The run folder; below runs/ without it.", rich_help_panel=RUN)
]
Preset = Annotated[
    str | None, typer.Option(help="Settings that ship, one of `pilotage list presets`.", rich_help_panel=RUN)
]
Config = Annotated[
    Path | None, typer.Option(help="Settings from a YAML file, such as the run.yaml of a run.", rich_help_panel=RUN)
]
Assignments = Annotated[
    list[str] | None,
    typer.Option("--set", help="Any setting: --set ema=0.99 --set lora.rank=16.", rich_help_panel=RUN),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Print the settings and the memory that they need.", rich_help_panel=RUN)
]


def all_prompts(prompt: Sequence[str] | None, file: Path | None) -> list[str] | None:
    """Those of the command line and those of a file; None where nothing was given."""
    from ..generation.prompts import read_prompts

    return [*(prompt or []), *(read_prompts(file)["prompts"] if file else [])] or None


def plan(spec: Any, estimate: Callable[[], list[str]]) -> None:
    """Print the settings and an estimate of the memory, for which the model is loaded."""
    from .console import say_notes

    print(spec.as_yaml(), end="")
    for line in estimate():
        print(f"# {line}")
    say_notes(spec.notes())


def with_progress(spec: Any, train: Callable[..., Any]) -> Any | None:
    """Train under a bar of updates. What came of it, on the first process; None on others."""
    from ..evaluation.processes import Processes
    from .console import say_notes
    from .progress import UpdateProgress

    first = Processes.found().rank == 0
    if first:
        say_notes(spec.notes())
    with UpdateProgress(spec.updates) as bar:
        done = train(spec, told=bar.update, planned=bar.planned)
    if first and not done.made:
        say_notes(done.notices)  # otherwise the bar has said them
    return done if first else None
