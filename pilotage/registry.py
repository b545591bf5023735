"""What a registry entry says. Registries are plain dict literals: `name -> Spec`.

The command line, the YAML schema, the docs tables, the grid axes and the tests are all derived from these entries.
Third-party packages add their own through entry-point groups (`pilotage.guidance`, `pilotage.samplers`, ...), which
are read only when a name is unknown or a list is asked for.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from .errors import UsageError, nearest
from .grammar import name_and_settings
from .kinds import check_kinds


@dataclass(frozen=True)
class Spec:
    """One entry. `cls` is the class or function, or a lazy "module:name" below `pilotage`."""

    cls: Any
    summary: str  # one line
    paper: str = ""  # authors, year, arXiv number
    cost: str = ""  # evaluations per step ("2M"), operations, or complexity
    needs: tuple[str, ...] = ()  # "uncond", "weak", "classifier", "features", ...
    off: Mapping[str, Any] = field(default_factory=dict)  # the settings at which it does nothing
    space: str = ""  # home space of a rule: any, denoised, noise
    notes: str = ""
    models: str = ""  # the kinds of model it fits, "" for all
    limits: Mapping[str, str] = field(default_factory=dict)  # what each setting does at its ends, by setting

    def load(self) -> Any:
        """The class or function itself; imports it when the entry is lazy."""
        if not isinstance(self.cls, str):
            return self.cls
        module, name = self.cls.split(":")
        return getattr(importlib.import_module(f"pilotage.{module}"), name)

    @property
    def passes(self) -> int:
        """Elementwise passes over the latents of a step (a rule's class says it); asserted by the tests."""
        return self.load().passes

    @property
    def defaults(self) -> dict[str, Any]:
        """Settings and their default values; a required setting has the value `...`."""
        cls = self.load()
        if dataclasses.is_dataclass(cls):
            return {f.name: _default(f) for f in dataclasses.fields(cls) if f.init and f.name != "inner"}
        parameters = inspect.signature(cls).parameters.values()
        return {p.name: ... if p.default is p.empty else p.default for p in parameters if p.name != "self"}


def _default(f: dataclasses.Field) -> Any:
    if f.default is not dataclasses.MISSING:
        return f.default
    return f.default_factory() if f.default_factory is not dataclasses.MISSING else ...


@cache
def _third_party(group: str) -> Mapping[str, Spec]:
    from importlib.metadata import entry_points

    found = {}
    for point in entry_points(group=f"pilotage.{group}"):
        spec = point.load()
        if not isinstance(spec, Spec):
            raise UsageError(
                f"entry point {point.name!r} of pilotage.{group} is no pilotage Spec; "
                "export a Spec(cls=..., summary=...)"
            )
        found[point.name] = spec
    return found


def everything(group: str, own: Mapping[str, Spec]) -> dict[str, Spec]:
    """Our entries and those of third-party packages; our own names win."""
    return {**_third_party(group), **own}


def lookup(group: str, own: Mapping[str, Spec], name: str, what: str | None = None) -> Spec:
    """The entry called `name`. Raises UsageError with the nearest names when there is none."""
    spec = own.get(name) or _third_party(group).get(name)
    if spec is None:
        known = everything(group, own)
        raise UsageError(f"unknown {what or group} {name!r}: {nearest(name, known)}")
    return spec


def check_settings(name: str, settings: Mapping[str, Any], known: Iterable[str]) -> None:
    """UsageError for a setting that `name` does not have, with the nearest ones."""
    names = list(known)
    for key in settings:
        if key not in names:
            raise UsageError(f"{name} has no setting {key!r}: {nearest(key, names) if names else 'it has none'}")


def make(group: str, own: Mapping[str, Spec], line: str, what: str, **settings: Any) -> Any:
    """What a line describes, "heun:churn=40,high=50", with further settings. Raises UsageError for unknown ones."""
    name, written = name_and_settings(line)
    spec = lookup(group, own, name, what)
    check_settings(name, {**written, **settings}, spec.defaults)
    check_kinds(name, written, spec.load())
    return spec.load()(**{**written, **settings})
