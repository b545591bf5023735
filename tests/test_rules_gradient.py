"""Rules with a gradient, against exact worlds; and the gradient-free one, which must never make a graph."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import guidance_toys as toys
import pytest
import tiny
import torch
from torch import Tensor, nn

from pilotage import guidance, samplers
from pilotage.errors import UsageError
from pilotage.guidance.compose import compose
from pilotage.guidance.gfcg import GFCGReconstruction
from pilotage.guidance.gradient import losses
from pilotage.guidance.gradient.autograd import NORMALISATIONS, gradient, normalised, pulled
from pilotage.guidance.gradient.classifier import ClassifierGuidance, Timed
from pilotage.guidance.gradient.dps import DPS
from pilotage.guidance.gradient.elucd import EluCD, rms
from pilotage.guidance.gradient.freedom import FreeDoM
from pilotage.guidance.gradient.greedy import Greedy, solved
from pilotage.guidance.gradient.lgd import LGD
from pilotage.guidance.gradient.losses import (
    ClassifierLoss,
    Colour,
    ImageNetInput,
    Inpaint,
    Judged,
    Measurement,
    OnLatents,
    OnPictures,
    Reward,
    Similarity,
    Together,
    class_score,
    smoothed,
)
from pilotage.guidance.gradient.mpgd import MPGD
from pilotage.guidance.gradient.strengths import STRENGTHS, strength
from pilotage.guidance.gradient.tfg import TFG
from pilotage.guidance.gradient.ugd import UGD
from pilotage.guidance.identity import identities, row_noise
from pilotage.guidance.pipelines import attach
from pilotage.guidance.reduce import norm
from pilotage.guidance.registry import RULES
from pilotage.guidance.rule import Context, Guide, Modifier, Rule
from pilotage.samplers.ddim import DDIMSampler
from pilotage.samplers.denoiser import ExactDenoiser
from pilotage.samplers.noise import SeededNoise
from pilotage.samplers.prediction import EPSILON, FLOW_PREDICTION, SAMPLE, V_PREDICTION, Prediction
from pilotage.samplers.schedule import Level, RectifiedFlow, VarianceExploding
from pilotage.zoo.toy import g3

X = toys.normal(3, 4, 4, seed=9)
AIM = toys.normal(3, 4, 4, seed=12)
START, GOAL = toys.SD.level(600.0), toys.SD.level(500.0)
FLOW = RectifiedFlow()


def run(made: guidance.Guided, x: Tensor = X, **settings: Any) -> Tensor:
    return samplers.sample(made, x, **{"sampler": "ddim", "grid": "karras", "steps": 6, **settings})


def square(z: Tensor) -> Tensor:
    """|z - aim|^2 / 2, whose gradient is z - aim."""
    return 0.5 * (z - AIM[: len(z)].to(z)).square().flatten(1).sum(1)


def bent(z: Tensor) -> Tensor:
    """A loss with a curved gradient, the same for all rows."""
    flat = z.flatten(1)
    return (1 + flat.square()).sqrt().sum(1) + flat.sum(1).sin()


def gain(level: Level, width: float = 0.5) -> float:
    """dD/dx of the toy denoiser."""
    return level.alpha * width**2 / (level.alpha**2 * width**2 + level.sigma**2)


def step_of(rule: Rule, x: Tensor = X, kind: Any = SAMPLE, given: Any = None, start: Level = START, goal: Level = GOAL,
            steps: int = 1, step: int = 0, **more: Any) -> tuple[Prediction, Tensor, guidance.Guided]:  # fmt: skip
    """The rule's prediction at one step from `start` to `goal`, and x after a DDIM step on it."""
    made = toys.guided(rule, tuple(x.shape), kind=kind, given=given)
    made.decode = more.pop("decode", None)
    ctx = Context(x, start, start, goal, step, steps, 0, made.schedule, {}, decode=made.decode, **more)
    p = made._answer(ctx, None)
    base = p.step_on
    after = goal.alpha * base.denoised + goal.sigma * base.noise + goal.alpha * (p.denoised - base.denoised)
    return p, after, made


ACTIVE: list[Modifier] = [
    ClassifierGuidance(lambda x, level: -bent(x), weight=0.5),
    ClassifierGuidance(lambda x, level: -bent(x), weight=0.5, form="ancestral"),
    EluCD(lambda z: z.flatten(1)[:, :5], 2, 0.7, reads="latents"),
    EluCD(lambda z: z.flatten(1)[:, :5] ** 2, 2, 0.02, others=0.0, form="edm", reads="latents"),
    EluCD(lambda z: z.flatten(1)[:, :5], 2, 0.7, form="score", reads="latents"),
    DPS(bent, weight=0.1),
    DPS(bent, weight=0.1, repeats=2),
    LGD(bent, weight=0.01, samples=3),
    FreeDoM(bent, weight=0.01, growth="increase"),
    UGD(bent, weight=0.05, backward=0.02, steps=2),
    MPGD(bent, weight=0.02),
    TFG(bent, rho=0.02, mu=0.02, spread=0.1, samples=2, steps=2),
    Greedy(bent, weight=0.02, k=2, solver="midpoint", rounds=2),
    Greedy(bent, weight=0.1, normalise="x"),
]


def named(rule: Rule) -> str:
    return type(rule).__name__


def turned_off(rule: Modifier) -> list[Modifier]:
    zero = {"rho": 0.0, "mu": 0.0} if isinstance(rule, TFG) else {"weight": 0.0}
    off = [replace(rule, **zero, **({"backward": 0.0} if isinstance(rule, UGD) else {}))]
    source = "loss" if hasattr(rule, "loss") else "classifier"
    return [*off, replace(rule, **{source: ""})]


# -- every rule -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ACTIVE, ids=named)
@pytest.mark.parametrize("sampler", ["ddim", "heun", "dpmpp-2m"])
def test_weight_zero_is_the_wrapped_rule_bit_for_bit(rule: Modifier, sampler: str) -> None:
    for inner in (guidance.Unguided(), guidance.CFG(3.0), guidance.CFGPP(0.5)):
        plain = toys.guided(inner)
        wanted = run(plain, sampler=sampler)
        for off in turned_off(rule):
            before = torch.get_rng_state()
            made = toys.guided(compose(inner, off))
            assert torch.equal(run(made, sampler=sampler), wanted)
            assert made.evaluations == plain.evaluations
            assert made.networks["main"].calls == plain.networks["main"].calls
            assert torch.equal(torch.get_rng_state(), before) and off.shifts is False


@pytest.mark.parametrize("rule", ACTIVE, ids=named)
def test_active_rules_change_the_run_and_count_their_evaluations(rule: Modifier) -> None:
    made, plain = toys.guided(rule), toys.guided(guidance.Unguided())
    assert (run(made) - run(plain)).abs().max() > 1e-4
    steps = 6
    looks = {DPS: rule.repeats * steps - (rule.repeats - 1) if isinstance(rule, DPS) else 0}
    if isinstance(rule, Greedy):
        one = sum(min(rule.k, steps - i) for i in range(steps)) * (2 if rule.solver == "midpoint" else 1)
        looks = {Greedy: rule.rounds * one + steps}
    assert made.evaluations == {"cond": 3 * looks.get(type(rule), steps)}
    assert all(not t.requires_grad for step in made.steps for t in step.values() if isinstance(t, Tensor))


@pytest.mark.parametrize("rule", ACTIVE, ids=named)
def test_no_row_sees_its_mates(rule: Modifier) -> None:
    x, given = toys.normal(4, 3, 4, seed=8), toys.conditions(4, 3, 4)
    for whole in (rule, compose(guidance.CFG(2.0), rule)):
        together = run(toys.guided(whole, given=given), x, steps=4)
        for row in range(4):
            one = slice(row, row + 1)
            alone = run(toys.guided(whole, given={k: v[one] for k, v in given.items()}), x[one], steps=4)
            assert (together[one] - alone).abs().max() < 1e-9


@pytest.mark.parametrize("rule", ACTIVE, ids=named)
def test_modes_outside_do_not_matter_and_nothing_carries_a_graph(rule: Modifier) -> None:
    whole = compose(guidance.APG(3.0), rule)  # with a memory
    results = []
    for mode in (torch.enable_grad, torch.no_grad, torch.inference_mode):
        made = toys.guided(whole)
        states = []
        with mode():
            for step in samplers.iterate(made, X.clone(), sampler="ddim", grid="karras", steps=3):
                states.append(step)
        for step in states:
            kept = [v for v in step.state.memory.later.values() if isinstance(v, Tensor)]
            assert kept and not any(v.requires_grad for v in [*kept, step.x, step.prediction.native])
        results.append(states[-1].x.clone())
    assert all(torch.equal(r, results[0]) for r in results)


@pytest.mark.parametrize("rule", ACTIVE, ids=named)
def test_no_rule_asks_what_the_network_predicts(rule: Modifier) -> None:
    for inner in (guidance.CFG(2.0), guidance.CFGPP(0.5)):
        answers = [step_of(compose(inner, rule), kind=kind) for kind in (SAMPLE, EPSILON, V_PREDICTION)]
        for p, after, _ in answers[1:]:
            assert (p.denoised - answers[0][0].denoised).abs().max() < 1e-9
            assert (after - answers[0][1]).abs().max() < 1e-9


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("rule", ACTIVE, ids=named)
def test_half_precision_stays_finite(rule: Modifier, dtype: torch.dtype) -> None:
    shape = (2, 16, 32, 32)
    weights = {"weight": 1e-4} if hasattr(rule, "weight") else {"rho": 1e-4, "mu": 1e-4}
    made = toys.guided(compose(guidance.CFG(30.0), replace(rule, **weights)), shape, given=toys.conditions(*shape))
    for time in (999.0, 500.0, 1.0):
        answer = made(toys.normal(*shape, seed=5, dtype=dtype), toys.SD.level(time))
        assert answer.native.isfinite().all() and answer.step_on.denoised.isfinite().all()


@pytest.mark.parametrize("rule", ACTIVE, ids=named)
def test_pure_noise_of_a_flow_is_finite(rule: Modifier) -> None:
    """alpha = 0 at the first step."""
    made = toys.guided(rule, kind=FLOW_PREDICTION, schedule=FLOW)
    assert run(made, grid="trailing", sampler="euler", steps=4).isfinite().all()


def test_rules_with_gradients_nest_and_the_text_order_is_free() -> None:
    """DPS differentiates what it wraps, the inner gradients counting as constants."""
    inner = [MPGD(bent, weight=0.02), UGD(bent, weight=0.05), ClassifierGuidance(lambda x, level: -bent(x))]
    for rule in [*inner, EluCD(lambda z: z.flatten(1)[:, :5] ** 2, 1, 0.02, form="edm", reads="latents")]:
        whole = compose(guidance.CFG(2.0), rule, DPS(square, weight=0.1), guidance.Interval(low=0.1))
        turned = compose(guidance.Interval(low=0.1), DPS(square, weight=0.1), rule, guidance.CFG(2.0))
        a, b = run(toys.guided(whole)), run(toys.guided(turned))
        assert torch.equal(a, b) and a.isfinite().all() and not a.requires_grad
        assert (a - run(toys.guided(compose(guidance.CFG(2.0), rule, guidance.Interval(low=0.1))))).abs().max() > 1e-4


@pytest.mark.parametrize("rule", ACTIVE, ids=named)
def test_every_other_modifier_goes_with_it(rule: Modifier) -> None:
    others = "adaptive:threshold=0.7 + rescale + schedule + higs + threshold + icg + cads + interval:low=0.2"
    made = toys.guided(compose(guidance.parse(f"apg:scale=4 + {others}"), rule))
    assert run(made).isfinite().all()
    dropping = compose(guidance.CFG(4.0), guidance.Adaptive(0.0), rule)
    made = toys.guided(dropping)
    run(made)
    assert 0 < made.evaluations["uncond"] < made.evaluations["cond"]
    together = run(made)
    for row in range(3):
        given = {k: v[row : row + 1] for k, v in made.conditions.items()}
        alone = toys.guided(dropping, given=given)
        assert (run(alone, X[row : row + 1]) - together[row]).abs().max() < 1e-9


def test_on_cfgpp_the_noise_stays_the_null_one() -> None:
    p, after, _ = step_of(compose(guidance.CFGPP(0.6), MPGD(square, weight=0.2)))
    plain, _, made = step_of(guidance.CFGPP(0.6))
    null = toys.Toy()(X, START, made.conditions["uncond"])
    moved = plain.denoised - 0.2 * (plain.denoised - AIM)
    assert (after - GOAL.alpha * moved - GOAL.sigma * null.noise).abs().max() < 1e-12
    assert torch.allclose(p.base.noise, null.noise, atol=1e-12)


def test_the_gradient_goes_through_the_whole_guided_prediction() -> None:
    """CFG of Gaussians: D = gain x + constants whatever the scale, so G_x = gain (D_guided - aim)."""
    for scale in (1.0, 4.0):
        p, after, made = step_of(compose(guidance.CFG(scale), DPS(square, weight=0.3, normalise="none")))
        plain, straight, _ = step_of(guidance.CFG(scale))
        wanted = straight - 0.3 * gain(START) * (plain.denoised - AIM)
        assert (after - wanted).abs().max() < 1e-12
        assert made.evaluations == ({"cond": 3} if scale == 1 else {"cond": 3, "uncond": 3})
        assert p.step_on.denoised.allclose(plain.denoised)


NAMES = [name for name, spec in RULES.items() if ".gradient." in spec.load().__module__]


@pytest.mark.parametrize("name", NAMES)
def test_registered_rules_are_off_where_they_say_so_and_spell_back(name: str) -> None:
    of_classifiers = {"classifier": "classifier=guide,target=star", "elucd": "", "ppap": ""}
    word = of_classifiers.get(name, "loss=colour,target=red")
    off = ",".join(f"{k}={v}" for k, v in RULES[name].off.items())
    rule = guidance.parse(f"cfg:scale=3 + {name}:{','.join(filter(None, (word, off)))}")
    assert guidance.parse(guidance.spell(rule)) == rule
    made, plain = toys.guided(rule), toys.guided(guidance.CFG(3.0))
    assert torch.equal(run(made), run(plain)) and made.evaluations == plain.evaluations
    assert rule.order == (34 if name in of_classifiers else 35) and RULES[name].load().__doc__
    assert torch.equal(run(toys.guided(guidance.parse(f"cfg:scale=3 + {name}"))), run(plain))  # nothing to follow


# -- classifier guidance ----------------------------------------------------------------------------------------------


def mixture_classifier(x: Tensor, level: Level) -> Tensor:
    return g3().class_probability(x, level.alpha, level.sigma).log()


WORLDS = {"vp": toys.SD, "ve": VarianceExploding(), "flow": FLOW}


@pytest.mark.parametrize("path", WORLDS)
def test_the_exact_classifier_on_the_null_model_is_the_conditional_model(path: str) -> None:
    """Bayes' rule, on every path; and with weight w it is CFG of scale w."""
    schedule, x = WORLDS[path], toys.normal(3, 2, seed=3)
    labels, none = torch.tensor([0, 1, 2]), torch.full((3,), -1)
    world = ExactDenoiser(g3(), schedule)
    rule = ClassifierGuidance(mixture_classifier, (0, 1, 2))
    for weight in (1.0, 2.5):
        null = guidance.Guided(world, replace(rule, weight=weight), {"cond": none})
        exact = guidance.Guided(world, guidance.CFG(weight), {"cond": labels, "uncond": none})
        for rho in (0.05, 0.4, 2.0, 9.0):
            level = schedule.level_of_rho(rho)
            at = x * math.hypot(level.alpha, level.sigma)
            assert (null(at, level).denoised - exact(at, level).denoised).abs().max() < 1e-9
        settings = {"grid": "karras", "steps": 12, "sampler": "dpmpp-2m"}
        start = x * schedule.sigma(schedule.T).item()
        assert (run(null, start, **settings) - run(exact, start, **settings)).abs().max() < 1e-7


def test_on_top_of_cfg_the_score_is_added_afterwards() -> None:
    slope = toys.normal(4, 4, seed=4)

    def linear(x: Tensor, level: Level) -> Tensor:
        return (x * slope).flatten(1).sum(1)

    for inner in (guidance.Unguided(), guidance.CFG(5.0)):
        for kind in (SAMPLE, EPSILON, V_PREDICTION):
            plain, _, _ = step_of(inner, kind=kind)
            p, _, made = step_of(inner + ClassifierGuidance(linear, weight=1.5), kind=kind)
            assert (p.noise - plain.noise + START.sigma * 1.5 * slope).abs().max() < 1e-12
            assert (p.denoised - plain.denoised - START.sigma**2 / START.alpha * 1.5 * slope).abs().max() < 1e-11
            assert p.base is None and made.evaluations["cond"] == 3


def test_the_ancestral_shift_of_a_linear_log_probability_is_exact() -> None:
    """x' moves by weight Var a, also under a stochastic sampler with its own noise."""
    slope = toys.normal(4, 4, seed=4)
    rule = ClassifierGuidance(lambda x, level: (x * slope).flatten(1).sum(1), weight=1.5, form="ancestral")
    variance = GOAL.sigma**2 * (1 - (GOAL.rho / START.rho) ** 2)
    a, b = START.alpha**2, GOAL.alpha**2  # alphas_cumprod; the posterior variance of DDPM
    assert variance == pytest.approx((1 - b) / (1 - a) * (1 - a / b), rel=1e-12)
    noise, levels = SeededNoise([1, 2, 3]), (START, GOAL, toys.SD.clean)
    for sampler in (DDIMSampler(eta=1.0), samplers.make_sampler("euler")):
        first = [
            next(iter(samplers.iterate(toys.guided(r), X, sampler=sampler, grid=levels, noise=noise))).x
            for r in (rule, guidance.Unguided())
        ]
        assert (first[0] - first[1] - 1.5 * variance * slope).abs().max() < 1e-12


def test_a_constant_classifier_changes_nothing_and_one_without_gradient_is_refused() -> None:
    flat = ClassifierGuidance(lambda x, level: x.flatten(1)[:, :3] * 0, 1, weight=4.0)
    assert (run(toys.guided(flat)) - run(toys.guided(guidance.Unguided()))).abs().max() < 1e-14
    with pytest.raises(UsageError, match="no gradient"):
        run(toys.guided(ClassifierGuidance(lambda x, level: torch.zeros(len(x)))))
    with pytest.raises(UsageError, match="use guide"):
        ClassifierGuidance("resnet")
    with pytest.raises(UsageError, match="2 classes for 3 rows"):
        run(toys.guided(ClassifierGuidance(lambda x, level: x.flatten(1), (1, 2))))


def test_timed_networks_are_told_their_own_time_and_run_in_their_own_precision() -> None:
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(16, 4)

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            assert t.shape == (len(x),) and t.tolist() == [600.0] * len(x)
            return self.head(x.flatten(1)) * 1e-6  # gradients that underflow float16

    network = Network()
    flow_level = Level(0.6, 0.4, 0.6)
    assert Timed(network, 1000.0)(X.float(), flow_level).shape == (3, 4)
    shifts = []
    for dtype in (torch.float32, torch.float16):
        rule = ClassifierGuidance(Timed(network.to(dtype)), 2, weight=1e3)
        plain, _, _ = step_of(guidance.Unguided())
        shifts.append(step_of(rule)[0].denoised - plain.denoised)
    assert shifts[0].abs().max() > 0
    assert (shifts[1] - shifts[0]).abs().max() < 0.1 * shifts[0].abs().max()


# -- EluCD ------------------------------------------------------------------------------------------------------------


class Small(nn.Module):
    """A classifier with ReLUs, in one and in nested modules."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.relu = nn.Linear(16, 24), nn.ReLU()
        self.block = nn.Sequential(nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 7))

    def forward(self, z: Tensor) -> Tensor:
        return self.block(self.relu(self.stem(z.flatten(1))))


SMALL = Small().double()


def slope_of(rule: EluCD, z: Tensor = X) -> Tensor:
    return rule.slope(z, toys.context(z, START, GOAL))


def autograd_of(f: Callable[[Tensor], Tensor], z: Tensor = X) -> Tensor:
    leaf = z.clone().requires_grad_()
    return torch.autograd.grad(f(leaf).sum(), leaf)[0]


def test_elucd_gradients() -> None:
    rule = EluCD(SMALL, (1, 4, 6), reads="latents")
    rows = torch.arange(3)
    joint = slope_of(replace(rule, own=0.8, others=0.0))
    assert torch.allclose(joint, 0.8 * autograd_of(lambda z: SMALL(z)[rows, [1, 4, 6]]), atol=1e-14)
    conditional = slope_of(replace(rule, own=1.0, others=1.0))
    assert torch.allclose(conditional, autograd_of(lambda z: SMALL(z).log_softmax(1)[rows, [1, 4, 6]]), atol=1e-14)
    p = SMALL(X).softmax(1).detach()
    every = torch.stack([slope_of(replace(rule, target=k, own=1.0, others=1.0)) for k in range(7)])
    assert torch.einsum("bk,kbij->bij", p, every).abs().max() < 1e-14
    huge = EluCD(lambda z: SMALL(z) * 1e4, 1, reads="latents")  # exp of these overflows
    assert slope_of(huge).isfinite().all()


def test_smoothed_networks_approach_relu() -> None:
    logits = SMALL(X)
    apart = []
    for beta in (5.0, 50.0, 500.0, 5000.0):
        soft = smoothed(SMALL, beta)
        assert not any(isinstance(m, nn.ReLU) for m in soft.modules())
        apart.append(float((soft(X) - logits).detach().abs().max()))
    assert apart[1] < apart[0] / 5 and apart[3] < apart[2] / 5 and apart[3] < 1e-3
    assert torch.equal(smoothed(SMALL, math.inf)(X), logits)
    assert isinstance(smoothed(nn.ReLU()), nn.Softplus) and sum(isinstance(m, nn.ReLU) for m in SMALL.modules()) == 2
    z = torch.linspace(-4, 4, 9, dtype=torch.float64)
    assert torch.allclose(smoothed(nn.ReLU(), 3.0)(z), torch.log1p(torch.exp(3 * z)) / 3)


def test_elucd_ancestral_follows_the_sine_of_the_run() -> None:
    """x' - S(x) = weight (Var_t + bump sin(pi t/T) max Var) G, with the highest Var so far."""
    rule = EluCD(SMALL, 3, 0.7, bump=0.3, reads="latents")
    made = toys.guided(rule)
    levels = samplers.make_grid("karras", toys.SD, 8)
    highest, x = 0.0, X
    for step in samplers.iterate(made, X, sampler="ddim", grid=levels):
        i, a, b = step.index, levels[step.index], levels[step.index + 1]
        variance = b.sigma**2 * (1 - (b.rho / a.rho) ** 2)
        highest = max(highest, variance)
        plain = toys.Toy()(x, a, made.conditions["cond"])
        pull = slope_of(rule, plain.denoised)
        shift = 0.7 * (variance + 0.3 * math.sin(math.pi * (7 - i) / 8) * highest) * pull
        wanted = b.alpha * plain.denoised + b.sigma * plain.noise + shift
        assert (step.x - wanted).abs().max() < 1e-11
        x = step.x


def test_elucd_edm_moves_x_by_its_own_size_before_the_step() -> None:
    rule = EluCD(SMALL, 3, 0.004, others=0.0, bump=0.3, form="edm", reads="latents")
    for i, scale in ((0, 1.0), (3, 30.0), (9, 0.2)):
        x, seen = X * scale, []

        def network(at: Tensor, level: Level, condition: Any, seen: list[Tensor] = seen) -> Prediction:
            seen.append(at)
            return toys.Toy()(at, level, condition)

        network.schedule = toys.SD  # type: ignore[attr-defined]
        made = guidance.Guided(network, rule, toys.conditions(3, 4, 4))
        p = made._answer(Context(x, START, START, GOAL, i, 10, 0, toys.SD, {}), None)
        moved = seen[0] - x
        weight = max(0.004 * (11 - i) / 11, 1e-5) + 0.004 * 0.3 * math.sin(math.pi * i / 10)
        assert (rms(moved) - weight * rms(x)).abs().max() < 1e-12
        direction = slope_of(rule, x / rms(x).clamp(min=1))
        assert torch.allclose(moved / rms(moved), direction / rms(direction), atol=1e-12)
        there = toys.Toy()(seen[0], START, made.conditions["cond"])
        wanted = GOAL.alpha * there.denoised + GOAL.sigma * there.noise  # the step from the moved x
        got = GOAL.alpha * p.denoised + GOAL.sigma * p.base.noise
        assert (got - wanted).abs().max() < 1e-11
        assert len(seen) == 1


def test_elucd_score_form_and_decode() -> None:
    rule = EluCD(SMALL, 3, 0.5, form="score", reads="latents")
    plain, _, _ = step_of(guidance.Unguided())
    p, _, _ = step_of(rule)
    assert (p.noise - plain.noise + 0.5 * START.sigma * slope_of(rule, plain.denoised)).abs().max() < 1e-12
    seen, _, _ = step_of(replace(rule, reads="pictures"), decode=lambda z: 2 * z)
    doubled = 2 * autograd_of(lambda z: class_score(SMALL(z), 3, 1.0, 0.5), 2 * plain.denoised)
    assert (seen.noise - plain.noise + 0.5 * START.sigma * doubled).abs().max() < 1e-12
    with pytest.raises(UsageError, match="pass decode="):
        step_of(replace(rule, reads="pictures"))


# -- the posterior family ---------------------------------------------------------------------------------------------


def linear_world() -> tuple[Tensor, Tensor, Tensor]:
    """D, its pull G_x and the plain DDIM step of the quadratic loss on the toy: D is affine in x."""
    p, after, _ = step_of(guidance.Unguided())
    return p.denoised, gain(START) * (p.denoised - AIM), after


def test_closed_forms_of_a_quadratic_loss_on_a_linear_denoiser() -> None:
    d, pull, plain = linear_world()
    loss = square(d)
    column = loss.reshape(-1, 1, 1)
    shift = {
        DPS(square, weight=0.3, normalise="none"): -0.3 * pull,
        DPS(square, weight=0.3, normalise="loss"): -0.3 * pull / column,
        DPS(square, weight=0.3): -0.3 * pull / (2 * column.sqrt()),
        DPS(square, weight=0.3, normalise="unit"): -0.3 * pull / norm(pull).reshape(-1, 1, 1),
        DPS(square, weight=0.3, normalise="x"): -0.3 * pull * (norm(X) / norm(pull)).reshape(-1, 1, 1),
        DPS(square, weight=(0.0, 1.0, 2.0), normalise="none"): -torch.tensor([0.0, 1, 2]).reshape(-1, 1, 1) * pull,
        FreeDoM(square, weight=0.3): -0.3 * pull,
        LGD(square, weight=0.3, spread=0.0): -0.3 * pull,
        MPGD(square, weight=0.3): -0.3 * GOAL.alpha * (d - AIM),
    }
    for rule, wanted in shift.items():
        p, after, made = step_of(rule)
        assert (after - plain - wanted).abs().max() < 1e-12, rule
        assert rule.shifts and made.evaluations == {"cond": 3}
        assert torch.allclose(p.base.denoised, d, atol=1e-12)  # the step runs on the unguided prediction
    s, c, m = 0.2, 0.1, 3
    rule = UGD(square, weight=s, backward=c, steps=m)
    p, _, _ = step_of(rule)
    back = ((1 - c) ** m - 1) * (d - AIM)
    noise = (X - START.alpha * d) / START.sigma + s * START.sigma * pull - START.alpha / START.sigma * back
    assert (p.noise - noise).abs().max() < 1e-12 and p.base is None and not rule.shifts


def test_dps_root_is_the_gradient_of_the_residual() -> None:
    """The published algorithm, x' - scale grad |y - A(D)|, with a linear operator."""
    value = toys.normal(3, 2, 4, seed=5)
    loss = Measurement(lambda z: z[:, ::2] + z[:, 1::2], value)
    d, _, plain = linear_world()
    _, after, _ = step_of(DPS(loss, weight=0.7))
    residual = autograd_of(lambda z: (z[:, ::2] + z[:, 1::2] - value).flatten(1).norm(dim=1), d)
    assert (after - plain + 0.7 * gain(START) * residual).abs().max() < 1e-12


def test_mpgd_keeps_the_noise_and_makes_no_graph_of_the_network() -> None:
    seen = []

    class Watched(toys.Toy):
        def __call__(self, x: Tensor, level: Level, condition: Any = None) -> Prediction:
            seen.append((x.requires_grad, torch.is_grad_enabled()))
            return super().__call__(x, level, condition)

    for rule in (MPGD(bent, weight=0.1), TFG(bent, rho=0.0, mu=0.1), UGD(bent, weight=0.0, backward=0.1)):
        made = guidance.Guided(Watched(), rule, toys.conditions(3, 4, 4))
        with torch.no_grad():
            p = made(X, START)
        assert seen == [(False, False)] and not p.native.requires_grad
        seen.clear()
    for sampler in ("ddim", "dpmpp-2m", "euler"):
        made = toys.guided(MPGD(square, weight=0.2))
        steps = list(samplers.iterate(made, X, sampler=sampler, grid="karras", steps=4))
        levels = samplers.make_grid("karras", toys.SD, 4)
        assert (steps[-1].x - steps[-1].prediction.denoised).abs().max() < 1e-12  # ends at D~
        first = toys.Toy()(X, levels[0], made.conditions["cond"])
        moved = first.denoised - 0.2 * (first.denoised - AIM)
        assert (steps[0].x - levels[1].alpha * moved - levels[1].sigma * first.noise).abs().max() < 1e-11


@pytest.mark.parametrize("growth", STRENGTHS)
def test_tfg_holds_the_family(growth: str) -> None:
    ratio = GOAL.alpha / START.alpha  # 1 / sqrt(a_t / a_t')
    plain = step_of(guidance.Unguided())[1]
    tfg = step_of(TFG(bent, rho=0.1, mu=0.0, spread=0.0, growth=growth))[1] - plain
    freedom = step_of(FreeDoM(bent, weight=0.1, growth=growth))[1] - plain
    assert torch.allclose(tfg, freedom * ratio, atol=1e-13) and freedom.abs().max() > 1e-6
    share = strength(growth, Context(X, START, START, GOAL, 0, 1, 0, toys.SD, {}))
    mpgd = step_of(MPGD(bent, weight=0.1 * share))[1]
    assert (step_of(TFG(bent, rho=0.0, mu=0.1, spread=0.0, steps=1, growth=growth))[1] - mpgd).abs().max() < 1e-13
    lgd = step_of(LGD(bent, weight=0.1, spread=0.0))[1] - plain
    dps = step_of(DPS(bent, weight=0.1, normalise="none"))[1] - plain
    assert torch.equal(lgd, dps)
    both = step_of(TFG(bent, rho=0.1, mu=0.1, spread=0.0, steps=1, growth=growth))[1] - plain
    assert torch.allclose(both, tfg + mpgd - plain, atol=1e-13)


def test_strengths_average_to_one_on_an_even_grid() -> None:
    for schedule in (toys.SD, FLOW):
        times = [schedule.T + (schedule.t_min - schedule.T) * i / 20 for i in range(20)]
        levels = [*schedule.levels(times), schedule.clean]
        for growth in STRENGTHS:
            found = [
                strength(growth, Context(X, a, a, b, i, 20, 0, schedule, {}))
                for i, (a, b) in enumerate(zip(levels, levels[1:]))
            ]
            assert sum(found) / 20 == pytest.approx(1.0, rel=1e-9)
            rising = {
                "increase": found[1] < found[-1],
                "decrease": found[1] > found[-1],
                "constant": set(found) == {1.0},
            }
            assert rising[growth] or schedule is FLOW


def test_the_smoothed_loss_is_the_log_mean_of_the_likelihood() -> None:
    """Of a quadratic: - log E exp(-|z + s n|^2 / 2) has the slope z / (1 + s^2); many draws come near."""
    rule = LGD(lambda z: 0.5 * z.square().flatten(1).sum(1), samples=4000, spread=0.5)
    x = toys.normal(2, 2, seed=1)
    ctx = toys.context(x, START, GOAL)
    _, pull = gradient(rule._smoothed(ctx, losses.loss_of(rule.loss), 0), x)
    variance = (0.5 * START.sigma) ** 2
    assert (pull - x / (1 + variance)).abs().max() < 0.05
    one = LGD(bent, samples=1, spread=0.0)._smoothed(ctx, losses.loss_of(bent), 0)
    assert torch.equal(one(x), bent(x))


def test_recurrence_goes_down_and_up_again() -> None:
    """A second look sees x at the same level again; closed form of two looks."""
    _, pull, plain = linear_world()
    p, _, made = step_of(FreeDoM(square, weight=0.3, repeats=2))
    assert made.evaluations == {"cond": 6}
    rule = FreeDoM(square, weight=0.3, repeats=2)
    ctx = Context(X, START, START, GOAL, 0, 1, 0, toys.SD, {})
    down = plain - 0.3 * pull
    ratio = START.alpha / GOAL.alpha
    noise = row_noise(identities(ctx, rule), X, "FreeDoM", "again", 0, 0, 0)
    up = ratio * down + math.sqrt(START.sigma**2 - (ratio * GOAL.sigma) ** 2) * noise
    second, after, _ = step_of(FreeDoM(square, weight=0.3), x=up)
    mine = GOAL.alpha * p.denoised + GOAL.sigma * p.base.noise
    assert (mine - after).abs().max() < 1e-12
    assert torch.equal(p.x, X) and torch.allclose(p.base.denoised, second.base.denoised, atol=1e-12)
    for sampler in ("ddim", "euler", "dpmpp-2m"):  # the first step of each is the step from the moved x
        run_made = toys.guided(FreeDoM(square, weight=0.3, repeats=2))
        grid = (START, GOAL, toys.SD.clean)
        first = next(iter(samplers.iterate(run_made, X, sampler=sampler, grid=grid))).x
        assert (first - after).abs().max() < 1e-11
    assert step_of(DPS(square, repeats=5), goal=toys.SD.clean)[2].evaluations == {"cond": 3}  # not at the last step
    with pytest.raises(UsageError, match="repeats=0"):
        DPS(square, repeats=0)


# -- greedy -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Probe(Rule):
    """Notes grad_x loss(k solver steps from x to data), through the rules' own machinery."""

    k: int
    solver: str
    loss: Callable[[Tensor], Tensor] = bent
    inner: Rule = field(default_factory=guidance.Unguided)
    found: list[Tensor] = field(default_factory=list, compare=False)
    passes: ClassVar[int] = 0

    def guide(self, ctx: Context) -> Guide:
        leaf = ctx.x.clone().requires_grad_()
        end, p = yield from solved(self.inner, ctx, leaf, self.k, self.solver)
        with torch.enable_grad():
            self.found.append(pulled(self.loss(end), leaf))
        return p


def pull_of(probe: Probe, x: Tensor, level: Level, network: Any = None, given: Any = None) -> Tensor:
    made = guidance.Guided(network or toys.Toy(), probe, given or toys.conditions(*x.shape))
    with torch.no_grad():
        made(x, level)
    return probe.found[-1]


def test_one_euler_step_is_the_gradient_of_dps() -> None:
    plain = step_of(guidance.Unguided())[1]
    for inner in (guidance.Unguided(), guidance.CFG(3.0)):
        straight = step_of(inner)[1]
        dps = straight - step_of(compose(inner, DPS(bent, weight=1.0, normalise="none")))[1]
        assert (pull_of(Probe(1, "euler", inner=inner), X, START) - dps).abs().max() < 1e-12
    p, after, made = step_of(Greedy(square, weight=0.3))
    moved = X - 0.3 * linear_world()[1]
    assert (after - step_of(guidance.Unguided(), x=moved)[1]).abs().max() < 1e-12 and (after - plain).abs().max() > 1e-3
    assert made.evaluations == {"cond": 6} and torch.equal(p.x, X)
    twice = step_of(Greedy(square, weight=0.3, rounds=2))[1]
    again = moved - 0.3 * gain(START) * (step_of(guidance.Unguided(), x=moved)[0].denoised - AIM)
    assert (twice - step_of(guidance.Unguided(), x=again)[1]).abs().max() < 1e-12


class Line:
    """N(mean, width^2) data, the exact flow map from a level to data, and its Jacobian (a number)."""

    mean, width = 0.4, 0.5

    @classmethod
    def jacobian(cls, level: Level) -> float:
        return cls.width / math.sqrt((level.alpha * cls.width) ** 2 + level.sigma**2)

    @classmethod
    def flow(cls, x: Tensor, level: Level) -> Tensor:
        return cls.mean + cls.jacobian(level) * (x - level.alpha * cls.mean)


@pytest.mark.parametrize("schedule", [toys.SD, FLOW], ids=["vp", "flow"])
@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("midpoint", 2)])
def test_more_solver_steps_converge_to_the_gradient_through_the_exact_flow(
    schedule: Any, solver: str, order: int
) -> None:
    """Globally with the solver's order in k; for one step of length h, at h^(p + 1) or faster."""
    given = {"cond": torch.full((3, 4, 4), Line.mean, dtype=torch.float64)}
    network = toys.Toy(schedule=schedule)

    def error(k: int, level: Level) -> float:
        exact = Line.jacobian(level) * (Line.flow(X, level) - AIM)
        return float((pull_of(Probe(k, solver, square), X, level, network, given) - exact).abs().max())

    far = schedule.level_of_rho(2.0)
    errors = [error(k, far) for k in (16, 32, 64)]
    slopes = [math.log2(a / b) for a, b in zip(errors, errors[1:])]
    assert slopes[-1] > order - 0.1  # midpoint has 3 on a Gaussian
    near = [error(1, schedule.level_of_rho(rho)) for rho in (0.08, 0.04)]
    assert math.log2(near[0] / near[1]) > order + 1 - 0.2
    assert errors[-1] < errors[0] < error(1, far)


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("midpoint", 2)])
def test_solver_steps_converge_on_a_mixture(solver: str, order: int) -> None:
    world, x, level = ExactDenoiser(g3(), toys.SD), toys.normal(4, 2, seed=1), toys.SD.level_of_rho(1.5)
    given = {"cond": torch.full((4,), -1)}
    exact = pull_of(Probe(400, "midpoint"), x, level, world, given)
    errors = [float((pull_of(Probe(k, solver), x, level, world, given) - exact).abs().max()) for k in (1, 20, 40)]
    assert math.log2(errors[1] / errors[2]) == pytest.approx(order, abs=0.3) and errors[1] < errors[0] / 2


def test_greedy_shrinks_towards_the_end_and_dflow_is_its_first_step_alone() -> None:
    made = toys.guided(Greedy(square, weight=0.1, k=4))
    run(made, steps=6)
    assert made.networks["main"].calls == [3] * (sum(min(4, 6 - i) for i in range(6)) + 6)
    alone = toys.guided(compose(Greedy(square, weight=0.1, k=6), guidance.Interval(0, 1, "step")))
    run(alone, steps=6)
    assert alone.evaluations == {"cond": 3 * (6 + 6)}
    greedy = Greedy(square, weight=0.1)
    several = (guidance.Unguided(), greedy, replace(greedy, k=2, solver="midpoint"))
    lower = [square(run(toys.guided(rule), steps=8)).mean() for rule in several]
    assert lower[1] < lower[0] and lower[2] < lower[0]


# -- GFCG -------------------------------------------------------------------------------------------------------------

LABELS = torch.tensor([0, 1, 2, 0])
AT = toys.normal(4, 2, seed=3)


def mixed(rule: Rule, weak: bool = False, **conditions: Any) -> guidance.Guided:
    world = ExactDenoiser(g3(), toys.SD)
    networks: dict[str, Any] = {"main": world}
    if weak:
        networks["weak"] = ExactDenoiser(Wider(), toys.SD)
    return guidance.Guided(networks, rule, {"cond": LABELS, "uncond": torch.full((4,), -1), **conditions})


class Wider:
    """The mixture seen through more noise than there is: a weak model."""

    def denoised(self, x: Tensor, alpha: float, sigma: float, condition: Tensor | None = None) -> Tensor:
        return g3().denoised(x, alpha, 1.4 * sigma, condition)


def clean_classifier(z: Tensor) -> Tensor:
    """log p(class | clean z), blurred a little."""
    return g3().class_probability(z, 1.0, 0.3).log()


def certain(z: Tensor) -> Tensor:
    """p of each row's own class is 1."""
    return torch.where(torch.arange(3) == LABELS[: len(z), None], 0.0, -torch.inf).double()


GFCG = GFCGReconstruction(clean_classifier, (0, 1, 2, 0), 3.0, reads="latents", sure=2.0)


def test_gfcg_is_the_formula() -> None:
    level = toys.SD.level(500.0)
    made, world = mixed(GFCG), ExactDenoiser(g3(), toys.SD)
    answer = made(AT, level)
    c = world(AT, level, LABELS).denoised
    p = clean_classifier(c).softmax(1)
    rival = p.scatter(1, LABELS[:, None], 0).argmax(1)
    own, other = p.gather(1, LABELS[:, None])[:, 0], p.gather(1, rival[:, None])[:, 0]
    w = 1 + 2 * (2 * other / (own + other)).clamp(max=1)
    r = world(AT, level, rival).denoised
    assert (answer.denoised - (r + w[:, None] * (c - r))).abs().max() < 1e-12
    assert made.evaluations == {"cond": 8} and (w > 1).all()
    constant = mixed(replace(GFCG, law="constant"))(AT, level).denoised
    assert (constant - (r + 3.0 * (c - r))).abs().max() < 1e-12
    step = mixed(GFCG)
    run(step, AT, steps=2)
    assert torch.is_tensor(step.steps[0]["scale"]) and step.steps[0]["rival"].dtype == torch.int64
    added = mixed(guidance.CFG(2.0) + GFCG)
    n = world(AT, level, torch.full((4,), -1)).denoised
    wanted = c + (c - n) + (w[:, None] - 1) * (c - r)
    assert (added(AT, level).denoised - wanted).abs().max() < 1e-12 and added.evaluations == {"cond": 8, "uncond": 4}


def test_gfcg_limits() -> None:
    level = toys.SD.level(500.0)
    plain = mixed(guidance.Unguided())(AT, level).denoised
    for form in ("alone", "cfg", "autoguidance"):
        sure = mixed(replace(GFCG, classifier=certain, form=form), weak=True)
        assert torch.equal(sure(AT, level).denoised, plain) and sure.evaluations == {"cond": 4}
    null = torch.full((3,), -1)  # the condition of every class: null
    swapped = mixed(replace(GFCG, law="constant", conditions=null))
    assert torch.equal(swapped(AT, level).native, mixed(guidance.CFG(3.0))(AT, level).native)
    whole = mixed(replace(GFCG, law="constant", form="cfg", sure=0.0, classifier=certain))
    assert torch.equal(whole(AT, level).native, mixed(guidance.CFG(3.0))(AT, level).native)
    assert whole.evaluations == {"cond": 4, "uncond": 4}
    atg = mixed(guidance.Autoguidance(3.0), weak=True)
    wanted = atg(AT, level).native
    own = torch.arange(3)  # of the classes 0, 1, 2; the rival's condition is that of the row
    rule = replace(GFCG, law="constant", form="autoguidance", classifier=certain, sure=0.5)
    fallback = mixed(rule, weak=True)
    assert torch.equal(fallback(AT, level).native, wanted) and fallback.evaluations == {"cond": 4, "weak": 4}
    cycle = mixed(
        replace(rule, classifier=lambda z: torch.eye(3)[(LABELS + 1) % 3], conditions=(own - 1) % 3), weak=True
    )
    assert torch.equal(cycle(AT, level).native, wanted) and cycle.evaluations == atg.evaluations
    off = mixed(replace(GFCG, scale=1.0))
    assert torch.equal(off(AT, level).native, mixed(guidance.Unguided())(AT, level).native)
    assert off.evaluations == {"cond": 4}


def test_gfcg_evaluates_only_confused_rows_and_waits_for_its_start() -> None:
    level = toys.SD.level(500.0)

    def half(z: Tensor) -> Tensor:
        p = torch.full((len(z), 3), 0.01)
        p[torch.arange(len(z)), LABELS[: len(z)]] = torch.tensor([0.98, 0.4, 0.98, 0.4])[: len(z)]
        p[:, 2] += (LABELS[: len(z)] != 2) * 0.3
        return p.log()

    rule = replace(GFCG, classifier=half, sure=0.7, law="constant")
    for form, count in (("alone", {"cond": 6}), ("cfg", {"cond": 6, "uncond": 2}),
                        ("autoguidance", {"cond": 4, "weak": 4})):  # fmt: skip
        made = mixed(replace(rule, form=form), weak=True)
        answer = made(AT, level).denoised
        assert made.evaluations == count
        plain = mixed(guidance.Unguided())(AT, level).denoised
        assert torch.equal(answer[[0, 2]], plain[[0, 2]]) == (form == "alone")
        for row in range(4):  # each row as it is alone, given its own class and classifier's opinion
            one = slice(row, row + 1)
            alone = guidance.Guided(made.networks, replace(rule, form=form, target=int(LABELS[row]),
                classifier=lambda z, row=row: half(AT)[row : row + 1]),
                {"cond": LABELS[one], "uncond": torch.full((1,), -1)})  # fmt: skip
            assert (alone(AT[one], level).denoised - answer[one]).abs().max() < 1e-12
    late = mixed(replace(GFCG, start=0.5))
    run(late, AT, steps=6)
    assert late.evaluations == {"cond": 24 + 12}


def test_gfcg_makes_no_graph() -> None:
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(2, 3)

        def forward(self, z: Tensor) -> Tensor:
            out = self.head(z)
            graphs.append(out.requires_grad)
            return out

    for form in ("alone", "cfg", "autoguidance"):
        graphs: list[bool] = []
        made = mixed(replace(GFCG, classifier=Network(), form=form), weak=True)
        with torch.enable_grad():
            steps = list(samplers.iterate(made, AT, sampler="ddim", grid="karras", steps=3))
        assert graphs == [False] * 3
        assert not any(s.x.requires_grad or s.prediction.native.requires_grad for s in steps)
        with torch.inference_mode():
            assert run(made, AT, steps=3).equal(steps[-1].x)


def test_gfcg_ties_and_prompts() -> None:
    level = toys.SD.level(500.0)
    tied = mixed(replace(GFCG, classifier=lambda z: torch.zeros(len(z), 3)))
    run(tied, AT, steps=2)
    assert tied.steps[0]["rival"].tolist() == [1, 0, 0, 1] and (tied.steps[0]["scale"] == 3.0).all()
    prompts = {"text": toys.normal(3, 4, 4, seed=20)}

    class Prompted(toys.Toy):
        def __call__(self, x: Tensor, at: Level, condition: Any = None) -> Prediction:
            return super().__call__(x, at, condition["text"])

    x = toys.normal(4, 4, 4, seed=2)
    rule = replace(GFCG, classifier=lambda z: torch.zeros(len(z), 3), conditions=prompts, law="constant")
    made = guidance.Guided(Prompted(), rule, {"cond": {"text": prompts["text"][LABELS], "size": torch.ones(4, 2)}})
    c, r = (toys.Toy()(x, level, prompts["text"][k]).denoised for k in (LABELS, torch.tensor([1, 0, 0, 1])))
    assert (made(x, level).denoised - (r + 3 * (c - r))).abs().max() < 1e-12
    shared = guidance.Guided(Prompted(), replace(rule, target=0), {"cond": {"text": prompts["text"][:1]}})
    c = toys.Toy()(x, level, prompts["text"][:1].expand(4, 4, 4)).denoised
    r = toys.Toy()(x, level, prompts["text"][1:2].expand(4, 4, 4)).denoised
    assert (shared(x, level).denoised - (r + 3 * (c - r))).abs().max() < 1e-12
    with pytest.raises(UsageError, match="no class numbers"):
        guidance.Guided(toys.Toy(), replace(rule, conditions=None), {"cond": x})(x, level)


# -- losses -----------------------------------------------------------------------------------------------------------


def pictures(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_losses_are_per_row_and_lower_is_better() -> None:
    z = pictures(3, 3, 8, 8)
    ctx = replace(toys.context(z, START, GOAL), decode=lambda t: t)
    mask = (pictures(1, 1, 8, 8) > 0.5).double()
    reference = pictures(1, 3, 8, 8)
    network = nn.Sequential(nn.Flatten(), nn.Linear(192, 5)).double()
    every = {
        Colour("red"): ((z.mean((2, 3)) - torch.tensor([224, 50, 52]) / 255) ** 2).sum(1),
        Colour((0.0, 0.0, 1.0)): ((z.mean((2, 3)) - torch.tensor([0.0, 0, 1])) ** 2).sum(1),
        Inpaint(mask, reference): (mask * (z - reference)).square().flatten(1).sum(1),
        Measurement(lambda t: t[:, :, ::2], reference[:, :, ::2]): (z - reference)[:, :, ::2]
        .square()
        .flatten(1)
        .sum(1),
        Similarity(reference): 1 - torch.cosine_similarity(z.flatten(1), reference.flatten(1)),
        Similarity(reference, network): 1 - torch.cosine_similarity(network(z), network(reference)),
        ClassifierLoss(network, 2): -network(z).log_softmax(1)[:, 2],
        ClassifierLoss(network, (0, 1, 4)): -network(z).log_softmax(1)[torch.arange(3), [0, 1, 4]],
        OnPictures(lambda t: t.mean((1, 2, 3))): z.mean((1, 2, 3)),
        OnLatents(lambda t: t.mean((1, 2, 3))): z.mean((1, 2, 3)),
        Reward(lambda t: t.mean((1, 2, 3))): -z.mean((1, 2, 3)),
        Together((2.0, Colour("red")), (0.5, bent_pictures)): 2 * Colour("red")(z) + 0.5 * bent_pictures(z),
    }
    for loss, wanted in every.items():
        values, slope = gradient(lambda t, loss=loss: loss.of(t, ctx), z)
        assert torch.allclose(values, wanted.detach(), atol=1e-12), loss
        alone = values
        if getattr(loss, "target", 2) == 2:  # not the one with a class for each row
            alone = torch.cat([values_of_row(loss, z, ctx, row) for row in range(3)])
        assert torch.allclose(values, alone, atol=1e-12)
        assert slope.shape == z.shape and slope.abs().max() > 0


def bent_pictures(z: Tensor) -> Tensor:
    return z.square().flatten(1).sum(1)


def values_of_row(loss: losses.Loss, z: Tensor, ctx: Context, row: int) -> Tensor:
    return loss.of(z[row : row + 1], ctx).detach()


def test_names_work_from_a_line_of_text() -> None:
    red = losses.loss_of("colour", "red")
    assert red is losses.loss_of("colour", "red") and red.rgb == pytest.approx((224 / 255, 50 / 255, 52 / 255))
    assert losses.loss_of("colour", "#0000ff").rgb == (0.0, 0.0, 1.0) and losses.loss_of("") is None
    assert DPS("colour", "red") == DPS("colour", "red") and hash(DPS("colour", "red"))
    for bad, words in (
        (lambda: DPS("color", "red"), "did you mean colour"),
        (lambda: DPS("colour"), "write for example loss=colour,target=red"),
        (lambda: DPS("colour", "gren"), "did you mean gr"),
        (lambda: DPS("inpaint", "x"), "build it in Python"),
        (lambda: DPS(3), "a callable on latents or a name"),
        (lambda: DPS("judge", "stra"), "did you mean star"),
        (lambda: DPS(bent, normalise="batch"), "normalise='batch' is unknown"),
        (lambda: Greedy(bent, k=0), "k=0 must be a whole number"),
        (lambda: Greedy(bent, solver="rk4"), "solver='rk4' is unknown"),
        (lambda: TFG(bent, growth="up"), "growth='up' is unknown"),
        (lambda: step_of(DPS("colour", "red")), "pass decode="),
        (lambda: step_of(DPS(lambda z: z.mean())), "never a mean over the batch"),
        (lambda: step_of(DPS(lambda z: torch.ones(len(z)))), "has no gradient"),
        (lambda: step_of(GFCGReconstruction(certain, "two", reads="latents")), "is no number"),
    ):
        with pytest.raises(UsageError, match=words):
            bad()
    x = toys.normal(2, 3, 8, 8, seed=1)
    p, _, _ = step_of(MPGD("colour", "red", weight=8 * 8 * 0.5), x=x, decode=lambda z: 0.5 + 0.5 * z)
    plain, _, _ = step_of(guidance.Unguided(), x=x)
    before, after = (Colour("red")(0.5 + 0.5 * q.denoised) for q in (plain, p))
    assert (after < before).all()


def test_the_embedded_judge_and_guide_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    from pilotage.zoo import networks, world

    torch.manual_seed(0)
    made = {"judge": networks.Judge().eval().requires_grad_(False), "guide": networks.Guide().requires_grad_(False)}
    monkeypatch.setattr(losses, "embedded_network", made.__getitem__)
    monkeypatch.setattr("pilotage.guidance.gradient.classifier.embedded_network", made.__getitem__)
    z = pictures(2, 3, 64, 64).float()
    seen = made["judge"](nn.functional.interpolate(2 * z - 1, (32, 32), mode="area"))
    star = world.SHAPES.index("star")
    assert torch.allclose(Judged("star")(z), -seen["shape"].log_softmax(1)[:, star], atol=1e-6)
    assert losses.head_of("relation.left") == ("relation", 1) and losses.head_of("place.left")[0] == "place"
    x = toys.normal(2, 4, 8, 8, seed=1, dtype=torch.float32)
    rule = ClassifierGuidance("guide", "star")
    answer = made["guide"](x, torch.tensor([600.0, 600.0]))["shape"].log_softmax(1)[:, star]
    assert torch.allclose(rule.log_probability(x, START), answer, atol=1e-6)
    p, _, _ = step_of(rule, x=x, given=toys.conditions(2, 4, 8, 8, dtype=torch.float32))
    assert p.native.isfinite().all()


def test_imagenet_input() -> None:
    z = pictures(2, 3, 8, 8)
    keep = nn.Identity()
    plain = ImageNetInput(keep, size=0)(z)
    assert torch.allclose(plain[:, 0], (z[:, 0] - 0.485) / 0.229) and ImageNetInput(keep, 12)(z).shape[-1] == 12
    assert torch.equal(ImageNetInput(keep, parity=True)(z), 2 * z - 1)


@pytest.mark.parametrize("how", NORMALISATIONS)
def test_normalisations_leave_a_zero_gradient_alone(how: str) -> None:
    zero = torch.zeros_like(X)
    ctx = toys.context(X, START, GOAL)
    assert torch.equal(normalised(how, zero, torch.zeros(3, dtype=torch.float64), X, ctx), zero)


# -- in a pipeline ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sd() -> tiny.Case:
    return tiny.text_to_image()


def to_pictures(pipe: Any) -> Callable[[Tensor], Tensor]:
    def decode(z: Tensor) -> Tensor:
        return (pipe.vae.decode(z / pipe.vae.config.scaling_factor).sample / 2 + 0.5).clamp(0, 1)

    return decode


LINES = ["dps", "lgd:samples=2", "freedom:growth=increase", "ugd:backward=0.5", "mpgd", "tfg:spread=0.01", "greedy:k=2"]


@pytest.mark.parametrize("line", LINES)
def test_lines_of_text_steer_a_pipeline_by_the_decoded_colour(sd: tiny.Case, line: str) -> None:
    name, _, rest = line.partition(":")
    weight = "" if name == "tfg" else ",weight=20"
    piece = f"{name}:loss=colour,target=blue{weight}{',' + rest if rest else ''}"
    decode = to_pictures(sd.pipe)
    with attach(sd.pipe, "cfg:scale=3") as plain:
        before = tiny.run(sd)
    with attach(sd.pipe, f"cfg:scale=3 + {piece}", decode=decode) as made:
        after = tiny.run(sd)
        assert torch.equal(after, tiny.run(sd))
    assert after.isfinite().all() and (after - before).abs().max() > 1e-5
    assert made.steps[0]["loss"].shape == (2,) and not after.requires_grad
    if name not in ("greedy",):
        assert made.evaluations == plain.evaluations
    zero = (
        piece.replace("weight=20", "weight=0").replace("backward=0.5", "backward=0").replace("tfg:", "tfg:rho=0,mu=0,")
    )
    with attach(sd.pipe, f"cfg:scale=3 + {zero}"):
        assert torch.equal(tiny.run(sd), before)


def test_gfcg_in_a_pipeline_gives_each_picture_its_own_rival_prompt(sd: tiny.Case) -> None:
    """Rows of the classifier's second choice, one of two pictures confused: its prompt is the other class's."""
    seen = []
    rows = torch.randn(3, 77, 32, generator=torch.Generator().manual_seed(3))

    rule = GFCGReconstruction(lambda z: torch.tensor([[9.0, 0, 1], [1, 1, 2]])[: len(z)], (0, 1), 3.0, reads="latents",
                              conditions={"encoder_hidden_states": rows}, law="constant")  # fmt: skip
    hook = sd.pipe.unet.mid_block.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["encoder_hidden_states"].clone()), with_kwargs=True
    )
    try:
        with attach(sd.pipe, rule) as made:
            tiny.run(sd)
    finally:
        hook.remove()
    assert made.evaluations == {"cond": 3 * 4}
    assert [len(s) for s in seen] == [2, 1] * 4 and torch.equal(seen[1][0], rows[2])
