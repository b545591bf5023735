"""UniPC: Zhao et al. 2023, arXiv 2302.04867, the data form with B(h) = h ("bh1") or e^h - 1 ("bh2").

Predictor and corrector are multistep steps of the data form; with p evaluations in the predictor, D_0 where the step
starts and D' where it ended,

    UniP-p: weights over D_0, D_-1 .. D_{-p+1}          UniC-p: over D', D_0, D_-1 .. D_{-p+1}

that reproduce as many moments (`exponential`) as they have terms; with two terms the second moment is B/2, of
B = h or 1 - e^{-h}. The corrector costs no evaluation: it uses the D' that the next step's predictor needs anyway. It
runs at the beginning of that next step, and because both start from the same x it is only a sum of differences,

    x += alpha ((UniC's weights) - (UniP's weights)) . (D', D_0, D_-1, ..)

so whatever a rule or a pipeline did to x in between stays. The last step is not corrected. Where an inconsistent
prediction (CFG++) has moved x off the solver's path, the predictor runs alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

from ..errors import UsageError, nearest
from .exponential import combined, matched, moments
from .multistep import DataWeights, looked_back, shares
from .prediction import Prediction
from .sampler import Leg, Levels, Sampler, State, finish
from .schedule import Level, NoiseSchedule

VARIANTS = ("bh1", "bh2")


class UniPCWeights(NamedTuple):
    """A step as one combination of the evaluations, and the same without the correction of the step before."""

    corrected: DataWeights
    predicted: DataWeights


@dataclass(frozen=True)
class UniPCSampler(Sampler):
    """order: p of UniPC-p, 1 .. 4, the order of the predictor; with the corrector the run is of order p + 1.
    variant: "bh1" or "bh2". disable_corrector: the steps, counted from 0, that are not corrected, or how many of the
    first ones; for large guidance scales.
    """

    order: int = field(default=2)  # type: ignore[misc]
    variant: str = "bh2"
    disable_corrector: int | tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.order not in (1, 2, 3, 4):
            raise UsageError(f"the order of UniPC is 1, 2, 3 or 4, not {self.order}")
        if self.variant not in VARIANTS:
            raise UsageError(f"unknown variant {self.variant!r}: {nearest(self.variant, VARIANTS)}")
        off = self.disable_corrector
        if not isinstance(off, (int, list, tuple)):
            raise UsageError(f"disable_corrector is a number of first steps or a list of steps, not {off!r}")
        if isinstance(off, list):  # from a scheduler's saved config
            object.__setattr__(self, "disable_corrector", tuple(off))

    def plan(self, levels: Levels, schedule: NoiseSchedule | None = None) -> tuple[Leg, ...]:
        return tuple(self._leg(levels, step) for step in range(len(levels) - 1))

    def _leg(self, levels: Levels, step: int) -> Leg:
        level, goal = levels[step], levels[step + 1]
        keep = goal.sigma / level.sigma
        past = self._weights(looked_back(levels, step, self.order), level, goal)
        predicted = DataWeights(keep, past)
        if not keep or not self._is_corrected(levels, step - 1):
            return Leg((level,), goal, UniPCWeights(predicted, predicted))
        change = self._correction(levels, step - 1)
        padded = past + (0.0,) * (len(change) - len(past))
        both = tuple(w + keep * c for w, c in zip(padded, change, strict=True))
        return Leg((level,), goal, UniPCWeights(DataWeights(keep, both), predicted))

    def _is_corrected(self, levels: Levels, step: int) -> bool:
        off = self.disable_corrector
        disabled = step < off if isinstance(off, int) else step in off
        return step >= 0 and not disabled and levels[step].alpha > 0

    def _correction(self, levels: Levels, step: int) -> tuple[float, ...]:
        """What the end of `step` gains, as weights of D', D_0, D_-1, .."""
        level, goal = levels[step], levels[step + 1]
        nodes = looked_back(levels, step, self.order)
        predictor = (0.0, *self._weights(nodes, level, goal))
        corrector = self._weights((goal, *nodes), level, goal)
        return tuple(c - p for c, p in zip(corrector, predictor, strict=True))

    def _weights(self, nodes: Levels, level: Level, goal: Level) -> tuple[float, ...]:
        h = goal.lam - level.lam
        wanted = moments(h, len(nodes))
        if len(nodes) == 2:
            wanted[1] = (h if self.variant == "bh1" else wanted[0]) / 2
        return tuple(goal.alpha * w for w in matched(shares(nodes, level, goal), wanted))

    def advance(self, state: State, prediction: Prediction, noise: Tensor | None) -> State:
        weights = state.leg.weights
        keep, past, _ = weights.predicted if state.shifted else weights.corrected
        seen = (prediction.denoised, *state.history)
        return finish(state, combined(keep, state.x, past, seen), *seen[: self.order])
