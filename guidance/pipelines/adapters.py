"""One row for each pipeline class. To add one, copy the row of the nearest relative and add it to the test.

Facts to find in the pipeline's `__call__`: the order of the branches, which arguments of the network have a row a
sample, and which setting makes the pipeline prepare its negative branch.
"""

from __future__ import annotations

from .adapter import Adapter
from .transformer_rows import REFUSED as REFUSED_TRANSFORMERS
from .transformer_rows import TRANSFORMERS
from .unet_rows import REFUSED as REFUSED_UNETS
from .unet_rows import UNETS
from .video_rows import REFUSED as REFUSED_VIDEOS
from .video_rows import VIDEOS

ADAPTERS: dict[str, Adapter] = {**UNETS, **TRANSFORMERS, **VIDEOS}

# Pipelines that cannot be steered: the reason, and what to do instead.
REFUSED: dict[str, str] = {**REFUSED_UNETS, **REFUSED_TRANSFORMERS, **REFUSED_VIDEOS}
