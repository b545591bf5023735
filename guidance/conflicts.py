"""Rules that do not go together, with the reason. Refused when a composition is made, not in its run.

Two re-noising rules, and a modifier that stands twice, are refused by `compose` itself. Rules that find out only from
the model or the run refuse there: the zero steps of cfg-zero without a flow model, coefficients of `linear` fitted for
another null prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from .rule import Modifier, Rule


@dataclass(frozen=True)
class Conflict:
    """one: a registry name. others: the registry names it cannot stand with; () is every other rule that is no
    modifier. when: of the rule called `one` and of the other, for settings that avoid the conflict."""

    one: str
    others: tuple[str, ...]
    reason: str
    when: Callable[[Any, Any], bool] = lambda one, other: True

    def between(self, name: str, rule: Rule, other_name: str, other: Rule) -> bool:
        named = other_name in self.others if self.others else not isinstance(other, Modifier)
        return name == self.one and named and self.when(rule, other)


def _shares_the_negative(nasa: Any, other: Rule) -> bool:
    return not nasa.off and nasa.negative is None and nasa.branch in other.needs


CONFLICTS = (
    Conflict(
        "cfg++",
        ("feedback",),
        "feedback judges each step as one of its own prediction, and cfg++ re-noises with the null one; keep one",
    ),
    Conflict(
        "cfg++",
        ("rectified-cfg++",),
        "each has a way of its own to take the step; keep one",
    ),
    Conflict(
        "cfg-mp",
        (),
        "cfg-mp moves x before it guides, so there is no common point where directions could be added; keep one",
    ),
    Conflict(
        "cfg-mp",
        ("sag",),
        "cfg-mp moves x before it guides, and sag degrades the x of the step; keep one",
    ),
    Conflict(
        "cfg-zero",
        (),
        "cfg-zero stands still in its first steps, where the other would move x; write cfg-zero:zero_steps=0",
        lambda zero, other: zero.zero_steps > 0,
    ),
    Conflict(
        "nasa",
        (),
        "both would steer away from the negative branch, inside the attention and outside; give nasa negative= "
        "embeddings of its own, or keep one",
        _shares_the_negative,
    ),
    Conflict(
        "linear",
        ("cads", "icg"),
        "linear was fitted for one null prompt, and the other changes it at every step; keep one",
        lambda linear, other: bool(linear.file),
    ),
)


def conflict(pieces: Sequence[Rule]) -> str | None:
    """'a and b: why', for the first two of these rules and modifiers that do not go together."""
    from .grammar import name_of  # the registry imports every rule, and some of them compose

    if len(pieces) < 2:
        return None
    named = [(name_of(piece), piece) for piece in pieces]
    for known in CONFLICTS:
        for i, (name, rule) in enumerate(named):
            for j, (other_name, other) in enumerate(named):
                if i != j and known.between(name, rule, other_name, other):
                    return f"{name} and {other_name} do not go together: {known.reason}"
    return None
