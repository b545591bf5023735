"""What captions state and what a judge sees, batch by batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..errors import UsageError
from .judges import Judge
from .sources.picture import Picture


@dataclass(frozen=True)
class Judgement:
    """What the captions of N pictures state, and what a judge sees in them: attribute -> N class names."""

    judge: Judge
    stated: list[Mapping[str, Any]]
    seen: dict[str, list[Any]]

    def ordered(self, order: Sequence[int]) -> Judgement:
        """Of these pictures, in this order."""
        seen = {name: [values[i] for i in order] for name, values in self.seen.items()}
        return Judgement(self.judge, [self.stated[i] for i in order], seen)


class Judging:
    """A judgement in the making. strict: a caption that fails is a UsageError; otherwise the set stays unjudged."""

    def __init__(self, judge: Judge | None, strict: bool, source: str):
        self.judge, self.strict, self.source = judge, strict, source
        self.failure = "" if judge else "no judge was asked"
        self.stated: list[Mapping[str, Any]] = []
        self.seen: dict[str, list[Any]] = {}

    def take(self, batch: Sequence[Picture], pixels: Tensor) -> None:
        """pixels: uint8 (n, 3, H, W) of these pictures."""
        if not self.judge or self.failure:
            return
        try:
            self.stated += [self._stated(self.judge, picture) for picture in batch]
        except UsageError as error:
            if self.strict:
                raise
            self.failure = str(error)
            return
        for name, found in self.judge.predict(pixels).items():
            self.seen.setdefault(name, []).extend(found)

    def judgement(self) -> Judgement | None:
        """Of all pictures, or None after a failure."""
        return Judgement(self.judge, self.stated, self.seen) if self.judge and not self.failure else None

    def _stated(self, judge: Judge, picture: Picture) -> Mapping[str, Any]:
        if picture.text is None:
            fix = "put a captions.csv (file,caption) beside the pictures, or pass captions="
            raise UsageError(f"{self.source}: picture {picture.key} has no caption; {fix}")
        return judge.parse(picture.text)
