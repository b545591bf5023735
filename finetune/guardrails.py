"""What goes wrong while a reward is climbed, noticed and said in one line: NaN, an exploding reward, pictures that grow
alike, and a reward that rises while the judges' falls.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..training import guardrails
from ..training.guardrails import Notice
from ..training.look import Spread


@dataclass(frozen=True)
class Limits(guardrails.Limits):
    """not_finite: steps in a row that may fail. explosion: how many spreads of the base's reward (its mean's size and
    its deviation over pictures) the reward may go. diversity: the least share of the base's. patience: evaluations that
    a judge may be down while the reward is up, 0 never stops; tolerance: how far down, in deviations of the base's
    pictures, before it counts.
    """

    explosion: float = 100.0
    diversity: float = 0.7
    patience: int = 3
    tolerance: float = 0.25


@dataclass
class Guard(guardrails.Guard):
    """Told of every update and evaluation; says what is wrong. Its state is plain data, kept in the checkpoint."""

    limits: Limits = field(default_factory=Limits)
    reward: Spread | None = None  # of the base
    judges: dict[str, Spread] = field(default_factory=dict)  # of the base
    diversity: float | None = None  # of the base
    best: dict[str, tuple[float, float]] = field(default_factory=dict)  # judge -> (its best, the reward then)
    falling: dict[str, int] = field(default_factory=dict)  # judge -> evaluations in a row

    # -- state -------------------------------------------------------------------------------------------------

    def recall(self, plain: Mapping[str, Any]) -> None:
        super().recall(plain)
        self.diversity = plain["diversity"]
        self.reward = Spread(**plain["reward"]) if plain["reward"] else None
        self.judges = {name: Spread(**spread) for name, spread in plain["judges"].items()}
        self.best = {name: (pair[0], pair[1]) for name, pair in plain["best"].items()}
        self.falling = dict(plain["falling"])

    # -- what it is told ---------------------------------------------------------------------------------------

    def base(self, reward: Spread, judges: Mapping[str, Spread], diversity: float) -> None:
        """The evaluation before training."""
        self.reward, self.judges, self.diversity = reward, dict(judges), diversity
        self.best = {name: (spread.mean, reward.mean) for name, spread in judges.items()}

    def rewarded(self, reward: float) -> list[Notice]:
        """The mean reward of an update. One that is not finite makes the gradient so, which `step` is told."""
        if self.reward is None or not math.isfinite(reward):
            return []
        size = abs(self.reward.mean) + self.reward.deviation + 1e-6
        if abs(reward - self.reward.mean) <= self.limits.explosion * size:
            return []
        text = f"the reward exploded to {reward:.3g} from {self.reward.mean:.3g}; bound it, or give the method kl="
        return [Notice(text, stops=True)]

    def evaluated(self, reward: float, judges: Mapping[str, float], diversity: float) -> list[Notice]:
        """An evaluation on held-out prompts; the reward is the one that is trained on."""
        return [*self._alike(diversity), *self._overdone(reward, judges)]

    def _alike(self, diversity: float) -> list[Notice]:
        if not self.diversity:
            return []
        share = diversity / self.diversity
        if share >= self.limits.diversity:
            return []
        text = f"the pictures of a prompt grew alike: diversity is {share:.0%} of the base model's"
        return [Notice(f"{text}; train less, or give the method kl=", stops=True)]

    def _overdone(self, reward: float, judges: Mapping[str, float]) -> list[Notice]:
        found = []
        for name, value in judges.items():
            if name not in self.judges:
                continue
            best, reward_then = self.best[name]
            if value >= best:
                self.best[name], self.falling[name] = (value, reward), 0
            elif reward > reward_then and value < best - self.limits.tolerance * self.judges[name].deviation:
                self.falling[name] = self.falling.get(name, 0) + 1
                found.append(self._down(name, value, best))
            else:
                self.falling[name] = 0
        return found

    def _down(self, name: str, value: float, best: float) -> Notice:
        times, patience = self.falling[name], self.limits.patience
        text = f"the reward rises but the judge {name} fell from {best:.4g} to {value:.4g}"
        if patience and times >= patience:
            return Notice(f"{text}, {times} evaluations in a row: stopped early", stops=True)
        return Notice(text)
