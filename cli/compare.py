"""pilotage compare"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import Given, takes_spec

if TYPE_CHECKING:
    from ..generation.comparison import CompareSpec, Comparison


@takes_spec
def compare(
    given: Given,
    axis: Annotated[
        list[str] | None,
        typer.Option(
            "--axis",
            "-x",
            help='A setting and its values: "guidance=none|cfg:scale=3|apg".',
            rich_help_panel="The comparison",
        ),
    ] = None,
    show: Annotated[
        int | None, typer.Option(help="Pictures of each cell on the page.", rich_help_panel="The comparison")
    ] = None,
    metrics: Annotated[
        str | None, typer.Option(help="Scores, with commas; none for no scores.", rich_help_panel="The comparison")
    ] = None,
    features: Annotated[
        str | None, typer.Option(help="Feature network of the distances.", rich_help_panel="The comparison")
    ] = None,
    real: Annotated[
        str | None,
        typer.Option(
            help="Real pictures to compare with: a folder, or embedded:test:1000.", rich_help_panel="The comparison"
        ),
    ] = None,
    title: Annotated[str | None, typer.Option(help="Title of the page.", rich_help_panel="The comparison")] = None,
) -> None:
    """Compare settings on the same prompts and seeds: a grid, scores and costs on one page.

    pilotage compare "two red stars on navy" --seeds 0-7 -x "guidance=none|cfg:scale=3|apg"

    pilotage compare --prompts captions.txt -x "guidance=cfg:scale=2|cfg:scale=6" -x "steps=10|25"
    """
    from ..generation.comparison import CompareSpec

    more: dict[str, Any] = {"show": show, "features": features, "real": real, "title": title}
    if axis:
        more["axes"] = dict(_axis(line) for line in axis)
    if metrics is not None:
        more["metrics"] = [] if metrics == "none" else [name.strip() for name in metrics.split(",")]
    run_comparison(given.resolve(CompareSpec, **more), given.dry_run)


def _axis(line: str) -> tuple[str, list[Any]]:
    from ..documents import Unreadable, plain_yaml
    from ..errors import UsageError

    name, equals, values = line.partition("=")
    if not equals or not values.strip():
        raise UsageError(f"cannot read --axis {line!r}; write --axis 'guidance=none|cfg:scale=3|apg'")
    found: list[Any] = []
    for value in values.split("|"):
        try:
            found.append(plain_yaml(value))
        except Unreadable:
            found.append(value.strip())
    return name.strip(), found


def run_comparison(spec: CompareSpec, dry_run: bool) -> None:
    """Make, score and show."""
    from ..evaluation.processes import Processes
    from ..generation.comparison import Told
    from ..generation.comparison import compare as make
    from ..generation.pictures import Watch
    from .console import say_notes
    from .progress import PictureProgress

    planned = spec.cells()
    if dry_run:
        print(spec.as_yaml(), end="")
        say_notes([f"{len(planned)} cells of {len(spec.pictures())} pictures"])
        return
    first = Processes.found().rank == 0
    with PictureProgress(spec.batch_size, shown=first) as bar:
        told = Told(
            cell=lambda number, of, label, pictures: bar.begin(f"{number + 1}/{of} {label}", 0, pictures),
            picture=bar.picture,
            scoring=lambda label: bar.text(f"scoring {label}"),
        )
        result = make(spec, told, Watch(bar.step))
    if first:
        _print(result)
        say_notes(result.notes)
        print(f"{result.folder / 'index.html'}")


def _print(result: Comparison) -> None:
    from .console import print_table

    names = list(dict.fromkeys(name for cell in result.cells for name in cell.scores))
    rows = []
    for cell in result.cells:
        scores = [score.text if (score := cell.scores.get(name)) else "" for name in names]  # intervals: on the page
        evaluations = " + ".join(f"{count:.4g} {branch}" for branch, count in cell.run.evaluations.items())
        rows.append([cell.label, *scores, evaluations, f"{cell.run.seconds:.2f}"])
    columns = ["setting", *names, "evaluations a picture", "seconds a picture"]
    print_table(result.spec.title, columns, rows, range(1, len(columns)))
