"""Fuzz what reads text and files of strangers, for as long as one likes; the tests do a few seconds of it.

    python benchmarks/fuzz.py guidance                       # 60 seconds
    python benchmarks/fuzz.py run --seconds 3600 --corpus runs/fuzz/run
    python benchmarks/fuzz.py run --by hypothesis            # also where atheris is not installed

With atheris (pip install atheris; Linux and macOS) it is guided by the coverage of this package: the lines that begin
with # say how far that is (cov: places reached, ft: places with how often). What is new is kept in the corpus, from
which the next run goes on. Whatever is no UsageError of one printable line, what takes longer than five seconds and
what takes more than 4 GB ends it; the input is kept beside the corpus, in CORPUS-found. The targets are those of
fuzz_targets.py.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import re
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

from fuzz_targets import BREAK, TARGETS, Target

SLOW, MEMORY = 5, 4096  # seconds, MiB
LONGEST = 4096  # bytes of an input, or four times those of the longest that it begins with
WORDS = (  # what a mutation would hardly come upon
    BREAK, b"9" * 20, b"1e999", b"NaN", b"Infinity", b"..", b"\x1b[2J", b"!!int ", b"&a ", b"*a", b"<<: ", b" + ",
    b" of ", b" * ", b"file=", b"scale=", b"\xff", b"\0",
)  # fmt: skip
VALUES = (  # of another kind than what stood there
    b"null", b"true", b"0", b"-1", b"3", b"0.5", b"1e999", b"-Infinity", b"NaN", b"9" * 25, b"9" * 400, b'""', b'"x"',
    b'".."', b'"\\u001b[2J"', b'"\\ud800"', b"[]", b"{}", b"[3]", b'["x"]', b"[[]]", b'{"x": 3}', b'{"x": []}',
    b"nan", b"x",
)  # fmt: skip
TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|\[[^\[\]]*\]|\{[^{}]*\}|-?[0-9][\w.+-]*|[A-Za-z_][\w.-]*')


def checked(act: Callable[[bytes], Any], found: Path) -> Callable[[bytes], None]:
    """The target, that keeps in the folder `found` what it fails on."""
    from pilotage.errors import MOST, UsageError

    def once(data: bytes) -> None:
        begun = time.monotonic()
        try:
            try:
                act(data)
            except UsageError as error:
                assert str(error).isprintable() and len(str(error)) <= MOST, "the message is not one printable line"
            assert time.monotonic() - begun < SLOW, f"it takes longer than {SLOW} seconds"
        except Exception:
            found.mkdir(parents=True, exist_ok=True)
            (found / f"crash-{hashlib.sha256(data).hexdigest()[:16]}").write_bytes(data)
            raise

    return once


def by_coverage(make: Target, corpus: Path, found: Path, seconds: int) -> None:
    """Ends the process."""
    import atheris

    with atheris.instrument_imports(include=["pilotage"], enable_loader_override=False):
        act, seeds = make()
        for seed in seeds:
            act(seed)  # what is imported on the way is seen, too
    for folder in (corpus, found):
        folder.mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        (corpus / hashlib.sha256(seed).hexdigest()[:16]).write_bytes(seed)
    words = found / "words"
    words.write_text("".join(f'"{"".join(f"{chr(92)}x{byte:02x}" for byte in word)}"\n' for word in WORDS))
    limits = [
        f"-max_total_time={seconds}",
        f"-timeout={SLOW}",
        f"-rss_limit_mb={MEMORY}",
        f"-max_len={_longest(seeds)}",
    ]
    said = [f"-dict={words}", f"-artifact_prefix={found}/", "-print_final_stats=1"]

    def mutated(data: bytes, most: int, seed: int) -> bytes:
        chance = Random(seed)
        return another(data, chance)[:most] if chance.random() < 0.5 else atheris.Mutate(data, most)

    atheris.Setup([sys.argv[0], *limits, *said, str(corpus)], checked(act, found), custom_mutator=mutated)
    atheris.Fuzz()


def another(data: bytes, chance: Random) -> bytes:
    """A number, word, text, list or table of an input exchanged for a value of any kind, or for another of it."""
    found = list(TOKEN.finditer(data))
    if not found:
        return data
    one = chance.choice(found)
    new = chance.choice(VALUES) if chance.random() < 0.8 else chance.choice(found).group()
    return data[: one.start()] + new + data[one.end() :]


def _longest(seeds: Sequence[bytes]) -> int:
    return max(LONGEST, 4 * max(map(len, seeds)))


def by_hypothesis(make: Target, corpus: Path, found: Path, seconds: int) -> int:
    """Texts, bytes, and what lies in the corpus with bytes exchanged. How many were tried."""
    from hypothesis import HealthCheck, given, settings
    from hypothesis import strategies as st

    act, seeds = make()
    for seed in seeds:
        act(seed)  # what is imported on the way takes its time
    act, tried, end = checked(act, found), 0, time.monotonic() + seconds
    known = [*seeds, *(path.read_bytes() for path in sorted(corpus.glob("*")))]
    new = st.binary(max_size=8) | st.sampled_from(WORDS)
    bent = st.tuples(st.sampled_from(known), st.integers(0, _longest(seeds)), new, st.booleans()).map(_bent)
    other = st.builds(lambda data, seed: another(data, Random(seed)), st.sampled_from(known), st.integers(0, 2**32))
    text = st.text(max_size=200).map(lambda found: found.encode("utf-8", "replace"))
    anything = st.binary(max_size=300) | text | bent | other

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


def _bent(drawn: tuple[bytes, int, bytes, bool]) -> bytes:
    """New bytes at a place of an input: in place of what stood there, or before it."""
    data, place, new, instead = drawn
    at = place % (len(data) + 1)
    return data[:at] + new + data[at + len(new) * instead :]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--corpus", type=Path, help="a folder of inputs to go on from (runs/fuzz/TARGET)")
    parser.add_argument("--by", choices=("coverage", "hypothesis"), help="coverage where atheris is installed")
    given = parser.parse_args()
    corpus = given.corpus or Path("runs") / "fuzz" / given.target
    found = corpus.with_name(f"{corpus.name}-found")
    known = importlib.util.find_spec("atheris") is not None
    if given.by == "coverage" and not known:
        sys.exit("error: atheris is not installed; pip install atheris (Linux and macOS)")
    if known and given.by != "hypothesis":
        by_coverage(TARGETS[given.target], corpus, found, given.seconds)
        return
    print(f"{by_hypothesis(TARGETS[given.target], corpus, found, given.seconds)} inputs, nothing found")


if __name__ == "__main__":
    main()
