"""PLMS: Liu et al. 2022, arXiv 2202.09778. The Adams-Bashforth weights for equal steps, then a DDIM step:

    e = (3 e_0 - e_-1)/2,  (23 e_0 - 16 e_-1 + 5 e_-2)/12  or  (55 e_0 - 59 e_-1 + 37 e_-2 - 9 e_-3)/24
    x'/alpha' = x/alpha + (rho' - rho) e

The run begins with the lower orders, as iPNDM does (Zhang & Chen 2022, arXiv 2204.13902), one evaluation a step. The
weights are right for equal steps in rho only; on other grids the method is of second order whatever its number of
terms. The last step, to clean data, is of first order.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ..errors import UsageError
from .multistep import NoiseMultistep
from .sampler import Levels
from .schedule import Level, NoiseSchedule

ADAMS_BASHFORTH = {2: (-1 / 2,), 3: (-16 / 12, 5 / 12), 4: (-59 / 24, 37 / 24, -9 / 24)}  # of the earlier evaluations


@dataclass(frozen=True)
class PLMSSampler(NoiseMultistep):
    """order: 1 .. 4 terms; 1 is DDIM."""

    order: int = field(default=4)  # type: ignore[misc]

    def __post_init__(self) -> None:
        if self.order not in (1, 2, 3, 4):
            raise UsageError(f"the order of PLMS is 1, 2, 3 or 4, not {self.order}")

    def integrals(self, nodes: Levels, goal: Level, schedule: NoiseSchedule | None) -> tuple[float, ...]:
        return tuple((goal.rho - nodes[0].rho) * weight for weight in ADAMS_BASHFORTH[len(nodes)])
