"""One-step distillation. Empty so far: the methods and divergences come with the next releases."""

from __future__ import annotations

from ..registry import Spec

METHODS: dict[str, Spec] = {}
DIVERGENCES: dict[str, Spec] = {}
