"""pilotage explain"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ..evaluation.metrics.explanation import Explanation


def explain(
    line: Annotated[str, typer.Argument(help='A line of guidance, such as "apg + interval", or a metric.')],
) -> None:
    """Say what a line of guidance does: formula, order, cost, what each setting does at its limits, what to cite.

    pilotage explain "apg:scale=10 + interval:low=0.3"

    Of a metric: definition, what it needs, which way is better, settings, what to cite.

    pilotage explain kid
    """
    from ..evaluation.metrics.explanation import explain as explained
    from ..evaluation.metrics.explanation import is_metric

    if is_metric(line):
        _tell_metric(explained(line))
    else:
        _tell_guidance(line)


def _show(name: str, text: str) -> None:
    """One line of a name and what it is, if it is anything."""
    from rich.console import Console
    from rich.markup import escape

    if text:
        Console(highlight=False, soft_wrap=True).print(f"  [dim]{escape(f'{name:<19}')}[/dim] {escape(text)}")


def _tell_metric(found: Explanation) -> None:
    from rich.console import Console
    from rich.markup import escape

    console = Console(highlight=False, soft_wrap=True)
    console.print(f"[bold]{escape(found.name)}[/bold]: {escape(found.summary)}\n")
    console.print("\n".join(f"  {escape(line)}".rstrip() for line in found.definition.splitlines()), end="\n\n")
    for name, text in (("needs", found.needs), ("better", found.better), ("cost", found.cost)):
        _show(name, text)
    _show("named by", found.groups)
    _show("notes", found.notes)
    if found.settings:
        console.print("\n[bold]settings[/bold]")
    for name, value in found.settings.items():
        _show(name, value)
    console.print("".join(f"  {escape(line)}".rstrip() + "\n" for line in found.how.splitlines()), end="")
    if found.paper:
        console.print(f"\n[bold]cite[/bold]\n  {escape(found.paper)}")


def _tell_guidance(line: str) -> None:
    from rich.console import Console
    from rich.markup import escape

    from ..guidance.explanation import Part
    from ..guidance.explanation import explain as explained

    found, show = explained(line), _show
    console = Console(highlight=False, soft_wrap=True)

    def shown(value: object) -> str:
        return repr(value) if isinstance(value, str) and not value else str(value)

    def show_part(part: Part) -> None:
        console.print(f"\n[bold]{escape(part.name)}[/bold]: {escape(part.summary)}")
        console.print("".join(f"  {escape(line)}\n" for line in part.how.splitlines()), end="")
        show("stage", part.stage)
        show("off at", part.off + (" (it is off here)" if part.is_off else ""))
        show("a step", part.cost)
        show("space", part.space)
        show("models", part.models)
        show("notes", part.notes)
        for name, value in part.settings.items():
            show(f"{name}={shown(value)}", part.limits.get(name, ""))

    console.print(f"[bold]{escape(found.line)}[/bold]")
    show("order", found.order)
    show("evaluations", found.evaluations)
    show("re-noising", "with another prediction than the guided one (its base)" if found.shifts else "")
    for part in found.parts:
        show_part(part)
    if found.references:
        console.print("\n[bold]cite[/bold]")
    for paper in found.references:
        console.print(f"  {escape(paper)}")
