"""pilotage explain"""

from __future__ import annotations

from typing import Annotated

import typer


def explain(guidance: Annotated[str, typer.Argument(help='A line of guidance, such as "apg + interval".')]) -> None:
    """Say what a line of guidance does: formula, order, cost, what each setting does at its limits, what to cite.

    pilotage explain "apg:scale=10 + interval:low=0.3"
    """
    from rich.console import Console
    from rich.markup import escape

    from ..guidance.explanation import Part
    from ..guidance.explanation import explain as explained

    found = explained(guidance)
    console = Console(highlight=False, soft_wrap=True)

    def show(name: str, text: str) -> None:
        if text:
            console.print(f"  [dim]{escape(f'{name:<19}')}[/dim] {escape(text)}")

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
