"""What any training must notice: steps that were not finite."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar


@dataclass(frozen=True)
class Limits:
    """not_finite: steps in a row that may fail."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}  # where it stands in a spec

    not_finite: int = 3


@dataclass(frozen=True)
class Notice:
    """One line. stops: the run ends here."""

    text: str
    stops: bool = False


@dataclass
class Guard:
    """Told of every step; says what is wrong. Its state is plain data, kept in the checkpoint."""

    limits: Any
    failed: int = 0  # steps in a row that were not finite

    def plain(self) -> dict[str, Any]:
        return {key: value for key, value in asdict(self).items() if key != "limits"}

    def recall(self, plain: Mapping[str, Any]) -> None:
        self.failed = plain["failed"]

    @property
    def lost(self) -> bool:
        """Have too many steps failed in a row?"""
        return bool(self.failed >= self.limits.not_finite)

    def step(self, finite: bool) -> list[Notice]:
        """A step of the optimiser was taken, or left out since its loss or gradient was not finite."""
        if finite:
            self.failed = 0
            return []
        self.failed += 1
        if self.lost:
            text = f"the loss or its gradient was not finite {self.failed} times in a row; lower the learning rate"
            return [Notice(text, stops=True)]
        return [Notice("the loss or its gradient was not finite; this step was left out")]
