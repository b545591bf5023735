"""The classifier-free family: limits, the cards' invariants, and agreement with diffusers where that is right."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import replace
from typing import Any

import guidance_toys as toys
import pytest
import tiny
import torch
from diffusers import DDIMScheduler
from diffusers.guiders import frequency_decoupled_guidance as their_fdg
from diffusers.guiders.classifier_free_zero_star_guidance import cfg_zero_star_scale
from diffusers.guiders.magnitude_aware_guidance import mambo_guidance
from diffusers.guiders.tangential_classifier_free_guidance import normalized_guidance
from torch import Tensor

import pilotage
from pilotage import guidance, samplers
from pilotage.errors import UsageError
from pilotage.guidance.cfg_mp import CFGMP
from pilotage.guidance.cfg_zero import CFGZero
from pilotage.guidance.composable import Composable
from pilotage.guidance.compose import compose
from pilotage.guidance.dialogue import Dialogue
from pilotage.guidance.fdg import FDG
from pilotage.guidance.feedback import FeedbackGuidance, posterior_variance
from pilotage.guidance.mambo import MamboG
from pilotage.guidance.modifiers.cads import CADS, Annealed
from pilotage.guidance.modifiers.higs import HiGS
from pilotage.guidance.modifiers.icg import ICG, Independent
from pilotage.guidance.modifiers.linear import LinearAG, LinearCoefficients, LinearFit, Watch
from pilotage.guidance.modifiers.threshold import DynamicThreshold, quantile
from pilotage.guidance.perp_neg import PerpNeg
from pilotage.guidance.prompts import weighted
from pilotage.guidance.rectified import RectifiedCFGPP
from pilotage.guidance.reduce import dot, norm
from pilotage.guidance.rule import Ask, Context, Modifier, Rule
from pilotage.guidance.sega import SEGA, largest
from pilotage.guidance.spatial import from_pyramid, high_pass, pyramid
from pilotage.guidance.tcfg import TCFG, along_first_direction
from pilotage.samplers.noise import SeededNoise
from pilotage.samplers.prediction import EPSILON, FLOW_PREDICTION, SAMPLE, V_PREDICTION, Parameterization, Prediction
from pilotage.samplers.schedule import RectifiedFlow, VarianceExploding

FLOW = RectifiedFlow()
MIDDLE = toys.SD.level(500.0)
X = toys.normal(3, 4, 4, seed=9)
KINDS = (EPSILON, SAMPLE, V_PREDICTION, FLOW_PREDICTION)
NAMES = ("cond", "uncond", "prompt:a", "prompt:b", "prompt:c")


def given(*shape: int, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    return {name: toys.normal(*shape, seed=20 + i, dtype=dtype) for i, name in enumerate(NAMES)}


def made(
    rule: Rule | str, kind: Parameterization = SAMPLE, schedule: Any = toys.SD, **settings: Any
) -> guidance.Guided:
    rule = guidance.parse(rule) if isinstance(rule, str) else rule
    conditions = settings.pop("conditions", None) or given(3, 4, 4)
    return toys.guided(rule, kind=kind, schedule=schedule, given=conditions)


def run(guided: guidance.Guided, x: Tensor = X, **settings: Any) -> Tensor:
    return samplers.sample(guided, x, **{"sampler": "euler", "grid": "trailing", "steps": 6, **settings})


def answered(rule: Rule, natives: dict[str, Tensor], kind: Parameterization = SAMPLE, ctx: Context | None = None,
             count: Counter | None = None) -> Prediction:  # fmt: skip
    """The rule's prediction when the branches answer these tensors, wherever they are asked."""
    x = next(iter(natives.values()))
    ctx = ctx or toys.context(torch.zeros_like(x), MIDDLE, toys.SD.level(400.0))
    dialogue = Dialogue(rule, ctx, Counter() if count is None else count)
    result = dialogue.advance(lambda wanted: [(natives[w.ask.branch], kind) for w in wanted])
    assert result is not None
    return result


def whole(rule: Rule) -> Rule:
    return compose(guidance.CFG(3.0), rule) if isinstance(rule, Modifier) else rule


# -- limits -----------------------------------------------------------------------------------------------------------

CFG3, FREE = guidance.CFG(3.0), guidance.Unguided()
LIMITS: list[tuple[Rule, Rule, float]] = [  # a rule, what it equals in result and evaluations, tolerance (0: same bits)
    (CFGZero(1.0, zero_steps=0), FREE, 0),
    (CFGZero(1.0), FREE, 0),  # 6 steps are too few for zero steps
    (TCFG(1.0), FREE, 0),
    (FDG(1.0, 1.0), FREE, 0),
    (FDG(3.0, 3.0), CFG3, 1e-11),
    (FDG(3.0, 3.0, levels=1), CFG3, 1e-11),
    (MamboG(1.0), FREE, 0),
    (MamboG(3.0, damping=0.0), CFG3, 0),
    (FeedbackGuidance(prior=1.0), FREE, 0),
    (FeedbackGuidance(prior=1.0, scale=3.0), CFG3, 0),
    (FeedbackGuidance(prior=0.5, temperature=0.0, offset=0.0), guidance.CFG(2.0), 1e-11),
    (PerpNeg(1.0), FREE, 0),
    (PerpNeg(3.0), CFG3, 0),
    (PerpNeg(3.0, "a:0"), CFG3, 0),
    (Composable(1.0), FREE, 0),
    (Composable(3.0), CFG3, 0),
    (Composable(3.0, "a:0"), CFG3, 0),
    (SEGA(1.0), FREE, 0),
    (SEGA(3.0, "a:0"), CFG3, 0),
    (DynamicThreshold(0.0, inner=CFG3), CFG3, 0),
    (DynamicThreshold(1.0, mimic_scale=3.0, inner=CFG3), CFG3, 1e-11),
    (DynamicThreshold(0.9, mimic_scale=2.0, inner=guidance.CFG(1.0)), FREE, 0),
    (HiGS(0.0, inner=CFG3), CFG3, 0),
    (CADS(0.0, inner=CFG3), CFG3, 0),
    (CADS(clear=1.0, lost=1.0, inner=CFG3), CFG3, 0),
    (ICG("off", inner=CFG3), CFG3, 0),
    (ICG(inner=guidance.CFG(1.0)), FREE, 0),
    (LinearAG(inner=CFG3), CFG3, 0),
    (Watch(inner=CFG3), CFG3, 0),
]


@pytest.mark.parametrize("kind", [SAMPLE, EPSILON, V_PREDICTION], ids=lambda k: k.name)
@pytest.mark.parametrize(("rule", "plain", "tolerance"), LIMITS, ids=lambda v: repr(v)[:60])
def test_limits_equal_the_simpler_rule_and_cost_as_much(rule: Rule, plain: Rule, tolerance: float, kind: Any) -> None:
    a, b = made(rule, kind), made(plain, kind)
    difference = (run(a) - run(b)).abs().max()
    assert difference <= tolerance * 10 * (kind is EPSILON or 1)
    assert a.evaluations == b.evaluations


@pytest.mark.parametrize(("rule", "plain"), [(RectifiedCFGPP(0.0), FREE), (CFGMP(3.0, 0), CFG3), (CFGMP(1.0, 0), FREE),
                                             (CFGZero(1.0, zero_steps=0), FREE)], ids=repr)  # fmt: skip
def test_limits_on_flow_models(rule: Rule, plain: Rule) -> None:
    a, b = (made(r, FLOW_PREDICTION, FLOW) for r in (rule, plain))
    assert torch.equal(run(a), run(b)) and a.evaluations == b.evaluations


# -- all of them: spaces, batches, runs, precision --------------------------------------------------------------------

ANYWHERE: list[Rule] = [  # one result whatever the network predicts
    CFGZero(4.0), TCFG(4.0), FDG(5.0, 2.0), FDG(5.0, 2.0, parallel=0.2), FeedbackGuidance(0.8), PerpNeg(4.0, "a b:0.5"),
    Composable(2.0, "a:2 b:-1"), SEGA(3.0, "a b:-4", warmup=2), SEGA(3.0, "a", share=0.0, warmup=0),
    compose(CFG3, DynamicThreshold(0.9)), compose(guidance.CFG(6.0), DynamicThreshold(0.9, mimic_scale=3.0)),
    compose(CFG3, HiGS()), compose(CFG3, CADS()), compose(CFG3, ICG()),
    compose(TCFG(4.0), guidance.Rescale(space="noise")),
]  # fmt: skip
FLOWS: list[Rule] = [RectifiedCFGPP(2.0), RectifiedCFGPP(2.0, 1.0), RectifiedCFGPP(1.0, mode="released"), CFGMP(2.0, 2)]


@pytest.mark.parametrize("rule", [*ANYWHERE, *FLOWS], ids=repr)
def test_a_rule_does_not_ask_what_the_network_predicts(rule: Rule) -> None:
    results = [run(made(rule, kind, FLOW), steps=5) for kind in (V_PREDICTION, FLOW_PREDICTION)]
    assert (results[0] - results[1]).abs().max() < 1e-9 * max(1.0, float(results[0].abs().max()))
    if rule in FLOWS:
        return
    level = FLOW.level(0.6)
    answers = [made(rule, kind, FLOW)(X, level).denoised for kind in KINDS]
    for answer in answers[1:]:
        assert (answer - answers[0]).abs().max() < 1e-10 * max(1.0, float(answers[0].abs().max()))


def test_mambo_depends_on_what_the_network_predicts() -> None:
    """Its ratio is taken in the network's own terms, as declared."""
    answers = [made(MamboG(5.0, 1.0), kind, FLOW)(X, FLOW.level(0.6)).denoised for kind in KINDS]
    assert min((a - answers[0]).abs().max() for a in answers[1:]) > 1e-2


BATCHED = [*((r, toys.SD) for r in [*ANYWHERE, MamboG(4.0)]), *((r, FLOW) for r in FLOWS)]


@pytest.mark.parametrize(("rule", "schedule"), BATCHED, ids=lambda v: repr(v)[:70])
def test_no_row_sees_its_mates(rule: Rule, schedule: Any) -> None:
    """Alone, in a batch, in another order: the noise of CADS and ICG goes with the picture, too."""
    x, conditions = toys.normal(4, 3, 4, seed=8, dtype=torch.float32), given(4, 3, 4, dtype=torch.float32)
    kind = FLOW_PREDICTION if schedule is FLOW else SAMPLE

    def of(rows: Any) -> Tensor:
        part = {k: v[rows] for k, v in conditions.items()}
        return run(made(rule, kind, schedule, conditions=part), x[rows], steps=5)

    together, turned = of(slice(None)), of([3, 1, 0, 2])
    for place, row in enumerate([3, 1, 0, 2]):
        scale = max(1.0, float(together[row].abs().max()))
        assert (of([row])[0] - together[row]).abs().max() < 2e-5 * scale
        assert (turned[place] - together[row]).abs().max() < 2e-5 * scale


@pytest.mark.parametrize(("rule", "schedule"), BATCHED, ids=lambda v: repr(v)[:70])
def test_a_second_run_starts_afresh(rule: Rule, schedule: Any) -> None:
    guided = made(rule, FLOW_PREDICTION if schedule is FLOW else SAMPLE, schedule)
    first, cost = run(guided), guided.evaluations
    for i, _ in enumerate(samplers.iterate(guided, X, sampler="euler", grid="trailing", steps=6)):
        if i == 2:
            break  # left in the middle
    assert torch.equal(run(guided), first) and guided.evaluations == cost


@pytest.mark.parametrize(
    "rule",
    [
        CFGZero(4.0, 0),
        TCFG(4.0),
        FDG(),
        MamboG(),
        FeedbackGuidance(),
        HiGS(inner=CFG3),
        DynamicThreshold(inner=CFG3),
        CADS(inner=CFG3),
        ICG(inner=CFG3),
    ],
    ids=repr,
)
def test_solvers_of_several_stages_advance_the_state_once(rule: Rule) -> None:
    """Heun: twice the evaluations (but one at the end), finite, and the same again."""
    guided = made(rule)
    first = run(guided, sampler="heun")
    assert first.isfinite().all() and torch.equal(first, run(guided, sampler="heun"))
    assert sum(guided.evaluations.values()) == 3 * 2 * 11


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    "rule",
    [
        CFGZero(30.0, 0),
        TCFG(30.0),
        FDG(30.0, 10.0, parallel=0.5),
        MamboG(30.0),
        FeedbackGuidance(0.9),
        PerpNeg(30.0, "a"),
        Composable(30.0, "a"),
        SEGA(30.0, "a", warmup=0),
        DynamicThreshold(inner=guidance.CFG(30.0)),
        HiGS(inner=guidance.CFG(30.0)),
        DynamicThreshold(0.99, mimic_scale=7.0, inner=guidance.CFG(30.0)),
        CADS(inner=guidance.CFG(30.0)),
        ICG(inner=guidance.CFG(30.0)),
    ],
    ids=repr,
)
def test_half_precision_stays_finite(rule: Rule, dtype: torch.dtype) -> None:
    shape = (1, 16, 64, 64)  # squared norms beyond float16

    def network(x: Tensor, level: Any, condition: Tensor) -> Prediction:
        return Prediction(x.float(), level, condition.to(dtype).float(), V_PREDICTION)

    network.schedule = toys.SD  # type: ignore[attr-defined]
    guided = guidance.Guided(network, rule, given(*shape))  # type: ignore[arg-type]
    for time in (999.0, 500.0, 1.0):
        answer = guided(toys.normal(*shape, seed=5, dtype=dtype), toys.SD.level(time))
        assert answer.native.dtype == torch.float32 and answer.native.to(dtype).isfinite().all()


@pytest.mark.parametrize("rule", [CFGZero(4.0, 0), TCFG(4.0), FDG(), FDG(parallel=0.0), MamboG(), FeedbackGuidance(),
                                  PerpNeg(4.0, "a"), HiGS(inner=CFG3), SEGA(3.0, "a", warmup=0),
                                  DynamicThreshold(0.9, mimic_scale=2.0, inner=CFG3)], ids=repr)  # fmt: skip
def test_nothing_to_tell_apart_and_nothing_at_all(rule: Rule) -> None:
    """Equal branches give themselves; zeros give zeros, never NaN."""
    same = toys.normal(3, 4, 4, seed=1)
    equal = dict.fromkeys(NAMES, same)
    if not isinstance(rule, (HiGS, DynamicThreshold)):
        assert (answered(rule, equal).native - same).abs().max() < 1e-12
    zero = torch.zeros_like(same)
    assert torch.equal(answered(rule, dict.fromkeys(NAMES, zero)).native, zero)
    assert answered(rule, {**equal, "uncond": zero}).native.isfinite().all()
    assert answered(rule, {**equal, "cond": zero}).native.isfinite().all()


@pytest.mark.parametrize("rule", [CFGZero((4.0, 1.0, 2.0), 0), TCFG((4.0, 1.0, 2.0)), MamboG((4.0, 1.0, 2.0)),
                                  FDG((4.0, 1.0, 2.0), (2.0, 1.0, 3.0))], ids=repr)  # fmt: skip
def test_one_scale_a_row_and_no_evaluation_where_it_is_one(rule: Any) -> None:
    guided = made(rule)
    mixed = guided(X, MIDDLE).native
    assert guided.evaluations == {"cond": 3, "uncond": 2}
    for row in range(3):
        low = {"low_scale": rule.low_scale[row]} if isinstance(rule, FDG) else {}
        alone = made(replace(rule, scale=rule.scale[row], **low))(X, MIDDLE).native
        assert (mixed[row] - alone[row]).abs().max() < 1e-12
    assert torch.equal(mixed[1], made(FREE)(X, MIDDLE).native[1])


# -- CFG-Zero*, TCFG, MAMBO-G: against diffusers ----------------------------------------------------------------------

PAIR = {"cond": toys.normal(3, 4, 8, 8, seed=1), "uncond": toys.normal(3, 4, 8, 8, seed=2)}
U, V = PAIR["cond"], PAIR["uncond"]


def flow_context(step: int = 0, steps: int = 20, x: Tensor | None = None) -> Context:
    x = torch.zeros_like(U) if x is None else x
    at = [FLOW.level(1 - (step + i) / steps) for i in (0, 1)]
    return Context(x, at[0], at[0], at[1], step, steps, 0, FLOW, {})


def test_cfg_zero_equals_diffusers_and_its_card() -> None:
    rule = CFGZero(4.0, zero_steps=0)
    pair = {"cond": U + 2 * V, "uncond": V}
    result = answered(rule, pair, FLOW_PREDICTION, flow_context()).native
    k = cfg_zero_star_scale(pair["cond"].flatten(1), V.flatten(1)).reshape(3, 1, 1, 1)
    assert torch.allclose(result, k * V + 4.0 * (pair["cond"] - k * V), atol=1e-5)  # theirs is in float32
    across = U - (dot(U, V) / dot(V, V)).reshape(3, 1, 1, 1) * V
    assert torch.allclose(
        answered(rule, {"cond": across, "uncond": V}, FLOW_PREDICTION, flow_context()).native, 4 * across
    )
    assert (norm(U - k * V) >= norm(across) - 1e-9).all()  # k is the best multiple
    comfy = U - 3.0 * V  # on x - D, as elsewhere, it would be another number
    other = dot(comfy, V) / dot(V, V)
    assert (other - dot(U, V) / dot(V, V)).abs().min() > 1


@pytest.mark.parametrize("steps", [6, 20, 25])
def test_cfg_zero_stands_still_and_evaluates_nothing(steps: int) -> None:
    guided = made(CFGZero(4.0, zero_steps=2), FLOW_PREDICTION, FLOW)
    trace = list(samplers.iterate(guided, X, sampler="euler", grid="flow", steps=steps))
    resting = 2 if steps >= 20 else 0
    for step in trace[:resting]:
        assert torch.equal(step.x, X)
    assert not torch.equal(trace[resting].x, X)
    assert guided.evaluations == {"cond": 3 * (steps - resting), "uncond": 3 * (steps - resting)}
    at_one = made(CFGZero(1.0), FLOW_PREDICTION, FLOW)
    run(at_one, grid="flow", steps=25)
    assert at_one.evaluations == {"cond": 3 * 24}  # zero steps act at scale 1, too


def test_cfg_zero_refuses_to_stand_still_without_a_velocity() -> None:
    """diffusers' guider returns a zero noise there, which is no standing still."""
    for kind in (EPSILON, V_PREDICTION):
        with pytest.raises(UsageError, match="velocity of a flow model"):
            run(made(CFGZero(), kind), steps=20)
    assert run(made(CFGZero(zero_steps=0), EPSILON), steps=20).isfinite().all()


def test_tcfg_equals_diffusers_and_its_card() -> None:
    for kind, ctx in ((EPSILON, None), (FLOW_PREDICTION, flow_context())):
        near = {"cond": U, "uncond": 0.7 * U + 0.3 * V}
        for pair in (PAIR, near):
            ours = answered(TCFG(6.0), pair, kind, ctx).native
            assert torch.allclose(ours, normalized_guidance(pair["cond"], pair["uncond"], 6.0).to(ours), atol=2e-4)
    ctx = flow_context()
    assert torch.allclose(along_first_direction(0.4 * U, U, ctx), 0.4 * U, atol=1e-12)  # parallel: CFG
    damped = along_first_direction(V, U, ctx)
    assert (norm(damped) <= norm(V) + 1e-12).all()
    for row in range(3):
        _, _, directions = torch.linalg.svd(torch.stack([U[row].flatten(), V[row].flatten()]), full_matrices=False)
        wanted = (V[row].flatten() @ directions[0]) * directions[0]
        assert torch.allclose(damped[row].flatten(), wanted, atol=1e-11)


def test_mambo_equals_diffusers_and_its_card() -> None:
    near = {"cond": U + 0.2 * V, "uncond": U}
    for pair in (PAIR, near):
        for damping in (0.0, 1.0, 8.0):
            flat = {k: v.flatten(1) for k, v in pair.items()}  # theirs fails on (B, C, H, W) with torch 2.13
            theirs = mambo_guidance(flat["cond"], flat["uncond"], 10.0, damping).reshape(U.shape)
            assert torch.allclose(answered(MamboG(10.0, damping), pair, FLOW_PREDICTION).native, theirs, atol=1e-11)
    ctx = toys.context(U, MIDDLE, MIDDLE)
    answered(MamboG(10.0), near, ctx=ctx)
    assert ((ctx.record["scale"] > 1) & (ctx.record["scale"] < 10)).all()
    ctx = toys.context(U, MIDDLE, MIDDLE)
    assert torch.equal(answered(MamboG(10.0), {"cond": U, "uncond": torch.zeros_like(U)}, ctx=ctx).native, U)


# -- FDG --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(8, 8), (7, 5), (16, 6), (3, 9), (1, 4), (2, 2)])
@pytest.mark.parametrize("levels", [1, 2, 4])
def test_the_pyramid_is_lossless_at_any_size(size: tuple[int, int], levels: int) -> None:
    x = toys.normal(2, 3, *size, seed=4)
    bands = pyramid(x, levels)
    assert len(bands) <= levels and torch.allclose(from_pyramid(bands), x, atol=1e-13)
    video = toys.normal(2, 3, 2, *size, seed=4)
    frames = [pyramid(video[:, :, f], levels)[0] for f in range(2)]
    assert torch.allclose(pyramid(video, levels)[0], torch.stack(frames, 2), atol=1e-14)  # each frame by itself


def test_the_pyramid_separates_frequencies() -> None:
    columns = torch.arange(32, dtype=torch.float64)
    fast, slow = (torch.cos(math.pi * f * (columns + 0.5) / 32).expand(1, 1, 32, 32) for f in (28, 1))
    assert norm(pyramid(fast, 2)[0]) > 0.95 * norm(fast) and norm(pyramid(slow, 2)[0]) < 0.05 * norm(slow)


def their_pyramid(x: Tensor, levels: int) -> list[Tensor]:
    return pyramid(x, levels)


def their_upsampling(x: Tensor) -> Tensor:
    from pilotage.guidance.spatial import _expanded

    return _expanded(x, x.new_zeros(*x.shape[:-2], 2 * x.shape[-2], 2 * x.shape[-1]))


@pytest.mark.parametrize("parallel", [1.0, 0.3])
def test_fdg_equals_diffusers_on_clean_predictions(parallel: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the base at cond, which is the paper's (their default base differs when parallel is not 1)."""
    monkeypatch.setattr(their_fdg, "_CAN_USE_KORNIA", True)
    monkeypatch.setattr(their_fdg, "build_laplacian_pyramid_func", their_pyramid)
    monkeypatch.setattr(their_fdg, "upsample_and_blur_func", their_upsampling)
    guider = their_fdg.FrequencyDecoupledGuidance([9.0, 2.0], parallel_weights=parallel, use_original_formulation=True)
    guider.set_state(0, 10, torch.tensor(500))
    theirs = guider.forward(U, V)
    theirs = theirs.pred if hasattr(theirs, "pred") else theirs[0]
    assert torch.allclose(answered(FDG(10.0, 3.0, parallel=parallel), PAIR).denoised, theirs, atol=1e-11)


def test_fdg_invariants() -> None:
    fine, coarse = pyramid(U - V, 2)
    assert torch.allclose(answered(FDG(7.0, 1.0), PAIR).denoised, U + 6 * fine, atol=1e-12)  # the low band is cond's
    low = answered(FDG(1.0, 7.0), PAIR).denoised
    assert torch.allclose(low, U + from_pyramid([0 * fine, 6 * coarse]), atol=1e-12)
    one = answered(FDG(4.0, 2.0, levels=3), PAIR).denoised
    bands = [w * b for w, b in zip((3.0, 2.0, 1.0), pyramid(U - V, 3), strict=True)]
    assert torch.allclose(one, U + from_pyramid(bands), atol=1e-12)
    assert torch.allclose(answered(FDG(3.0, 3.0), PAIR, EPSILON).native, V + 3 * (U - V), atol=1e-9)
    with pytest.raises(UsageError, match="needs pictures"):
        answered(FDG(), {"cond": toys.normal(2, 4), "uncond": toys.normal(2, 4, seed=1)})
    with pytest.raises(UsageError, match="at least 1"):
        FDG(levels=0)


# -- prompts: Perp-Neg, composable, SEGA ------------------------------------------------------------------------------


def test_names_and_weights() -> None:
    assert weighted("hat:5 rain:-2 sun", 1.5) == (("prompt:hat", 5.0), ("prompt:rain", -2.0), ("prompt:sun", 1.5))
    assert weighted("", 1.0) == () and weighted("hat:0", 1.0) == () and weighted("cond:2", 1.0) == (("cond", 2.0),)
    for bad in ("hat:x", ":3", "hat:nan", "hat:inf", "hat:", "hat hat:2"):
        with pytest.raises(UsageError):
            weighted(bad, 1.0)
        with pytest.raises(UsageError):
            PerpNeg(negatives=bad)
    assert Composable(prompts="hat:5 rain:-2").needs == ("cond", "uncond", "prompt:hat", "prompt:rain")
    with pytest.raises(UsageError, match="prompt:hat"):
        made(Composable(prompts="hat"))(X, MIDDLE)
    rule = guidance.parse("composable:scale=3,prompts=hat:5 rain:-2 + icg:draw=run + cads:noise=0.1,apply_to=cond")
    assert guidance.parse(guidance.spell(rule)) == rule and rule.inner.inner == Composable(3.0, "hat:5 rain:-2")


def test_perp_neg_invariants() -> None:
    a, b = U - V, toys.normal(3, 4, 8, 8, seed=3) - V
    natives = {**PAIR, "prompt:a": V + b, "prompt:b": V + 2.5 * a}
    count: Counter = Counter()
    result = answered(PerpNeg(4.0, "a:0.7"), natives, count=count).native
    across = ((result - V) / 4 - a) / -0.7
    assert torch.allclose(across, b - (dot(b, a) / dot(a, a)).reshape(3, 1, 1, 1) * a, atol=1e-12)
    assert (dot(across, a).abs().max() < 1e-9 and count == {"cond": 1, "uncond": 1, "prompt:a": 1}) or len(count) == 3
    assert torch.allclose(answered(PerpNeg(4.0, "b"), natives).native, V + 4 * a, atol=1e-11)  # parallel: CFG
    assert torch.allclose(  # ComfyUI sums over the batch: then a row's answer would change with its mates
        answered(PerpNeg(4.0, "a"), {k: v[:1] for k, v in natives.items()}).native,
        answered(PerpNeg(4.0, "a"), natives).native[:1],
        atol=1e-12,
    )


TOP_LEFT = torch.zeros(8, 8, dtype=torch.float64)
TOP_LEFT[:4, :4] = 1


def test_perp_neg_within_an_area() -> None:
    """Nothing happens outside; inside, what is taken away stays perpendicular to the direction of the prompt."""
    a, b = U - V, toys.normal(3, 4, 8, 8, seed=3) - V
    natives = {**PAIR, "prompt:a": V + b, "prompt:b": V + 2.5 * a}
    taken = (answered(PerpNeg(4.0, "a:0.7", "a:0-0.5/0-0.5"), natives).native - V - 4 * a) / -2.8
    assert taken[..., 4:, :].abs().max() < 1e-12 and taken[..., :, 4:].abs().max() < 1e-12
    share = (dot(TOP_LEFT * b, a) / dot(TOP_LEFT * a, a)).reshape(3, 1, 1, 1)
    assert torch.allclose(taken, TOP_LEFT * (b - share * a), atol=1e-12) and dot(taken, a).abs().max() < 1e-9
    edge = answered(PerpNeg(4.0, "a", "a:0-0.3/0-1"), natives).native - V - 4 * a  # a pixel that is half inside
    assert dot(edge, a).abs().max() < 1e-9 and edge[..., 3:].abs().max() < 1e-12 < edge[..., 2].abs().max()
    whole, plain = (answered(PerpNeg(4.0, "a b", where), natives).native for where in ("a:0-1/0-1", ""))
    assert torch.allclose(whole, plain, atol=1e-12)
    assert torch.allclose(answered(PerpNeg(4.0, "b", "b:top"), natives).native, V + 4 * a, atol=1e-11)  # parallel


def test_sega_within_an_area() -> None:
    """The share is of what lies inside."""
    natives = {**PAIR, "prompt:a": toys.normal(3, 4, 8, 8, seed=3)}
    settings = dict(share=0.75, warmup=0, momentum=0.0)
    plain = answered(SEGA(3.0), natives, EPSILON).native
    moved = answered(SEGA(3.0, "a:2", areas="a:0-0.5/0-0.5", **settings), natives, EPSILON).native - plain
    assert moved[..., 4:, :].abs().max() == 0 and moved[..., :, 4:].abs().max() == 0
    inside = 2 * (natives["prompt:a"] - V)[..., :4, :4]
    assert torch.allclose(moved[..., :4, :4], largest(inside, 0.75), atol=1e-12)
    assert torch.equal((moved != 0).flatten(2).sum(2), torch.full((3, 4), 4))
    all_of_it, nowhere = (
        answered(SEGA(3.0, "a:2", areas=where, **settings), natives, EPSILON).native for where in ("a:0-1/0-1", "")
    )
    assert torch.allclose(all_of_it, nowhere, atol=1e-12)


def test_areas_of_prompts_that_are_not_there_are_refused() -> None:
    for rule, where in ((PerpNeg, "negatives"), (SEGA, "concepts"), (Composable, "prompts")):
        with pytest.raises(UsageError, match=f"no prompt 'red hat' to confine; name it in {where}="):
            rule(3.0, "rain", areas="red_hat:top")
        assert rule(3.0, "rain", areas="rain:top").spatial
    assert not PerpNeg(3.0, "rain").spatial and not SEGA(3.0, areas="").spatial


def test_composable_invariants() -> None:
    natives = {**PAIR, "prompt:a": U, "prompt:b": toys.normal(3, 4, 8, 8, seed=3), "prompt:c": V}
    assert torch.allclose(answered(Composable(2.0, "a:3"), natives).native, V + 5 * (U - V), atol=1e-12)
    one, other = (answered(Composable(2.0, p), natives).native for p in ("a:3 b:-2", "b:-2 a:3"))
    assert torch.allclose(one, other, atol=1e-12)
    assert torch.equal(
        answered(Composable(2.0, "c:9"), natives).native, V + 2 * (U - V)
    )  # the null prompt adds nothing
    guided = made(Composable(2.0, "a:3 b:-2"))
    run(guided)
    assert guided.evaluations == {"cond": 18, "uncond": 18, "prompt:a": 18, "prompt:b": 18}
    assert guided.networks["main"].calls == [12] * 6  # one call a step


def test_sega_keeps_the_largest_entries_of_each_channel() -> None:
    x = toys.normal(2, 3, 20, 20, seed=4)
    assert torch.equal(largest(x, 0.0), x)
    kept = largest(x, 0.9)
    assert torch.equal((kept != 0).flatten(2).sum(2), torch.full((2, 3), 40)) and torch.equal(
        kept[kept != 0], x[kept != 0]
    )
    assert torch.equal(quantile(x.flatten(2), 0.37), torch.quantile(x.flatten(2), 0.37, dim=2))


def test_sega_follows_its_loop() -> None:
    """Warm-up, momentum after the sum, as in diffusers' semantic pipeline; in the noise."""
    rule = SEGA(3.0, "a:5 b:-2", share=0.8, warmup=2, momentum=0.3, inertia=0.6)
    memory: dict[Any, Any] = {}
    gathered = torch.zeros_like(U)
    for step in range(5):
        natives = {n: toys.normal(3, 4, 8, 8, seed=10 * step + i) for i, n in enumerate(NAMES)}
        ctx = toys.context(torch.zeros_like(U), MIDDLE, MIDDLE, step, 5, memory)
        result = answered(rule, natives, EPSILON, ctx).native
        total = torch.zeros_like(U)
        for name, weight in (("prompt:a", 5.0), ("prompt:b", -2.0)):
            e = weight * (natives[name] - natives["uncond"])
            edge = torch.quantile(e.abs().flatten(2), 0.8, dim=2)[..., None, None]
            total = total + torch.where(e.abs() >= edge, e, torch.zeros_like(e))
        total = total + 0.3 * gathered
        gathered = 0.6 * gathered + 0.4 * total
        plain = natives["uncond"] + 3 * (natives["cond"] - natives["uncond"])
        assert torch.allclose(result, plain if step < 2 else plain + total, atol=1e-11)
        memory = {**memory, **ctx.kept}


# -- dynamic thresholding, HiGS ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("ceiling", [1.0, 1.5, 100.0])
def test_threshold_equals_diffusers(ceiling: float) -> None:
    """sample_max_value = 1, the default there, is plain clipping."""
    theirs = DDIMScheduler(thresholding=True, dynamic_thresholding_ratio=0.95, sample_max_value=ceiling)
    wide = {"cond": 3 * U, "uncond": V}
    result = answered(DynamicThreshold(0.95, ceiling, inner=guidance.CFG(2.0)), wide).denoised
    assert torch.allclose(result, theirs._threshold_sample(6 * U - V), atol=1e-12)
    assert result.abs().max() <= 1
    if ceiling == 1:
        assert torch.equal(result, (6 * U - V + 0).clamp(-1, 1)) or torch.allclose(result, (6 * U - V).clamp(-1, 1))
    small = {"cond": U / 100, "uncond": V / 100}
    plain = answered(guidance.CFG(2.0), small).denoised
    assert torch.equal(answered(DynamicThreshold(inner=guidance.CFG(2.0)), small).denoised, plain)


def test_threshold_by_mimicry() -> None:
    """Each channel's range becomes that of the lower scale; no extra evaluation, none where nothing is guided."""
    result = answered(DynamicThreshold(1.0, mimic_scale=2.0, inner=guidance.CFG(9.0)), PAIR).denoised
    guided, mimic = V + 9 * (U - V), V + 2 * (U - V)
    reach = [(t - t.mean((2, 3), keepdim=True)).abs().amax((2, 3)) for t in (result, mimic)]
    assert torch.allclose(*reach) and torch.allclose(result.mean((2, 3)), guided.mean((2, 3)))
    rule = compose(guidance.CFG((3.0, 1.0, 5.0)), DynamicThreshold(0.9, mimic_scale=2.0))
    mixed = made(rule)
    answer = mixed(X, MIDDLE).native
    assert mixed.evaluations == {"cond": 3, "uncond": 2}
    assert torch.equal(answer[1], made(FREE)(X, MIDDLE).native[1])
    for bad in ({"percentile": 1.5}, {"ceiling": 0.5}):
        with pytest.raises(UsageError):
            DynamicThreshold(**bad)


def test_higs_follows_its_equations() -> None:
    rule = HiGS(1.5, 0.3, 0.2, 0.9, 0.4, 0.1, 30.0, inner=FREE)
    memory: dict[Any, Any] = {}
    seen: list[Tensor] = []
    for step, t in enumerate((0.95, 0.8, 0.5, 0.1)):
        d = toys.normal(2, 3, 6, 10, seed=step)
        level = FLOW.level(t)
        ctx = Context(torch.zeros_like(d), level, level, FLOW.clean, step, 4, 0, FLOW, memory)
        result = answered(rule, {"cond": d}, SAMPLE, ctx).denoised
        history = sum(0.3 * 0.7 ** (step - 1 - i) * p for i, p in enumerate(seen))
        if step == 0 or not 0.2 < t <= 0.9:
            assert torch.equal(result, d)
        else:
            change = d - history
            along = (dot(change, d) / dot(d, d)).reshape(2, 1, 1, 1) * d
            change = high_pass(change - along + 0.4 * along, 0.1, 30.0)
            assert torch.allclose(result, d + 1.5 * math.sqrt((t - 0.2) / 0.7) * change, atol=1e-12)
        seen.append(d)
        memory = {**memory, **ctx.kept}


def test_high_pass() -> None:
    x = toys.normal(2, 3, 6, 10, seed=2)
    assert high_pass(x, -math.inf, 50.0) is x
    assert torch.allclose(high_pass(x, -100.0, 50.0), x, atol=1e-12)  # the transform is orthonormal
    flat = torch.ones(1, 1, 6, 10, dtype=torch.float64)
    assert torch.allclose(high_pass(flat, 0.05, 50.0), flat / (1 + math.exp(2.5)), atol=1e-14)
    constant = {(): torch.zeros(())}
    ctx = Context(x, FLOW.level(0.7), FLOW.level(0.7), FLOW.clean, 3, 9, 0, FLOW, {("HiGS",): x, **constant})
    assert torch.equal(answered(HiGS(3.0, inner=FREE), {"cond": x}, SAMPLE, ctx).denoised, x)  # D = h: no change


def test_higs_warns_beside_momentum_and_refuses_nonsense() -> None:
    with pytest.warns(UserWarning, match="momentum"):
        compose(guidance.APG(4.0, momentum=-0.5), HiGS())
    for bad in ({"low": 0.9, "high": 0.5}, {"average": 0.0}):
        with pytest.raises(UsageError):
            HiGS(**bad)


# -- CADS and ICG -----------------------------------------------------------------------------------------------------


def test_the_annealing_of_cads() -> None:
    rule = CADS(clear=0.6, lost=0.9)
    assert [rule.kept(t) for t in (0.0, 0.6, 0.9, 1.0)] == [1, 1, 0, 0] and rule.kept(0.75) == pytest.approx(0.5)
    y = 3 + 2 * toys.normal(2, 7, 5, seed=1)
    who, purpose = (11, 12), (0, "cads", "cond", 3)
    restored = Annealed(who, purpose, 0.3, 0.5, 1.0)(y)
    for f in (torch.mean, lambda t: t.std(correction=0)):
        assert torch.allclose(f(restored[0]), f(y[0])) and torch.allclose(f(restored[1]), f(y[1]))
    raw = Annealed(who, purpose, 0.3, 0.5, 0.0)(y)
    n = (raw - math.sqrt(0.3) * y) / (0.5 * math.sqrt(0.7))
    assert abs(float(n.mean())) < 0.5 and 0.7 < float(n.std()) < 1.3 and not torch.equal(n[0], n[1])
    assert torch.allclose(Annealed(who, purpose, 0.3, 0.5, 0.25)(y), 0.25 * restored + 0.75 * raw)
    assert torch.allclose(Annealed(who, purpose, 0.3, 0.0, 1.0)(y), y)
    assert torch.equal(Annealed(who, purpose, 0.0, 0.0, 1.0)(y), y)  # nothing is left: y, not NaN
    assert torch.allclose(Annealed(who[1:], purpose, 0.3, 0.5, 1.0)(y[1:]), restored[1:], atol=1e-13)
    assert Annealed(who, purpose, 0.3, 0.5, 1.0) == Annealed(who, purpose, 0.3, 0.5, 1.0)
    assert len({Ask(edit=Annealed(who, purpose, 0.3, 0.5, 1.0)), Ask(edit=Annealed(who, purpose, 0.3, 0.5, 1.0))}) == 1


def test_edits_walk_trees_and_leave_sizes_and_masks() -> None:
    edit = Annealed((1, 2), (0, "x"), 0.5, 0.5, 1.0)
    tree = {
        "tokens": toys.normal(2, 3, 4),
        "shared": toys.normal(1, 3, 4, seed=1),
        "mask": torch.ones(2, 3, dtype=torch.bool),
        "added": {"time_ids": toys.normal(2, 6), "text": toys.normal(2, 4)},
        "listed": [toys.normal(3, 4), toys.normal(5, 4)],
    }
    made_ = edit(tree)
    assert made_["mask"] is tree["mask"] and made_["added"]["time_ids"] is tree["added"]["time_ids"]
    assert made_["shared"].shape == (2, 3, 4) and not torch.equal(made_["shared"][0], made_["shared"][1])
    assert [r.shape for r in made_["listed"]] == [(3, 4), (5, 4)]
    assert not torch.equal(made_["tokens"], tree["tokens"]) and not torch.equal(
        made_["added"]["text"], tree["added"]["text"]
    )
    with pytest.raises(UsageError, match="no embedding"):
        edit(torch.tensor([1, 2]))
    with pytest.raises(UsageError, match="3 rows of a batch of 2"):
        edit(toys.normal(3, 4))


def test_cads_changes_every_ask_and_costs_nothing() -> None:
    rule = guidance.parse("cfg:scale=3 + rescale + adaptive:threshold=2 + cads:clear=0.3,lost=0.8")
    assert isinstance(rule, CADS)
    guided = made(rule)
    run(guided)
    assert guided.evaluations == {"cond": 18, "uncond": 18} and guided.networks["main"].calls == [6] * 6
    kept = [step["kept_condition"] for step in guided.steps]
    assert kept == sorted(kept) and kept[0] == 0 and kept[-1] == 1
    only = made(compose(FREE, CADS(apply_to="cond"))), made(compose(FREE, CADS()))
    assert torch.equal(run(only[0]), run(only[1]))
    assert not torch.equal(run(made(compose(CFG3, CADS(apply_to="cond")))), run(made(compose(CFG3, CADS()))))
    assert not torch.equal(run(made(compose(CFG3, CADS(seed=1)))), run(made(compose(CFG3, CADS()))))


def test_equal_prompts_get_unequal_noise_and_a_resumed_run_the_same() -> None:
    """What tells rows apart is the noise they started from."""
    same = {k: v[:1].expand(3, 4, 4) for k, v in given(3, 4, 4).items()}
    guided = made(compose(CFG3, CADS(noise=1.0)), conditions=same)
    trace = list(samplers.iterate(guided, X, sampler="euler", grid="trailing", steps=6))
    again = made(compose(CFG3, CADS(noise=1.0)), conditions=same)
    resumed = list(samplers.iterate(again, X, sampler="euler", grid="trailing", steps=6, state=trace[0].state))
    assert torch.equal(resumed[-1].x, trace[-1].x)


def test_icg_needs_no_null_branch() -> None:
    rule = compose(CFG3, ICG())
    assert rule.needs == ("cond",) and compose(CFG3, ICG("off")).needs == ("cond", "uncond")
    guided = guidance.Guided(toys.Toy(), rule, {"cond": given(3, 4, 4)["cond"]})
    first = run(guided)
    assert guided.evaluations == {"cond": 36} and guided.networks["main"].calls == [6] * 6
    assert not torch.equal(run(made(compose(CFG3, ICG("run")))), first)
    y = 3 + 2 * toys.normal(2, 30, 40)
    other = Independent((1, 2), (0,), 0)(y)
    assert torch.allclose(other.mean((1, 2)), y.mean((1, 2)), atol=0.3)
    assert (
        torch.allclose(other.std((1, 2)), y.std((1, 2)), rtol=0.1)
        and (dot(other - 3, y - 3) / dot(y, y)).abs().max() < 0.1
    )
    constant = torch.full((2, 5), 4.0)
    assert torch.equal(Independent((1, 2), (0,), 0)(constant), constant)  # y-hat = y: the plain model


def test_icg_draws_classes() -> None:
    from pilotage.zoo.toy import g3

    labels = torch.tensor([0, 1, 2, 0])
    drawn = torch.stack([Independent((1, 2, 3, 4), (0, "icg", s), 3)(labels) for s in range(200)])
    assert (torch.bincount(drawn.flatten(), minlength=3).double() / 800 - 1 / 3).abs().max() < 0.06
    guided = guidance.Guided(samplers.ExactDenoiser(g3(), toys.SD), compose(CFG3, ICG(classes=3)), {"cond": labels})
    assert run(guided, toys.normal(4, 2)).isfinite().all()
    with pytest.raises(UsageError, match="icg:classes"):
        guided.rule = compose(CFG3, ICG())
        run(guided, toys.normal(4, 2))


# -- feedback guidance ------------------------------------------------------------------------------------------------

VE = VarianceExploding()


@pytest.mark.parametrize("schedule", [VE, toys.SD, FLOW], ids=["ve", "vp", "flow"])
@pytest.mark.parametrize("scale", [1.0, 1.5])
def test_feedback_follows_the_papers_loop(schedule: Any, scale: float) -> None:
    """The variance-exploding loop in x / alpha and rho, literally; 12 stochastic steps."""
    rule = FeedbackGuidance(prior=0.7, scale=scale)
    kind = FLOW_PREDICTION if schedule is FLOW else SAMPLE
    guided = made(rule, kind, schedule)
    grid = samplers.make_grid("karras", schedule, 12)
    x = X * (1.0 if schedule is FLOW else math.hypot(grid[0].alpha, grid[0].sigma))
    sampler, noise = ("euler-ancestral", SeededNoise([1, 2, 3])) if schedule is not FLOW else ("euler", None)
    trace = list(samplers.iterate(guided, x, sampler=sampler, grid="karras", steps=12, noise=noise))
    points = [x, *(step.x for step in trace)]
    offset = math.log(0.3 * 1.5) / (0.5 * 12)
    variances = [posterior_variance(a, b) for a, b in zip(grid, grid[1:], strict=False)][::-1]
    place = 0.4 * 11
    typical = variances[4] + (place - 4) * (variances[5] - variances[4])
    temperature = abs(2 * typical * offset / 10)
    most = 10 - (scale - 1)
    log = torch.zeros(3, dtype=torch.float64)
    networks = {n: toys.Toy(kind, schedule=schedule) for n in ("cond", "uncond")}
    for i, step in enumerate(guided.steps):
        expected = log.exp() / (log.exp() - 0.3)
        assert torch.allclose(step["log_posterior"], log, atol=1e-7, rtol=1e-7)
        assert torch.allclose(step["scale"], expected + scale - 1, rtol=1e-6)
        s, t = grid[i].rho, grid[i + 1].rho
        if t == 0:
            break
        d = {n: networks[n](points[i], grid[i], guided.conditions[n]).denoised for n in networks}
        keep = (t / s) ** 2
        z, z_next = points[i] / grid[i].alpha, points[i + 1] / grid[i + 1].alpha
        away = {n: ((z_next - (keep * z + (1 - keep) * d[n])) ** 2).flatten(1).sum(1) for n in d}
        variance = (s**2 - t**2) * t**2 / s**2
        log = log - temperature / (2 * variance) * (away["cond"] - away["uncond"]) + offset
        log = log.clamp(math.log(0.3 * most / (most - 1)), 3.0)
    assert len({float(v) for step in guided.steps for v in step["scale"]}) > 12


def test_feedback_invariants() -> None:
    same = dict.fromkeys(NAMES, given(3, 4, 4)["cond"])
    guided = made(FeedbackGuidance(prior=0.9, offset=-0.1, temperature=2.0), conditions=same)
    run(guided, steps=8)
    for i, step in enumerate(guided.steps):
        assert torch.allclose(step["log_posterior"], torch.full((3,), -0.1 * i, dtype=torch.float64), atol=1e-9)
    assert torch.allclose(guided.steps[0]["scale"], torch.tensor(1 / 0.9, dtype=torch.float64))
    wild = made(FeedbackGuidance(prior=0.9, temperature=1000.0, most=6.0))
    run(wild, steps=8)
    scales = torch.stack([step["scale"] for step in wild.steps])
    assert (scales > 1).all() and (scales <= 6 + 1e-9).all()
    for bad in ({"prior": 0.0}, {"prior": 1.2}, {"most": 1.0}, {"start": 1.0}):
        with pytest.raises(UsageError):
            FeedbackGuidance(**bad)


# -- Rectified-CFG++ and CFG-MP ---------------------------------------------------------------------------------------


def flow_of(name: str, x: Tensor, t: float, conditions: dict[str, Tensor]) -> Tensor:
    return toys.Toy(FLOW_PREDICTION, schedule=FLOW)(x, FLOW.level(t), conditions[name]).native


@pytest.mark.parametrize("growth", [0.0, 1.5])
def test_rectified_cfgpp_follows_its_algorithm(growth: float) -> None:
    conditions, steps, x = given(3, 4, 4), 7, X
    guided = made(RectifiedCFGPP(2.0, growth), FLOW_PREDICTION, FLOW)
    times = [level.sigma for level in samplers.make_grid("flow", FLOW, steps)]
    for t, t_next in zip(times, times[1:], strict=False):
        step = t_next - t
        u = flow_of("cond", x, t, conditions)
        ahead = x + step / 2 * u
        c, n = (flow_of(name, ahead, t + step / 2, conditions) for name in ("cond", "uncond"))
        x = x + step * (u + 2.0 * (1 - t) ** growth * (c - n))
    assert (run(guided, grid="flow", steps=steps) - x).abs().max() < 1e-11
    assert guided.evaluations["uncond"] <= 3 * steps and guided.evaluations["cond"] <= 6 * steps
    if growth == 0:
        assert guided.evaluations == {"cond": 6 * steps, "uncond": 3 * steps}


def test_rectified_cfgpp_invariants() -> None:
    same = dict.fromkeys(NAMES, given(3, 4, 4)["cond"])
    free = run(made(FREE, FLOW_PREDICTION, FLOW, conditions=same), grid="flow")
    assert (
        run(made(RectifiedCFGPP(4.0), FLOW_PREDICTION, FLOW, conditions=same), grid="flow") - free
    ).abs().max() < 1e-11
    level, errors = FLOW.level(0.6), []
    for gap in (0.1, 0.01, 0.001):  # a short step: CFG with the scale 1 + a
        ctx = Context(X, level, level, FLOW.level(0.6 - gap), 3, 9, 0, FLOW, {})
        guided = made(RectifiedCFGPP(2.0), FLOW_PREDICTION, FLOW)
        errors.append(
            float(
                (guided._answer(ctx, None).native - made(guidance.CFG(3.0), FLOW_PREDICTION, FLOW)(X, level).native)
                .abs()
                .max()
            )
        )
    assert errors[2] < 0.015 * errors[0]
    with pytest.raises(UsageError, match="velocity of a flow model"):
        run(made(RectifiedCFGPP(), EPSILON))
    with pytest.raises(UsageError, match="use paper or released"):
        RectifiedCFGPP(mode="other")


def test_rectified_cfgpp_as_released() -> None:
    """A whole step ahead, at the time of the step's start, with a little noise; three evaluations instead of four."""
    conditions = given(3, 4, 4)
    guided = made(RectifiedCFGPP(2.0, growth=9.0, mode="released"), FLOW_PREDICTION, FLOW)
    first = next(iter(samplers.iterate(guided, X, sampler="euler", grid="flow", steps=4))).prediction.native
    assert guided.evaluations == {"cond": 6, "uncond": 3}
    u = flow_of("cond", X, 1.0, conditions)
    c, n = (flow_of(name, X - 0.25 * u, 1.0, conditions) for name in ("cond", "uncond"))
    assert (first - (u + 2 * (c - n))).abs().max() < 0.1  # the noise is small


def test_cfg_mp_follows_the_released_order() -> None:
    conditions, steps, x = given(3, 4, 4), 10, X
    guided = made(CFGMP(2.0, iterations=3), FLOW_PREDICTION, FLOW)
    times = [level.sigma for level in samplers.make_grid("flow", FLOW, steps)]
    for t, t_next in zip(times, times[1:], strict=False):
        h, z = (t_next - t) / 2, x
        for _ in range(3 if t > 0.6 else 0):
            if t >= 0.95:
                z = z + h * flow_of("cond", z, t, conditions)
                z = z - h * flow_of("uncond", z, t, conditions)
            else:
                z = z - h * flow_of("uncond", z, t, conditions)
                z = z + h * flow_of("cond", z, t, conditions)
        c, n = (flow_of(name, z, t, conditions) for name in ("cond", "uncond"))
        x = z + (t_next - t) * (n + 2 * (c - n))
    assert (run(guided, grid="flow", steps=steps) - x).abs().max() < 1e-11
    moving = sum(t > 0.6 for t in times[:-1])
    assert sum(guided.evaluations.values()) == 3 * (2 * steps + 6 * moving)
    with pytest.raises(UsageError, match="velocity of a flow model"):
        run(made(CFGMP(), EPSILON))


# -- LinearAG ---------------------------------------------------------------------------------------------------------


def fitted(rule: Rule = CFG3, steps: int = 8, **settings: Any) -> LinearFit:
    fit = LinearFit(
        **{"model": "toy", "scheduler": "euler", "null_prompt": "", "scale": 3.0, "ridge": 1e-13, **settings}
    )
    for seed in range(4):
        watched = made(compose(rule, Watch()))
        run(watched, toys.normal(3, 4, 4, seed=100 + seed), steps=steps)
        fit.add(watched.steps)
    return fit


@pytest.fixture(name="file")
def _file(tmp_path: Any) -> str:
    path = tmp_path / "linear.json"
    fitted().solve().save(path)
    return str(path)


TOLD = {"model": "toy", "scheduler": "euler"}


def test_linear_reproduces_cfg_where_the_null_is_linear(file: str) -> None:
    """Between Gaussians of one width, noise_n(i) = noise_c(i) + k_i / k_0 (noise_n(0) - noise_c(0)) exactly."""
    coefficients = LinearCoefficients.load(file)
    assert max(coefficients.residual[1:]) < 1e-12 and coefficients.steps == 8
    x = toys.normal(3, 4, 4, seed=3)
    a, b = made(compose(CFG3, LinearAG(file, guided=1.0, **TOLD))), made(CFG3)
    assert (run(a, x, steps=8) - run(b, x, steps=8)).abs().max() < 1e-5
    assert a.evaluations == {"cond": 24, "uncond": 12}
    assert [step.get("estimated", 0.0) for step in a.steps] == [0.0, 1.0] * 4
    half = made(compose(CFG3, LinearAG(file, **TOLD)))
    run(half, x, steps=8)
    assert half.evaluations == {"cond": 24, "uncond": 6}  # 1.25 evaluations a step
    full = made(compose(CFG3, LinearAG(file, every=1, guided=1.0, **TOLD)))
    assert torch.equal(run(full, x, steps=8), run(b, x, steps=8)) and full.evaluations == b.evaluations


def test_linear_serves_any_rule_and_leaves_adaptive_its_decisions(tmp_path: Any) -> None:
    """Fitted with the rule that is run: the coefficients belong to its trajectories."""
    file = tmp_path / "apg.json"
    fitted(guidance.APG(3.0, momentum=-0.3)).solve().save(file)
    line = f"apg:scale=3,momentum=-0.3 + linear:file={file},guided=1,model=toy,scheduler=euler"
    x = toys.normal(3, 4, 4, seed=3)
    a, b = made(line), made("apg:scale=3,momentum=-0.3")
    assert (run(a, x, steps=8) - run(b, x, steps=8)).abs().max() < 1e-5
    watched = made(line + " + adaptive:threshold=2")
    run(watched, x, steps=8)
    assert ["agreement" in step for step in watched.steps] == [True, False] * 4
    assert watched.evaluations == {"cond": 24, "uncond": 12}


def test_linear_coefficients_are_exact_on_disk_and_tied_to_their_run(file: str, tmp_path: Any) -> None:
    coefficients = LinearCoefficients.load(file)
    coefficients.save(tmp_path / "again.json")
    assert LinearCoefficients.load(tmp_path / "again.json") == coefficients
    flow = replace(coefficients, rhos=(math.inf, *coefficients.rhos[1:]))
    flow.save(tmp_path / "flow.json")
    assert LinearCoefficients.load(tmp_path / "flow.json") == flow
    for wrong in ({"model": "other"}, {"scheduler": "ddim"}, {"null_prompt": "ugly"}):
        with pytest.raises(UsageError, match="was fitted for"):
            LinearAG(file, **{**TOLD, **wrong})
    with pytest.raises(UsageError, match=r"not 5\.0"):
        compose(guidance.CFG(5.0), LinearAG(file, **TOLD))
    for settings in ({"steps": 9}, {"steps": 8, "grid": "karras"}):
        with pytest.raises(UsageError, match="other noise levels"):
            run(made(compose(CFG3, LinearAG(file, **TOLD))), **settings)
    with pytest.raises(UsageError, match="cannot read"):
        LinearAG(str(tmp_path / "none.json"))
    (tmp_path / "bad.json").write_text("[1]")
    with pytest.raises(UsageError, match="no linear coefficients"):
        LinearAG(str(tmp_path / "bad.json"))
    content = json.loads((tmp_path / "again.json").read_text())
    content["null"] = content["null"][:-1]
    (tmp_path / "short.json").write_text(json.dumps(content))
    with pytest.raises(UsageError, match="is damaged"):
        LinearAG(str(tmp_path / "short.json"))


def test_linear_fits_by_least_squares() -> None:
    """Against torch.linalg.lstsq on the table itself; a window and an intercept."""
    records = []
    for step in range(4):
        pair = {k: toys.normal(5, 6, seed=10 * step + i) for i, k in enumerate(("cond_noise", "uncond_noise"))}
        records.append({"rho": 4.0 - step, **pair})
    for settings in ({}, {"intercept": True}, {"window": 2}):
        fit = LinearFit(ridge=0.0, **settings)
        fit.add(records)
        solved = fit.solve()
        for i in range(4):
            first = max(0, i - 1) if settings.get("window") else 0
            columns = [r["cond_noise"].flatten() for r in records[first : i + 1]]
            columns += [r["uncond_noise"].flatten() for r in records[first:i]]
            columns += [torch.ones(30, dtype=torch.float64)] if settings.get("intercept") else []
            aim = records[i]["uncond_noise"].flatten()
            wanted = torch.linalg.lstsq(torch.stack(columns, 1), aim[:, None]).solution[:, 0]
            found = [*solved.cond[i][first:], *solved.null[i][first:]]
            found += [solved.intercept[i]] if settings.get("intercept") else []
            assert torch.allclose(torch.tensor(found, dtype=torch.float64), wanted, atol=1e-10)
            left = (torch.stack(columns, 1) @ wanted - aim).square().sum() / aim.square().sum()
            assert solved.residual[i] == pytest.approx(float(left), abs=1e-9)
    with pytest.raises(UsageError, match="nothing to fit"):
        LinearFit().solve()
    with pytest.raises(UsageError, match="same noise levels"):
        fit.add([{**r, "rho": 9.0} for r in records])
    with pytest.raises(UsageError, match="not recorded"):
        fit.add([{"rho": 1.0}])


# -- in pipelines -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", name="cases")
def _cases() -> dict[str, tiny.Case]:
    return {name: tiny.CASES[name]() for name in ("StableDiffusionPipeline", "StableDiffusion3Pipeline")}


@pytest.mark.parametrize("rule", [CFGZero(3.0), TCFG(3.0), FDG(), MamboG(), FeedbackGuidance(), compose(CFG3, CADS()),
                                  compose(CFG3, ICG()), compose(CFG3, HiGS()), compose(CFG3, DynamicThreshold())],
                         ids=repr)  # fmt: skip
def test_under_a_pipeline(rule: Rule, cases: dict[str, tiny.Case]) -> None:
    case = cases["StableDiffusionPipeline"]
    with pilotage.attach(case.pipe, rule) as run_:
        first = tiny.run(case)
        assert sum(run_.evaluations.values()) == 2 * 2 * 4 and first.isfinite().all()
        assert torch.equal(tiny.run(case), first)  # a second call starts afresh
    assert not torch.equal(first, tiny.run(case))


def test_flow_rules_under_a_flow_pipeline(cases: dict[str, tiny.Case]) -> None:
    case = cases["StableDiffusion3Pipeline"]
    plain = tiny.run(case)
    with pilotage.attach(case.pipe, CFGZero(5.0, zero_steps=1, least_steps=4)) as run_:
        zero = tiny.run(case)
        assert run_.evaluations == {"cond": 6, "uncond": 6} and zero.isfinite().all()
    with pilotage.attach(case.pipe, RectifiedCFGPP(1.0)) as run_:
        ahead = tiny.run(case)
        assert run_.evaluations == {"cond": 16, "uncond": 8}
    with pilotage.attach(case.pipe, CFGMP(5.0, 1)) as run_:
        moved = tiny.run(case)
        noisy = sum(
            step["rho"] / (1 + step["rho"]) > 0.6 if math.isfinite(step["rho"]) else True for step in run_.steps
        )
        assert sum(run_.evaluations.values()) == 2 * (8 + 2 * noisy)
    with pilotage.attach(case.pipe, CFGMP(5.0, 0)):
        assert torch.equal(tiny.run(case), plain)
    assert all(r.isfinite().all() and not torch.equal(r, plain) for r in (zero, ahead, moved))


def test_linear_under_a_pipeline(cases: dict[str, tiny.Case], tmp_path: Any) -> None:
    """Fitted on one run and replayed on it, the estimates are close to the real null predictions."""
    case = cases["StableDiffusionPipeline"]
    fit = LinearFit(model="tiny", scale=3.0)
    with pilotage.attach(case.pipe, compose(CFG3, Watch())) as run_:
        full = tiny.run(case)
        fit.add(run_.steps)
    fit.solve().save(tmp_path / "fit.json")
    rule = LinearAG(str(tmp_path / "fit.json"), guided=1.0, model="tiny")
    with pilotage.attach(case.pipe, compose(CFG3, rule)) as run_:
        estimated = tiny.run(case)
        assert run_.evaluations == {"cond": 8, "uncond": 4}
    with pilotage.attach(case.pipe, FREE):
        free = tiny.run(case)
    assert (estimated - full).norm() < 0.3 * (free - full).norm()
