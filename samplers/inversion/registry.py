"""The steps that can be undone, by name."""

from __future__ import annotations

from typing import Any

from ...registry import Spec, make
from .bdia import BDIA
from .edict import EDICT
from .fixed_point import FixedPoint
from .mccallum_foster import McCallumFoster
from .naive import Naive
from .obelm import OBELM
from .reversible import ReversibleStep
from .reversible_heun import ReversibleHeun

INVERSIONS: dict[str, Spec] = {
    "naive": Spec(
        Naive, "DDIM inversion: the slope at the wrong end of each step", "Song et al. 2020, 2010.02502", "1 evaluation"
    ),
    "fixed-point": Spec(
        FixedPoint,
        "DDIM inversion, iterated; the default",
        "Pan et al. 2023, 2309.04907",
        "1 evaluation, 1 + iterations back",
        off={"iterations": 0},
        limits={"iterations": "0 is naive", "damping": "1 is undamped", "anderson": "0 is the plain iteration"},
    ),
    "edict": Spec(
        EDICT,
        "two copies stepped with one another's slopes; loses digits on long grids",
        "Wallace et al. 2022, 2211.12446",
        "2 evaluations",
        limits={"p": "1 lets the copies part; below 1 going back amplifies rounding by p^-2 a step"},
    ),
    "bdia": Spec(
        BDIA,
        "DDIM's step on, less its step back; second order",
        "Zhang et al. 2023, 2307.10829",
        "1 evaluation",
        limits={"g": "1 keeps round trips at rounding; below 1 going back amplifies rounding by 1/g a step"},
    ),
    "o-belm": Spec(
        OBELM, "leapfrog for steps of changing length; second order", "Wang et al. 2024, 2410.07273", "1 evaluation"
    ),
    "mccallum-foster": Spec(
        McCallumFoster,
        "two coupled copies of a midpoint or Euler method (Rex); second order",
        "McCallum & Foster 2024, 2410.11648",
        "4 evaluations; 2 with base=euler",
        limits={"z": "1 lets the copies part; below 1 going back amplifies rounding by 1/z a step"},
    ),
    "reversible-heun": Spec(
        ReversibleHeun,
        "Heun's method that can be undone; second order, stable for small steps only",
        "Kidger et al. 2021, 2105.13493",
        "1 evaluation",
    ),
}


def make_inversion(method: str | ReversibleStep, **settings: Any) -> ReversibleStep:
    """A method by name, with settings here or in the line ("fixed-point:iterations=5,anderson=3"), or the given one."""
    if isinstance(method, ReversibleStep):
        return method
    made: ReversibleStep = make("inversions", INVERSIONS, method, "inversion", **settings)
    return made
