"""Students that are drawn otherwise than they were taught. It is allowed, and said."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .recommended import SIZE, Recommendation, recommendation
from .spec import RunSpec

_SCALE = "guidance_scale"  # of a pipeline's call
_NOBODY = 1.0  # what a pipeline is told where no scale is given: no guidance


def departures(spec: RunSpec) -> list[str]:
    """One line for each student of a run, its model or its LoRA, that is drawn otherwise than its folder recommends,
    and one for a guidance scale that its network has not learnt. UsageError for a recommendation that is damaged."""
    said = []
    if spec.model != "embedded":
        model = recommendation(spec.model)
        said += _said(spec, spec.model, model, _departures(spec, model.settings))
    if spec.lora is not None:
        lora = recommendation(spec.lora)
        found = _departures(spec, _on_a_pipeline(lora))
        if lora.settings and spec.lora_scale not in (0.0, 1.0):  # at 0 another note says that it has no effect
            found["lora_scale"] = (spec.lora_scale, 1.0)
        said += _said(spec, spec.lora, lora, found)
    return said


def _on_a_pipeline(lora: Recommendation) -> dict[str, Any]:
    """Adapters bring no scheduler: what to take in its place, where it is known."""
    if lora.settings.get("sampler") != "stock":
        return dict(lora.settings)
    settings = {key: value for key, value in lora.settings.items() if key not in ("sampler", "grid")}
    return {**settings, **lora.by_hand}


def _departures(spec: RunSpec, wanted: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Setting -> what it is and what was recommended. A sampler without a grid wants none; a size counts where no
    picture gives it."""
    without = SIZE if spec.image else ()
    wanted = {key: value for key, value in wanted.items() if key not in without}
    if "sampler" in wanted:
        wanted = {"grid": None, **wanted}
    checked = type(spec)(model=spec.model, **wanted)  # spells lines alike, and checks them as a user's
    pairs = {key: (getattr(spec, key), getattr(checked, key)) for key in type(spec).model_fields if key in wanted}
    if "call" in pairs:  # further arguments are the user's
        given, asked = pairs.pop("call")
        pairs |= {f"call.{key}": (given.get(key), value) for key, value in asked.items()}
    if checked.guidance == "none" and _only_negates(spec):
        pairs.pop("guidance", None)
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def _only_negates(spec: RunSpec) -> bool:
    """Is the rule a negative prompt inside the attention, which costs no evaluation and guides nothing?"""
    from ..guidance.attention.negative import NegativeAttention
    from ..guidance.compose import parts_of
    from ..guidance.grammar import parse

    rules, modifiers = parts_of(parse(spec.guidance))
    return not modifiers and all(isinstance(rule, NegativeAttention) for rule in rules)


def _said(spec: RunSpec, name: str, told: Recommendation, found: dict[str, tuple[Any, Any]]) -> list[str]:
    said = []
    if told.scales is not None:
        found.pop(f"call.{_SCALE}", None)  # any that was learnt will do
    if found:
        given = ", ".join(f"{key} {_spelled(now)}" for key, (now, _) in found.items())
        wanted = ", ".join(f"{key} {_spelled(then)}" for key, (_, then) in found.items())
        said.append(f"the student {name} was made to be drawn with {wanted}, not with {given}")
    scale = spec.call.get(_SCALE, _NOBODY)
    if told.scales is not None and isinstance(scale, (int, float)) and not told.scales[0] <= scale <= told.scales[1]:
        low, high = told.scales
        within = high if scale > high else low
        said.append(f"the student {name} has learnt guidance scales from {low:g} to {high:g} and is told {scale:g}: "
                    f"its pictures may be anything; give --set call.{_SCALE}={within:g}")  # fmt: skip
    return said


def _spelled(value: Any) -> str:
    return "of its own" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
