"""The ways to differentiate a run, by name."""

from __future__ import annotations

from typing import Any

from ...registry import Spec, make
from .adjoint_deis import AdjointDEIS
from .checkpoint import Checkpoint
from .continuous import Continuous
from .discrete import Discrete
from .full import Full
from .method import Method
from .reversible import Reversible
from .segments import Segments
from .truncated import Truncated

# Cost of N steps: F an evaluation, B its backward pass, M its activations, S a state.
METHODS: dict[str, Spec] = {
    "full": Spec(Full, "every graph is kept; exact", cost="N (F + B), N M"),
    "checkpoint": Spec(Checkpoint, "one checkpoint a step; exact; the default", cost="N (2F + B), M + N S"),
    "segments": Spec(
        Segments,
        "checkpoints of checkpoints; exact",
        "Chen et al. 2016, 1604.06174",
        "N (3F + B), M + 2 sqrt(N) S; width=2: O(log N)",
    ),
    "truncated": Spec(Truncated, "the last K steps only; biased", "Clark et al. 2023, 2309.17400", "N F + K B, K M"),
    "discrete": Spec(
        Discrete, "our own sweep, closed form for first-order samplers; exact", cost="N (2F + B), M + N S"
    ),
    "adjoint-deis": Spec(
        AdjointDEIS,
        "the continuous adjoint by exponential integrators; near",
        "Blasingame & Liu 2024, 2405.15020",
        "N (2F + B), M + N S",
    ),
    "continuous": Spec(
        Continuous,
        "the continuous adjoint by Runge-Kutta; near",
        "Chen et al. 2018, 1806.07366",
        "N F + s N (F + B) with s stages, M + N S, or M + 2 S",
    ),
    "reversible": Spec(
        Reversible,
        "states made again by undoing steps; exact",
        "Zhuang et al. 2021, 2102.04668",
        "N F + N (F + B) with one call a step, M + 3 S",
    ),
}


def make_method(method: str | Method, **settings: Any) -> Method:
    """A method by name, with settings here or in the line ("adjoint-deis:order=2"), or the given one."""
    if isinstance(method, Method):
        return method
    made: Method = make("adjoints", METHODS, method, "adjoint method", **settings)
    return made
