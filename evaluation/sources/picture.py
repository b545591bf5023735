"""One picture with its name, caption and class: what every source yields."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Picture(NamedTuple):
    """pixels: uint8 (H, W, 3). key: what it is called, the same in every run. text: its caption. label: its class."""

    pixels: np.ndarray
    key: str
    text: str | None = None
    label: str | int | None = None
