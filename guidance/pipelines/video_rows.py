"""Rows of pipelines that draw videos or sounds."""

from __future__ import annotations

from .adapter import Adapter

VIDEOS: dict[str, Adapter] = {}

REFUSED: dict[str, str] = {}
