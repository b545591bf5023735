"""What will be measured, in which features, and what is left out for which reason."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch

from ..errors import UsageError
from ..grammar import name_and_settings
from ..registry import lookup
from .features import FEATURES, Extractor, open_features
from .measures.evidence import Evidence
from .metrics.registry import Wanted
from .results import Result


class Plan:
    """The wanted metrics. strict: what was named must be possible; otherwise it is left out, with the reason."""

    def __init__(self, wanted: Iterable[Wanted], strict: bool):
        self.wanted, self.strict = list(wanted), strict
        self.skipped: dict[str, str] = {}

    def copy(self) -> Plan:
        """The same, to be measured on other pictures."""
        other = Plan(self.wanted, self.strict)
        other.skipped = dict(self.skipped)
        return other

    @property
    def names(self) -> list[str]:
        """Those that are still wanted."""
        return [one.name for one in self.wanted]

    def leave_out(self, reason: str, concerns: Callable[[Wanted], bool]) -> None:
        """None of these can be measured."""
        for one in [one for one in self.wanted if concerns(one)]:
            if self.strict:
                raise UsageError(f"{one.name}: {reason}")
            self.wanted.remove(one)
            self.skipped[one.name] = reason

    def without(self, need: str, reason: str) -> None:
        """Nothing can be measured that needs this."""
        self.leave_out(reason, lambda one: need in one.needs)

    def needs(self, need: str) -> bool:
        """Does any metric?"""
        return any(need in one.needs for one in self.wanted)

    def attempt(self, opening: Callable[[], Any], concerns: Callable[[Wanted], bool], named: bool = False) -> Any:
        """Open what some metric needs; None if none does, or if it is not to be had. named: by the user, so it must."""
        if not any(concerns(one) for one in self.wanted):
            return None
        try:
            return opening()
        except UsageError as error:
            if self.strict or named:
                raise
            self.leave_out(str(error), concerns)
            return None

    def extractors(self, features: Sequence[Any], device: torch.device) -> list[Extractor]:
        """Every network that some metric needs, opened once; the first is that of metrics that name none.

        features: what the user named, which must be there. A metric's own features are opened by their name when they
        are not among these.
        """
        opened: dict[str, Extractor] = {}
        for number, one in enumerate(features):
            if isinstance(one, str):
                lookup("features", FEATURES, name_and_settings(one)[0])  # a wrong name, though nothing may want it
            found = self._opened(one, device, _name_of(one), number == 0, named=True)
            if found is not None and found.name in opened:
                raise UsageError(f"features {found.name} are named twice; score once for each of them")
            if found is not None:
                opened[found.name] = found
        for name in dict.fromkeys(one.space for one in self.wanted if "features" in one.needs and one.space):
            if name not in opened:
                found = self._opened(name, device, name, False)
                opened |= {name: found} if found else {}
        return list(opened.values())

    def _opened(
        self, features: Any, device: torch.device, name: str, first: bool, named: bool = False
    ) -> Extractor | None:
        def concerns(wanted: Wanted) -> bool:
            return "features" in wanted.needs and (wanted.space == name or (first and not wanted.space))

        found: Extractor | None = self.attempt(lambda: open_features(features, device), concerns, named)
        return found

    def measure(self, evidence_of: Callable[[str], Evidence]) -> list[Result]:
        """The results in the order of the metrics. evidence_of: by the name of a space, "" for the first."""
        results: list[Result] = []
        for one in list(self.wanted):
            try:
                found = one.measuring()(evidence_of(one.space), one.name, **one.settings)
            except UsageError as error:
                if self.strict:
                    raise
                self.wanted.remove(one)
                self.skipped[one.name] = str(error)
                continue
            better = getattr(one.spec, "higher_is_better", None)
            results += [replace(result, higher_is_better=better) for result in found]
        return results


def _name_of(features: Any) -> str:
    return features.split(":")[0] if isinstance(features, str) else getattr(features, "name", "")
