"""Every rule of the registry: limits, spaces, batches, precision, cost; and each against its formula."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import guidance_toys as toys
import pytest
import torch
from diffusers.guiders.adaptive_projected_guidance import MomentumBuffer, normalized_guidance
from diffusers.guiders.guider_utils import rescale_noise_cfg

from pilotage import guidance, samplers
from pilotage.errors import UsageError
from pilotage.guidance.compose import compose
from pilotage.guidance.dialogue import Dialogue
from pilotage.guidance.grammar import make
from pilotage.guidance.modifiers.schedule import SHAPES
from pilotage.guidance.reduce import cosine, dot, norm
from pilotage.guidance.registry import RULES
from pilotage.guidance.rule import Ask, Context, Guide, Modifier, Rule
from pilotage.samplers.noise import SeededNoise
from pilotage.samplers.prediction import (
    EPSILON,
    FLOW_PREDICTION,
    SAMPLE,
    V_PREDICTION,
    Parameterization,
    Prediction,
)
from pilotage.samplers.schedule import Level, RectifiedFlow
from pilotage.zoo.toy import Gaussian, Mixture

X = toys.normal(3, 4, 4, seed=9)
MIDDLE = toys.SD.level(500.0)
FLOW = RectifiedFlow()


def run(made: guidance.Guided, x: torch.Tensor = X, **settings: Any) -> torch.Tensor:
    return samplers.sample(made, x, **{"sampler": "dpmpp-2m", "grid": "karras", "steps": 6, **settings})


ANYWHERE = [name for name in toys.registered() if name not in ("rectified-cfg++", "cfg-mp")]  # these need a flow model


def whole(name: str, **settings: Any) -> Rule:
    """A registered rule with these settings; modifiers around CFG."""
    made = make(name, **settings)
    return compose(guidance.CFG(3.0), made) if isinstance(made, Modifier) else made


# -- limits -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in toys.registered() if RULES[name].off])
def test_off_is_off_exactly_and_costs_nothing(name: str) -> None:
    """At `Spec.off` a rule is the unguided model, a modifier its inner rule: the same bits and the same evaluations."""
    off = whole(name, **RULES[name].off)
    if name == "cfg++":
        plain: Rule = Uncond()  # lam = 0 is the unconditional model
    else:
        plain = guidance.CFG(3.0) if isinstance(off, Modifier) else guidance.Unguided()
    for kind in (SAMPLE, EPSILON, V_PREDICTION):
        a, b = toys.guided(off, kind=kind), toys.guided(plain, kind=kind)
        assert torch.equal(run(a), run(b))
        assert a.evaluations == b.evaluations


@dataclass(frozen=True)
class Uncond(Rule):
    passes: ClassVar[int] = 0

    def guide(self, ctx: Context) -> Guide:
        (u,) = yield (Ask("uncond"),)
        return u


@pytest.mark.parametrize("name", ANYWHERE)
def test_what_a_rule_needs_is_declared(name: str) -> None:
    rule = whole(name)
    made = toys.guided(rule)
    run(made)
    assert set(made.evaluations) <= set(rule.needs)
    assert set(RULES[name].needs) <= set(rule.needs)
    assert rule.shifts == (name == "cfg++")


LIMITS = [  # a rule, what it equals, and the tolerance (0: the same bits)
    ("cfg:scale=0", Uncond(), 0),
    ("apg:scale=3,eta=1,norm_threshold=0,momentum=0", guidance.CFG(3.0), 1e-12),
    ("image-cfg:scale=3,image_scale=3", guidance.CFG(3.0), 1e-12),
    ("cfg:scale=3 + interval:low=1000,high=2000", guidance.Unguided(), 0),
    ("cfg:scale=3 + interval:low=0,high=99,unit=step", guidance.CFG(3.0), 0),
    ("cfg:scale=1 + rescale:phi=0.7", guidance.Unguided(), 0),
    ("none + rescale:phi=1", guidance.Unguided(), 0),
    ("rescale", guidance.Unguided(), 0),
    ("adaptive", guidance.Unguided(), 0),
    ("schedule", guidance.Unguided(), 0),
    ("cfg:scale=1 + schedule:shape=linear", guidance.Unguided(), 0),
    ("cfg:scale=1 + adaptive:threshold=0.5", guidance.Unguided(), 0),
]


@pytest.mark.parametrize(("line", "plain", "tolerance"), LIMITS)
def test_limits(line: str, plain: Rule, tolerance: float) -> None:
    a, b = toys.guided(guidance.parse(line)), toys.guided(plain)
    assert (run(a) - run(b)).abs().max() <= tolerance
    if "image" not in line and line != "cfg:scale=0":
        assert a.evaluations == b.evaluations


def test_equal_branches_give_themselves_at_every_scale() -> None:
    """Same condition for all branches, same network as the weak one."""
    same = {name: toys.normal(3, 4, 4, seed=1) for name in ("cond", "uncond", "image")}
    plain = run(toys.guided(guidance.Unguided(), given=same))
    for line in ("cfg:scale=9", "apg:scale=9", "image-cfg", "cfg++:lam=0.8", "cfg:scale=9 + rescale", "cfg + adaptive"):
        result = run(toys.guided(guidance.parse(line), given=same))
        assert (result - plain).abs().max() < 1e-12, line
    net = toys.Toy()
    made = guidance.Guided({"main": net, "weak": net}, guidance.Autoguidance(5.0), same)
    assert (run(made) - plain).abs().max() < 1e-12


# -- spaces -----------------------------------------------------------------------------------------------------------

KINDS = (EPSILON, SAMPLE, V_PREDICTION, FLOW_PREDICTION)
INVARIANT = [
    "cfg:scale=4",
    "apg:scale=4,norm_threshold=2",
    "apg:scale=[1,4,9]",
    "cfg++:lam=0.6",
    "cfg++:scale=4",
    "autoguidance:scale=3",
    "image-cfg",
    "cfg:scale=4 + adaptive:threshold=0.7",
    "cfg:scale=4 + adaptive:threshold=0.7,space=denoised",
    "cfg:scale=4 + rescale:space=denoised",
    "cfg:scale=4 + rescale:space=noise",
    "cfg:scale=4 + schedule:shape=linear",
    "cfg:scale=4 + autoguidance:scale=2",
]


@pytest.mark.parametrize("line", INVARIANT)
def test_a_rule_does_not_ask_what_the_network_predicts(line: str) -> None:
    """Four parameterizations of the same exact denoiser, whole runs in float64."""
    results = [
        run(toys.guided(guidance.parse(line), kind=kind, schedule=FLOW), grid="trailing", sampler="euler", steps=5)
        for kind in (V_PREDICTION, FLOW_PREDICTION)
    ]
    assert (results[0] - results[1]).abs().max() < 1e-10
    level, answers = FLOW.level(0.6), []
    for kind in KINDS:
        answers.append(toys.guided(guidance.parse(line), kind=kind, schedule=FLOW)(X, level))
    for answer in answers[1:]:
        assert (answer.denoised - answers[0].denoised).abs().max() < 1e-10
        assert (answer.step_on.denoised - answers[0].step_on.denoised).abs().max() < 1e-10


def test_rules_with_a_home_space_differ_elsewhere() -> None:
    """Rescale in the network's own terms, and APG's formula on epsilon instead of the denoised prediction."""
    level = FLOW.level(0.6)
    native = [toys.guided(guidance.parse("cfg + rescale"), kind=k, schedule=FLOW)(X, level).denoised for k in KINDS]
    assert min((a - native[0]).abs().max() for a in native[1:]) > 1e-2
    given = toys.conditions(3, 4, 4)
    c, u = (toys.Toy(EPSILON)(X, MIDDLE, given[name]) for name in ("cond", "uncond"))
    on_native = normalized_guidance(c.native, u.native, 3.0, eta=0.0, use_original_formulation=True)
    ours = toys.guided(guidance.APG(4.0, momentum=0.0), kind=EPSILON)(X, MIDDLE)
    assert (c.like(on_native).denoised - ours.denoised).abs().max() > 1e-2


# -- batches and precision --------------------------------------------------------------------------------------------

BUSY = [
    "cfg",
    "apg:scale=8,norm_threshold=3",
    "cfg++:lam=0.5",
    "autoguidance",
    "image-cfg",
    "cfg + adaptive:threshold=0.8",
    "cfg + interval:low=0.5,high=5",
    "cfg + rescale",
    "cfg:scale=3 + schedule",
    "apg:scale=6 + rescale + adaptive:threshold=0.8 + interval:low=0.1 + schedule:shape=sine",
    "cfg:scale=3 + autoguidance",
]


@pytest.mark.parametrize("line", [*ANYWHERE, *BUSY])
def test_no_row_sees_its_mates(line: str) -> None:
    rule = guidance.parse(line)
    x, given = toys.normal(5, 3, 4, seed=8, dtype=torch.float32), toys.conditions(5, 3, 4, dtype=torch.float32)
    together = run(toys.guided(rule, given=given), x)
    turned = run(toys.guided(rule, given={k: v.flip(0) for k, v in given.items()}), x.flip(0)).flip(0)
    for row in range(5):
        one = slice(row, row + 1)
        alone = run(toys.guided(rule, given={k: v[one] for k, v in given.items()}), x[one])
        assert (together[one] - alone).abs().max() < 1e-6 * max(1.0, float(alone.abs().max()))
    assert (together - turned).abs().max() < 1e-6 * max(1.0, float(together.abs().max()))


def answered(rule: Rule, x: torch.Tensor, natives: dict[str, torch.Tensor], ctx: Context | None = None,
             kind: Parameterization = EPSILON) -> Prediction:  # fmt: skip
    """The rule's prediction when the branches answer these tensors."""
    dialogue = Dialogue(rule, ctx or toys.context(x, MIDDLE, toys.SD.level(400.0)), Counter())
    result = dialogue.advance(lambda wanted: [(natives[w.ask.branch], kind) for w in wanted])
    assert result is not None
    return result


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("line", ["cfg:scale=30", "apg:scale=30,norm_threshold=15", "autoguidance:scale=30",
                                  "cfg:scale=30 + rescale", "cfg++:scale=30", "image-cfg:scale=30,image_scale=5",
                                  "cfg:scale=30 + adaptive", "apg:scale=30 + rescale:space=denoised"])  # fmt: skip
def test_half_precision_stays_finite(line: str, dtype: torch.dtype) -> None:
    """Latents of 16 x 64 x 64 have squared norms beyond float16; near pure noise and near clean data."""
    shape = (2, 16, 64, 64)

    def network(x: torch.Tensor, level: Level, condition: torch.Tensor) -> Prediction:
        return Prediction(x.float(), level, condition.to(dtype).float(), V_PREDICTION)

    network.schedule = toys.SD  # type: ignore[attr-defined]
    made = guidance.Guided({"main": network, "weak": network}, guidance.parse(line), toys.conditions(*shape))
    for time in (999.0, 500.0, 1.0):
        answer = made(toys.normal(*shape, seed=5, dtype=dtype), toys.SD.level(time))
        assert answer.native.dtype == torch.float32
        assert answer.native.to(dtype).isfinite().all() and answer.step_on.denoised.isfinite().all()


def test_reductions_are_by_row_and_accurate() -> None:
    a, b = toys.normal(3, 4, 50, 50, dtype=torch.float32), toys.normal(3, 4, 50, 50, seed=1, dtype=torch.float32)
    exact = torch.stack([(p.double() * q.double()).sum() for p, q in zip(a, b, strict=True)])
    assert torch.allclose(dot(a, b), exact, rtol=1e-12) and dot(a, b).dtype == torch.float64
    assert torch.allclose(norm(a), torch.stack([p.double().norm() for p in a]), rtol=1e-12)
    near = a + 1e-4 * b
    sine = torch.stack([(q.double() / q.double().norm() - p.double() / p.double().norm()).norm()
                        for p, q in zip(a, near, strict=True)])  # fmt: skip
    assert torch.allclose(1 - cosine(a, near), sine**2 / 2, rtol=1e-4)
    assert torch.equal(cosine(a, torch.zeros_like(a)), torch.ones(3, dtype=torch.float64))


# -- APG --------------------------------------------------------------------------------------------------------------

PAIR = {"cond": toys.normal(3, 4, 8, 8, seed=1), "uncond": toys.normal(3, 4, 8, 8, seed=2)}


def apg(rule: guidance.APG, pair: dict[str, torch.Tensor] = PAIR, memory: Any = None) -> torch.Tensor:
    x = toys.normal(3, 4, 8, 8)
    return answered(rule, x, pair, toys.context(x, MIDDLE, toys.SD.level(400.0), memory=memory), SAMPLE).denoised


@pytest.mark.parametrize(("eta", "cap"), [(0.0, 0.0), (0.0, 5.0), (0.4, 12.0), (1.0, 5.0), (1.0, 0.0)])
def test_apg_equals_diffusers_on_clean_predictions(eta: float, cap: float) -> None:
    """Three steps with momentum. Theirs takes x_0 tensors and scale - 1."""
    buffer, memory = MomentumBuffer(-0.75), {}
    for step in range(3):
        pair = {k: v + 0.3 * step for k, v in PAIR.items()}
        theirs = normalized_guidance(pair["cond"], pair["uncond"], 6.0, buffer, eta, cap, use_original_formulation=True)
        rule = guidance.APG(7.0, eta, cap, -0.75)
        assert torch.allclose(apg(rule, pair, memory), theirs, atol=1e-10)
        ctx = toys.context(X, MIDDLE, MIDDLE, memory=memory)
        difference = pair["cond"] - pair["uncond"]
        before = memory.get(("APG",))
        ctx.keep(rule, difference if before is None else difference - 0.75 * before)
        memory = ctx.kept


def test_apg_invariants() -> None:
    plain = guidance.APG(6.0, momentum=0.0)
    target, update = PAIR["cond"], apg(plain) - PAIR["cond"]
    assert (dot(update, target) / (norm(update) * norm(target))).abs().max() < 1e-12  # orthogonal at eta = 0
    g = PAIR["cond"] - PAIR["uncond"]
    for eta in (0.0, 0.5, 1.0):
        capped = replace(plain, eta=eta, norm_threshold=3.0)
        assert (norm(apg(capped) - target) <= 5.0 * 3.0 + 1e-9).all()
        longer = {"cond": PAIR["cond"], "uncond": PAIR["cond"] - 4 * g}
        assert torch.allclose(apg(capped), apg(capped, longer), atol=1e-10)  # beyond the cap, length has no effect
    double = {"cond": PAIR["cond"], "uncond": PAIR["cond"] - 2 * g}
    assert torch.allclose(apg(plain, double) - target, 2 * update, atol=1e-10)
    assert torch.allclose(apg(replace(plain, norm_threshold=1e6)), apg(plain), atol=1e-12)


@pytest.mark.parametrize("axes", [(1,), (2, 3), (3, 1), (1, 2, 3)])
def test_apg_along_some_axes_treats_each_line_of_them_as_a_sample(axes: tuple[int, ...]) -> None:
    """Against the rule over whole samples, given every line by itself; (1, 2, 3) is all of a picture."""
    rule = guidance.APG(4.0, 0.3, 2.0, 0.0)
    ours = apg(replace(rule, axes=axes))
    kept = [axis for axis in range(4) if axis not in axes]
    lines = {k: v.permute(*kept, *axes).reshape(-1, *(v.shape[a] for a in axes)) for k, v in PAIR.items()}
    x = torch.zeros_like(lines["cond"])
    ctx = toys.context(x, MIDDLE, toys.SD.level(400.0))
    wanted = answered(rule, x, lines, ctx, SAMPLE).denoised
    assert torch.allclose(ours.permute(*kept, *axes).reshape(wanted.shape), wanted, atol=1e-12)
    if len(axes) == 3:
        assert torch.equal(ours, apg(rule))


def test_apg_with_a_relative_cap_bears_another_size() -> None:
    rule = guidance.APG(6.0, 0.0, 0.0, 0.0, relative_threshold=0.2)
    assert torch.allclose(apg(rule), apg(guidance.APG(6.0, 0.0, 0.2 * math.sqrt(4 * 8 * 8), 0.0)), atol=1e-12)
    assert torch.allclose(
        apg(replace(rule, axes=(2, 3))), apg(guidance.APG(6.0, 0.0, 0.2 * 8, 0.0, axes=(2, 3))), atol=1e-12
    )
    tall = {k: v.repeat(1, 1, 2, 1) for k, v in PAIR.items()}  # twice as many entries of the same kind
    x = torch.zeros_like(tall["cond"])
    twice = answered(rule, x, tall, toys.context(x, MIDDLE, toys.SD.level(400.0)), SAMPLE).denoised
    assert torch.allclose(twice, apg(rule).repeat(1, 1, 2, 1), atol=1e-12)


def test_apg_refuses_what_its_knobs_cannot_mean() -> None:
    for settings, words in (
        ({"norm_threshold": 1.0, "relative_threshold": 1.0}, "two caps"),
        ({"axes": (0,)}, "are not axes of a sample"),
        ({"axes": (2, 2)}, "each once"),
    ):
        with pytest.raises(UsageError, match=words):
            guidance.APG(**settings)
    with pytest.raises(UsageError, match="too many for latents"):
        apg(guidance.APG(axes=(4,)))
    line = guidance.parse("apg:axes=[2,3]")
    assert line == guidance.APG(axes=(2, 3)) and guidance.parse("apg:axes=1") == guidance.APG(axes=(1,))
    assert guidance.spell(line) == "apg:axes=[2,3]"
    with pytest.raises(UsageError, match="a list of numbers"):
        guidance.parse("apg:axes=time")


def test_apg_guards() -> None:
    zero = torch.zeros_like(PAIR["cond"])
    flat = {"cond": zero, "uncond": PAIR["uncond"]}
    assert torch.equal(apg(guidance.APG(3.0, momentum=0.0), flat), -2.0 * PAIR["uncond"])  # no parallel part
    same = {"cond": PAIR["cond"], "uncond": PAIR["cond"]}
    assert torch.equal(apg(guidance.APG(9.0, norm_threshold=5.0), same), PAIR["cond"])


# -- rescale, schedules, windows --------------------------------------------------------------------------------------


@pytest.mark.parametrize("phi", [0.0, 0.3, 0.7, 1.0])
def test_rescale_equals_diffusers(phi: float) -> None:
    made = answered(guidance.Rescale(phi, inner=guidance.CFG(7.0)), PAIR["cond"], PAIR).native
    guided = PAIR["uncond"] + 7.0 * (PAIR["cond"] - PAIR["uncond"])
    assert torch.allclose(made, rescale_noise_cfg(guided, PAIR["cond"], phi), atol=1e-12)
    if phi == 1:
        assert torch.allclose(made.flatten(1).std(1), PAIR["cond"].flatten(1).std(1), rtol=1e-12)


def test_rescale_leaves_a_flat_prediction_alone() -> None:
    flat = {"cond": torch.ones(2, 4, dtype=torch.float64), "uncond": torch.zeros(2, 4, dtype=torch.float64)}
    assert torch.equal(answered(guidance.Rescale(inner=guidance.CFG(3.0)), flat["cond"], flat).native, 3 * flat["cond"])


@pytest.mark.parametrize("shape", SHAPES)
def test_schedules_keep_the_mean_and_the_floor(shape: str) -> None:
    for steps in (10, 25):
        made = toys.guided(compose(guidance.CFG(5.0), guidance.WeightSchedule(shape)))
        run(made, steps=steps)
        scales = [step["scale"] for step in made.steps]
        assert abs(sum(scales) / steps - 5.0) < (1e-9 if steps % 2 == 0 else 4 * 2 / steps**2)
        assert min(scales) >= 1.0
        high = toys.guided(compose(guidance.CFG(5.0), guidance.WeightSchedule(shape, floor=4.0)))
        run(high, steps=steps)
        assert [s["scale"] for s in high.steps] == pytest.approx([max(4.0, s) for s in scales])
    rising = {"linear": True, "cosine": True, "invlinear": False, "sine": False}
    if shape in rising:
        assert (scales == sorted(scales)) == rising[shape] and len(set(scales)) == steps


def test_a_rule_without_a_scale_is_refused_before_the_run() -> None:
    for line in ("none + schedule", "cfg++:lam=0.5 + schedule", "cfg + none + schedule"):
        with pytest.raises(UsageError, match="has no scale to schedule"):
            guidance.parse(line)
    made = toys.guided(guidance.parse("cfg++:scale=4 + schedule"))
    run(made)
    assert len({step["scale"] for step in made.steps}) == 6


@pytest.mark.parametrize("sampler", ["euler", "heun"])
@pytest.mark.parametrize("unit", ["rho", "step", "fraction"])
def test_windows_hold_for_whole_steps(unit: str, sampler: str) -> None:
    """Heun's corrector stands at the next level but follows the decision of its step."""
    steps = 8
    levels = samplers.make_grid("karras", toys.SD, steps)
    inside = [2, 3, 4]
    edges = {"rho": (levels[5].rho, levels[2].rho), "step": (2, 5), "fraction": (2 / 8, 5 / 8)}  # rho: low < v <= high
    low, high = edges[unit]
    made = toys.guided(guidance.Interval(low, high, unit, inner=guidance.CFG(4.0)))
    run(made, sampler=sampler, steps=steps)
    stages = 2 if sampler == "heun" else 1
    assert made.evaluations == {"cond": 3 * (steps * stages - (stages - 1)), "uncond": 3 * len(inside) * stages}
    assert [step["scale"] for step in made.steps] == [4.0 if i in inside else 1.0 for i in range(steps)]


def test_bad_settings_name_the_right_ones() -> None:
    for bad, words in (
        (lambda: guidance.Interval(5, 1), "lies above high"),
        (lambda: guidance.Interval(unit="t"), "use rho, step or fraction"),
        (lambda: guidance.Adaptive(space="x"), "use noise or denoised"),
        (lambda: guidance.Adaptive(on_crossing="last"), "use next or same"),
        (lambda: guidance.Autoguidance(weak="small"), "unknown autoguidance:weak='small'"),
        (lambda: guidance.Autoguidance(drop=1.0), "outside"),
        (lambda: guidance.Rescale(space="x"), "use native, denoised or noise"),
        (lambda: guidance.WeightSchedule("cosin"), "did you mean cosine"),
        (lambda: guidance.CFGPP(lam=0.5, scale=3.0), "lam or scale, not both"),
    ):
        with pytest.raises(UsageError, match=words):
            bad()
    with pytest.warns(UserWarning, match="goes into scale="):
        guidance.CFGPP(lam=7.5)


# -- adaptive ---------------------------------------------------------------------------------------------------------


def test_adaptive_drops_rows_one_by_one_and_never_takes_them_back() -> None:
    full = toys.guided(guidance.parse("cfg:scale=3 + adaptive:threshold=2,space=denoised"))
    run(full, steps=12)
    agreement = torch.stack([step["agreement"] for step in full.steps])
    threshold = float(agreement[4:8].median())
    made = toys.guided(guidance.parse(f"cfg:scale=3 + adaptive:threshold={threshold},space=denoised"))
    mixed = run(made, steps=12)
    last = [(agreement[:, row] >= threshold).nonzero()[:1].flatten() for row in range(3)]
    guided = [int(i[0]) + 1 if len(i) else 12 for i in last]  # the crossing step is still guided
    assert len(set(guided)) > 1
    assert made.evaluations == {"cond": 36, "uncond": sum(guided)}
    assert made.networks["main"].calls == [3 + sum(i < g for g in guided) for i in range(12)]
    for row in range(3):
        given = {k: v[row : row + 1] for k, v in made.conditions.items()}
        alone = toys.guided(made.rule, given=given)
        assert (run(alone, X[row : row + 1], steps=12) - mixed[row]).abs().max() < 1e-12
        assert alone.evaluations == {"cond": 12, "uncond": guided[row]}


@pytest.mark.parametrize("line", ["cfg:scale=3", "apg:scale=8", "cfg++:lam=0.5", "autoguidance", "image-cfg"])
def test_after_the_first_step_only_the_conditional_branch(line: str) -> None:
    """Threshold -1: the rule at step 0, then the conditional model exactly, momentum or not."""
    rule = guidance.parse(f"{line} + adaptive:threshold=-1")
    made, plain = toys.guided(rule), toys.guided(guidance.Unguided())
    trace = list(samplers.iterate(made, X, steps=6, sampler="euler"))
    free = list(samplers.iterate(plain, X, steps=6, sampler="euler", state=trace[0].state))
    assert torch.equal(trace[-1].x, free[-1].x)
    others = set(rule.needs) - {"cond"}
    assert made.evaluations == {"cond": 18, **dict.fromkeys(others, 3)}


@pytest.mark.parametrize("line", ["cfg:scale=3", "apg:scale=8", "cfg++:lam=0.5"])
def test_adaptive_may_drop_the_guidance_of_the_crossing_step_too(line: str) -> None:
    """The same evaluations as "next", and the conditional prediction where the threshold is reached."""
    always = toys.guided(guidance.parse(f"{line} + adaptive:threshold=-1,on_crossing=same"))
    free = toys.guided(guidance.Unguided())
    assert torch.equal(run(always, sampler="euler"), run(free, sampler="euler"))
    assert always.evaluations["cond"] == 18 and sum(always.evaluations.values()) == 21
    full = toys.guided(guidance.parse(f"{line} + adaptive:threshold=2"))
    run(full, sampler="euler")
    agreement = torch.stack([step["agreement"] for step in full.steps])
    threshold = float(agreement[2:4].median())
    made = {
        how: toys.guided(guidance.parse(f"{line} + adaptive:threshold={threshold!r},on_crossing={how}"))
        for how in ("next", "same")
    }
    ends = {how: run(one, sampler="euler") for how, one in made.items()}
    same, following = made["same"], made["next"]
    if line == "cfg:scale=3":
        shares = [[int(s["guided_rows"].sum()) for s in one.steps] for one in (same, following)]
        assert sum(shares[1]) - sum(shares[0]) == 3  # each row crosses once
        crossed = next(i for i, (a, b) in enumerate(zip(*shares, strict=True)) if a < b)
        row = int((same.steps[crossed]["agreement"] >= threshold).nonzero()[0])
        assert float(same.steps[crossed]["scale"][row]) == 1.0 and float(following.steps[crossed]["scale"][row]) == 3.0
    assert (ends["same"] - ends["next"]).abs().max() > 1e-4


def test_adaptive_compares_with_the_branch_that_the_rule_has() -> None:
    """With autoguidance no unconditional branch is evaluated."""
    made = toys.guided(guidance.parse("autoguidance + adaptive:threshold=2"))
    run(made)
    assert made.evaluations == {"cond": 18, "weak": 18} and "agreement" in made.steps[0]


# -- CFG++ ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class EquivalentCFG(Rule):
    """CFG with the scale lam / (1 - rho'/rho)."""

    lam: float
    passes: ClassVar[int] = 3

    def guide(self, ctx: Context) -> Guide:
        scale = self.lam / (1 - ctx.goal.rho / ctx.start.rho)
        c, u = yield Ask(), Ask("uncond")
        return c.like(u.native + scale * (c.native - u.native))


@pytest.mark.parametrize("sampler", ["ddim", "euler"])
@pytest.mark.parametrize("kind", [EPSILON, V_PREDICTION])
def test_cfgpp_is_cfg_with_a_scale_by_step_on_first_order_samplers(sampler: str, kind: Parameterization) -> None:
    def with_(rule: Rule) -> torch.Tensor:
        return run(toys.guided(rule, kind=kind), sampler=sampler, steps=9)

    for lam in (0.0, 0.6, 1.0):
        assert (with_(guidance.CFGPP(lam)) - with_(EquivalentCFG(lam))).abs().max() < 1e-10
    assert (with_(guidance.CFGPP(scale=4.0)) - with_(guidance.CFG(4.0))).abs().max() < 1e-10
    made = toys.guided(guidance.CFGPP(0.6), kind=kind)
    run(made, sampler=sampler)
    assert made.steps[-1]["scale"] == pytest.approx(0.6)  # the last step ends at clean data


@pytest.mark.parametrize("sampler", ["ddim", "euler", "euler-ancestral", "heun", "dpmpp-2m", "sde-dpmpp-2m"])
def test_cfgpp_at_zero_is_the_unconditional_model(sampler: str) -> None:
    noise = SeededNoise([1, 2, 3])
    a, b = toys.guided(guidance.CFGPP(0.0)), toys.guided(Uncond())
    assert torch.equal(run(a, sampler=sampler, noise=noise), run(b, sampler=sampler, noise=noise))
    assert set(a.evaluations) == {"uncond"}


def test_cfgpp_on_dpmpp_2m_follows_the_papers_loop() -> None:
    """x' = D_lam - e^-h D_n - expm1(-h) (D_n - D_n_prev) / (2 r) + e^-h x in x / alpha, history unconditional."""
    lam, steps = 0.7, 8
    made = toys.guided(guidance.CFGPP(lam))
    levels = samplers.make_grid("karras", toys.SD, steps)
    z, before, h_before = X / levels[0].alpha, None, None
    for a, b in zip(levels, levels[1:], strict=False):
        c, u = (toys.Toy()(z * a.alpha, a, made.conditions[n]).denoised for n in ("cond", "uncond"))
        guided = u + lam * (c - u)
        if b.sigma == 0:
            z = guided
            break
        h = math.log(a.rho / b.rho)
        if before is None:
            z = guided + b.rho * (z - u) / a.rho
        else:
            r = h_before / h
            z = guided - math.exp(-h) * u - math.expm1(-h) * (u - before) / (2 * r) + math.exp(-h) * z
        before, h_before = u, h
    assert (run(made, steps=steps) - z).abs().max() < 1e-10


def test_cfgpp_by_scale_does_not_depend_on_the_number_of_steps() -> None:
    """At a fixed lam the strength grows with N; with `scale` it settles."""

    def pull(rule: Rule, steps: int) -> float:
        return float((run(toys.guided(rule), steps=steps) - toys.conditions(3, 4, 4)["cond"]).norm())

    by_scale = [pull(guidance.CFGPP(scale=5.0), n) for n in (20, 40, 80)]
    by_lam = [pull(guidance.CFGPP(0.6), n) for n in (20, 40, 80)]
    assert abs(by_scale[2] - by_scale[1]) < 0.6 * abs(by_scale[1] - by_scale[0]) < 0.1 * by_scale[0]
    assert by_lam[2] > 1.6 * by_lam[1] > 2.5 * by_lam[0]


# -- closed forms -----------------------------------------------------------------------------------------------------


def rotated(a: float, b: float, angle: float) -> torch.Tensor:
    turn = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]], dtype=torch.float64)
    return turn @ torch.diag(torch.tensor([a, b], dtype=torch.float64)) @ turn.T


@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0, 3.0])
def test_autoguidance_combines_precisions(scale: float) -> None:
    """Exact scores of N(0, S) and N(0, S_b) make that of precision w P + (1 - w) P_b at each level."""
    strong, weak = rotated(0.3, 1.0, 0.4), rotated(0.9, 1.4, 1.0)
    x = toys.normal(6, 2)
    for time in (900.0, 400.0, 50.0):
        level = toys.SD.level(time)
        networks = {
            name: samplers.ExactDenoiser(Gaussian(torch.zeros(2, dtype=torch.float64), s), toys.SD)
            for name, s in (("main", strong), ("weak", weak))
        }
        made = guidance.Guided(networks, guidance.Autoguidance(scale), {"cond": None})(x, level)
        unit = torch.eye(2, dtype=torch.float64)
        precisions = [torch.linalg.inv(level.alpha**2 * s + level.sigma**2 * unit) for s in (strong, weak)]
        score = -x @ (scale * precisions[0] + (1 - scale) * precisions[1])
        assert torch.allclose(made.noise, -level.sigma * score, atol=1e-10)


def test_autoguidance_between_networks_that_predict_different_things() -> None:
    given = toys.conditions(3, 4, 4)
    same, mixed = (
        guidance.Guided(
            {"main": toys.Toy(V_PREDICTION), "weak": toys.Toy(kind, 0.8)}, guidance.Autoguidance(3.0), given
        )
        for kind in (V_PREDICTION, EPSILON)
    )
    assert (same(X, MIDDLE).denoised - mixed(X, MIDDLE).denoised).abs().max() < 1e-10


WORLD = Mixture(
    [0.3, 0.5, 0.2], [[1.0, 0.5], [-1.0, 0.2], [0.3, -1.2]],
    [[[0.2, 0.05], [0.05, 0.1]], [[0.1, 0.0], [0.0, 0.3]], [[0.15, -0.04], [-0.04, 0.2]]], [0, 1, 1],
)  # fmt: skip


@pytest.mark.parametrize("time", [950.0, 600.0, 100.0])
def test_the_direction_of_cfg_is_the_gradient_of_the_classifier(time: float) -> None:
    """eps_c - eps_n = -sigma grad log p(c | x_t), so scale w adds w times the classifier's gradient to the null."""
    level, x = toys.SD.level(time), toys.normal(5, 2, seed=3).requires_grad_()
    labels = torch.tensor([0, 1, 1, 0, 1])
    chosen = WORLD.class_probability(x, level.alpha, level.sigma).log()[torch.arange(5), labels]
    (gradient,) = torch.autograd.grad(chosen.sum(), x)
    denoiser, x = samplers.ExactDenoiser(WORLD, toys.SD), x.detach()
    for scale in (0.0, 1.0, 4.0):
        made = guidance.Guided(denoiser, guidance.CFG(scale), {"cond": labels, "uncond": torch.full((5,), -1)})
        null = denoiser(x, level, torch.full((5,), -1))
        assert torch.allclose(made(x, level).noise, null.noise - scale * level.sigma * gradient, atol=1e-9)


# -- composition ------------------------------------------------------------------------------------------------------


def test_a_sum_adds_offsets_from_the_conditional_prediction() -> None:
    made = toys.guided(guidance.CFG(3.0) + guidance.Autoguidance(2.0))
    c, u = (toys.Toy()(X, MIDDLE, made.conditions[n]).native for n in ("cond", "uncond"))
    b = toys.Toy(width=0.8)(X, MIDDLE, made.conditions["cond"]).native
    assert torch.allclose(made(X, MIDDLE).native, c + 2.0 * (c - u) + 1.0 * (c - b), atol=1e-12)
    assert made.evaluations == {"cond": 3, "uncond": 3, "weak": 3}
    assert made.rule.needs == ("cond", "weak", "uncond")


def test_the_order_of_the_pieces_does_not_matter() -> None:
    a, b, c, d = guidance.CFG(3.0), guidance.Autoguidance(2.0), guidance.Interval(0.2), guidance.Adaptive(0.9)
    assert a + b + c + d == d + b + c + a == c + (d + (b + a))
    assert isinstance(a + c + d, guidance.Interval) and isinstance((a + c + d).inner, guidance.Adaptive)


def test_what_cannot_be_combined_is_refused() -> None:
    with pytest.raises(UsageError, match="re-noise in their own way"):
        guidance.CFGPP() + guidance.CFGPP(0.2)
    with pytest.raises(UsageError, match="Adaptive stands twice"):
        guidance.CFG() + guidance.Adaptive() + guidance.Adaptive(0.9)
    mixed = toys.guided(guidance.CFGPP(0.5) + guidance.Autoguidance(2.0))(X, MIDDLE)
    assert mixed.base is not None and (mixed.denoised - mixed.base.denoised).abs().max() > 0.1
