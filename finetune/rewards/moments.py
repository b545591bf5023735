"""Running mean and deviation of a reward's scores: what makes rewards of different scales comparable."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Moments:
    """count, mean and sum of squared distances from the mean, of all scores seen. Plain numbers: a checkpoint keeps
    them. Take them on pictures of the model before training, then normalised(reward, moments.mean, moments.deviation).
    """

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0

    def with_scores(self, scores: Tensor) -> Moments:
        """After these scores too, (B,); merged by the formula of Chan et al., in float64."""
        more = scores.detach().double().flatten()
        if not len(more):
            return self
        count, mean = self.count + len(more), float(more.mean())
        apart = mean - self.mean
        squares = self.squares + float((more - mean).square().sum()) + apart**2 * self.count * len(more) / count
        return Moments(count, self.mean + apart * len(more) / count, squares)

    @property
    def deviation(self) -> float:
        """With the divisor n - 1; 0 for fewer than two scores."""
        return (self.squares / (self.count - 1)) ** 0.5 if self.count > 1 else 0.0
