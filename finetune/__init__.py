"""Reward fine-tuning. Empty so far: the methods and rewards come with the next releases."""

from __future__ import annotations

from ..registry import Spec

METHODS: dict[str, Spec] = {}
REWARDS: dict[str, Spec] = {}
