"""Further prompts of a rule: names with weights in one line of text, and the branches they stand for.

`"hat:5 beard:-2"` is the condition "prompt:hat" with weight 5 and "prompt:beard" with weight -2. In `Guided` they are
conditions of that name: conditions={"cond": c, "uncond": u, "prompt:hat": h}. Under `attach` the name is the text
itself, an underscore a blank: `"a_red_hat:5"`.
"""

from __future__ import annotations

import math
from functools import lru_cache

from ..errors import UsageError

_FURTHER = "prompt:"


@lru_cache(maxsize=256)
def weighted(text: str, default: float) -> tuple[tuple[str, float], ...]:
    """(branch, weight) of each name in the text; a name without a weight has the default one. Weights of 0 are left
    out, so their branches are never evaluated."""
    found: dict[str, float] = {}
    for piece in text.split():
        name, colon, number = piece.rpartition(":") if ":" in piece else (piece, "", "")
        try:
            weight = float(number) if colon else default
        except ValueError:
            weight = math.nan
        if not name or not math.isfinite(weight):
            raise UsageError(f"cannot read {piece!r}; write name:weight, names apart by blanks, as in 'hat:5 rain:-2'")
        if branch_of(name) in found:
            raise UsageError(f"the prompt {name!r} stands twice in {text!r}; keep one")
        found[branch_of(name)] = weight
    return tuple((branch, weight) for branch, weight in found.items() if weight != 0)


def branch_of(name: str) -> str:
    """The branch of a further prompt; "cond" and "uncond" are themselves."""
    return name if name in ("cond", "uncond") else f"{_FURTHER}{name}"


def is_prompt(branch: str) -> bool:
    """Is it the branch of a further prompt?"""
    return branch.startswith(_FURTHER)


def text_of(branch: str) -> str:
    """The text that a branch's name stands for."""
    return branch.removeprefix(_FURTHER).replace("_", " ")
