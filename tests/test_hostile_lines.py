"""Any text as a line of a rule, sampler, grid, reward, metric or method: understood, or refused in one line, soon."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from hostile_tools import DRAWN, drawn
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pilotage.distill.divergences import DIVERGENCES, make_divergence
from pilotage.distill.methods.registry import METHODS as DISTILLATIONS
from pilotage.distill.methods.registry import make_method as distillation
from pilotage.errors import MOST, UsageError, one_line
from pilotage.evaluation.metrics.registry import METRICS, chosen, settings_of
from pilotage.finetune.methods.registry import METHODS, make_method
from pilotage.finetune.rewards import COMBINATIONS, open_rewards
from pilotage.generation.seeds import read_seeds, spell_seeds
from pilotage.grammar import name_and_settings, pieces_of, spelled
from pilotage.guidance.grammar import parse, spell
from pilotage.guidance.registry import RULES
from pilotage.registry import Spec
from pilotage.samplers.aliases import in_our_words, resolved
from pilotage.samplers.grids import GRIDS, WRAPPERS, parse_grid
from pilotage.samplers.registry import SAMPLERS, make_sampler

LINES: dict[str, tuple[Callable[[str], Any], Mapping[str, Any]]] = {
    "guidance": (parse, RULES),
    "sampler": (make_sampler, SAMPLERS),
    "grid": (lambda line: parse_grid(in_our_words(line)), {**GRIDS, **WRAPPERS}),
    "names from elsewhere": (resolved, SAMPLERS),
    "method": (make_method, METHODS),
    "distillation": (distillation, DISTILLATIONS),
    "divergence": (make_divergence, DIVERGENCES),
    "metric": (lambda line: chosen([line]), METRICS),
    "reward": (open_rewards, {"saturation": None, "brightness": None, **COMBINATIONS}),
    "seeds": (read_seeds, {}),
}
VALUES = (
    "0", "1", "-1", "5", "0.5", "nan", "inf", "-inf", "1e999", "-1e-999", "9" * 400, "9" * 5000, "1_000",
    "0x" + "f" * 5000,
    "true", "none", "word", "'quoted'", "'it\"s'", "[]", "[1,2,3]", "[1,[2]]", "[nan]", "[1e999]",
    "['a','b']", "[true]",
    "(1,2)", "{1:2}", "{[]:1}", "b'x'", "1+2j", "...", "__import__('os').system('false')", "[" * 300, "'", '"', "\\",
    "'\\x'", "-" * 5000 + "1", "1" + "+1" * 5000, "", " ", "\0", "\x1b[31m", "\u2028", "\ud800", "٣", "½", "１",
)  # fmt: skip
GLUE = (
    " + ",
    "+",
    ":",
    "=",
    ",",
    " of ",
    " * ",
    "(",
    ")",
    "[",
    "]",
    "-",
    "\n",
    "\t",
    "\u202e",
    "scale",
    "eta",
    "power",
)


def listed(name: str, known: Mapping[str, Any]) -> list[str]:
    """The settings of an entry."""
    spec = known.get(name)
    found = settings_of(spec) if known is METRICS and spec else spec.defaults if isinstance(spec, Spec) else {}
    return [key for key in found if key not in ("schedule", "steps", "inner")]


def pieces(known: Mapping[str, Any]) -> st.SearchStrategy[str]:
    """NAME:key=value,... with real names and keys, and any value."""
    names = st.sampled_from(sorted(known) or ["0-3"])

    def settings_for(name: str) -> st.SearchStrategy[str]:
        keys = st.sampled_from([*listed(name, known), "scale", "nonsense"])
        pair = st.tuples(keys, st.sampled_from(VALUES) | st.floats().map(str) | st.text(max_size=6))
        return st.lists(pair, max_size=3).map(
            lambda pairs: f"{name}:{','.join(f'{k}={v}' for k, v in pairs)}" if pairs else name
        )

    return names.flatmap(settings_for)


def lines(known: Mapping[str, Any]) -> st.SearchStrategy[str]:
    part = pieces(known)
    chaos = st.lists(
        st.sampled_from(GLUE + VALUES) | st.sampled_from(sorted(known) or ["7"]) | st.text(max_size=8), max_size=12
    )
    return part | st.lists(part, min_size=1, max_size=3).map(" + ".join) | chaos.map("".join) | st.text()


def refusal(read: Callable[[str], Any], line: str) -> str | None:
    """What is said of a line that is not understood. Anything but a UsageError of one line fails."""
    begun = time.perf_counter()
    try:
        read(line)
        told = None
    except UsageError as error:
        told = str(error)
        assert told and told.isprintable() and len(told) <= MOST
    assert time.perf_counter() - begun < 5
    return told


@DRAWN
@pytest.mark.parametrize("kind", LINES)
def test_any_line_is_understood_or_refused(kind: str, share: float) -> None:
    read, known = LINES[kind]

    @drawn(150, share)
    @given(line=lines(known))
    def check(line: str) -> None:
        refusal(read, line)

    check()


@pytest.mark.parametrize("kind", LINES)
def test_bombs_are_refused_at_once(kind: str) -> None:
    read, known = LINES[kind]
    name = next(iter(known), "0")
    bombs = [
        " + ".join([name] * 20_000), "[" * 50_000, "(" * 50_000, "(" * 5_000 + ")" * 5_000, "'" * 99_999, "a" * 200_000,
        f"{name}:scale=" + "-" * 60_000 + "1", f"{name}:scale=[" + "1," * 30_000 + "1]", f"{name}:" + "," * 50_000,
        f"{name}:scale=" + "'[" * 20_000, f"{name}:scale=1" + "+1" * 30_000, f"{name}:scale=1" + ".a" * 30_000,
        " of " * 20_000,
        f"{name}:scale='" + "\\" * 60_000, "1," * 40_000, "0-99999999999999999999", "\n" * 50_000,
        "9" * 99_000, "9." * 49_000, f"{'9' * 45_000}.{'9' * 45_000}", "9" * 50_000 + " " * 49_000, "1e" + "9" * 90_000,
        f"{name}:scale={'9' * 90_000}", f"{name}:scale={' ' * 90_000}", "a" * 90_000 + ":", "a." * 45_000, "-" * 90_000,
    ]  # fmt: skip
    begun = time.perf_counter()
    for bomb in bombs:
        refusal(read, bomb)
    assert time.perf_counter() - begun < 20


def test_a_reward_may_be_nested_but_not_for_ever() -> None:
    assert open_rewards("(" * 20 + "saturation" + ")" * 20).name
    with pytest.raises(UsageError, match="more than 20 brackets"):
        open_rewards("(" * 21 + "saturation" + ")" * 21)


# -- round trips ----------------------------------------------------------------------------------------------------

SCALARS = (
    st.floats(allow_nan=False, allow_infinity=False)
    | st.integers(-(10**18), 10**18)
    | st.booleans()
    | st.sampled_from(["max", "plain-word", "a_b"])
)
WRITTEN = SCALARS | st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=4).map(tuple)


@DRAWN
def test_what_is_spelled_is_read_back(share: float) -> None:
    @drawn(200, share)
    @given(known=st.dictionaries(st.from_regex(r"[a-z_]{1,8}", fullmatch=True), WRITTEN, max_size=4))
    @example({"high": 1e20, "low": -1e-20})
    def check(known: dict[str, Any]) -> None:
        line = spelled("name", known)
        assert pieces_of(line) == [line] and name_and_settings(line) == ("name", known)

    check()


def rules() -> st.SearchStrategy[str]:
    numbers = st.floats(-20, 20) | st.integers(-5, 20)

    def of(name: str) -> st.SearchStrategy[str]:
        keys = listed(name, RULES)
        chosen_settings = st.dictionaries(st.sampled_from(keys), numbers, max_size=3) if keys else st.just({})
        return chosen_settings.map(lambda found: spelled(name, found))

    return st.lists(st.sampled_from(sorted(RULES)).flatmap(of), min_size=1, max_size=3).map(" + ".join)


@DRAWN
def test_a_rule_is_read_back_as_it_was(share: float) -> None:
    @drawn(300, share)
    @given(line=rules())
    def check(line: str) -> None:
        try:
            rule = parse(line)
        except UsageError:
            return
        assert parse(spell(rule)) == rule and spell(parse(spell(rule))) == spell(rule)

    check()


@settings(max_examples=200, deadline=None, derandomize=True)
@given(seeds=st.lists(st.integers(0, 400), min_size=1, max_size=40, unique=True).map(tuple))
def test_seeds_are_read_back(seeds: tuple[int, ...]) -> None:
    assert read_seeds(spell_seeds(seeds)) == seeds


# -- how it is said -------------------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None, derandomize=True)
@given(text=st.text() | st.text(st.characters(categories=["Cc", "Cf", "Zl", "Zp", "Cs"])))
def test_what_is_told_is_one_printable_line(text: str) -> None:
    """No text of a stranger can move the cursor, colour the terminal, break a log or fail to be written."""
    told = str(UsageError(f"cannot read {text}"))
    assert told.isprintable() and told == one_line(told) and told.encode("utf-8")
    assert "\x1b" not in told and "\u202e" not in told


def test_a_plain_message_stays_as_it_is_and_a_long_one_is_cut() -> None:
    plain = "größer als 5 °, 三; see 'x'"
    assert str(UsageError(plain)) == plain and str(UsageError()) == ""
    for text in ("x" * 10**6, "\x1b" * MOST, "\U000e0001" * 10**6):  # what is spelt out is ten times as long
        assert len(str(UsageError(text))) == MOST and str(UsageError(text)).endswith("...")
