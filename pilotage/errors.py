"""What a user did wrong, in one line with the fix."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UsageError(ValueError):
    """Bad input. The message is one line and says how to mend it; the command line exits with 2."""


def nearest(name: str, known: Iterable[str]) -> str:
    """'did you mean a, b?' for the names closest to `name`, else the whole list."""
    names = sorted(set(known))
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    return f"did you mean {', '.join(close)}?" if close else f"known: {', '.join(names)}"
