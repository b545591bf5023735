"""Where in a step the parts of a composition act. A modifier's `order` says it, innermost first.

From the inside out: directions are added up, the scale is scheduled, one more branch listens in, the guided prediction
is mended, some of it is spared, gradients are added, a window rests all of that, and the conditioning is edited before
anything is evaluated. The text of a line may have its pieces in any order.
"""

from __future__ import annotations

from bisect import bisect_right

from .rule import Modifier, Rule

STAGES = {  # by the first order that belongs to it
    0: "weight schedule",
    15: "extra branch",
    20: "post-fix",
    28: "saving",
    34: "gradient",
    40: "window",
    50: "conditioning",
}


def stage_of(rule: Rule | type[Rule]) -> str:
    """The stage of a rule or modifier, or of its class; a plain rule is a direction."""
    cls = rule if isinstance(rule, type) else type(rule)
    if not issubclass(cls, Modifier):
        return "direction"
    firsts = list(STAGES)
    return STAGES[firsts[max(0, bisect_right(firsts, cls.order) - 1)]]
