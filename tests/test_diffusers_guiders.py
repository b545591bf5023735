"""Our rules beside the guiders of diffusers 0.42.1: equal where those are right, and where they are not, what they do.

And our rules as guiders, in a modular pipeline. Tests named `..._defect_...` pin what the library does today; when one
fails, the library has changed, and the sentence in its docstring is to be read again.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import diffusers as D
import guidance_toys as toys
import pytest
import tiny
import torch
from diffusers.guiders import frequency_decoupled_guidance as fdg_module
from diffusers.guiders.adaptive_projected_guidance import normalized_guidance
from diffusers.guiders.magnitude_aware_guidance import MagnitudeAwareGuidance
from diffusers.hooks.smoothed_energy_guidance_utils import _gaussian_blur_2d
from torch import Tensor

import pilotage
from pilotage import guidance
from pilotage.errors import UsageError
from pilotage.guidance.attention.seg import blur
from pilotage.guidance.dialogue import Dialogue
from pilotage.guidance.pipelines.guiders import RuleGuider, as_guider
from pilotage.guidance.registry import RULES
from pilotage.guidance.rule import Context, Modifier, Rule
from pilotage.guidance.spatial import from_pyramid, pyramid
from pilotage.samplers.prediction import EPSILON, FLOW_PREDICTION, SAMPLE, Parameterization
from pilotage.samplers.schedule import RectifiedFlow

SHAPE = (3, 4, 8, 8)
X, COND, UNCOND, WORSE = (toys.normal(*SHAPE, seed=seed) for seed in range(4))
FLOW = RectifiedFlow()


def ours(rule: Rule | str, kind: Parameterization = EPSILON, memory: Any = None, keep: Any = None) -> Tensor:
    """The native prediction when the branches answer these tensors, at a middle level of the network's schedule."""
    schedule = FLOW if kind is FLOW_PREDICTION else toys.SD
    level, goal = (schedule.level(500.0), schedule.level(400.0)) if schedule is toys.SD else map(FLOW.level, (0.6, 0.5))
    rule = guidance.parse(rule) if isinstance(rule, str) else rule
    ctx = Context(X, level, level, goal, 5, 28, 0, schedule, memory or {})
    natives = {"cond": COND, "uncond": UNCOND, "weak": WORSE}
    made = Dialogue(rule, ctx, Counter()).advance(
        lambda wanted: [(WORSE if w.ask.patch else natives[w.ask.branch], kind) for w in wanted]
    )
    if keep is not None:
        keep.update(ctx.kept)
    assert made is not None
    return made.native


def theirs(guider: Any, *answers: Tensor, step: int = 5, steps: int = 28) -> Tensor:
    guider.set_state(step, steps, torch.tensor(500))
    return guider.forward(*answers).pred


def close(a: Tensor, b: Tensor, tolerance: float = 1e-10) -> bool:
    return bool((a - b).abs().max() < tolerance)


# -- where they are right ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [0.0, 1.0, 3.5])
def test_cfg_is_their_cfg(scale: float) -> None:
    assert close(ours(guidance.CFG(scale)), theirs(D.ClassifierFreeGuidance(scale), COND, UNCOND))
    original = D.ClassifierFreeGuidance(scale - 1, use_original_formulation=True)
    assert close(ours(guidance.CFG(scale)), theirs(original, COND, UNCOND))


@pytest.mark.parametrize(("eta", "cap"), [(0.0, 5.0), (0.4, 0.0), (1.0, 5.0)])
def test_apg_is_their_apg_given_clean_predictions_and_the_papers_formulation(eta: float, cap: float) -> None:
    """Three steps with momentum."""
    guider = D.AdaptiveProjectedGuidance(6.0, -0.75, cap, eta=eta, use_original_formulation=True)
    guider.set_state(0, 28, torch.tensor(999))
    guider.prepare_inputs({"x": (COND, UNCOND)})
    memory: dict[Any, Any] = {}
    for step in range(3):
        kept: dict[Any, Any] = {}
        mine = ours(guidance.APG(7.0, eta, cap, -0.75), SAMPLE, memory, kept)
        assert close(mine, theirs(guider, COND, UNCOND, step=step))
        memory = kept


def test_cfg_zero_is_theirs_on_velocities() -> None:
    guider = D.ClassifierFreeZeroStarGuidance(5.0, zero_init_steps=0)
    assert close(ours("cfg-zero:scale=5,zero_steps=0", FLOW_PREDICTION), theirs(guider, COND, UNCOND), 1e-5)


@pytest.mark.parametrize("kind", [EPSILON, FLOW_PREDICTION])
def test_tcfg_is_theirs(kind: Parameterization) -> None:
    """Theirs by a singular value decomposition in float32."""
    assert close(ours("tcfg:scale=5", kind), theirs(D.TangentialClassifierFreeGuidance(5.0), COND, UNCOND), 1e-4)


def test_mambo_g_is_theirs_on_tokens() -> None:
    guider = MagnitudeAwareGuidance(10.0, 0.7)
    tokens = [t.flatten(2) for t in (COND, UNCOND)]
    found = ours("mambo-g:scale=10,damping=0.7", FLOW_PREDICTION)
    assert close(found.flatten(2), theirs(guider, *tokens))


def test_mambo_g_defect_it_fails_on_pictures() -> None:
    """It takes the norm over three axes with a function that takes two at the most (torch 2.13): latents (B, C, H, W)
    cannot be guided, only packed tokens. Ours takes both, as above."""
    with pytest.raises(RuntimeError, match="2-tuple"):
        theirs(MagnitudeAwareGuidance(10.0), COND, UNCOND)


@pytest.mark.parametrize("phi", [0.3, 1.0])
def test_rescale_is_theirs(phi: float) -> None:
    guider = D.ClassifierFreeGuidance(5.0, guidance_rescale=phi)
    assert close(ours(f"cfg:scale=5 + rescale:phi={phi}"), theirs(guider, COND, UNCOND))


PERTURBING: list[tuple[str, Callable[..., Any], str]] = [
    ("pag", D.PerturbedAttentionGuidance, "perturbed_guidance"),
    ("slg", D.SkipLayerGuidance, "skip_layer_guidance"),
    ("seg", D.SmoothedEnergyGuidance, "seg_guidance"),
]


@pytest.mark.parametrize(("name", "cls", "prefix"), PERTURBING)
def test_branch_guidance_with_cfg_is_theirs_inside_their_window(name: str, cls: Any, prefix: str) -> None:
    guider = cls(5.0, **{f"{prefix}_scale": 2.8, f"{prefix}_stop": 0.5, f"{prefix}_layers": [0]})
    answer = theirs(guider, COND, UNCOND, WORSE)
    assert close(ours(f"cfg:scale=5 + {name}:weight=2.8"), answer)


def test_autoguidance_is_their_arithmetic() -> None:
    guider = D.AutoGuidance(2.5, auto_guidance_layers=[0], dropout=1.0)
    assert close(ours("autoguidance:scale=2.5"), theirs(guider, COND, WORSE))


@pytest.fixture
def fdg_guider(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Their frequency guider on our pyramid: it needs kornia, which nothing here does."""
    monkeypatch.setattr(fdg_module, "_CAN_USE_KORNIA", True)
    monkeypatch.setattr(fdg_module, "build_laplacian_pyramid_func", pyramid)
    monkeypatch.setattr(fdg_module, "build_image_from_pyramid", from_pyramid)
    return D.FrequencyDecoupledGuidance


def test_fdg_is_theirs_given_clean_predictions_and_all_of_the_difference(fdg_guider: Callable[..., Any]) -> None:
    guider = fdg_guider([10.0, 5.0])
    assert close(ours("fdg:scale=10,low_scale=5", SAMPLE), theirs(guider, COND, UNCOND))


# -- where they are not -----------------------------------------------------------------------------------------------


def test_apg_defect_native_space_and_null_base() -> None:
    """As it comes, the guider projects what the network predicts, keeps the parallel part (eta=1) and adds scale times
    the capped update to the null prediction: a cap then pulls towards the *unconditional* prediction."""
    guider = D.AdaptiveProjectedGuidance(7.5, adaptive_projected_guidance_rescale=1e-6)
    assert close(theirs(guider, COND, UNCOND), UNCOND, 1e-4)  # theirs: no guidance left is no condition left
    assert close(ours("apg:scale=7.5,eta=1,norm_threshold=0.000001,momentum=0"), COND, 1e-4)  # ours: conditional
    on_native = normalized_guidance(COND, UNCOND, 6.5, eta=0.0, use_original_formulation=True)
    assert not close(ours("apg:scale=7.5,momentum=0"), on_native, 1e-2)  # an epsilon network: another rule


def test_cfg_zero_defect_zero_noise_is_not_standing_still() -> None:
    """Theirs answers zeros whatever the network predicts; for epsilon, zero noise means that x is clean data already.
    Ours stands still on a flow model, and refuses others."""
    assert not theirs(D.ClassifierFreeZeroStarGuidance(5.0), COND, UNCOND, step=0).any()
    schedule, level, goal = FLOW, FLOW.level(0.9), FLOW.level(0.8)
    rule = guidance.parse("cfg-zero:zero_steps=6")
    made = Dialogue(rule, Context(X, level, level, goal, 5, 28, 0, schedule, {}), Counter()).advance(lambda wanted: [])
    assert made is not None and not made.native.any()
    assert close(goal.alpha * made.denoised + goal.sigma * made.noise, X)  # the Euler step leaves x
    with pytest.raises(UsageError, match="flow model"):
        ours(rule)


@pytest.mark.parametrize(("name", "cls", "prefix"), PERTURBING)
def test_branch_guidance_defect_without_cfg_is_one_unit_short(name: str, cls: Any, prefix: str) -> None:
    """cond = 2, perturbed = 1, s = 2.8: the rule says 4.8. Theirs is perturbed + s (cond - perturbed) = 3.8."""
    guider = cls(1.0, **{f"{prefix}_scale": 2.8, f"{prefix}_stop": 0.5, f"{prefix}_layers": [0]})
    guider.set_state(5, 28, torch.tensor(500))
    two, one = torch.full((1,), 2.0), torch.ones(1)
    assert guider.num_conditions == 2
    kinds = {"pred_cond": two, guider._input_predictions[2]: one}
    assert guider.forward(**kinds).pred.item() == pytest.approx(3.8)
    rule = guidance.make(name, weight=2.8)
    ctx = toys.context(torch.zeros(1, 1), toys.SD.level(500.0), toys.SD.level(400.0))
    made = Dialogue(rule, ctx, Counter()).advance(
        lambda wanted: [(torch.ones(1, 1) if w.ask.patch else torch.full((1, 1), 2.0), EPSILON) for w in wanted]
    )
    assert made is not None and made.native.item() == pytest.approx(4.8)


@pytest.mark.parametrize(("name", "cls", "prefix"), PERTURBING)
def test_branch_guidance_defect_without_cfg_the_network_is_not_perturbed(name: str, cls: Any, prefix: str) -> None:
    """Without CFG their second pass is given the negative prompt, and no hook is installed: an ordinary negative pass.
    Ours is the conditional branch, with its patch."""
    guider = cls(1.0, **{f"{prefix}_scale": 2.8, f"{prefix}_stop": 0.5, f"{prefix}_layers": [0]})
    guider.set_state(5, 28, torch.tensor(500))
    batches = guider.prepare_inputs({"prompt_embeds": (COND, UNCOND)})
    assert [batch.prompt_embeds is UNCOND for batch in batches] == [False, True]
    network = tiny.stable_diffusion_3().pipe.transformer
    for _ in batches:
        guider.prepare_models(network)
        assert not [m for m in network.modules() if hasattr(m, "_diffusers_hook") and m._diffusers_hook.hooks]
        guider.cleanup_models(network)
    bridge = as_guider(f"{name}:weight=2.8")
    bridge.set_state(5, 28, torch.tensor(500))
    batches = bridge.prepare_inputs({"prompt_embeds": (COND, UNCOND)})
    assert [batch.prompt_embeds is COND for batch in batches] == [True, True]


@pytest.mark.parametrize(("name", "cls", "prefix"), PERTURBING)
def test_branch_guidance_defect_the_first_step_cannot_be_reached(name: str, cls: Any, prefix: str) -> None:
    """Their window is open at its start: 0.01 to 0.2 of 28 steps is steps 1 to 4, and from 0.0 on it is the same.
    Their CFG's window, and ours, hold their start."""
    guider = cls(5.0, **{f"{prefix}_start": 0.0, f"{prefix}_stop": 0.2, f"{prefix}_layers": [0]})
    cfg = D.ClassifierFreeGuidance(5.0, start=0.0, stop=0.2)
    inside: dict[str, list[int]] = {"branch": [], "cfg": [], "ours": []}
    window = guidance.Interval(0.0, 0.2, "fraction")
    for step in range(28):
        guider.set_state(step, 28, torch.tensor(500))
        cfg.set_state(step, 28, torch.tensor(500))
        ctx = toys.context(X, toys.SD.level(500.0), toys.SD.level(400.0), step, 28)
        inside["branch"] += [step] * (guider.num_conditions == 3)
        inside["cfg"] += [step] * (cfg.num_conditions == 2)
        inside["ours"] += [step] * window.inside(ctx)
    assert inside == {"branch": [1, 2, 3, 4], "cfg": [0, 1, 2, 3, 4], "ours": [0, 1, 2, 3, 4, 5]}  # 5 / 28 < 0.2


def test_pag_defect_defaults_are_those_of_skipped_layers() -> None:
    """2.8 in steps 1 to 4; the paper and the library's own PAG pipelines have 3.0 in all steps, as ours has."""
    guider = D.PerturbedAttentionGuidance(perturbed_guidance_layers=[0])
    assert (guider.skip_layer_guidance_scale, guider.skip_layer_guidance_stop) == (2.8, 0.2)
    assert guidance.PAG().weight == 3.0


def test_tcfg_defect_is_conditional_raises() -> None:
    """It reads an attribute that is never set (diffusers#14794)."""
    with pytest.raises(AttributeError):
        D.TangentialClassifierFreeGuidance(5.0).is_conditional
    assert as_guider("tcfg", tiny.ddim(), "epsilon").is_conditional


def test_fdg_defect_needs_kornia_native_space_and_null_base(fdg_guider: Callable[..., Any]) -> None:
    """With a part of the parallel difference it builds on the null prediction's bands, and the parallel part that is
    taken away pulls back towards that; ours builds on the conditional one, as the paper does."""
    equal = fdg_guider([3.0, 3.0], parallel_weights=0.0)
    rule = "fdg:scale=3,low_scale=3,parallel=0"
    assert not close(ours(rule, SAMPLE), theirs(equal, COND, UNCOND), 1e-2)
    paper = fdg_guider([2.0, 2.0], parallel_weights=0.0, use_original_formulation=True)
    assert close(ours(rule, SAMPLE), theirs(paper, COND, UNCOND))  # scale - 1, on the conditional bands
    assert not close(
        ours("fdg:scale=3,low_scale=1"), theirs(fdg_guider([3.0, 1.0001], parallel_weights=0.0), COND, UNCOND)
    )


def test_fdg_defect_a_level_at_rest_is_unset_or_stale(fdg_guider: Callable[..., Any]) -> None:
    """A band whose scale is 1 takes over the conditional band of the level before (diffusers#14643), and the first one
    has none. Ours leaves that band conditional."""
    with pytest.raises(UnboundLocalError):
        theirs(fdg_guider([1.0, 3.0]), COND, UNCOND)
    right = from_pyramid([pyramid(3 * COND - 2 * UNCOND, 2)[0], pyramid(COND, 2)[1]])
    assert close(ours("fdg:scale=3,low_scale=1", SAMPLE), right)
    assert not close(
        theirs(fdg_guider([3.0, 1.0]), COND, UNCOND), right, 0.1
    )  # the fine band in the coarse one's place
    assert close(ours("fdg:scale=1,low_scale=3", SAMPLE), from_pyramid(
        [pyramid(COND, 2)[0], pyramid(COND, 2)[1] + 2 * pyramid(COND - UNCOND, 2)[1]]
    ))  # fmt: skip


def test_autoguidance_defect_the_weak_pass_has_the_negative_prompt() -> None:
    """Layers of the same network are left out *and* the condition is taken away; the paper keeps the condition, which
    is its point. Ours gives the weak network the same one."""
    guider = D.AutoGuidance(2.0, auto_guidance_layers=[0], dropout=1.0)
    guider.set_state(5, 28, torch.tensor(500))
    assert guider.prepare_inputs({"x": (COND, UNCOND)})[1].x is UNCOND
    seen: list[Tensor] = []

    @dataclass
    class Net:
        schedule: ClassVar[Any] = toys.SD

        def __call__(self, x: Tensor, level: Any, condition: Tensor) -> Any:
            seen.append(condition)
            return toys.spoken(x, level, condition, EPSILON)

    given = {"cond": COND, "uncond": UNCOND}
    guidance.Guided({"main": Net(), "weak": Net()}, guidance.Autoguidance(2.0), given)(X, toys.SD.level(500.0))
    assert len(seen) == 2 and all(condition is COND for condition in seen)


def test_seg_defect_the_blurs_are_exchanged() -> None:
    """A finite sigma gives the mean of all queries, and an infinite one a box: seg_blur_sigma=1 acts as infinite blur.
    Ours at sigma = 1 keeps what is where, and at infinity is the mean."""
    query = toys.normal(1, 64, 4, seed=8)
    finite = _gaussian_blur_2d(query.clone(), 7, 1.0, 9999.0)
    assert close(finite, query.mean(1, keepdim=True).expand_as(query))
    assert not close(
        _gaussian_blur_2d(query.clone(), 7, 1e6, 9999.0), query.mean(1, keepdim=True).expand_as(query), 0.1
    )
    line = blur(8, 1.0, query)
    smooth = torch.einsum("ih,bhwd,jw->bijd", line, query.unflatten(1, (8, 8)), line).flatten(1, 2)
    assert not close(smooth, query.mean(1, keepdim=True).expand_as(query), 0.1)


def test_seg_defect_hooks_are_never_installed() -> None:
    """Its counter of prepared calls stays at zero, so that the smoothed pass is an ordinary one, CFG or not."""
    guider = D.SmoothedEnergyGuidance(5.0, seg_guidance_layers=[0])
    guider.set_state(5, 28, torch.tensor(500))
    network = tiny.stable_diffusion_3().pipe.transformer
    for _ in guider.prepare_inputs({"x": (COND, UNCOND)}):
        guider.prepare_models(network)
        guider.cleanup_models(network)
    assert guider.get_state()["count_prepared"] == 0


def test_dynamic_thresholding_defect_is_plain_clipping() -> None:
    """sample_max_value is 1.0 unless it is raised, so the quantile has no effect; ours has no ceiling unless told."""
    scheduler = D.DDIMScheduler(thresholding=True)
    wide = COND * 3
    assert close(scheduler._threshold_sample(wide.float()), wide.float().clamp(-1, 1), 1e-6)
    mine = guidance.parse("none + threshold:percentile=0.995")
    ctx = toys.context(X, toys.SD.level(500.0), toys.SD.level(400.0))
    made = Dialogue(mine, ctx, Counter()).advance(lambda wanted: [(wide, SAMPLE) for _ in wanted])
    assert made is not None and not close(made.denoised, wide.clamp(-1, 1), 0.1) and made.denoised.abs().max() <= 1


def test_window_defect_moves_with_the_number_of_steps() -> None:
    """Fractions of the step count are all that guiders know: on a shifted flow the noise levels inside differ by a
    factor. Ours are levels, and hold at any number of steps."""
    few, many = (D.FlowMatchEulerDiscreteScheduler(shift=3.0) for _ in range(2))
    few.set_timesteps(4)
    many.set_timesteps(28)
    edges = []
    for scheduler, steps in ((few, 4), (many, 28)):
        guider = D.ClassifierFreeGuidance(5.0, start=0.0, stop=0.5)
        inside = []
        for step in range(steps):
            guider.set_state(step, steps, scheduler.timesteps[step])
            inside += [float(scheduler.sigmas[step])] * (guider.num_conditions == 2)
        edges.append(min(inside))
    rho = [sigma / (1 - sigma) for sigma in edges]
    assert rho[0] / rho[1] > 1.5


# -- our rules as guiders ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def xl() -> tiny.Case:
    return tiny.stable_diffusion_xl()


@pytest.fixture(scope="module")
def modular(xl: tiny.Case) -> Callable[[Any], Tensor]:
    """A modular SDXL of the same parts; calls it with a guider."""
    from diffusers.modular_pipelines import StableDiffusionXLAutoBlocks

    pipe = StableDiffusionXLAutoBlocks().get_workflow("text2image").init_pipeline()
    parts = ("unet", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler")
    pipe.update_components(**{name: getattr(xl.pipe, name) for name in parts})
    pipe.update_components(force_zeros_for_empty_prompt=xl.pipe.config.force_zeros_for_empty_prompt)
    pipe.set_progress_bar_config(disable=True)

    def run(guider: Any) -> Tensor:
        pipe.update_components(guider=guider, scheduler=xl.pipe.scheduler)
        generator = [torch.Generator().manual_seed(seed) for seed in xl.seeds]
        size = {"height": 16, "width": 16, "output_type": "latent", "num_inference_steps": 4}
        return pipe(prompt=tiny.TWO_PROMPTS, generator=generator, output="images", **size)

    return run


EXPRESSIBLE = [
    "none",
    "cfg:scale=5",
    "apg:scale=8,norm_threshold=3",
    "cfg:scale=5 + rescale",
    "cfg:scale=5 + interval:low=1,high=20",
    "cfg:scale=5 + schedule",
    "tcfg:scale=5",
    "fdg:scale=5,low_scale=3",
    "mambo-g",
    "feedback:scale=3",
    "cfg:scale=5 + higs:low=0",
    "pag:weight=2",
    "cfg:scale=3 + seg:weight=2,sigma=1",
    "cfg:scale=5 + threshold:mimic_scale=3",
]


@pytest.mark.parametrize("line", EXPRESSIBLE)
def test_a_rule_in_a_modular_pipeline_is_that_rule_under_attach(
    xl: tiny.Case, modular: Callable[[Any], Tensor], line: str
) -> None:
    with pilotage.attach(xl.pipe, line) as attached:
        wanted = tiny.run(xl)
    calls: Counter[str] = Counter()
    hook = xl.pipe.unet.register_forward_hook(lambda *_: calls.update(["calls"]))
    guider = as_guider(line, xl.pipe.scheduler)
    try:
        found = modular(guider)
    finally:
        hook.remove()
    assert (found - wanted).abs().max() < 2e-5 * max(1.0, float(wanted.abs().max()))
    assert calls["calls"] * 2 == sum(attached.evaluations.values())  # two pictures a call; skips are skipped
    assert not xl.pipe.unet._forward_pre_hooks and "forward" not in vars(xl.pipe.unet)
    if line.startswith("apg") or "interval" in line:
        assert torch.equal(modular(guider), found)  # a second run starts anew


@pytest.mark.parametrize("scheduler", [D.EDMEulerScheduler(), D.HeunDiscreteScheduler(), D.EulerDiscreteScheduler()],
                         ids=lambda s: type(s).__name__)  # fmt: skip
def test_the_guider_reads_scaled_inputs_and_second_stages_from_the_scheduler(
    xl: tiny.Case, modular: Callable[[Any], Tensor], scheduler: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """x, level and stage, for a rule with momentum whose home is the clean estimate."""
    monkeypatch.setattr(xl.pipe, "scheduler", scheduler)
    with pilotage.attach(xl.pipe, "apg:scale=6"):
        wanted = tiny.run(xl)
    found = modular(as_guider("apg:scale=6", scheduler))
    assert (found - wanted).abs().max() < 5e-5 * max(1.0, float(wanted.abs().max()))


def test_rules_that_only_combine_need_no_scheduler(modular: Callable[[Any], Tensor]) -> None:
    assert torch.allclose(modular(as_guider("cfg:scale=5")), modular(D.ClassifierFreeGuidance(5.0)), atol=1e-5)
    with pytest.raises(UsageError, match=r"as_guider\(rule, pipe.scheduler\)"):
        modular(as_guider("apg"))
    with pytest.raises(UsageError, match=r"as_guider\(rule, pipe.scheduler\)"):
        modular(as_guider("cfg + interval:low=0.3"))


def test_a_guider_is_copied_saved_and_switched_off(tmp_path: Any, xl: tiny.Case) -> None:
    guider = as_guider("apg:scale=8 + pag", xl.pipe.scheduler)
    assert guider.config["guidance"] == "apg:scale=8 + pag"
    copy = guider.new()
    assert copy.rule == guider.rule and copy.scheduler is guider.scheduler
    guider.save_pretrained(tmp_path)
    assert RuleGuider.from_pretrained(tmp_path).rule == guider.rule
    guider.disable()
    guider.set_state(0, 4, torch.tensor(999))
    (batch,) = guider.prepare_inputs({"x": (COND, UNCOND)})
    batch.noise_pred = COND
    assert guider.num_conditions == 1 and guider([batch]).pred is COND
    assert as_guider("cfg").num_conditions == 2 and as_guider("none").num_conditions == 1  # before a run


REFUSED = [
    ("cfg + adaptive", "row by row"),
    ("cfg:scale=[1,4]", "row by row"),
    ("cfg++", "re-noises"),
    ("cfg + dps:loss=colour,target=red", "re-noises"),
    ("cfg + ugd:loss=colour,target=red", "gradient through the network"),
    ("rectified-cfg++", "another point"),
    ("cfg-mp", "another point"),
    ("cfg + sag", "another point"),
    ("cfg + icg", "edits the conditioning"),
    ("cfg + cads", "edits the conditioning"),
    ("autoguidance", "only a prompt and a negative one"),
    ("image-cfg", "only a prompt and a negative one"),
    ("composable:prompts=a:2", "only a prompt and a negative one"),
    ("nag", "one network call"),
]


@pytest.mark.parametrize(("line", "reason"), REFUSED)
def test_what_a_guider_cannot_express_is_refused_when_it_is_made(line: str, reason: str) -> None:
    with pytest.raises(UsageError, match=reason) as refused:
        as_guider(line)
    assert "attach" in str(refused.value) and "\n" not in str(refused.value)


def test_every_rule_is_expressible_or_refused_in_one_line() -> None:
    outcomes = {}
    for name in RULES:
        line = f"cfg + {name}" if issubclass(RULES[name].load(), Modifier) else name
        try:
            outcomes[name] = as_guider(line) is not None
        except UsageError as error:
            assert "\n" not in str(error)
            outcomes[name] = False
    assert {"cfg", "apg", "pag", "seg", "slg", "tpg", "tcfg", "fdg", "interval", "rescale"} <= {
        name for name, expressible in outcomes.items() if expressible
    }
    assert not outcomes["cfg++"] and not outcomes["adaptive"] and not math.prod(outcomes.values())
