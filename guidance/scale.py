"""A guidance scale: one number, or one a row. 1 is off."""

from __future__ import annotations

Scale = float | tuple[float, ...]


def is_off(scale: Scale) -> bool:
    """Is it 1 for every row, so that no second branch is needed?"""
    return all(s == 1 for s in scale) if isinstance(scale, tuple) else scale == 1


def minus_one(scale: Scale) -> Scale:
    """The weight of an additive direction."""
    return tuple(s - 1 for s in scale) if isinstance(scale, tuple) else scale - 1
