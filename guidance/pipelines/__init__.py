"""The door to diffusers: `attach` puts a rule under an unmodified pipeline."""

from .adapter import Adapter
from .adapters import ADAPTERS
from .attach import adapter_of, attach

__all__ = ["ADAPTERS", "Adapter", "adapter_of", "attach"]
