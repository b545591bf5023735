"""Laws that hold for every rule and modifier of the registry, on the exact world of `registry_toys`.

`make test` runs a pairwise cover of their axes, `make test-all` the products.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from typing import Any, ClassVar

import guidance_toys as toys
import pytest
import registry_toys as world
import torch
from pairwise import cover
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pilotage import guidance
from pilotage.guidance.compose import compose
from pilotage.guidance.dry_run import dry_run
from pilotage.guidance.record import RunRecord
from pilotage.guidance.registry import RULES
from pilotage.guidance.rule import Ask, Context, Guide, Modifier, Rule, settings_of
from pilotage.guidance.scale import Scale
from pilotage.guidance.stages import STAGES, stage_of
from pilotage.samplers.prediction import EPSILON, FLOW_PREDICTION, SAMPLE, V_PREDICTION, Parameterization
from pilotage.samplers.schedule import Level

KINDS = {kind.name: kind for kind in (EPSILON, SAMPLE, V_PREDICTION, FLOW_PREDICTION)}
SAMPLERS = ("euler", "heun", "dpmpp-2m", "euler-ancestral")
NAMES, X, run, guided = world.NAMES, world.X, world.run, world.guided


@pytest.fixture(autouse=True)
def patchable(monkeypatch: pytest.MonkeyPatch) -> None:
    world.patchable(monkeypatch)


@dataclasses.dataclass(frozen=True)
class Uncond(Rule):
    """What CFG++ is when it is off."""

    passes: ClassVar[int] = 0

    def guide(self, ctx: Context) -> Guide:
        (uncond,) = yield (Ask("uncond"),)
        return uncond


def simpler(name: str) -> Rule:
    """What the rule is when it is off."""
    if name == "cfg++":
        return Uncond()
    return guidance.CFG(world.SCALE) if name in world.MODIFIER_NAMES else guidance.Unguided()


# -- limits -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "kind", "sampler"), cover([n for n in NAMES if RULES[n].off], KINDS, SAMPLERS))
def test_off_is_the_simpler_rule_to_the_bit_and_costs_no_more(name: str, kind: str, sampler: str) -> None:
    """At `Spec.off`, whole runs in float64."""
    a, b = guided(world.off(name), KINDS[kind]), guided(simpler(name), KINDS[kind])
    assert torch.equal(run(a, sampler=sampler), run(b, sampler=sampler))
    assert a.evaluations == b.evaluations


@pytest.mark.parametrize("name", NAMES)
def test_the_tests_below_look_at_rules_that_act(name: str) -> None:
    change = (run(guided(world.whole(name))) - run(guided(simpler(name)))).abs().max()
    assert (change > 1e-5) == (name != "none")


ENDS = [  # further limits, and what they are
    ("cfg", {"scale": 0.0}, Uncond()),
    ("apg", {"eta": 1.0, "norm_threshold": 0.0, "momentum": 0.0}, guidance.CFG(3.0)),
    ("image-cfg", {"image_scale": 3.0}, guidance.CFG(3.0)),
    ("adaptive", {"threshold": 1.01}, guidance.CFG(3.0)),
    ("interval", {"low": 0.7, "high": 0.7}, guidance.Unguided()),
    ("schedule", {"floor": 3.0, "shape": "invlinear"}, None),
    ("fdg", {"low_scale": 3.0, "parallel": 1.0}, guidance.CFG(3.0)),
    ("fdg", {"levels": 1, "parallel": 1.0}, guidance.CFG(3.0)),
    ("mambo-g", {"damping": 0.0}, guidance.CFG(3.0)),
    ("feedback", {"prior": 1.0}, guidance.CFG(3.0)),
    ("perp-neg", {"negatives": ""}, guidance.CFG(3.0)),
    ("perp-neg", {"scale": 0.0}, Uncond()),
    ("composable", {"prompts": ""}, guidance.CFG(3.0)),
    ("sega", {"concepts": ""}, guidance.CFG(3.0)),
    ("sega", {"warmup": 4}, guidance.CFG(3.0)),
    ("cfg-mp", {"iterations": 0}, guidance.CFG(3.0)),
    ("cfg-mp", {"low": 1.0}, guidance.CFG(3.0)),
    ("cads", {"clear": 1.0, "lost": 1.0}, guidance.CFG(3.0)),
    ("linear", {"every": 1}, guidance.CFG(3.0)),
    ("linear", {"guided": 0.0}, guidance.Unguided()),
    ("gfcg-reconstruction", {"start": 1.0, "form": "cfg", "law": "constant"}, guidance.CFG(3.0)),
    ("gfcg-reconstruction", {"start": 1.0, "form": "autoguidance", "law": "constant"}, guidance.Autoguidance(3.0)),
    ("greedy", {"rounds": 0}, guidance.CFG(3.0)),
    ("ugd", {"weight": 0.0, "backward": 1.0, "steps": 0}, guidance.CFG(3.0)),
    ("tfg", {"rho": 0.0, "mu": 1.0, "steps": 0}, guidance.CFG(3.0)),
    ("lgd", {"spread": 0.0, "samples": 1}, compose(guidance.CFG(3.0), guidance.FreeDoM(world.bent, weight=0.1))),
    ("pag", {"adaptive": 1e3}, guidance.Unguided()),
    ("sag", {"threshold": 1e9}, guidance.CFG(3.0)),
    ("nag", {"alpha": 0.0}, guidance.Unguided()),
    ("higs", {"low": 0.98}, guidance.CFG(3.0)),
]  # fmt: skip


@pytest.mark.parametrize(("name", "settings", "plain"), ENDS, ids=lambda v: str(v)[:50] if not callable(v) else "")
def test_further_limits_that_the_registry_tells(name: str, settings: dict[str, Any], plain: Rule | None) -> None:
    assert set(settings) <= set(RULES[name].limits)
    limit = run(guided(world.whole(name, **settings)))
    if plain is None:  # a floor above every scheduled value, of which half lie above 3
        assert (limit - run(guided(world.whole(name)))).abs().max() > 1e-3
        return
    assert (limit - run(guided(plain))).abs().max() < 1e-10


# -- spaces -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "sampler"), cover(NAMES, SAMPLERS[1:3]))
def test_what_the_network_predicts_does_not_matter(name: str, sampler: str) -> None:
    """Epsilon, x_0, v and flow networks of one denoiser: the same run, but for rules that say otherwise."""
    results = [run(guided(world.whole(name), kind), sampler=sampler) for kind in KINDS.values()]
    apart = [float((result - results[0]).abs().max()) for result in results[1:]]
    if RULES[name].space in ("native", "declared"):
        assert min(apart) > 1e-4
    else:
        assert max(apart) < 1e-8


# -- batches ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "kind", "sampler"), cover(NAMES, ["flow_prediction", "epsilon"], SAMPLERS))
def test_a_row_does_not_see_its_mates(name: str, kind: str, sampler: str) -> None:
    rule = world.whole(name)
    together = run(guided(rule, KINDS[kind]), sampler=sampler)
    for row in (0, 2):
        given = {k: v[row : row + 1] for k, v in world.conditions().items()}
        alone = run(guided(rule, KINDS[kind], given=given), X[row : row + 1], [row], sampler=sampler)
        assert (alone[0] - together[row]).abs().max() < 1e-9 * max(1.0, float(alone.abs().max()))


ROWS_BY_SCALE = [  # rules with a scale or weight of type Scale: one a row
    (name, f.name)
    for name in NAMES
    for f in dataclasses.fields(RULES[name].load())
    if f.type in ("Scale", Scale) and f.name in ("scale", "weight")
]


@pytest.mark.parametrize(("name", "setting"), ROWS_BY_SCALE)
def test_one_scale_a_row_is_that_scale_for_each_row(name: str, setting: str) -> None:
    if name in ("linear",):
        return
    off = 1.0 if setting == "scale" else 0.0
    acting = getattr(world.acting(name), setting)
    several = run(guided(world.whole(name, **{setting: (acting, off, acting / 2)})))
    for row, one in enumerate((acting, off, acting / 2)):
        alone = run(guided(world.whole(name, **{setting: one})))
        assert (alone[row] - several[row]).abs().max() < 1e-9


# -- state ------------------------------------------------------------------------------------------------------------


class Interrupted(Exception):
    pass


@pytest.mark.parametrize(("name", "sampler"), cover(NAMES, ["euler", "heun"]))
def test_nothing_is_left_of_a_run(name: str, sampler: str) -> None:
    """The same object run again, after another run, and after one that broke off in its middle."""
    made = guided(world.whole(name))
    first = run(made, sampler=sampler)
    run(made, X.flip(0) * 0.5, sampler=sampler)
    assert torch.equal(run(made, sampler=sampler), first)
    network: Any = made.networks["main"]
    calls, answer = len(network.calls), type(network).__call__

    class Breaking(world.PatchableToy):
        def __call__(self, x: Tensor, level: Level, condition: Any = None) -> Any:
            if len(self.calls) >= calls + 2:
                raise Interrupted
            return answer(self, x, level, condition)

    network.__class__ = Breaking
    with pytest.raises(Interrupted):
        run(made, sampler=sampler)
    network.__class__ = world.PatchableToy
    assert not network.patches
    assert torch.equal(run(made, sampler=sampler), first)


@pytest.mark.parametrize("name", NAMES)
def test_settings_are_frozen(name: str) -> None:
    """Equal settings are equal rules; a run changes nothing; nothing can be set."""
    rule = world.whole(name)
    before = dict(settings_of(rule))
    run(guided(rule))
    assert dict(settings_of(rule)) == before
    for setting in dataclasses.fields(rule):  # type: ignore[arg-type]
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(rule, setting.name, None)
    if name != "gfcg-reconstruction":  # its conditions are a tensor
        assert world.whole(name) == rule and hash(world.whole(name)) == hash(rule)


# -- precision --------------------------------------------------------------------------------------------------------

WIDE = (2, 16, 64, 64)  # squared norms of such latents lie beyond float16


@pytest.mark.parametrize(("name", "dtype"), cover(NAMES, ["float16", "bfloat16"]))
def test_half_precision_at_large_scales_stays_finite(name: str, dtype: str) -> None:
    half = getattr(torch, dtype)
    cls = RULES[name].load()
    large = {f.name: 30.0 for f in dataclasses.fields(cls) if f.name == "scale" and name != "linear"}
    if name == "gfcg-reconstruction":
        large["conditions"] = toys.normal(3, *WIDE[1:], seed=31, dtype=half)
    rule = world.acting(name, **large)
    if isinstance(rule, Modifier):
        rule = compose(guidance.CFG(world.SCALE if name == "linear" else 30.0), rule)
    made = guided(rule, V_PREDICTION, given=world.conditions(*WIDE, dtype=half))
    result = run(made, toys.normal(*WIDE, seed=9, dtype=half))
    assert result.isfinite().all() and result.to(half).isfinite().all()
    assert not result.requires_grad


# -- cost -------------------------------------------------------------------------------------------------------------

AS_THE_RULE = 2  # CFG, which the modifiers of these tests wrap


def declared(name: str) -> int:
    """Evaluations of a guided step that the entry's cost tells, with the settings of `registry_toys`."""
    cost = RULES[name].cost
    if "with cfg" in cost and name in world.MODIFIER_NAMES:
        return int(re.search(r"(\d+)M with cfg", cost)[1])  # type: ignore[index]
    if name in world.MODIFIER_NAMES and not re.match(r"\d+M, then", cost):
        assert re.search(r"^\(?(k x )?(as )?the rule|^\(?as the rule|^\+ |outside the window|on average", cost), cost
        return AS_THE_RULE + (AS_THE_RULE if "+ the rule" in cost else 0)
    if "with negative=" in cost:
        return int(re.search(r"else (\d+)M", cost)[1])  # type: ignore[index]
    more = re.search(r"\+ (\d+)M? (an iteration|a negative|a prompt|a concept|of the weak network)", cost)
    times = 3 if more and more[2] == "an iteration" else 1
    return int(re.match(r"(\d+)M", cost)[1]) + (int(more[1]) * times if more else 0)  # type: ignore[index]


@pytest.mark.parametrize("name", NAMES)
def test_the_dearest_step_costs_what_the_entry_says(name: str) -> None:
    rule = world.whole(name, repeats=1) if "repeats" in RULES[name].defaults else world.whole(name)
    made = guided(rule)
    spent: list[int] = []
    for rows in _rows_by_step(made):
        spent.append(rows)
    assert max(spent) == declared(name) * len(X)
    assert set(made.evaluations) <= set(rule.needs)
    if name != "linear":  # a dry run has other levels than its fit
        assert max(step.kinds.total() for step in dry_run(rule)) == declared(name)


def _rows_by_step(made: guidance.Guided) -> Iterator[int]:
    """Rows that were evaluated in each step of a run."""
    seen: list[int] = []
    guide = made.guide

    def counting(state: Any, condition: Any = None) -> Any:
        before = sum(made.evaluations.values()) if state.step or state.stage else 0
        answer = guide(state, condition)
        seen.append(sum(made.evaluations.values()) - before)
        return answer

    made.guide = counting  # type: ignore[method-assign]
    run(made)
    return iter(seen)


def test_savings_and_repeats_cost_what_they_say() -> None:
    average = guided(world.whole("linear", guided=0.5))
    run(average)
    assert sum(average.evaluations.values()) == 1.25 * world.STEPS * len(X)
    for name in ("freedom", "ugd", "tfg", "dps", "lgd", "mpgd"):
        made = guided(world.whole(name, repeats=3))
        assert [*_rows_by_step(made)] == [3 * 2 * len(X)] * 3 + [2 * len(X)]  # no time travel from clean data
    deep = guided(world.whole("greedy", k=2, rounds=2, solver="midpoint"))
    assert next(_rows_by_step(deep)) == (2 * 2 * 2 * 2 + 2) * len(X)


# -- arithmetic -------------------------------------------------------------------------------------------------------


class Passes(TorchDispatchMode):
    """Counts operations that write a tensor of the latents' size; views and the parts that are paused are free."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size, self.count, self.paused = size, 0, False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        written = out if isinstance(out, (tuple, list)) else (out,)
        latents = any(isinstance(t, Tensor) and t.numel() == self.size for t in written)
        if latents and not self.paused and not func.is_view:
            self.count += 1
        return out


def passes_of(name: str, kind: Parameterization, monkeypatch: pytest.MonkeyPatch) -> int:
    """Passes of the dearest step of a run, in float32; the network, the loss or classifier, the backward pass and the
    run's record are paused."""
    seen = Passes(X.numel())

    def paused(function: Any) -> Any:
        def quiet(*args: Any, **kwargs: Any) -> Any:
            before, seen.paused = seen.paused, True
            try:
                return function(*args, **kwargs)
            finally:
                seen.paused = before

        return quiet

    outside = {k: paused(v) for k, v in world.SETTINGS.get(name, {}).items() if callable(v)}
    made = guided(world.whole(name, **outside), kind, given=world.conditions(dtype=torch.float32))
    counts: list[int] = []
    guide, after, evaluate = made.guide, made.after, made._evaluate

    def counting(state: Any, condition: Any = None) -> Any:
        seen.count = 0
        with seen:
            answer = guide(state, condition)
        counts.append(seen.count)
        return answer

    def counting_after(state: Any) -> Tensor:
        seen.count = 0
        with seen:
            x = after(state)
        counts[-1] += seen.count
        return x

    monkeypatch.setattr(torch.autograd, "grad", paused(torch.autograd.grad))
    monkeypatch.setattr(RunRecord, "close_step", paused(RunRecord.close_step))
    monkeypatch.setattr(made, "_evaluate", paused(lambda *wanted: list(evaluate(*wanted))))
    monkeypatch.setattr(made, "guide", counting)
    monkeypatch.setattr(made, "after", counting_after)
    run(made, X.float())
    return max(counts)


@pytest.mark.parametrize("name", NAMES)
def test_passes_over_the_latents_are_as_declared(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of an epsilon network; of a flow network for rules whose home is the velocity. CFG 3, APG 9 at the most."""
    kind = FLOW_PREDICTION if RULES[name].space == "velocity" else EPSILON
    inner = RULES["cfg"].passes if name in world.MODIFIER_NAMES else 0
    assert passes_of(name, kind, monkeypatch) - inner == RULES[name].passes
    assert RULES["cfg"].passes == 3 and RULES["apg"].passes <= 9


# -- entries ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_an_entry_is_complete(name: str) -> None:
    spec = RULES[name]
    assert spec.summary and spec.cost and spec.passes >= 0
    assert spec.space in ("any", "declared", "native", "denoised", "noise", "velocity", "conditioning", "attention",
                          "denoised and noise")  # fmt: skip
    assert name == "none" or re.search(r"\d{4}", spec.paper)
    assert set(spec.limits) == set(spec.defaults), "a line for each setting, and no other"
    assert set(spec.off) <= set(spec.defaults)
    assert spec.summary.startswith("modifier: ") == (name in world.MODIFIER_NAMES)


def test_stages_follow_the_order_of_the_field() -> None:
    """Conditioning first, then windows, gradients on what is guided, economies, post-fixes, branches, the scale."""
    expected = {
        "schedule": "weight schedule", "sag": "extra branch", "rescale": "post-fix", "threshold": "post-fix",
        "higs": "post-fix", "linear": "saving", "adaptive": "saving", "classifier": "gradient", "elucd": "gradient",
        "ppap": "gradient",
        "dps": "gradient", "lgd": "gradient", "freedom": "gradient", "ugd": "gradient", "mpgd": "gradient",
        "tfg": "gradient", "greedy": "gradient", "interval": "window", "icg": "conditioning", "cads": "conditioning",
    }  # fmt: skip
    assert expected.items() <= {name: stage_of(RULES[name].load()) for name in world.MODIFIER_NAMES}.items()
    assert list(STAGES) == sorted(STAGES) and {stage_of(RULES[n].load()) for n in world.RULE_NAMES} == {"direction"}
