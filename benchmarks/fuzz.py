"""Fuzz what reads text and files of strangers, for as long as one likes; the tests do a few seconds of it.

    python benchmarks/fuzz.py guidance                       # 60 seconds
    python benchmarks/fuzz.py yaml --seconds 3600 --corpus runs/fuzz/yaml
    pip install atheris                                      # then guided by coverage; without it by hypothesis alone

Whatever is no UsageError of one printable line, and whatever takes longer than five seconds, ends it and is shown; what
led there is written to the corpus folder as crash-*.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pilotage.errors import UsageError

SLOW = 5.0  # seconds
INSTALL = "atheris is not installed (pip install atheris, Linux and macOS): guided by hypothesis alone"


def _text(read: Callable[[str], Any]) -> Callable[[bytes], Any]:
    return lambda data: read(data.decode("utf-8", "replace"))


def _file(read: Callable[[Path], Any], suffix: str) -> Callable[[bytes], Any]:
    path = Path(tempfile.mkdtemp(prefix="fuzz-")) / f"x{suffix}"

    def act(data: bytes) -> Any:
        path.write_bytes(data)
        return read(path)

    return act


def _guidance() -> Callable[[bytes], Any]:
    from pilotage.guidance.grammar import parse, spell

    def act(line: str) -> None:
        rule = parse(line)
        assert parse(spell(rule)) == rule, f"{line!r} is not read back"

    return _text(act)


def _samplers() -> Callable[[bytes], Any]:
    from pilotage.samplers.grids import parse_grid
    from pilotage.samplers.registry import make_sampler

    return _text(lambda line: (make_sampler if len(line) % 2 else parse_grid)(line))


def _rewards() -> Callable[[bytes], Any]:
    from pilotage.finetune.rewards import open_rewards

    open_rewards("adherence")  # what it imports takes seconds
    return _text(lambda line: None if "/" in line else open_rewards(line))


def _yaml() -> Callable[[bytes], Any]:
    from pilotage.generation.comparison import CompareSpec
    from pilotage.generation.settings import resolve

    return _file(lambda path: resolve(CompareSpec, None, path), ".yaml")


def _training() -> Callable[[bytes], Any]:
    from pilotage.finetune.spec import FinetuneSpec
    from pilotage.generation.settings import resolve

    return _file(lambda path: resolve(FinetuneSpec, None, path), ".yaml")


def _png() -> Callable[[bytes], Any]:
    from pilotage.generation.metadata import read_png

    return _file(lambda path: read_png(path, trust=False), ".png")


def _picture() -> Callable[[bytes], Any]:
    from pilotage.generation.call import read_picture

    return _file(lambda path: read_picture(str(path)), ".png")


def _statistics() -> Callable[[bytes], Any]:
    from pilotage.evaluation.statistics import read_statistics

    return _file(lambda path: read_statistics(path, assume="clean-fid"), ".npz")


def _checkpoint() -> Callable[[bytes], Any]:
    from pilotage.training.checkpoint import Damaged, read

    def act(path: Path) -> None:
        try:
            read(path)
        except Damaged:
            return

    return _file(act, ".safetensors")


def _archive() -> Callable[[bytes], Any]:
    from pilotage.evaluation import open_source

    return _file(lambda path: list(open_source(path)), ".zip")


TARGETS: dict[str, Callable[[], Callable[[bytes], Any]]] = {
    "guidance": _guidance, "samplers": _samplers, "rewards": _rewards, "yaml": _yaml, "training": _training,
    "png": _png, "picture": _picture, "statistics": _statistics, "checkpoint": _checkpoint, "archive": _archive,
}  # fmt: skip


def checked(act: Callable[[bytes], Any], corpus: Path) -> Callable[[bytes], None]:
    """The target, that keeps what it fails on."""

    def once(data: bytes) -> None:
        begun = time.monotonic()
        try:
            try:
                act(data)
            except UsageError as error:
                assert str(error).isprintable(), "the message is not one printable line"
            assert time.monotonic() - begun < SLOW, f"it takes longer than {SLOW} seconds"
        except Exception:
            corpus.mkdir(parents=True, exist_ok=True)
            (corpus / f"crash-{hashlib.sha256(data).hexdigest()[:16]}").write_bytes(data)
            raise

    return once


def by_coverage(make: Callable[[], Callable[[bytes], Any]], corpus: Path, seconds: int) -> None:
    import atheris

    with atheris.instrument_imports(include=["pilotage"]):
        act = checked(make(), corpus)
    corpus.mkdir(parents=True, exist_ok=True)
    atheris.Setup([sys.argv[0], f"-max_total_time={seconds}", "-max_len=65536", str(corpus)], act)
    atheris.Fuzz()


def by_hypothesis(make: Callable[[], Callable[[bytes], Any]], corpus: Path, seconds: int) -> int:
    """Texts, bytes, and what lies in the corpus with bytes exchanged. How many were tried."""
    from hypothesis import HealthCheck, given, settings
    from hypothesis import strategies as st

    act, tried, end = checked(make(), corpus), 0, time.monotonic() + seconds
    known = [path.read_bytes() for path in sorted(corpus.glob("*"))] or [b"cfg:scale=3 + interval:low=0.3", b"steps: 3"]
    bent = st.tuples(st.sampled_from(known), st.integers(0, 65536), st.binary(max_size=8)).map(
        lambda given: given[0][: (at := given[1] % (len(given[0]) + 1))] + given[2] + given[0][at + len(given[2]) :]
    )
    anything = st.binary(max_size=300) | st.text(max_size=200).map(lambda t: t.encode("utf-8", "replace")) | bent

    @settings(max_examples=1000, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(data=anything)
    def thousand(data: bytes) -> None:
        nonlocal tried
        if time.monotonic() < end:
            tried += 1
            act(data)

    while time.monotonic() < end:
        thousand()
    return tried


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--corpus", type=Path, help="a folder of inputs to begin with; crashes are kept there")
    given = parser.parse_args()
    corpus = given.corpus or Path("runs") / "fuzz" / given.target
    if importlib.util.find_spec("atheris"):
        by_coverage(TARGETS[given.target], corpus, given.seconds)
        return
    print(INSTALL)
    print(f"{by_hypothesis(TARGETS[given.target], corpus, given.seconds)} inputs, nothing found")


if __name__ == "__main__":
    main()
