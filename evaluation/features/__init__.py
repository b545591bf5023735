"""Feature networks: from pictures to the rows that distances are taken between, one file a network."""

from .extractor import ROWS, Extractor, FullCalls, open_features, weights_hash
from .registry import FEATURES

__all__ = ["FEATURES", "ROWS", "Extractor", "FullCalls", "open_features", "weights_hash"]
