"""From losses to a step of the optimiser: gradients of all processes, clipped, left out where they are not finite."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .optimisers import average_gradients
from .sharding import full, part_like


@dataclass(frozen=True)
class Stepped:
    """norm: of the gradient before it was clipped. failed: it was not finite, and no too high scale of fp16 is why."""

    norm: float
    failed: bool


class Stepper:
    """parameters: what learns. clip: the gradient's greatest norm. ema: decay of an average of the weights, 0 is none.

    scaled: losses are scaled for fp16. reduce: a vector's mean over processes, or None alone.
    """

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        optimiser: torch.optim.Optimizer,
        *,
        clip: float = 1.0,
        ema: float = 0.0,
        scaled: bool = False,
        reduce: Callable[[Tensor], Tensor] | None = None,
    ):
        self.parameters, self.optimiser, self.clip, self.ema, self.reduce = parameters, optimiser, clip, ema, reduce
        self.scaler = torch.amp.GradScaler(parameters[0].device.type, enabled=scaled)  # type: ignore[attr-defined, unused-ignore]
        self.average = [p.detach().clone() for p in parameters] if ema else []

    def backward(self, loss: Tensor) -> None:
        """A loss that is not finite makes the gradient so, from which every process learns of it."""
        if not bool(loss.detach().isfinite()):
            loss = loss * math.nan
        self.scaler.scale(loss).backward()

    def step(self) -> Stepped:
        """A step with the gradients since the last one, which are gone afterwards."""
        if self.reduce is not None:
            average_gradients(self.parameters, self.reduce)
        self.scaler.unscale_(self.optimiser)
        norm = float(full(torch.nn.utils.clip_grad_norm_(self.parameters, self.clip)))
        finite, too_high = math.isfinite(norm), self.scaler.is_enabled() and self.scaler.get_scale() > 1
        if finite or self.scaler.is_enabled():
            self.scaler.step(self.optimiser)  # does not step where fp16 overflowed
            self.scaler.update()
        if finite and self.average:
            with torch.no_grad():
                for mean, parameter in zip(self.average, self.parameters, strict=True):
                    mean.lerp_(parameter, 1 - self.ema)
        self.forget()
        return Stepped(norm, failed=not finite and not too_high)

    def forget(self) -> None:
        """Drop gradients that no step took."""
        self.optimiser.zero_grad()

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, the parameters are their average, if there is one."""
        before = [p.detach().clone() for p in self.parameters] if self.average else []
        fill(self.parameters, self.average)
        try:
            yield
        finally:
            fill(self.parameters, before)

    # -- state -------------------------------------------------------------------------------------------------

    def weights(self) -> dict[str, Any]:
        return {"parameters": [p.detach() for p in self.parameters], "average": self.average}

    def recall_weights(self, held: Mapping[str, Any]) -> None:
        fill(self.parameters, held["parameters"])
        fill(self.average, held["average"])

    def plain(self) -> dict[str, Any]:
        """For the checkpoint."""
        return {**self.weights(), "optimiser": self.optimiser.state_dict(), "scaler": self.scaler.state_dict()}

    def recall(self, held: Mapping[str, Any]) -> None:
        self.recall_weights(held)
        self.optimiser.load_state_dict(self._parts_of(held["optimiser"]))
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(held["scaler"])

    def _parts_of(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """An optimiser's state as its parameters lie: of whole tensors the parts of this process."""
        of = [p for group in self.optimiser.param_groups for p in group["params"]]

        def placed(value: Any, like: Tensor) -> Any:
            return part_like(value, like) if isinstance(value, Tensor) and value.shape == like.shape else value

        held = {i: {name: placed(v, of[i]) for name, v in values.items()} for i, values in state["state"].items()}
        return {**state, "state": held}


def fill(tensors: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Copy values, whole or in parts, into tensors; no values leave them."""
    with torch.no_grad():
        for tensor, value in zip(tensors, values):
            tensor.copy_(part_like(value, tensor))
