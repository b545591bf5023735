"""What a user did wrong, in one line with the fix."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

MOST = 4000  # characters of a line that is told


class UsageError(ValueError):
    """Bad input. The message is one line and says how to mend it; the command line exits with 2.

    What a file or a stranger wrote may stand in it: it is one line of printable text whatever that was.
    """

    def __init__(self, message: str = ""):
        super().__init__(one_line(message))


def one_line(text: str) -> str:
    """Blanks for line breaks and \\x1b for what a terminal would obey; cut where it is very long."""
    text = _cut(str(text))
    return text if text.isprintable() else _cut("".join(map(_printable, text)))  # which may have become longer


def _cut(text: str) -> str:
    return text if len(text) <= MOST else f"{text[: MOST - 3]}..."


def _printable(character: str) -> str:
    if character.isprintable():
        return character
    return " " if character.isspace() else character.encode("unicode_escape").decode()


def nearest(name: str, known: Iterable[str]) -> str:
    """'did you mean a, b?' for the names closest to `name`, else the whole list."""
    names = sorted(set(known))
    close = difflib.get_close_matches(name[:200], names, n=3, cutoff=0.5)
    return f"did you mean {', '.join(close)}?" if close else f"known: {', '.join(names)}"
