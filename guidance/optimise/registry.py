"""The optimisers that ship, by name."""

from __future__ import annotations

from typing import Any

from ...errors import UsageError, nearest
from ...registry import Spec, lookup
from .dflow import DFlow
from .doodl import DOODL
from .driver import Optimiser
from .flowgrad import FlowGrad
from .reno import ReNO

OPTIMISERS: dict[str, Spec] = {
    "d-flow": Spec(
        DFlow,
        "the initial noise, by L-BFGS through the whole solve",
        "Ben-Hamu et al. 2024, 2402.14017",
        "1 run and its backward pass an iteration, and for each further trial",
        needs=("loss",),
        off={"iterations": 0},
    ),
    "doodl": Spec(
        DOODL,
        "the initial latent, by steps of one length on a sphere",
        "Wallace et al. 2023, 2303.13703",
        "1 run and its backward pass an iteration",
        needs=("loss",),
        off={"iterations": 0},
    ),
    "flowgrad": Spec(
        FlowGrad,
        "controls along the run, from the noise as it is",
        "Liu et al. 2023 (CVPR)",
        "1 run and its backward pass an iteration",
        needs=("loss",),
        off={"iterations": 0},
    ),
    "reno": Spec(
        ReNO,
        "the noise of a one-step model, kept likely by a penalty on its norm",
        "Eyring et al. 2024, 2406.04312",
        "1 run and its backward pass an iteration",
        needs=("loss",),
        off={"iterations": 0},
    ),
}


def make_optimiser(name: str, **settings: Any) -> Optimiser:
    """An optimiser by name and settings."""
    spec = lookup("optimisers", OPTIMISERS, name, "optimiser")
    for key in settings:
        if key not in spec.defaults:
            raise UsageError(f"{name} has no setting {key!r}: {nearest(key, spec.defaults)}")
    made: Optimiser = spec.load()(**settings)
    return made
