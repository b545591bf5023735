"""Inputs that have no effect, and students that are drawn otherwise than they were taught. A user who set one should
be told, not left to wonder."""

from __future__ import annotations

from typing import Any

from .departures import departures
from .spec import RunSpec

_ACT_ALONE = ("extra branch", "gradient", "conditioning")  # stages of modifiers that need no guidance to modify


def notes(spec: RunSpec) -> list[str]:
    """One sentence for each setting of a spec that changes nothing, and for each student that it does not suit."""
    from ..guidance.compose import parts_of
    from ..guidance.grammar import parse
    from ..guidance.rule import Unguided
    from ..guidance.stages import stage_of

    rule = parse(spec.guidance)
    rules, modifiers = parts_of(rule)
    said = []
    if spec.negative and not any(_looks_at_negative(part) for part in rules):
        said.append(f"the negative prompt has no effect: {spec.guidance} never evaluates the unconditional branch")
    if spec.weak and "weak" not in rule.needs:
        said.append(f"the weak network has no effect: {spec.guidance} does not use it; autoguidance does")
    guides = any(stage_of(part) in _ACT_ALONE and not is_off(part) for part in modifiers)
    if modifiers and not guides and all(isinstance(part, Unguided) or is_off(part) for part in rules):
        said.append(f"the modifiers in {spec.guidance!r} have no effect: there is no guidance to modify")
    if spec.strength != type(spec).model_fields["strength"].default and not spec.image:
        said.append("strength has no effect without image")
    if spec.lora_scale != 1.0 and not spec.lora:
        said.append("lora_scale has no effect without lora")
    if spec.lora and spec.lora_scale == 0:
        said.append("the LoRA has no effect at lora_scale 0")
    if spec.memory.offload != "none" and spec.device == "cpu":
        said.append("memory.offload has no effect on the cpu: there is no other memory to wait in")
    if spec.rows_per_call and not spec.exact:
        said.append("rows_per_call has no effect without exact")
    return said + departures(spec)


def is_off(rule: Any) -> bool:
    """Are its settings those at which it does nothing?"""
    from ..guidance.grammar import name_of
    from ..guidance.registry import RULES

    spec = RULES.get(name_of(rule))
    if spec is None or not spec.off:
        return False
    return all(getattr(rule, key) == value for key, value in spec.off.items())


def _looks_at_negative(rule: Any) -> bool:
    """A scale of 1 takes the conditional branch alone."""
    return "uncond" in rule.needs and getattr(rule, "scale", None) != 1
