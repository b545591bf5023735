"""pilotage score"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from contextlib import ExitStack

    from ..evaluation import Report
    from ..evaluation.measures.evidence import Evidence

_SETS, _WHAT, _WHERE = "The pictures", "What is measured", "The report"


def score(
    generated: Annotated[
        list[str],
        typer.Argument(
            help="Pictures: a folder, such as a run folder, a zip, shards, an .npz, embedded:test:2000, or a run.yaml "
            "whose pictures are made and not written. Several make a comparison.",
            show_default=False,
        ),
    ],
    real: Annotated[
        str | None,
        typer.Option(help="What to compare with: pictures as above, or a file of statistics.", rich_help_panel=_SETS),
    ] = None,
    train: Annotated[
        str | None, typer.Option(help="What the model was trained on, to find copies.", rich_help_panel=_SETS)
    ] = None,
    test: Annotated[
        str | None, typer.Option(help="Pictures like those, which it was not trained on.", rich_help_panel=_SETS)
    ] = None,
    assume: Annotated[
        str | None,
        typer.Option(help="How the pictures behind another tool's statistics were resized.", rich_help_panel=_SETS),
    ] = None,
    metrics: Annotated[
        str | None,
        typer.Option(
            help="Names with commas, see `pilotage list metrics`, with settings as in kid:estimator=subsets; or quick "
            "(without it), standard, full.",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    features: Annotated[
        list[str] | None,
        typer.Option(
            "--features",
            "-f",
            help="Feature network, see `pilotage list features`; settings as in inception:weights=FILE. Several for "
            "metrics that want others; the first is that of all the rest.",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    neighbours: Annotated[
        str,
        typer.Option(
            "--neighbours",
            "-k",
            help="k of precision, recall, density and coverage; auto covers equal distributions to .95.",
            rich_help_panel=_WHAT,
        ),
    ] = "5",
    workers: Annotated[int, typer.Option(min=1, help="Threads that decode files.", rich_help_panel=_WHERE)] = 2,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.", rich_help_panel=_WHERE)] = "auto",
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Folder for metrics.json and report.html, or a .json alone; a run folder is its own.",
            rich_help_panel=_WHERE,
        ),
    ] = None,
) -> None:
    """Score pictures: fidelity, diversity, adherence to their prompts, colour, memorisation.

    pilotage score runs/demo/cells/none-1f0c9a2b --real embedded:test:2000

    pilotage score my-pictures --real their-pictures.zip --metrics frechet,prdc -o scores

    pilotage score runs/sweep/cells/* --real embedded:test:2000 -o scores

    accelerate launch --num_processes 4 -m pilotage score my-pictures --real photos.npz --metrics fid

    torchrun --nproc-per-node 4 -m pilotage score my-pictures --real photos.npz    (without a GPU)
    """
    from contextlib import ExitStack

    from ..errors import UsageError
    from ..evaluation.galleries import galleries
    from ..evaluation.processes import Processes
    from ..evaluation.report_plots import colour_histograms
    from ..evaluation.scoring import score_each
    from .progress import reading

    if output is not None and output.suffix == ".html":
        raise UsageError(f"{output} is no folder; name one, for metrics.json and report.html, or a .json alone")
    folder = output or _own_folder(generated)
    if folder is not None and folder.suffix == ".json" and len(generated) > 1:
        raise UsageError(f"{folder} is one file for {len(generated)} reports; name a folder")
    shown: dict[str, Any] = {}
    drawn: dict[str, Any] = {}

    def look(name: str, evidence: Evidence) -> None:
        shown[name] = galleries(evidence)
        theirs = evidence.real.colour if evidence.real else None
        drawn[name] = colour_histograms(real=theirs, generated=evidence.generated.colour)

    given = {"real": real, "train": train, "test": test}
    processes = Processes.found()
    with ExitStack() as held:
        processes.by_first(lambda: _claim(folder, held))
        with reading() as progress:
            reports = score_each(
                generated={name: _opened(source, workers) for name, source in _by_name(generated).items()},
                **{which: _opened(source, workers) for which, source in given.items() if source is not None},
                metrics=metrics,
                features=features or ["embedded"],
                k=_neighbours(neighbours),
                device=device,
                assume=assume,
                progress=progress if processes.rank == 0 else None,
                look=look if folder else None,
            )
        if processes.rank == 0:
            _tell(reports, shown, drawn, folder)


def _claim(folder: Path | None, held: ExitStack) -> None:
    """Two scorings must not write the same files; that they can be written is found out before the work."""
    from ..generation.lock import claimed

    if folder is not None:
        alone = folder.suffix == ".json"
        held.enter_context(claimed(folder.parent, f"{folder.name}.lock") if alone else claimed(folder, "score.lock"))


def _tell(reports: dict[str, Report], shown: dict[str, Any], drawn: dict[str, Any], folder: Path | None) -> None:
    """Tables, notes, and the files."""
    import sys

    from rich.console import Console
    from rich.markup import escape

    from ..evaluation.report_page import write_page
    from .console import say_notes

    alone = folder is not None and folder.suffix == ".json"
    console = Console(width=None if sys.stdout.isatty() else 150, highlight=False)
    for name, report in reports.items():
        if len(reports) > 1:
            console.print(f"[bold]{escape(name)}[/bold]")
        console.print(report.table())
        say_notes(report.warnings)
    if folder is None:
        return
    for name, report in reports.items():
        print(report.write(folder if len(reports) == 1 else folder / f"{name}.json"))
    if not alone:
        print(write_page(reports, folder, shown, drawn))


def _neighbours(k: str) -> int | str:
    from ..errors import UsageError

    if k != "auto" and not (k.isdecimal() and int(k)):
        raise UsageError(f"-k {k} is no number of neighbours; use 5, or auto")
    return k if k == "auto" else int(k)


def _by_name(generated: list[str]) -> dict[str, str]:
    """Sources by the shortest names that tell them apart."""
    for parts in range(1, 1 + max(len(Path(one).parts) for one in generated)):
        names = ["-".join(Path(one).parts[-parts:]) for one in generated]
        if len(set(names)) == len(names):
            return dict(zip(names, generated, strict=True))
    from ..errors import UsageError

    raise UsageError("a source is given twice; name each once")


def _own_folder(generated: list[str]) -> Path | None:
    return Path(generated[0]) if len(generated) == 1 and Path(generated[0], "run.yaml").is_file() else None


def _opened(source: str, workers: int) -> Any:
    """A source by its name; a run spec is a running generator, and statistics are left to `score`."""
    from ..evaluation import open_source
    from ..evaluation.statistics import is_statistics

    if Path(source).suffix in (".yaml", ".yml"):
        from ..generation.run_source import RunSource

        return RunSource.read_from(Path(source))
    return source if is_statistics(source) else open_source(source, workers=workers)
