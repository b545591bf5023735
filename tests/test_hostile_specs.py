"""Any YAML file as settings of a run or a training: a spec, or one line. Nothing is executed, and none is a bomb."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hostile_tools import DRAWN, drawn
from hypothesis import given, settings
from hypothesis import strategies as st

from pilotage.distill.spec import DistillSpec
from pilotage.documents import DEPTH, Unreadable, plain_json, plain_yaml
from pilotage.errors import MOST, UsageError
from pilotage.finetune.spec import FinetuneSpec
from pilotage.generation import RunSpec
from pilotage.generation.comparison import CompareSpec
from pilotage.generation.settings import read_set, resolve

SPECS: dict[str, type[Any]] = {"run": RunSpec, "compare": CompareSpec, "finetune": FinetuneSpec, "distill": DistillSpec}
BOMB = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 30))
MERGED = "a0: &a0 {k0: 1}\n" + "".join(
    f"a{i}: &a{i} {{k{i}: 1, <<: [{', '.join([f'*a{i - 1}'] * 9)}]}}\n" for i in range(1, 30)
)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("specs") / "run.yaml"


@pytest.fixture(autouse=True)
def _nothing_happens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Reading settings leaves no file."""
    monkeypatch.chdir(tmp_path)
    yield
    assert not list(tmp_path.iterdir())


def refusal(kind: str, file: Path, text: str) -> str | None:
    """What is said of settings that cannot be used. Anything but a UsageError of one line fails."""
    file.write_bytes(text.encode("utf-8", "surrogatepass"))
    begun = time.perf_counter()
    try:
        spec = resolve(SPECS[kind], None, file)
        told = None
        assert SPECS[kind](**spec.plain()).identity() == spec.identity()
    except UsageError as error:
        told = str(error)
        assert told and told.isprintable() and len(told) <= MOST
    assert time.perf_counter() - begun < 5
    return told


# -- values of any kind at the keys there are --------------------------------------------------------------------------

SCALARS: st.SearchStrategy[Any] = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=12)
    | st.sampled_from(
        ["nan", "9" * 400, "a" * 5000, "../..", "/dev/zero", "\0", "\x1b[2J", "embedded", "cfg", "~", "."]
    )
    | st.sampled_from([2**63, -(2**63), 10**299, 1e308, "0-9999999", "0-99999999999", "9" * 5000])
)
VALUES: st.SearchStrategy[Any] = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@DRAWN
@pytest.mark.parametrize("kind", SPECS)
def test_any_value_at_any_key(kind: str, share: float, file: Path) -> None:
    known = [*SPECS[kind].model_fields, "self", "settings", "model_config", "__class__"]
    keys = st.sampled_from(known) | st.sampled_from(known).map(lambda key: f"{key}.x")

    @drawn(120, share)
    @given(found=st.dictionaries(keys, VALUES, max_size=3))
    def check(found: dict[str, Any]) -> None:
        refusal(kind, file, yaml.safe_dump(found, allow_unicode=False))

    check()


TOKENS = (
    "prompts", "steps", "model", "lora", "axes",
    "spec", ": ", "- ", "\n", "  ", "{", "}", "[", "]", ",", "&a ", "*a", "<<: *a",
    "!!python/object/apply:os.system [touch here]", "!!python/name:os.system", "!!int ",
    "!!float ", "!!bool ", "!!set ",
    "!!timestamp ", "!!binary ", "!!omap ", "!!null ", "!x ", "? ", "| ",
    "> ", "'", '"', "%YAML 9.9\n", "---\n", "...\n",
    "\t", "\0", "\ufeff", "\x85", "0x" + "f" * 5000, "9" * 5000, "1:1:1:1",
    "1e999", ".nan", "2020-01-01", "yes", "=", "~", "#",
)  # fmt: skip


@DRAWN
@pytest.mark.parametrize("kind", ["run", "finetune"])
def test_any_text(kind: str, share: float, file: Path) -> None:
    @drawn(250, share)
    @given(text=st.lists(st.sampled_from(TOKENS) | st.text(max_size=4), max_size=15).map("".join) | st.text())
    def check(text: str) -> None:
        refusal(kind, file, text)

    check()


# -- bombs ------------------------------------------------------------------------------------------------------------

BOMBS = {
    "aliases": BOMB, "merged tables": MERGED, "itself": "prompts: &a [*a]",
    "itself in a table": "call: &a {x: *a}",
    "brackets": "prompts: " + "[" * 20_000, "closed brackets": "call: " + "{a: " * 20_000 + "1" + "}" * 20_000,
    "dashes": "prompts: " + "\n" + "- " * 2_000 + "x",
    "number": "steps: " + "9" * 100_000, "hex": "steps: 0x" + "f" * 10**5,
    "sexagesimal": "steps: 1" + ":59" * 20_000,
    "float": "strength: " + "9" * 10**5 + ".0", "seeds": "seeds: 0-99999999999999",
    "flat": "prompts: [" + "x," * 10_000 + "x]\nsteps: x", "key": "a" * 10**5 + ": 1", "questions": "? " * 5000,
    "anchors": "&a " * 5000, "tags": "!a " * 5000, "percent": "%" * 10**5, "quotes": "'" * 10**5, "tabs": "\t" * 10**5,
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_without_memory(name: str, file: Path) -> None:
    tracemalloc.start()
    try:
        assert refusal("run", file, BOMBS[name])
        assert tracemalloc.get_traced_memory()[1] < 100 * 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", SPECS)
@pytest.mark.parametrize(
    "tag",
    ["object/apply:os.system", "object/new:os.system", "name:os.system", "module:os", "object:os.system", "tuple"],
)
def test_tags_of_python_are_refused(kind: str, tag: str, file: Path) -> None:
    told = refusal(kind, file, f"prompts: !!python/{tag} ['touch executed']\n")
    assert told and "could not determine a constructor" in told


def test_what_is_plain_is_read() -> None:
    text = "a: &a [1, 2.5, true, ~, x, 2020-01-01]\nb: *a\nc: {d: 'e', <<: {f: 1}}\n"
    assert plain_yaml(text) == {
        "a": [1, 2.5, True, None, "x", "2020-01-01"], "b": [1, 2.5, True, None, "x", "2020-01-01"],
        "c": {"d": "e", "f": 1},
    }  # fmt: skip
    deepest = "[" * (DEPTH - 1) + "]" * (DEPTH - 1)
    assert plain_yaml(deepest) == plain_json(deepest)
    for read in (plain_yaml, plain_json):
        with pytest.raises(Unreadable, match="deeper than"):
            read("[" * (DEPTH + 2) + "]" * (DEPTH + 2))
        with pytest.raises(Unreadable, match="deeper than"):
            read("[" * 10**5)


@DRAWN
def test_plain_data_comes_back(share: float) -> None:
    @drawn(200, share)
    @given(value=VALUES)
    def check(value: Any) -> None:
        text = yaml.safe_dump(value)
        assert repr(plain_yaml(text)) == repr(yaml.load(text, yaml.SafeLoader))

    check()


@settings(max_examples=200, deadline=None, derandomize=True)
@given(line=st.sampled_from(TOKENS).flatmap(lambda token: st.text(max_size=5).map(lambda text: f"steps={token}{text}")))
def test_any_assignment_is_read(line: str) -> None:
    """`--set`: what is no YAML is text."""
    read_set([line])


def test_what_multiplies_is_counted_before_it_is_made() -> None:
    """A page of YAML must not stand for more pictures, cells or captions than any machine makes."""
    with pytest.raises(UsageError, match="are more than 10000000 pictures"):
        RunSpec(prompts=["a"] * 2000, seeds="0-9999").pictures()
    assert len(RunSpec(prompts=["a"] * 20, seeds="0-99").pictures()) == 2000
    with pytest.raises(UsageError, match=r"the axes make 1e\+18 cells"):
        CompareSpec(prompts=["a"], axes={f"call.x{i}": list(range(1000)) for i in range(6)}).cells()
    for kind in (FinetuneSpec, DistillSpec):
        with pytest.raises(UsageError, match="cannot read 'embedded:train:99999999'"):
            kind(prompts=["embedded:train:99999999"])
