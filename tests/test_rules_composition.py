"""Rules and modifiers together: what is refused and why, what is shared, and that the order of the text is free."""

from __future__ import annotations

import itertools

import guidance_toys as toys
import pytest
import registry_toys as world
import torch

from pilotage import guidance
from pilotage.errors import UsageError
from pilotage.guidance.compose import Sum, compose, parts_of
from pilotage.guidance.conflicts import CONFLICTS, conflict
from pilotage.guidance.dry_run import dry_run
from pilotage.guidance.explanation import explain
from pilotage.guidance.registry import RULES
from pilotage.guidance.rule import Modifier, Rule
from pilotage.guidance.stages import STAGES, stage_of
from pilotage.guidance.table import PLACE, document
from pilotage.samplers.prediction import V_PREDICTION

ACTING_RULES = [name for name in world.RULE_NAMES if name != "none"]


@pytest.fixture(autouse=True)
def patchable(monkeypatch: pytest.MonkeyPatch) -> None:
    world.patchable(monkeypatch)


# -- conflicts --------------------------------------------------------------------------------------------------------

REFUSED = [
    ("cfg++ + feedback", "cfg.. and feedback do not go together: feedback judges"),
    ("cfg++ + rectified-cfg++", "a way of its own"),
    ("cfg-mp + cfg", "moves x before it guides"),
    ("cfg-mp + pag + interval", "moves x before it guides"),
    ("cfg-mp + rectified-cfg++", "moves x before it guides"),
    ("cfg-mp + sag", "degrades the x of the step"),
    ("cfg-zero + pag", "cfg-zero:zero_steps=0"),
    ("nasa + cfg", "negative= embeddings of its own"),
    ("adaptive + nasa + apg", "negative= embeddings of its own"),
    ("cfg++ + cfg++", "re-noise in their own way"),
    ("cfg + rescale + rescale:phi=0.3", "stands twice"),
]


@pytest.mark.parametrize(("line", "reason"), REFUSED)
def test_what_does_not_go_together_is_refused_with_the_reason(line: str, reason: str) -> None:
    """In every order of the pieces, and with Python's +."""
    for pieces in itertools.permutations(line.split(" + ")):
        with pytest.raises(UsageError, match=reason) as refused:
            guidance.parse(" + ".join(pieces))
        assert "\n" not in str(refused.value)
    first, *others = (guidance.parse(piece) for piece in line.split(" + "))
    with pytest.raises(UsageError, match=reason):
        for other in others:
            first = first + other


def test_settings_avoid_conflicts() -> None:
    assert guidance.parse("cfg-zero:zero_steps=0 + pag").needs == ("cond", "uncond")
    own = guidance.NASA(negative=torch.zeros(1, 4, 8))
    assert isinstance(guidance.CFG(3.0) + own, Sum)
    assert guidance.parse("nasa + pag") and guidance.parse("nag + cfg") and guidance.parse("linear + icg")


@pytest.mark.parametrize("other", ["icg", "cads"])
def test_a_fit_does_not_go_with_another_null_prompt_at_every_step(other: str) -> None:
    with pytest.raises(UsageError, match="fitted for one null prompt"):
        compose(guidance.CFG(world.SCALE), world.acting("linear"), guidance.make(other))


def test_every_conflict_names_rules_that_exist_and_stands_in_a_test() -> None:
    tested = [*(line for line, _ in REFUSED), "linear + icg", "linear + cads"]
    for known in CONFLICTS:
        assert known.one in RULES and set(known.others) <= set(RULES)
        for other in known.others or ("",):
            assert any(known.one in line.split(" + ") and other in line for line in tested)


def test_zero_steps_without_a_flow_model_and_a_foreign_fit_are_refused_in_the_run() -> None:
    made = world.guided(guidance.CFGZero(3.0, zero_steps=1, least_steps=0), V_PREDICTION, toys.SD)
    with pytest.raises(UsageError, match="flow model"):
        world.run(made)
    with pytest.raises(UsageError, match="null_prompt"):
        world.acting("linear", null_prompt="blurred")


def test_history_and_momentum_warn() -> None:
    with pytest.warns(UserWarning, match="momentum"):
        compose(guidance.APG(4.0, momentum=-0.5), guidance.HiGS(), guidance.Rescale())  # with a modifier in between


# -- order ------------------------------------------------------------------------------------------------------------


def test_modifiers_are_wrapped_in_the_order_of_their_stages() -> None:
    """All of them in one line, in any order of the text."""
    pieces: list[Rule] = [guidance.CFG(world.SCALE), *(world.acting(name) for name in world.MODIFIER_NAMES)]
    pieces = [
        piece for piece in pieces if not isinstance(piece, guidance.LinearAG)
    ]  # which goes without the noisy ones
    wholes = [compose(*pieces), compose(*reversed(pieces))]
    assert wholes[0] == wholes[1]
    _, modifiers = parts_of(wholes[0])
    stages = [stage_of(modifier) for modifier in modifiers]
    assert [*dict.fromkeys(stages)] == [stage for stage in STAGES.values() if stage in stages]
    outside_in = [*reversed(dict.fromkeys(stages))]
    assert outside_in[0] == "conditioning" and outside_in.index("window") < outside_in.index("gradient")
    assert outside_in.index("gradient") < outside_in.index("post-fix") < outside_in.index("extra branch")
    assert outside_in[-1] == "weight schedule"


# -- sharing ----------------------------------------------------------------------------------------------------------


def together(*names: str) -> Rule | None:
    """The acting rules of these names; None where they do not go together."""
    pieces = [world.acting(name) for name in names]
    if conflict(pieces) or sum(piece.shifts for piece in pieces if not isinstance(piece, Modifier)) > 1:
        return None
    return compose(*pieces)


PAIRS = [pair for pair in itertools.combinations(ACTING_RULES, 2) if together(*pair) is not None]


@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_a_sum_adds_offsets_and_shares_branches(one: str, other: str) -> None:
    """Each kind of evaluation once, however many ask for it; either order; and the offsets from cond add up."""
    whole, a, b = together(one, other), world.acting(one), world.acting(other)
    assert whole == compose(b, a) and isinstance(whole, Sum)
    level = world.FLOW.level(0.55)  # outside of a run
    made, alone_a, alone_b = (world.guided(rule) for rule in (whole, a, b))
    plain = world.guided(guidance.Unguided())(world.X, level)
    total, first, second = (m(world.X, level) for m in (made, alone_a, alone_b))
    assert (total.native - first.native - second.native + plain.native).abs().max() < 1e-10
    kinds, kinds_a, kinds_b = (dry_run(rule, steps=2)[0].kinds for rule in (whole, a, b))
    plain_kinds = {"cond", "uncond", "weak", "image", "prompt:a"}
    for kind in kinds:
        counts = (kinds_a[kind], kinds_b[kind])
        assert kinds[kind] == (max(1, *counts) if kind in plain_kinds else sum(counts)), kind
    assert kinds["cond"] == 1  # the sum needs it in any case


WRAPPED = [
    pytest.param(name, modifier, marks=() if (i + j) % 5 == 0 else pytest.mark.full)
    for i, name in enumerate(ACTING_RULES)
    for j, modifier in enumerate(world.MODIFIER_NAMES)
    if modifier != "schedule"  # which needs a scale
]


@pytest.mark.parametrize(("name", "modifier"), WRAPPED)
def test_a_modifier_that_is_off_leaves_every_rule_to_the_bit(name: str, modifier: str) -> None:
    rule = world.acting(name)
    off = RULES[modifier].load()(**{**world.settings(modifier), **RULES[modifier].off})
    if conflict([rule, off]):
        return
    a, b = world.guided(rule), world.guided(compose(rule, off))
    assert torch.equal(world.run(a), world.run(b)) and a.evaluations == b.evaluations


# -- explain, list, docs ----------------------------------------------------------------------------------------------


def test_explain_tells_order_cost_limits_and_what_to_cite(capsys: pytest.CaptureFixture[str]) -> None:
    from pilotage.cli.main import run

    assert run(["explain", "apg + interval + pag"]) == 0
    out = capsys.readouterr().out
    assert "interval(apg + pag)" in out and "3 a picture and step at most: cond, uncond, cond perturbed" in out
    for paper in ("2410.02416", "2403.17377", "2404.07724"):
        assert out.count(paper) == 1
    for words in ("orthogonal to the conditional", "1 keeps the parallel part (CFG), 0 removes it", "identity maps",
                  "inf has no upper end"):  # fmt: skip
        assert words in out


def test_explained_evaluations_are_those_of_the_dearest_step() -> None:
    lines = {
        "cfg:scale=1": 1, "cfg": 2, "cfg + pag": 3, "apg + pag + seg:sigma=1 + sag": 5, "cfg + autoguidance": 3,
        "cfg + dps:loss=colour,target=red,repeats=2": 4, "cfg + interval:low=1000": 1, "cfg-mp:iterations=2": 6,
    }  # fmt: skip
    assert {line: sum(explain(line).asks.values()) for line in lines} == lines


def test_list_shows_need_cost_space_models_and_paper(capsys: pytest.CaptureFixture[str]) -> None:
    from pilotage.cli.main import run

    assert run(["list", "rules"]) == 0
    out = capsys.readouterr().out
    for word in ("needs", "evaluations", "space", "models", "paper", "uncond", "2M", "denoised", "UNets"):
        assert word in out
    assert all(name in out for name in RULES)


def test_the_table_of_rules_is_up_to_date() -> None:
    assert PLACE.read_text(encoding="utf-8") == document(), "run python -m pilotage.guidance.table"
