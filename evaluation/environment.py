"""Where a report was made."""

from __future__ import annotations

import os
import platform
from typing import Any

import numpy as np
import torch

from ..errors import UsageError
from ..version import __version__


def open_device(device: torch.device | str) -> torch.device:
    """A device by name; "auto" is cuda where there is one. Errors: no such device, or not on this machine."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise UsageError(f"there is no device {str(device)!r}: it is auto, cpu or cuda") from None
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise UsageError("this machine or this torch has no cuda; use device='cpu'")
    return chosen


def environment(device: torch.device, seconds: float, processes: int = 1) -> dict[str, Any]:
    """Versions, device, time in seconds and peak memory in MB of this process."""
    found: dict[str, Any] = {
        "pilotage": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "platform": platform.platform(),
        "device": str(device) if device.type == "cpu" else torch.cuda.get_device_name(device),
        "threads": torch.get_num_threads(),
        "processes": processes,
        "seconds": round(seconds, 3),
    }
    if os.name == "posix":
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        found["peak_memory_mb"] = round(peak / (2**20 if platform.system() == "Darwin" else 2**10))
    return found
