"""Euler with ancestral noise, in the variance-exploding form of k-diffusion's `sample_euler_ancestral`.

    rho_up = min(rho', eta sqrt(rho'^2 (rho^2 - rho'^2) / rho^2)),    c = rho_up / rho'

In schedule-free variables that is DDIM with the same eta, and with eta = 1 the reverse SDE to first order; it is kept
as a name of its own because people look for it. The form that some rectified-flow code calls Euler-ancestral injects
less noise and is another method.
"""

from __future__ import annotations

from dataclasses import dataclass

from .ddim import DDIMSampler


@dataclass(frozen=True)
class EulerAncestralSampler(DDIMSampler):
    """eta: 0 is Euler, 1 is full ancestral noise."""

    eta: float = 1.0
