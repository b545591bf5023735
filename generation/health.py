"""What a machine has, and what is known to go wrong on it. Each check is a function that returns a line, or nothing."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec
from pathlib import Path

from ..errors import UsageError
from ..version import __version__

# Packages that break others when they are installed but do not fit the torch that is.
FRAGILE = {
    "torchvision": "it breaks `import torchmetrics` and diffusers; uninstall it, or install the build for this torch",
    "torch_fidelity": "it breaks `import torchmetrics`; uninstall it",
}


def facts() -> Iterator[tuple[str, str]]:
    """Name and value of everything worth knowing."""
    import torch

    yield "pilotage", __version__
    yield "python", f"{platform.python_version()} on {platform.platform()}"
    for name in _dependencies():
        yield name, _version(name) or "missing"
    yield "processors", f"{_processors()} usable, {torch.get_num_threads()} torch threads"
    yield "memory", _memory()
    yield "disk here", f"{shutil.disk_usage(Path.cwd()).free / 1e9:.1f} GB free"
    yield "devices", ", ".join(_devices())
    yield "embedded model", _embedded() or "present"


def troubles() -> list[str]:
    """What is known to go wrong here, one line each with the fix."""
    found = [*_outdated(), *_not_importing(), *_gpu(), *_threads()]
    if missing := _embedded():
        found.append(missing)
    return found


def _dependencies() -> dict[str, str]:
    """Name -> smallest version, from the package's own metadata."""
    try:
        lines = [line for line in requires("pilotage") or [] if "extra ==" not in line]
    except PackageNotFoundError:  # a clone that is not installed
        lines = ["torch", "diffusers", "transformers", "accelerate", "pydantic", "typer"]
    return {name: least for name, _, least in (line.partition(">=") for line in lines)}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _outdated() -> Iterator[str]:
    for name, least in _dependencies().items():
        found = _version(name)
        if not found:
            yield (
                f"{name} is missing; pip install '{name}>={least}'"
                if least
                else f"{name} is missing; pip install {name}"
            )
        elif least and _numbers(found) < _numbers(least):
            yield f"{name} {found} is older than {least}; pip install -U '{name}>={least}'"


def _numbers(text: str) -> tuple[int, ...]:
    parts = text.partition("+")[0].split(".")
    return tuple(int(part) for part in parts if part.isdecimal())


def _not_importing() -> Iterator[str]:
    """Tried in a process of its own: a failed import would leave half a package behind."""
    for name, fix in FRAGILE.items():
        if find_spec(name) is None:
            continue
        tried = subprocess.run([sys.executable, "-c", f"import {name}"], capture_output=True, text=True, check=False)
        if tried.returncode:
            last = (tried.stderr.strip().splitlines() or ["no message"])[-1]
            yield f"{name} is installed and does not import ({last}): {fix}"


def _gpu() -> Iterator[str]:
    import torch

    if torch.version.cuda and not torch.cuda.is_available():
        built = f"this torch is built for CUDA {torch.version.cuda}"
        yield f"{built} and finds no GPU; look at nvidia-smi, or use the CPU build"
    if not torch.version.cuda and shutil.which("nvidia-smi"):
        yield "there seems to be an NVIDIA GPU, but this torch is a CPU build; install the CUDA build"


def _threads() -> Iterator[str]:
    import torch

    if torch.get_num_threads() > (count := _processors()):
        yield f"torch uses {torch.get_num_threads()} threads on {count} processors; pass --threads {count}"


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _memory() -> str:
    try:
        import psutil
    except ImportError:
        return "unknown"
    memory = psutil.virtual_memory()
    return f"{memory.available / 1e9:.1f} of {memory.total / 1e9:.1f} GB free"


def _devices() -> Iterator[str]:
    import torch

    yield "cpu"
    for i in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        properties = torch.cuda.get_device_properties(i)
        yield f"cuda:{i} {properties.name} ({properties.total_memory / 1e9:.0f} GB)"
    if torch.backends.mps.is_available():
        yield "mps"


def _embedded() -> str:
    """Why the embedded model cannot be used; "" when it can."""
    from .models import embedded_files

    try:
        embedded_files()
    except UsageError as error:
        return str(error)
    return ""
