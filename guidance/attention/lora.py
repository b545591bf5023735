"""A network with its LoRA switched off: a weak version of itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn

from ...errors import UsageError
from .layers import unwrapped
from .patch import Change, exchanged


@dataclass(frozen=True)
class WithoutLora:
    """Every layer computes what it computed before the LoRA was added."""

    @contextmanager
    def on(self, network: Any) -> Iterator[None]:
        with exchanged(self.changes(unwrapped(network))):
            yield

    def changes(self, root: nn.Module) -> list[Change]:
        layers = [layer for layer in root.modules() if hasattr(layer, "base_layer") and hasattr(layer, "lora_A")]
        if not layers:
            raise UsageError(f"this {type(root).__name__} has no LoRA to switch off; load one, or use weak=network")
        if any(getattr(layer, "merged", False) for layer in layers):
            raise UsageError("a fused LoRA cannot be switched off; call pipe.unfuse_lora()")
        return [(layer, _plain(layer)) for layer in layers]


def _plain(layer: Any) -> Any:
    def change(forward: Any) -> Any:
        return layer.base_layer.forward

    return change
