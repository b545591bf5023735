"""The optimisers that ship, by name."""

from __future__ import annotations

from typing import Any

from ...registry import Spec, make
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
    """An optimiser by name, with settings here or in the line."""
    made: Optimiser = make("optimisers", OPTIMISERS, name, "optimiser", **settings)
    return made
