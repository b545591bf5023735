"""Features of the network that ships with the embedded world."""

from __future__ import annotations

import importlib

import torch

from .extractor import Extractor, weights_hash


def embedded(device: torch.device | str = "cpu") -> Extractor:
    """64 features of the embedded world's own network (trained on its attributes, on blur, noise and saturation)."""
    network = importlib.import_module("pilotage.zoo.embedded").features().to(device)
    preprocessing = {"resize": "area", "size": 32, "mapping": "x / 127.5 - 1"}
    return Extractor("embedded", network, weights_hash(network), preprocessing, 32, torch.device(device), dim=64)
