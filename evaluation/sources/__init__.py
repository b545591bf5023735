"""Where pictures come from: folders, archives, arrays, iterators, generators, the embedded world. All give the same.

`open_source` is the door. A source can say how many pictures it has before it reads them where that is known, and
afterwards what it had to do to them (`notes`), so that a report can repeat it. Nothing is unpacked to the disk and
nothing in a file is executed.
"""

from __future__ import annotations

from .opening import open_source
from .picture import Picture
from .sampler import SamplerSource
from .source import ImageSource, IndexedSource, RereadableSource, items, part, size_of

__all__ = [
    "ImageSource",
    "IndexedSource",
    "Picture",
    "RereadableSource",
    "SamplerSource",
    "items",
    "open_source",
    "part",
    "size_of",
]
