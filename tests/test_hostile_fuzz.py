"""The targets of benchmarks/fuzz.py: each understands what it begins with, and a few inputs bent from that."""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import pytest

from pilotage.errors import UsageError

sys.path.append(str(Path(__file__).resolve().parent.parent / "benchmarks"))
import fuzz
from fuzz_targets import TARGETS


@functools.cache
def opened(name: str) -> tuple[Any, Sequence[bytes]]:
    return TARGETS[name]()


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_understands_what_it_begins_with(name: str) -> None:
    """Otherwise nothing behind the first refusal would ever be reached."""
    act, seeds = opened(name)
    assert seeds
    for seed in seeds:
        act(seed)


@pytest.mark.parametrize("count", [40, pytest.param(2000, marks=pytest.mark.full)])
@pytest.mark.parametrize("name", TARGETS)
def test_another_value_anywhere_is_read_or_refused(name: str, count: int, tmp_path: Path) -> None:
    act, seeds = opened(name)
    once, chance = fuzz.checked(act, tmp_path / "found"), Random(0)
    for _ in range(count):
        data = chance.choice(seeds)
        for _ in range(chance.randint(1, 3)):
            data = fuzz.another(data, chance)
        once(data)
    assert not (tmp_path / "found").exists()


def test_what_is_found_is_kept(tmp_path: Path) -> None:
    def act(data: bytes) -> None:
        if data == b"refused":
            raise UsageError("in\ntwo lines")
        if data == b"found":
            raise ZeroDivisionError

    once = fuzz.checked(act, tmp_path / "found")
    once(b"fine"), once(b"refused")
    assert not (tmp_path / "found").exists()
    with pytest.raises(ZeroDivisionError):
        once(b"found")
    assert [path.read_bytes() for path in (tmp_path / "found").iterdir()] == [b"found"]
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "from an earlier run").write_bytes(b"found")
    with pytest.raises(ZeroDivisionError):
        fuzz.by_hypothesis(lambda: (act, [b"fine"]), tmp_path / "corpus", tmp_path / "found", 20)


@pytest.mark.parametrize("data", [b"", b"+", b'{"a": [1, 2]}', b"cfg:scale=3", b"\xff\0"])
def test_another_input_is_one(data: bytes) -> None:
    found = {fuzz.another(data, Random(seed)) for seed in range(50)}
    assert len(found) > 10 if fuzz.TOKEN.search(data) else found == {data}
