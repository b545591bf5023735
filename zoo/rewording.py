"""A caption with one attribute exchanged: what a rival of it would be called."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from itertools import product

from .world import ATTRIBUTES, Object, Scene, parse


@lru_cache(maxsize=65536)
def exchanged(caption: str, head: str, name: str) -> str | None:
    """The caption with another class of one head (a key of `ATTRIBUTES`), in the same words otherwise. None where no
    such scene exists: a head that the caption leaves open, "none", a pair of three, two equal objects.

    What no longer fits goes: a group has no size, a big object no place.
    """
    stated = dict(parse(caption))
    pair = "shape2" in stated
    if head not in stated or name == "none" or stated[head] == "none" or (head == "count" and pair):
        return None
    stated[head] = name
    if pair and (stated["shape"], stated["colour"]) == (stated["shape2"], stated["colour2"]):
        return None
    if not pair and stated["count"] == "one":
        stated.pop("relation", None)
    if stated["count"] != "one":
        stated.pop("size", None)
    if stated["count"] != "one" or (head == "size" and name == "big"):
        stated.pop("place", None)
    return worded(stated, wording_of(caption))


def worded(stated: Mapping[str, str], wording: tuple[int, int, int, int]) -> str:
    """A caption that states exactly these attributes; `parse` reads them back."""
    turn, frame, _, _ = wording
    objects = [Object(stated["shape"], stated["colour"], 0.0, 0.0, 0.0)]
    count = ATTRIBUTES["count"].index(stated["count"]) + 1
    kind = "pair" if "shape2" in stated else "group" if count > 1 else "single"
    if kind == "pair":
        objects.append(Object(stated["shape2"], stated["colour2"], 0.0, 0.0, 0.0))
    elif kind == "group":
        objects *= count
    size, place = stated.get("size", "none"), stated.get("place", "none")
    frame = (frame if frame != _OPEN else 0) if "background" in stated else _OPEN
    said = (turn, frame, int(size != "none"), int(place != "none"))
    relation = stated.get("relation", "none")
    return Scene(kind, tuple(objects), stated.get("background", ""), size, place, relation, said).caption


_OPEN = 3  # the frame without a background


@lru_cache(maxsize=65536)
def wording_of(caption: str) -> tuple[int, int, int, int]:
    """The wording in which the world writes this caption; its plainest one for other sentences of the grammar."""
    text = " ".join(caption.lower().strip().rstrip(".").split())
    stated = parse(caption)
    for turn, frame in product(range(2), range(4)):
        if worded(stated, (turn, frame, 1, 1)) == text:
            return turn, frame, 1, 1
    return 0, 0, 1, 1
