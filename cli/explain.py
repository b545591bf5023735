"""pilotage explain"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

if TYPE_CHECKING:
    from ..evaluation.metrics.explanation import Explanation
    from ..registry import Spec


class Kind(NamedTuple):
    """Entries that are told from their Spec alone. notes: what their notes are about."""

    what: str
    specs: Mapping[str, Spec]
    notes: str = "notes"


def explain(
    line: Annotated[
        str,
        typer.Argument(
            help='A line of guidance, such as "apg + interval", or one of: metric, divergence, way to fine-tune or to '
            "distil, reward, sampler."
        ),
    ],
) -> None:
    """Say what a line of guidance does: formula, order, cost, what each setting does at its limits, what to cite.

    pilotage explain "apg:scale=10 + interval:low=0.3"

    Of a metric, a divergence, a way to fine-tune or to distil, a reward or a sampler: what it is, what it needs or
    trades, settings, what to cite. A name that several have is told of all.

    pilotage explain kid

    pilotage explain jensen-shannon
    """
    from ..evaluation.metrics.explanation import explain as explained
    from ..evaluation.metrics.explanation import is_metric
    from ..grammar import name_and_settings

    name = line.partition(":")[0].strip()
    kinds = _kinds()
    found = [kind for kind in kinds if name in kind.specs]
    if is_metric(line):
        _tell_metric(explained(line))
    elif not found:
        _refuse_near_misses(line, kinds)
        _tell_guidance(line)
    for kind in found:
        _tell_spec(kind, name, name_and_settings(line)[1])


def _kinds() -> list[Kind]:
    from ..distill import DIVERGENCES
    from ..distill import METHODS as DISTILLATIONS
    from ..distill.divergences import ALIASES
    from ..finetune import METHODS
    from ..finetune.rewards.registry import COMBINATIONS, REWARDS
    from ..registry import everything
    from ..samplers.registry import SAMPLERS

    divergences = everything("divergences", DIVERGENCES)
    return [
        Kind("divergence", {**divergences, **{key: divergences[of] for key, of in ALIASES.items()}}, "trades"),
        Kind("way to distil", everything("distill", DISTILLATIONS)),
        Kind("way to fine-tune", everything("finetune", METHODS)),
        Kind("reward", {**everything("rewards", REWARDS), **COMBINATIONS}, "range, licence"),
        Kind("sampler", everything("samplers", SAMPLERS)),
    ]


def _refuse_near_misses(line: str, kinds: list[Kind]) -> None:
    """UsageError for a name that is near to one of these and not to a rule."""
    from ..errors import UsageError, nearest
    from ..grammar import name_and_settings, pieces_of
    from ..guidance.registry import RULES
    from ..registry import everything

    name = name_and_settings(pieces_of(line)[0])[0]
    others = nearest(name, [known for kind in kinds for known in kind.specs])
    if nearest(name, everything("guidance", RULES)).startswith("known") and not others.startswith("known"):
        raise UsageError(f"unknown name {name!r}: {others}")


def _how(entry: Any) -> str:
    """The docstring of a function, or of a class after that of its module, where the formulas are."""
    own = inspect.getdoc(entry) or ""
    if not inspect.isclass(entry):
        return own
    module = inspect.getdoc(sys.modules[entry.__module__]) or ""
    return "\n\n".join(text for text in (module, own) if not text.startswith(f"{entry.__name__}("))


def _tell_spec(kind: Kind, name: str, written: Mapping[str, object]) -> None:
    """An entry with the settings of the line. UsageError for one that it does not have."""
    from rich.console import Console
    from rich.markup import escape

    from ..registry import check_settings

    spec, console = kind.specs[name], Console(highlight=False, soft_wrap=True)
    check_settings(name, written, spec.defaults)
    console.print(f"[bold]{escape(name)}[/bold], a {kind.what}: {escape(spec.summary)}\n")
    console.print("\n".join(f"  {escape(line)}".rstrip() for line in _how(spec.load()).splitlines()))
    off = ", ".join(f"{key}={value}" for key, value in spec.off.items())
    told = {"needs": ", ".join(spec.needs), "cost": spec.cost, "off at": off, kind.notes: spec.notes}
    for what, text in told.items():
        _show(what, text)
    settings = {key: value for key, value in {**spec.defaults, **written}.items() if key not in ("reward", "rewards")}
    if settings:
        console.print("\n[bold]settings[/bold]")
    for key, value in settings.items():
        said = "required" if value is ... else f"{value}" + " by default" * (key not in written)
        _show(key, "; ".join(text for text in (said, spec.limits.get(key, "")) if text))
    if spec.paper:
        console.print(f"\n[bold]cite[/bold]\n  {escape(spec.paper)}")


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
