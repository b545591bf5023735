"""YAML and JSON of strangers: plain data of a bounded size and depth. Nothing in them is executed.

Aliases may make a file of a kilobyte stand for more than any memory holds ("billion laughs"), a node may contain
itself, and brackets may be nested deeper than the stack: all are refused before anything is built of them.
"""

from __future__ import annotations

import json
from typing import Any

import yaml

NODES = 2_000_000  # keys and values that a file may stand for
DEPTH = 50  # of lists and tables within each other


class Unreadable(ValueError):
    """What is wrong with the text; it stands in for the many kinds that the parsers raise."""


_Fastest: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_Fastest):
    """yaml's safe one, by libyaml where it is there; a prompt such as 2020-01-01 is a text."""

    yaml_implicit_resolvers = {  # noqa: RUF012, as in yaml
        first: [(tag, pattern) for tag, pattern in found if not tag.endswith(":timestamp")]
        for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def plain_yaml(text: str | bytes) -> Any:
    """Tables with texts for keys, lists, texts, numbers. Raises Unreadable."""
    try:
        _refuse_bomb(text)
        found = yaml.load(text, Loader=_Loader)
    except Unreadable:
        raise
    except Exception as error:  # a tag on the wrong value gives nearly any kind
        raise Unreadable(str(error) or type(error).__name__) from None
    return _checked(found)


def _refuse_bomb(text: str | bytes) -> None:
    """Count what the text stands for, aliases with all that they stand for, before anything is built of it: nesting of
    some thousands would end the process within libyaml."""
    nodes = 0
    sizes: dict[str | None, int] = {}
    inside: list[tuple[str | None, int]] = []  # (anchor, nodes before it) of what is open
    for event in yaml.parse(text, Loader=_Fastest):
        if isinstance(event, yaml.AliasEvent):
            if any(anchor == event.anchor for anchor, _ in inside):
                raise Unreadable(f"its {event.anchor!r} contains itself")
            nodes += sizes.get(event.anchor, 1)
        elif isinstance(event, yaml.ScalarEvent):
            nodes += 1
            sizes.update({event.anchor: 1} if event.anchor else {})
        elif isinstance(event, yaml.CollectionStartEvent):
            inside.append((event.anchor, nodes))
            nodes += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = inside.pop()
            sizes.update({anchor: nodes - before} if anchor else {})
        if len(inside) > DEPTH:
            raise Unreadable(f"it is nested deeper than {DEPTH} levels")
        if nodes > NODES:
            raise Unreadable(f"it stands for more than {NODES} values")


def plain_json(text: str | bytes) -> Any:
    """Tables with texts for keys, lists, texts, numbers. Raises Unreadable."""
    try:
        return _checked(json.loads(text))
    except RecursionError:
        raise Unreadable(f"it is nested deeper than {DEPTH} levels") from None
    except ValueError as error:
        raise Unreadable(str(error)) from None


def _checked(value: Any, depth: int = 0) -> Any:
    """The value itself, when it is not too deep, its keys are texts and its whole numbers are ones to write down."""
    if depth > DEPTH:
        raise Unreadable(f"it is nested deeper than {DEPTH} levels")
    if isinstance(value, dict):
        for key, inner in value.items():
            if not isinstance(key, str):
                raise Unreadable(f"its key {key!r:.60} is no word; put it in quotes")
            _checked(inner, depth + 1)
    elif isinstance(value, list):
        for inner in value:
            _checked(inner, depth + 1)
    elif isinstance(value, int) and abs(value) >= 10**300:
        raise Unreadable("it holds a whole number of more than 300 digits")
    elif value is not None and not isinstance(value, (str, int, float)):
        raise Unreadable(f"it holds a {type(value).__name__}; write a list or a text")
    return value
