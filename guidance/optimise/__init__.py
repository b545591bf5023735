"""Optimisers that own a whole run: the noise it starts from, or controls along it, until a loss of its end is low.

problem = Problem(denoiser, loss, steps=10)
found = DFlow(iterations=10).optimise(problem, x)
found.noise, found.sample, found.history
"""

from .dflow import DFlow
from .doodl import DOODL
from .driver import Optimised, Optimiser
from .flowgrad import FlowGrad
from .problem import Problem
from .registry import OPTIMISERS, make_optimiser
from .reno import ReNO

__all__ = ["OPTIMISERS", "DFlow", "DOODL", "FlowGrad", "Optimised", "Optimiser", "Problem", "ReNO", "make_optimiser"]
