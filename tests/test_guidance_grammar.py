"""The one-line grammar of rules: round trips, order, and every kind of bad input."""

from __future__ import annotations

import itertools
from dataclasses import fields, replace
from typing import Any

import guidance_toys as toys
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilotage import guidance
from pilotage.errors import UsageError
from pilotage.guidance.compose import compose
from pilotage.guidance.conflicts import conflict
from pilotage.guidance.grammar import make, parse, spell
from pilotage.guidance.modifiers.schedule import SHAPES
from pilotage.guidance.registry import RULES
from pilotage.guidance.rule import Modifier, Rule

NUMBERS = st.floats(-1e6, 1e6, allow_nan=False).map(lambda v: v + 0.0)  # no negative zero
SCALES = NUMBERS | st.tuples(NUMBERS, NUMBERS, NUMBERS)
WORDS = {
    ("adaptive", "space"): ["noise", "denoised"],
    ("adaptive", "on_crossing"): ["next", "same"],
    ("rescale", "space"): ["native", "denoised", "noise"],
    ("interval", "unit"): ["rho", "step", "fraction"],
    ("schedule", "shape"): list(SHAPES),
    ("perp-neg", "negatives"): ["", "a:2 b"],
    ("composable", "prompts"): ["", "a:2 b:-1"],
    ("sega", "concepts"): ["", "a:2 b:-1"],
    ("rectified-cfg++", "mode"): ["paper", "released"],
    ("cads", "apply_to"): ["both", "cond"],
    ("icg", "draw"): ["step", "run", "off"],
    ("linear", "file"): [""],
    ("linear", "model"): ["", "sd-1.5"],
    ("linear", "scheduler"): ["", "ddim"],
    ("linear", "null_prompt"): ["", "blurred and dark"],
}
RANGES = {
    ("apg", "norm_threshold"): st.floats(0, 50),
    ("apg", "relative_threshold"): st.just(0.0),
    ("apg", "axes"): st.sampled_from([(), (1,), (2, 3)]),
    ("fdg", "levels"): st.integers(1, 5),
    ("feedback", "prior"): st.floats(0.01, 1),
    ("feedback", "most"): st.floats(1.5, 100),
    ("feedback", "start"): st.floats(0, 0.9),
    ("sega", "share"): st.floats(0, 1),
    ("threshold", "percentile"): st.floats(0, 1),
    ("threshold", "ceiling"): st.floats(1, 100),
    ("higs", "low"): st.floats(0, 0.4),
    ("higs", "high"): st.floats(0.5, 1),
    ("higs", "average"): st.floats(0.01, 1),
    ("cads", "clear"): st.floats(0, 0.5),
    ("cads", "lost"): st.floats(0.6, 1),
    ("linear", "every"): st.integers(1, 5),
}


def settings_of(name: str) -> st.SearchStrategy[dict[str, Any]]:
    values = {}
    for f in fields(RULES[name].load()):
        if f.name != "inner":
            number = RANGES.get((name, f.name), SCALES if f.type == "Scale" else NUMBERS)
            if (name, f.name) in WORDS:
                values[f.name] = st.sampled_from(WORDS[name, f.name])
            elif not isinstance(f.default, str):
                values[f.name] = number
    if name == "cfg++":
        values = {"lam": st.floats(0, 1)}
    return st.fixed_dictionaries({}, optional=values).filter(
        lambda s: name != "interval" or s.get("low", 0.0) <= s.get("high", float("inf"))
    )


def drawn(draw: Any, name: str) -> Rule:
    """The rule with settings of any size, or with its defaults where it refuses them."""
    settings = draw(settings_of(name))
    try:
        return make(name, **settings)
    except ValueError:
        return make(name)


RULE_NAMES = [name for name in toys.registered() if not issubclass(RULES[name].load(), Modifier) and name != "none"]
MODIFIER_NAMES = [name for name in toys.registered() if issubclass(RULES[name].load(), Modifier) and name != "schedule"]


@st.composite
def compositions(draw: Any) -> Rule:
    rules = draw(st.lists(st.sampled_from(RULE_NAMES), min_size=1, max_size=3))
    shifting = [r for r in rules if RULES[r].load().shifts is True]
    rules = [r for r in rules if r not in shifting] + shifting[:1]
    modifiers = draw(st.lists(st.sampled_from(MODIFIER_NAMES), unique=True, max_size=3))
    pieces = [drawn(draw, name) for name in [*rules, *modifiers]]
    while conflict(pieces):
        pieces.pop(0)
    return compose(*draw(st.permutations(pieces)))


@given(compositions())
def test_spell_and_parse_are_inverse(rule: Rule) -> None:
    line = spell(rule)
    assert parse(line) == rule and spell(parse(line)) == line


def test_what_a_line_means() -> None:
    made = parse("  apg : scale = 10 , momentum=-0.75  +  interval:low=0.3,high=5 ")
    assert made == guidance.Interval(0.3, 5, inner=guidance.APG(10, momentum=-0.75))
    assert spell(made) == "apg:scale=10,momentum=-0.75 + interval:low=0.3,high=5"
    assert parse("cfg++") == guidance.CFGPP(0.6) and parse("cfg++:scale=5") == guidance.CFGPP(scale=5)
    assert parse("cfg:scale=[1,2.5,8]") == guidance.CFG((1, 2.5, 8))
    assert parse("image-cfg:scale=[2,3],image_scale=1.5") == guidance.ImageCFG((2, 3), 1.5)
    assert parse("cfg + interval:unit='step',low=2,high=inf") == guidance.Interval(2, unit="step", inner=guidance.CFG())
    assert parse('cfg + interval:unit="step"') == parse("cfg + interval:unit=step")
    assert parse("none") == guidance.Unguided() and spell(parse("cfg:scale=7.5")) == "cfg"
    assert make("cfg", scale=[2, 4]) == guidance.CFG((2, 4))  # a YAML list


def test_defaults_of_a_model_fill_what_the_line_leaves_out() -> None:
    defaults = {"adaptive": {"threshold": 0.97, "space": "denoised"}}
    made: Any = parse("cfg + adaptive", defaults)
    assert made.threshold == 0.97 and made.space == "denoised"
    made = parse("cfg + adaptive:threshold=0.5", defaults)
    assert made.threshold == 0.5 and made.space == "denoised"


def test_the_order_of_pieces_is_free() -> None:
    pieces = ["cfg:scale=3", "autoguidance", "interval:low=0.3", "adaptive", "rescale", "schedule"]
    lines = [" + ".join(order) for order in itertools.permutations(pieces, 6)]
    assert {spell(parse(line)) for line in lines[::37]} == {spell(parse(lines[0]))}
    assert len({parse(line) for line in lines[::37]}) == 1


ERRORS = [
    ("", "empty piece"),
    (" + ", "empty piece"),
    ("cfg + ", "empty piece"),
    ("cfg +  + interval", "empty piece"),
    ("cgf", r"unknown guidance rule 'cgf': did you mean .*cfg"),
    ("apgg:scale=3", "did you mean apg"),
    ("{scale: 5}", "unknown guidance rule '{scale'"),
    ("- cfg", "unknown guidance rule"),
    ("cfg:", "cannot read"),
    ("cfg:scale", "cannot read 'scale'"),
    ("cfg:=5", "cannot read"),
    ("cfg:scale=5,", "cannot read ''"),
    ("cfg:scael=5", "has no setting 'scael': did you mean scale"),
    ("none:scale=5", "it has none"),
    ("cfg:inner=3", "has no setting 'inner'"),
    ("cfg:scale=", "must be a number"),
    ("cfg:scale=high", "must be a number, or a list of one a row, not 'high'"),
    ("cfg:scale='5'", "must be a number"),
    ("cfg:scale=nan", "must be a number"),
    ("cfg:scale=inf", "must be a number"),
    ("cfg:scale=1e999", "must be a number"),
    ("cfg:scale=true", "must be a number"),
    ("cfg:scale=none", "must be a number"),
    ("cfg:scale=5j", "must be a number"),
    ("cfg:scale=[]", "must be a number"),
    ("cfg:scale=[1,true]", "must be a number"),
    ("cfg:scale=[1,'a']", "must be a number"),
    ("cfg:scale=[1,2", "cannot read '2'"),
    ("apg:eta=[1,2]", r"apg:eta must be a number, not \(1, 2\)"),
    ("cfg++:lam=[1,2]", "must be a number"),
    ("interval:low=-inf", "must be a number"),
    ("interval:unit=3", "must be a word, not 3; for example interval:unit=rho"),
    ("interval:unit=t", "use rho, step or fraction"),
    ("cfg:scale=5+interval:low=0.3", r"put blanks around the \+"),
    ("cfg:scale=5 scale=6", "must be a number"),
]


@pytest.mark.parametrize(("line", "words"), ERRORS)
def test_bad_lines_say_what_is_wrong_in_one_line(line: str, words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        parse(line)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "value", ["__import__('os').system('true')", "[x for x in ()]", "(lambda: 5)()", "1+1", "open('x')"]
)
def test_nothing_is_evaluated(value: str) -> None:
    with pytest.raises(UsageError):
        parse(f"cfg:scale={value}")


@given(st.text(max_size=60))
def test_any_text_is_a_rule_or_a_usage_error(text: str) -> None:
    for line in (text, f"cfg:{text}", f"cfg:scale={text}", f"interval:unit={text}"):
        try:
            rule = parse(line)
        except UsageError:
            continue
        assert isinstance(rule, Rule)


def test_sums_of_modified_parts_have_no_line() -> None:
    parts = (guidance.Interval(1, 2, inner=guidance.CFG()), guidance.Autoguidance())
    with pytest.raises(UsageError, match="cannot be written as a line"):
        spell(guidance.Sum(parts))
    assert replace(parts[0], low=0.5) != parts[0]
