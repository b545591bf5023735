"""What beside the spec decides the last digits of a picture: versions, threads, device."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from ..version import __version__

PACKAGES = ("torch", "diffusers", "transformers")


def versions() -> dict[str, str]:
    """Versions of everything that computes."""
    found = {"pilotage": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def environment(device: str) -> dict[str, Any]:
    """As it is recorded in run.yaml and in each PNG."""
    import torch

    named = torch.cuda.get_device_name(device) if device.startswith("cuda") else platform.machine()
    return {"versions": versions(), "threads": torch.get_num_threads(), "device": device, "hardware": named}


def differences(recorded: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between two environments, one phrase each; empty when pictures should be bitwise equal."""
    then, here = recorded.get("versions", {}), now["versions"]
    said = [f"{name} {then[name]} then, {here.get(name, 'none')} now" for name in then if then[name] != here.get(name)]
    for name in ("threads", "device", "hardware"):
        if name in recorded and recorded[name] != now[name]:
            said.append(f"{name} {recorded[name]} then, {now[name]} now")
    return said


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """So many torch threads inside the block; None leaves them as they are."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
