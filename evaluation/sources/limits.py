"""What a file may ask of us: sizes beyond these are refused before memory is spent on them."""

from __future__ import annotations

PIXELS = 2**26  # of one picture: 8192 x 8192
MEMBER_BYTES = 2**28  # of one file in an archive, unpacked
SIDECAR_BYTES = 2**24  # of captions and labels beside one picture or many
RATIO = 200  # unpacked to packed; honest pictures stay below 2, a blank bitmap reaches 1000 and is small
SMALL_BYTES = 2**24  # below this nobody minds the ratio
TOTAL_BYTES = 2**30  # of a whole archive, below which its ratio is not looked at
SHARDS = 100_000  # of one pattern
