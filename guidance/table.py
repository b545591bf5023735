"""docs/rules.md from the registry: `python -m pilotage.guidance.table` writes it, a test sees that it is up to date."""

from __future__ import annotations

from pathlib import Path

from ..markdown import limits_of, off_at, table
from ..registry import Spec
from .registry import RULES
from .stages import stage_of

PLACE = Path(__file__).resolve().parent.parent / "docs" / "rules.md"

_HEAD = """\
# Rules

Made from the registry by `python -m pilotage.guidance.table`; do not edit. `pilotage explain NAME` has the formulas.

A *rule* gives a direction; `rule + rule` adds them. A *modifier* wraps what it is given. The order of the text does not
matter; from the inside out, modifiers act in these stages: {stages}.

*evaluations*: of the network for one picture in a guided step, M each. *passes*: elementwise passes over the latents
beside the network, the loss and the gradient (a further prompt, concept or negative adds some). *space*: the home space
of the arithmetic; a rule that has one gives the same picture whatever the network predicts.
"""


def document() -> str:
    """The whole of docs/rules.md."""
    rules = [name for name, spec in RULES.items() if stage_of(spec.load()) == "direction"]
    modifiers = sorted((name for name in RULES if name not in rules), key=lambda name: RULES[name].load().order)
    parts = [
        _HEAD.format(stages=", ".join(dict.fromkeys(stage_of(RULES[name].load()) for name in modifiers))),
        "## Rules\n",
        table([_cells(name, RULES[name]) for name in rules]),
        "## Modifiers\n",
        table([{**_cells(name, RULES[name]), "stage": stage_of(RULES[name].load())} for name in modifiers]),
        "## Settings, and what they do at their limits\n",
        *(_limits(name) for name in [*rules, *modifiers] if RULES[name].limits),
    ]
    return "\n".join(parts)


def _cells(name: str, spec: Spec) -> dict[str, str]:
    """One row, by the heads of its columns."""
    return {
        "name": f"`{name}`",
        "what it does": spec.summary.removeprefix("modifier: "),
        "needs": ", ".join(spec.needs),
        "evaluations": spec.cost,
        "passes": str(spec.passes),
        "space": spec.space,
        "off at": off_at(spec),
        "models": spec.models or "all",
        "paper": spec.paper,
    }


def _limits(name: str) -> str:
    """The settings of a rule, their defaults and their limits."""
    spec = RULES[name]
    note = f"{spec.notes}\n\n" if spec.notes else ""
    return f"### {name}\n\n{note}{limits_of(spec)}\n"


if __name__ == "__main__":
    PLACE.write_text(document(), encoding="utf-8")
    print(PLACE)
