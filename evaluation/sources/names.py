"""What files are called in errors, and which names a member of an archive may have."""

from __future__ import annotations

import posixpath
from pathlib import PurePath

from ...errors import UsageError

LONGEST = 200  # characters of a name in an error

EXTENSIONS = frozenset((".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".npy"))
ARCHIVES = frozenset((".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".zst", ".7z", ".rar", ".npz"))
NESTED = "archives among the pictures left out"


def shown(name: str | PurePath) -> str:
    """A name on one line, whatever is in it."""
    text = str(name)
    text = text if text.isprintable() else ascii(text)
    return text if len(text) <= LONGEST else text[:LONGEST] + "..."


def why(error: BaseException) -> str:
    """The first line of what an error says, or its name."""
    text = str(error).strip()
    return shown(text.splitlines()[0]) if text else type(error).__name__


def member(archive: str | PurePath, name: str) -> str:
    """A member of an archive, as errors call it."""
    return f"{shown(archive)}, member {shown(name)}"


def check_member(archive: str | PurePath, name: str) -> None:
    """Refuse a name that leads out of its archive or that no honest packer writes."""
    outside = name.startswith("/") or ".." in name.split("/") or "\\" in name or name[1:2] == ":"
    if outside or not name.isprintable() or not name:
        raise UsageError(f"{member(archive, name)}, is not a name inside the archive; pack the pictures again")


def stem_and_suffix(name: str) -> tuple[str, str]:
    """ "a/b.c.PNG" -> ("a/b.c", ".png"); a hidden file is all stem."""
    stem, suffix = posixpath.splitext(name)
    return stem, suffix.lower()


def is_picture(name: str) -> bool:
    """By its extension; hidden files are none."""
    return stem_and_suffix(name)[1] in EXTENSIONS and not posixpath.basename(name).startswith(".")


def is_archive(name: str) -> bool:
    """By its extension."""
    return stem_and_suffix(name)[1] in ARCHIVES
