"""CLIPScore: the cosine between a picture's embedding and its caption's, in the three scalings in use.

Hessel et al. 2021, 2104.08718. Guidance always raises it: read it beside a distance from real pictures.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...errors import UsageError
from ..arrays import as_features
from .intervals import mean_interval

WEIGHT = 2.5  # of the paper, which stretches the usual cosines over 0..1


@dataclass(frozen=True)
class ClipScore:
    """Means over pairs, with normal intervals of 95 % ((nan, nan) for a single pair). Higher is better.

    The numbers of two CLIP models differ by 5 to 10 points, so name the model with them.
    """

    cosine: float  # -1..1
    cosine_interval: tuple[float, float]
    score: float  # 0..2.5: 2.5 max(cos, 0), clipped pair by pair before the mean, as in the paper
    score_interval: tuple[float, float]
    percent: float  # -100..100: 100 cos, unclipped, as it is often printed
    percent_interval: tuple[float, float]
    cosines: np.ndarray = field(repr=False)  # float64 (N,)


def clip_score(*, pictures: Any, texts: Any) -> ClipScore:
    """Of embeddings pictures (N, D) and texts (N, D), row by row; they need not be normalised.

    The paper puts "A photo depicts " before each caption. Errors: different shapes, an embedding of length 0.
    """
    x, y = (as_features(of, name).double().cpu() for of, name in ((pictures, "pictures"), (texts, "texts")))
    if x.shape != y.shape:
        raise UsageError(
            f"pictures are {tuple(x.shape)} and texts {tuple(y.shape)}; give one caption a picture, from one CLIP model"
        )
    lengths = x.norm(dim=1) * y.norm(dim=1)
    if not bool((lengths > 0).all()):
        raise UsageError("an embedding has length 0, so it has no direction; look at what the extractor returned")
    cosines = ((x * y).sum(1) / lengths).clamp(-1, 1).numpy()  # rounding may pass 1
    scores = WEIGHT * cosines.clip(min=0)
    low, high = mean_interval(cosines)
    return ClipScore(
        cosine=float(cosines.mean()),
        cosine_interval=(low, high),
        score=float(scores.mean()),
        score_interval=mean_interval(scores),
        percent=100 * float(cosines.mean()),
        percent_interval=(100 * low, 100 * high),
        cosines=cosines,
    )
