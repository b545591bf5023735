"""A denoiser is anything that answers `denoiser(x, level, condition)` with a `Prediction`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from .prediction import SAMPLE, Parameterization, Prediction, parameterization, working_precision
from .schedule import Level, NoiseSchedule


class Denoiser(Protocol):
    """A diffusers model, an exact Gaussian mixture, a student and a guided model are all denoisers."""

    @property
    def schedule(self) -> NoiseSchedule: ...

    def __call__(self, x: Tensor, level: Level, condition: Any = None) -> Prediction:
        """x: (B, ...) at `level`. condition: whatever the network takes, with leading size B."""
        ...


@dataclass(frozen=True)
class NetworkDenoiser:
    """A raw network as a denoiser: `network(x, time, **condition)` with time (B,).

    kind: what it predicts, a name of `PARAMETERIZATIONS` ("epsilon", "v_prediction", "flow_prediction", ...).
    The output may be a tensor, a tuple, or an object with `.sample`.
    """

    network: Callable[..., Any]
    schedule: NoiseSchedule
    kind: str | Parameterization = "epsilon"

    def __call__(self, x: Tensor, level: Level, condition: Any = None) -> Prediction:
        time = torch.full((x.shape[0],), level.time, dtype=torch.float32, device=x.device)
        keywords = (
            condition if isinstance(condition, Mapping) else {} if condition is None else {"condition": condition}
        )
        native = raw_output(self.network(x, time, **keywords))
        return Prediction(working_precision(x), level, working_precision(native), parameterization(self.kind))


@dataclass(frozen=True)
class ExactDenoiser:
    """A world whose posterior mean is known, `world.denoised(x, alpha, sigma, condition)`, as a denoiser."""

    world: Any
    schedule: NoiseSchedule

    def __call__(self, x: Tensor, level: Level, condition: Any = None) -> Prediction:
        return Prediction(x, level, self.world.denoised(x, level.alpha, level.sigma, condition), SAMPLE)


def raw_output(output: Any) -> Tensor:
    """The tensor in a network's answer: itself, `.sample`, or the first of a tuple."""
    if isinstance(output, Tensor):
        return output
    return output.sample if hasattr(output, "sample") else output[0]
