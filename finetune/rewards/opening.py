"""Rewards from text, from callables, and from lists of both.

    aesthetic                                              a name
    colour:target=red,over=mean                            with settings
    0.7 * adherence + 0.3 * jpeg:sign=-1                   a weighted sum
    up-to:value=2 of imagereward                           a reward made of a reward
    minimum of clip-score + (normalised:mean=5,deviation=.5 of aesthetic)

`of` reaches to the end of the line or of its brackets.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from ...errors import UsageError, nearest
from ...grammar import name_and_settings
from ...registry import check_settings, everything, make
from .mixing import weighted_sum
from .registry import COMBINATIONS, REWARDS
from .reward import Reward

_DEEPEST = 20
_QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"")
_WEIGHTED = re.compile(r"([-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?)\s*\*\s*(.+)", re.DOTALL)


def open_rewards(rewards: Any, device: torch.device | str = "cpu") -> Reward:
    """One reward from a line, a callable, a Reward, a list of these (their sum) or a mapping {line: weight}.

    A callable takes pictures (B, 3, H, W) on the scale of [0, 1] and B prompts and gives (B,); wrap one without a
    gradient as Reward(name, f, differentiable=False). Nothing is downloaded unless a line says allow_download=true.
    """
    place = torch.device(device)
    if isinstance(rewards, Reward):
        return rewards
    if isinstance(rewards, str):
        return _line(rewards, place)
    if isinstance(rewards, Mapping):
        return weighted_sum([(_weight(weight), open_rewards(line, place)) for line, weight in rewards.items()])
    if isinstance(rewards, Sequence):
        return weighted_sum([(1.0, open_rewards(one, place)) for one in rewards])
    if callable(rewards):
        return Reward(getattr(rewards, "__name__", type(rewards).__name__), rewards)
    raise UsageError(f"a reward is a line, a callable, a Reward or a list of them, not {type(rewards).__name__}")


def _weight(weight: Any) -> float:
    if isinstance(weight, bool) or not isinstance(weight, int | float):
        raise UsageError(f"the weight {weight!r} of a reward is no number; write {{adherence: 0.7, saturation: 0.3}}")
    return float(weight)


def _line(line: str, device: torch.device) -> Reward:
    """ "NAME of TERMS", or TERMS."""
    if not line.strip():
        raise UsageError(f"no reward is named; write for example adherence, or one of {', '.join(REWARDS)}")
    before, *after = _split(line, " of ")
    terms = _split(" of ".join(after) if after else line, " + ")
    opened = [_term(term.strip(), line, device) for term in terms]
    if not after:
        return weighted_sum(opened)
    return _combined(before.strip(), opened)


def _combined(head: str, terms: list[tuple[float, Reward]]) -> Reward:
    name, settings = name_and_settings(head)
    if name not in COMBINATIONS:
        raise UsageError(
            f"unknown {name!r} before 'of' ({nearest(name, COMBINATIONS)}); a part of a sum needs brackets"
        )
    spec = COMBINATIONS[name]
    wanted = {key: default for key, default in spec.defaults.items() if key not in ("reward", "rewards")}
    check_settings(name, settings, wanted)
    for key, default in wanted.items():
        if default is ... and key not in settings:
            raise UsageError(f"{name} needs a {key}; write {name}:{key}=1 of {terms[0][1].name}")
    for key, value in settings.items():
        settings[key] = _number(name, key, value)
    if "rewards" in spec.defaults:
        made: Reward = spec.load()([weighted_sum([term]) for term in terms], **settings)
    else:
        made = spec.load()(weighted_sum(terms), **settings)
    return made


def _number(name: str, key: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UsageError(f"{name}: {key}={value} is no number; write {name}:{key}=1")
    return float(value)


def _term(term: str, line: str, device: torch.device) -> tuple[float, Reward]:
    """weight * NAME, weight * (LINE), or without a weight."""
    if not term:
        raise UsageError(f"{line!r} has an empty part; write a reward between the + of a sum")
    weight = 1.0
    if found := _WEIGHTED.fullmatch(term):
        weight, term = float(found[1]), found[2].strip()
    if term.startswith("(") and term.endswith(")"):
        return weight, _line(term[1:-1], device)
    name = term.partition(":")[0].strip()
    if name in COMBINATIONS:
        raise UsageError(f"{name} is made of rewards; write {name} of A + B")
    if "*" in name:
        raise UsageError(f"cannot read {term!r}: write a number, then the reward, as in 0.3 * saturation")
    reward: Reward = make("rewards", REWARDS, term, "reward", device=device)
    return weight, reward


def _split(text: str, separator: str) -> list[str]:
    """Split at a separator outside brackets and quotes."""
    cuts = [at for at in _open_places(text) if text.startswith(separator, at)]
    if separator == " of ":
        cuts = cuts[:1]  # the rest belongs to what follows
    starts = [0, *(at + len(separator) for at in cuts)]
    return [text[start:end] for start, end in zip(starts, [*cuts, len(text)])]


def _open_places(text: str) -> Iterator[int]:
    """The places of a text that no brackets and no quotes enclose. Errors: brackets without their other half."""
    quoted = {at for found in _QUOTED.finditer(text) for at in range(*found.span())}
    depth = 0
    for at, letter in enumerate(text):
        if at in quoted:
            continue
        depth += (letter in "([") - (letter in ")]")
        if depth < 0:
            break
        if depth > _DEEPEST:
            raise UsageError(f"more than {_DEEPEST} brackets within each other in {text[:40]!r}...; write fewer")
        if depth == 0:
            yield at
    if depth:
        raise UsageError(f"the brackets of {text!r} do not match; close each ( with a )")


def names() -> list[str]:
    """All rewards, those of other packages too."""
    return list(everything("rewards", REWARDS))
