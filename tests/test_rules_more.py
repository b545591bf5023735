"""Rules by random sub-networks, policies, walls, windows; further prompts, packed latents and fits in pipelines."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import guidance_toys as toys
import peft
import pytest
import tiny
import torch
from diffusers import DDPMScheduler
from torch import Tensor

from pilotage import guidance, samplers
from pilotage.cli.main import run as command
from pilotage.errors import UsageError
from pilotage.guidance import CFG, Autoguidance, Guided, Reflect, SlidingWindow, StepPolicy, attach, fit_linear
from pilotage.guidance.areas import Area, confined
from pilotage.guidance.attention.layers import blocks
from pilotage.guidance.attention.s2 import S2, DroppedBlocks
from pilotage.guidance.attention.tsg import TSG, NoisyTime
from pilotage.guidance.cfg_mp import CFGMP
from pilotage.guidance.composable import Composable
from pilotage.guidance.dialogue import Dialogue
from pilotage.guidance.modifiers.linear import LinearCoefficients
from pilotage.guidance.modifiers.reflect import folded
from pilotage.guidance.modifiers.schedule import WeightSchedule
from pilotage.guidance.packing import Packing, packing_of_ids
from pilotage.guidance.pipelines.origin import network_name
from pilotage.guidance.policy import Choice, choices
from pilotage.guidance.reduce import dot
from pilotage.guidance.registry import RULES
from pilotage.guidance.rule import Ask, Context, Guide, Rule
from pilotage.guidance.sega import SEGA, largest
from pilotage.guidance.spatial import from_pyramid, pyramid
from pilotage.samplers.denoiser import NetworkDenoiser
from pilotage.samplers.prediction import EPSILON, FLOW_PREDICTION, SAMPLE, V_PREDICTION, Prediction
from pilotage.samplers.schedule import RectifiedFlow, stable_diffusion_schedule

SD, FLOW = stable_diffusion_schedule(), RectifiedFlow()
X = toys.normal(3, 4, 4, seed=9)
CFG3, FREE = CFG(3.0), guidance.Unguided()


def made(rule: Rule | str, kind: Any = SAMPLE, schedule: Any = toys.SD) -> Guided:
    rule = guidance.parse(rule) if isinstance(rule, str) else rule
    names = ("cond", "uncond", "prompt:a", "prompt:b")
    given = {name: toys.normal(3, 4, 4, seed=20 + i) for i, name in enumerate(names)}
    return toys.guided(rule, kind=kind, schedule=schedule, given=given)


def run(guided: Guided, x: Tensor = X, **settings: Any) -> Tensor:
    return samplers.sample(guided, x, **{"sampler": "euler", "grid": "trailing", "steps": 6, **settings})


def answered(rule: Rule, natives: dict[Any, Tensor], kind: Any = SAMPLE, ctx: Context | None = None) -> Prediction:
    """The rule's prediction when the branches (a perturbed one by its patch's class) answer these tensors."""
    x = next(iter(natives.values()))
    ctx = ctx or toys.context(torch.zeros_like(x), toys.SD.level(500.0), toys.SD.level(400.0))
    dialogue = Dialogue(rule, ctx, Counter())
    result = dialogue.advance(
        lambda wanted: [(natives[type(w.ask.patch) if w.ask.patch else w.ask.branch], kind) for w in wanted]
    )
    assert result is not None
    return result


# -- limits -----------------------------------------------------------------------------------------------------------

LIMITS: list[tuple[Rule, Rule]] = [
    (StepPolicy("cond"), FREE),
    (StepPolicy("3"), CFG3),
    (StepPolicy("3*99"), CFG3),
    (Reflect(inner=CFG3), CFG3),
    (Reflect(-1e9, 1e9, inner=CFG3), CFG3),
    (Reflect(-1e9, 1e9, "clip", inner=CFG3), CFG3),
    (Reflect(-1.0, 1.0, start=0.0, inner=CFG3), CFG3),
    (SlidingWindow(0, inner=CFG3), CFG3),
    (SlidingWindow(3, low=0.4, high=0.4, inner=CFG3), CFG3),
    (Autoguidance(3.0, mix=0.0), CFG3),
    (Autoguidance(1.0, mix=0.5), FREE),
    (S2(1.0, 0.0), FREE),
    (S2(3.0, 0.0), CFG3),
    (S2(3.0, drop=0.0), CFG3),
    (S2(3.0, low=0.5, high=0.5), CFG3),
    (TSG(0.0), FREE),
    (Composable(3.0, "a:2", "a:0-1/0-1"), Composable(3.0, "a:2")),
    (WeightSchedule("exponential", power=0.0, inner=CFG3), CFG3),
    (WeightSchedule("constant", of="scale", inner=CFG3), CFG3),
]


@pytest.mark.parametrize("kind", [SAMPLE, EPSILON, V_PREDICTION], ids=lambda k: k.name)
@pytest.mark.parametrize(("rule", "plain"), LIMITS, ids=lambda v: repr(v)[:60])
def test_limits_equal_the_simpler_rule_and_cost_as_much(rule: Rule, plain: Rule, kind: Any) -> None:
    a, b = made(rule, kind), made(plain, kind)
    close = 1e-11 * isinstance(rule, Reflect)  # there and back
    assert (run(a) - run(b)).abs().max() <= close and a.evaluations == b.evaluations


@pytest.mark.parametrize("name", ["s2", "tsg", "policy", "reflect", "sliding-window"])
def test_the_entries_say_what_a_reader_needs(name: str) -> None:
    spec = RULES[name]
    assert all((spec.summary, spec.paper, spec.cost, spec.space, spec.notes)) and spec.off
    assert set(spec.off) <= set(spec.defaults) and set(spec.limits) == set(spec.defaults)
    assert ("xperimental" in spec.notes) == (name in ("s2", "tsg", "sliding-window"))
    assert guidance.explain(name).parts[0].notes == spec.notes


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("policy:plan=''", "empty"),
        ("policy:plan='3*0'", "how often"),
        ("policy:plan='cnd'", "cannot read 'cnd'"),
        ("policy:plan='linear'", "cannot read"),
        ("policy:plan='3 linear:3'", "needs file"),
        ("reflect:low=-1", "both walls"),
        ("reflect:low=2,high=1", "below"),
        ("reflect:what=bounce", "clip, fold or fold-x"),
        ("sliding-window:size=-1", "negative"),
        ("sliding-window:noise=2", r"outside \[0, 1\]"),
        ("autoguidance:weak=ema", "unknown"),
        ("autoguidance:mix=2", "outside"),
        ("s2:drop=1", "outside"),
        ("tsg:noise=-1", "negative"),
        ("cfg-mp:mixing=yes", "none or anderson"),
        ("cfg-mp:place=there", "before"),
        ("cfg + schedule:of=all", "excess"),
        ("cfg + schedule:shape=power,power=0", "above 0"),
        ("composable:prompts=a,areas=b:left", "no prompt 'b'"),
        ("composable:prompts=a,areas=a:middle", "unknown area"),
        ("composable:prompts=a,areas=a:0.5-0.2/0-1", "unknown area"),
        ("composable:prompts=a,areas=a", "write each prompt once"),
    ],
)
def test_bad_settings_are_refused_in_words(line: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        guidance.parse(line)


# -- step policies ----------------------------------------------------------------------------------------------------


def test_a_policy_is_a_choice_a_step() -> None:
    assert choices("2.5*2 uncond linear:4") == (Choice("cfg", 2.5),) * 2 + (
        Choice("uncond", 0.0),
        Choice("linear", 4.0),
    )
    guided = made(StepPolicy("5 cond 2 uncond cond"))
    steps = list(samplers.iterate(guided, X, sampler="euler", grid="trailing", steps=6))
    assert guided.evaluations == {"cond": 15, "uncond": 9}
    assert [step["scale"] for step in guided.steps] == [5.0, 1.0, 2.0, 0.0, 1.0, 1.0]
    x = X
    for rule, step in zip((CFG(5.0), FREE, CFG(2.0), CFG(0.0), FREE, FREE), steps, strict=True):
        plain = list(samplers.iterate(made(rule), x, sampler="euler", grid=step.state.levels[step.index :], steps=1))
        x = plain[0].x
        assert (step.x - x).abs().max() < 1e-12


# -- autoguidance -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [EPSILON, FLOW_PREDICTION])
def test_autoguidance_shares_its_scale_with_cfg(kind: Any) -> None:
    """Appendix B.2 in its free form, one scale a row, the weak network of another kind."""
    scale, mix = torch.tensor([4.0, 1.0, 2.0]).reshape(3, 1, 1), 0.3
    guided = made(Autoguidance((4.0, 1.0, 2.0), mix=mix), kind, FLOW)
    guided.networks["weak"] = toys.Toy(V_PREDICTION, 0.8, FLOW)
    level = FLOW.level(0.6)
    strong, null = (toys.Toy(kind, schedule=FLOW)(X, level, guided.conditions[b]).denoised for b in ("cond", "uncond"))
    weak = toys.Toy(kind, 0.8, FLOW)(X, level, guided.conditions["cond"]).denoised
    wanted = strong + (scale - 1) * ((1 - mix) * (strong - null) + mix * (strong - weak))
    assert torch.allclose(guided(X, level).denoised, wanted, atol=1e-12)
    assert guided.evaluations == {"cond": 3, "uncond": 2, "weak": 2}
    assert Autoguidance(mix=0.5).needs == ("cond", "weak", "uncond") and Autoguidance(weak="skip").needs == ("cond",)


# -- by perturbed networks --------------------------------------------------------------------------------------------


class Transformer(torch.nn.Module):
    """The tiny SD3 with six blocks, called as denoisers call networks."""

    def __init__(self) -> None:
        super().__init__()
        import diffusers as D

        torch.manual_seed(0)
        self.network: Any = D.SD3Transformer2DModel(
            sample_size=8, patch_size=1, in_channels=4, num_layers=6, attention_head_dim=8, num_attention_heads=4,
            caption_projection_dim=32, joint_attention_dim=32, pooled_projection_dim=64, out_channels=4,
            pos_embed_max_size=96,
        ).eval()  # fmt: skip
        for parameter in self.network.parameters():
            if not bool(parameter.abs().sum() > 0):
                parameter.data = torch.randn_like(parameter) * 0.2

    def forward(self, x: Tensor, time: Tensor, **given: Any) -> Any:
        return self.network(x, timestep=time, **given)


LATENTS = toys.normal(2, 4, 8, 8, dtype=torch.float32)
TEXTS = {
    name: {
        "encoder_hidden_states": toys.normal(2, 7, 32, seed=seed, dtype=torch.float32),
        "pooled_projections": toys.normal(2, 64, seed=seed, dtype=torch.float32),
    }
    for name, seed in (("cond", 1), ("uncond", 2))
}


@pytest.fixture(scope="module", name="six")
def _six() -> Transformer:
    return Transformer()


def native(rule: Rule, network: Any, level: Any = None, x: Tensor = LATENTS, texts: Any = TEXTS) -> tuple[Tensor, Any]:
    guided = Guided({"main": NetworkDenoiser(network, FLOW, "flow_prediction")}, rule, texts)
    with torch.no_grad():
        return guided(x, level or FLOW.level(0.6)).native, guided.evaluations


def test_s2_draws_a_block_a_step_and_never_the_first(six: Transformer) -> None:
    root = six.network
    names = [name for name, _ in blocks(root)]
    seen: Counter[str] = Counter()
    for seed in range(40):
        dropped = [module for module, _ in DroppedBlocks("", 0.1, seed).changes(root, None)]  # type: ignore[arg-type]
        assert len(dropped) == 1
        seen[next(name for name, module in blocks(root) if module is dropped[0])] += 1
    assert set(seen) == set(names[1:])
    many = DroppedBlocks("", 0.5, 1)
    assert len(many.changes(root, None)) == 3 and many == DroppedBlocks("", 0.5, 1)  # type: ignore[arg-type]
    assert len(DroppedBlocks("", 0.99, 1).changes(root, None)) == 5  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="no other"):
        DroppedBlocks().default(blocks(root)[:1])


def test_s2_is_its_equation(six: Transformer) -> None:
    rule = S2(4.0, 0.5, seed=3)
    guided, cost = native(rule, six)
    (null, _), (cond, _) = (native(r, six) for r in (CFG(0.0), FREE))
    patch = rule_patch(rule)
    dropped_one = next(m for m, _ in patch.changes(six.network, None))
    with skipping(dropped_one):
        bad, _ = native(FREE, six)
    assert (bad - cond).abs().max() > 1e-3
    assert torch.allclose(guided, null + 4.0 * (cond - null) - 0.5 * (bad - cond), atol=1e-5)
    assert cost == {"cond": 4, "uncond": 2}
    assert not [n for n, part in six.network.named_modules() if "forward" in part.__dict__]
    outside, cost = native(rule, six, FLOW.level(0.95))
    assert cost == {"cond": 2, "uncond": 2}
    assert torch.equal(outside, native(CFG(4.0), six, FLOW.level(0.95))[0])
    rows, cost = native(S2((4.0, 1.0), 0.5, seed=3), six)
    assert torch.allclose(rows[0], guided[0], atol=1e-5) and cost == {"cond": 4, "uncond": 1}
    assert torch.allclose(rows[1], (cond + 0.5 * (cond - bad))[1], atol=1e-5)


def rule_patch(rule: Any) -> Any:
    """The patch that the rule asks for at the first step."""
    guide = rule.guide(toys.context(LATENTS, FLOW.level(0.6), FLOW.level(0.5)))
    asks = next(guide)
    guide.close()
    return next(ask.patch for ask in asks if ask.patch)


@contextmanager
def skipping(block: Any) -> Iterator[None]:
    """A joint block that hands on what it was given, by hand."""
    block.forward = lambda hidden_states, encoder_hidden_states, *a, **k: (encoder_hidden_states, hidden_states)
    try:
        yield
    finally:
        del block.forward


@dataclass(frozen=True)
class Patches(Rule):
    """Notes the patches of a rule's asks."""

    inner: Rule
    seen: list[Any]
    passes: ClassVar[int] = 0

    def guide(self, ctx: Context) -> Guide:
        guide = self.inner.guide(ctx)
        self.seen.append(next(ask.patch for ask in next(guide) if ask.patch))  # type: ignore[union-attr, arg-type]
        guide.close()
        (cond,) = yield (Ask(),)
        return cond


@pytest.mark.parametrize("rule", [S2(low=0.0, high=1.0), TSG(power=0.0)], ids=["s2", "tsg"])
def test_draws_are_new_at_each_step_and_the_same_again(rule: Any) -> None:
    runs = []
    for seed in (0, 0, 1):
        seen: list[Any] = []
        run(made(Patches(replace(rule, seed=seed), seen)))
        runs.append(seen)
    assert runs[0] == runs[1] and len(set(runs[0])) == 6 and not set(runs[0]) & set(runs[2])


def test_tsg_is_its_equation() -> None:
    """Against a network whose time embedding is moved by hand; a row alone is that row."""
    unet = tiny.unet()
    texts = {"cond": {"encoder_hidden_states": toys.normal(2, 7, 32, seed=1, dtype=torch.float32)}}
    rule = TSG(1.5, noise=0.7, power=2.0, seed=5)
    guided, cost = native(rule, unet, FLOW.level(0.6), LATENTS, texts)
    cond, _ = native(FREE, unet, FLOW.level(0.6), LATENTS, texts)
    patch = rule_patch(rule)
    assert isinstance(patch, NoisyTime) and patch.noise == pytest.approx(0.7 * 0.6**2)

    def moved(module: Any, args: Any, out: Tensor) -> Tensor:
        noise = torch.randn(out.shape[-1], generator=torch.Generator().manual_seed(patch.seed))
        return out + 0.7 * 0.6**2 * out.std(-1, correction=0, keepdim=True) * noise

    handle = unet.time_embedding.register_forward_hook(moved)
    bad, _ = native(FREE, unet, FLOW.level(0.6), LATENTS, texts)
    handle.remove()
    assert (bad - cond).abs().max() > 1e-3 and cost == {"cond": 4}
    assert torch.allclose(guided, cond + 1.5 * (cond - bad), atol=1e-5)
    one = {"cond": {"encoder_hidden_states": texts["cond"]["encoder_hidden_states"][1:]}}
    assert torch.allclose(native(rule, unet, FLOW.level(0.6), LATENTS[1:], one)[0], guided[1:], atol=1e-5)
    assert torch.equal(native(TSG(1.5, noise=0.0), unet, FLOW.level(0.6), LATENTS, texts)[0], cond)


@pytest.mark.parametrize("name", ["SD3", "Flux", "DiT", "SDXL"])
def test_tsg_finds_the_time_embedders_alone(name: str) -> None:
    cases: dict[str, Any] = {"SD3": tiny.stable_diffusion_3, "Flux": tiny.flux, "DiT": tiny.dit}
    pipe = {**cases, "SDXL": tiny.stable_diffusion_xl}[name]().pipe
    root = pipe.unet if name == "SDXL" else pipe.transformer
    found = [module for module, _ in NoisyTime().changes(root, None)]  # type: ignore[arg-type]
    names = [n for n, module in root.named_modules() if any(module is f for f in found)]
    assert (
        names
        == {
            "SD3": ["time_text_embed.timestep_embedder"],
            "Flux": ["time_text_embed.timestep_embedder"],
            "DiT": [f"transformer_blocks.{i}.norm1.emb.timestep_embedder" for i in range(2)],
            "SDXL": ["time_embedding"],
        }[name]
    )
    if name == "DiT":
        assert len(NoisyTime("1").changes(root, None)) == 1  # type: ignore[arg-type]


def test_autoguidance_by_skipping_layers(six: Transformer) -> None:
    guided, cost = native(Autoguidance(3.0, weak="skip", layers="2"), six)
    cond, _ = native(FREE, six)
    with skipping(dict(blocks(six.network))["transformer_blocks.2"]):
        bad, _ = native(FREE, six)
    assert torch.allclose(guided, bad + 3.0 * (cond - bad), atol=1e-5) and cost == {"cond": 4}


def test_autoguidance_by_switching_a_lora_off() -> None:
    unet = tiny.unet()
    texts = {"cond": {"encoder_hidden_states": toys.normal(2, 7, 32, seed=1, dtype=torch.float32)}}
    rule, level = Autoguidance(3.0, weak="lora"), FLOW.level(0.6)
    with pytest.raises(UsageError, match="no LoRA"):
        native(rule, unet, level, LATENTS, texts)
    bad, _ = native(FREE, unet, level, LATENTS, texts)
    unet.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
    good, _ = native(FREE, unet, level, LATENTS, texts)
    assert (good - bad).abs().max() > 1e-3
    guided, _ = native(rule, unet, level, LATENTS, texts)
    assert torch.allclose(guided, bad + 3.0 * (good - bad), atol=1e-4)
    assert torch.equal(native(FREE, unet, level, LATENTS, texts)[0], good)
    unet.fuse_lora()
    with pytest.raises(UsageError, match="unfuse"):
        native(rule, unet, level, LATENTS, texts)


# -- walls ------------------------------------------------------------------------------------------------------------


def test_folding() -> None:
    """The card: identity inside, idempotent, periodic, even about each wall, and 1-Lipschitz."""
    x = torch.linspace(-9, 9, 1801, dtype=torch.float64)
    y = folded(x, -1.0, 1.0)
    assert folded(torch.tensor([1.2, -1.3, 3.2]), -1.0, 1.0).tolist() == pytest.approx([0.8, -0.7, -0.8])
    inside = x.abs() <= 1
    assert torch.equal(y[inside], x[inside]) and y.abs().max() <= 1 and torch.equal(folded(y, -1.0, 1.0), y)
    assert torch.allclose(folded(x + 4, -1.0, 1.0), y, atol=1e-12)
    assert torch.allclose(folded(2 - x, -1.0, 1.0), y, atol=1e-12)
    assert torch.allclose(folded(-2 - x, -1.0, 1.0), y, atol=1e-12)
    assert (y.diff().abs() <= x.diff() + 1e-12).all()
    assert torch.allclose(folded(3 * x + 5, 2.0, 8.0), 3 * folded(x, -1.0, 1.0) + 5, atol=1e-12)


@pytest.mark.parametrize(("what", "inside"), [("fold", folded), ("clip", torch.clamp)])
@pytest.mark.parametrize("kind", [SAMPLE, V_PREDICTION], ids=lambda k: k.name)
def test_reflecting_the_clean_estimate(what: str, inside: Any, kind: Any) -> None:
    guided, level = made(Reflect(-0.4, 0.6, what, inner=CFG3), kind), toys.SD.level(500.0)
    plain = made(CFG3, kind)(X, level).denoised
    assert torch.allclose(guided(X, level).denoised, inside(plain, -0.4, 0.6), atol=1e-12)
    late = made(Reflect(-0.4, 0.6, what, start=0.2, inner=CFG3), kind)
    assert torch.equal(late(X, level).native, made(CFG3, kind)(X, level).native)


def test_reflecting_x_after_each_step() -> None:
    """Explicit Euler with a fold, as in the authors' fixed-grid solver; the walls also hold under a pipeline."""
    guided = made(Reflect(-1.0, 1.0, "fold-x", inner=CFG(15.0)), FLOW_PREDICTION, FLOW)
    x = start = X.clamp(-1, 1)
    for step in samplers.iterate(guided, start, sampler="euler", grid="flow", steps=6):
        now, goal = step.state.levels[step.index : step.index + 2]
        velocity = made(CFG(15.0), FLOW_PREDICTION, FLOW)(x, now).native
        x = folded(x + (goal.sigma - now.sigma) * velocity, -1.0, 1.0)
        assert torch.allclose(step.x, x, atol=1e-10) and step.x.abs().max() <= 1
    case = tiny.stable_diffusion_3()
    with attach(case.pipe, "cfg:scale=15 + reflect:low=-0.5,high=0.5,what=fold-x"):
        assert tiny.run(case).abs().max() <= 0.5 + 1e-6
    case = tiny.text_to_image()
    with attach(case.pipe, "cfg:scale=15 + reflect:low=-0.5,high=0.5,what=clip"):
        reached = float(tiny.run(case).abs().max())
    assert reached < 0.7  # DDIM here ends a little before clean data


# -- the sliding window -----------------------------------------------------------------------------------------------


@dataclass
class Told:
    """A denoiser whose clean estimate is what it is told, whatever x is."""

    clean: Tensor
    schedule: Any = SD

    def __call__(self, x: Tensor, level: Any, condition: Any = None) -> Prediction:
        return toys.spoken(x, level, self.clean.expand_as(x), SAMPLE)


@pytest.mark.parametrize("schedule", [SD, FLOW], ids=["vp", "flow"])
@pytest.mark.parametrize("size", [1, 3, 99])
def test_any_window_has_the_right_marginals(schedule: Any, size: int) -> None:
    """With the exact x_0, x' is alpha' x_0 + sigma' noise for every size; 40,000 numbers a row."""
    clean = torch.full((1, 1), 0.7, dtype=torch.float64)
    guided = Guided(Told(clean, schedule), SlidingWindow(size))  # type: ignore[arg-type]
    grid = tuple(schedule.level_of_rho(rho) for rho in (9.0, 4.0, 2.0, 1.0, 0.5))
    x = grid[0].alpha * 0.7 + grid[0].sigma * toys.normal(2, 40_000, seed=4)
    for step in samplers.iterate(guided, x, sampler="euler", grid=grid, steps=4):
        goal = grid[step.index + 1]
        assert (step.x.mean(1) - goal.alpha * 0.7).abs().max() < 0.03 * goal.sigma + 1e-3
        assert (step.x.std(1) / goal.sigma - 1).abs().max() < 0.02


def test_a_window_of_one_is_an_ancestral_step() -> None:
    """The mean and variance of diffusers' DDPM step, from the noise that was drawn."""
    rule = SlidingWindow(1, inner=CFG3)
    quiet, noisy = (made(replace(rule, noise=noise)) for noise in (0.0, 1.0))
    ddpm = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False)
    grid = (toys.SD.level(700.0), toys.SD.level(699.0), toys.SD.level(698.0))
    step = next(iter(samplers.iterate(noisy, X, sampler="euler", grid=grid, steps=2)))
    eps = made(CFG3)(X, grid[0]).noise
    mean = ddpm.step(eps, 700, X, generator=torch.Generator().manual_seed(0))
    again = ddpm.step(eps, 700, X, generator=torch.Generator().manual_seed(0))
    assert torch.equal(mean.prev_sample, again.prev_sample)
    drawn = torch.randn(X.shape, generator=torch.Generator().manual_seed(0), dtype=X.dtype)
    deviation = ddpm._get_variance(700) ** 0.5
    centre = mean.prev_sample - deviation * drawn
    ours = (step.x - centre) / deviation
    assert ours.abs().max() < 5 and ours.std() == pytest.approx(1.0, abs=0.3)
    plain = next(iter(samplers.iterate(made(CFG3), X, sampler="ddim", grid=grid, steps=2)))
    still = next(iter(samplers.iterate(quiet, X, sampler="euler", grid=grid, steps=2)))
    assert torch.allclose(still.x, plain.x, atol=1e-12)  # without noise, the DDIM map


def test_the_window_starts_from_its_anchor_and_the_present_estimate() -> None:
    grid = tuple(toys.SD.level_of_rho(rho) for rho in (8.0, 4.0, 2.0, 1.0, 0.5))
    guided = made(SlidingWindow(3, noise=0.0, inner=CFG3))
    states, x = [X], X
    for step in samplers.iterate(guided, X, sampler="dpmpp-2m", grid=grid, steps=4):
        clean = made(CFG3)(x, grid[step.index]).denoised
        first = max(0, step.index - 2)
        anchor, far, goal = states[first], grid[first], grid[step.index + 1]
        noise = (anchor - far.alpha * clean) / far.sigma
        x = goal.alpha * clean + goal.sigma * noise
        assert torch.allclose(step.x, x, atol=1e-10)
        states.append(x)


def test_the_windows_noise_follows_the_picture() -> None:
    x = X.float()
    together = run(made_single(SlidingWindow(2, inner=CFG3), slice(None)), x)
    for row in range(3):
        alone = run(made_single(SlidingWindow(2, inner=CFG3), slice(row, row + 1)), x[row : row + 1])
        assert (alone[0] - together[row]).abs().max() < 1e-5
    assert (run(made_single(SlidingWindow(2, seed=1, inner=CFG3), slice(None)), x) - together).abs().max() > 1e-2
    case = tiny.text_to_image()
    with attach(case.pipe, "cfg:scale=3 + sliding-window") as run_:
        first = tiny.run(case)
        assert torch.equal(tiny.run(case), first) and run_.evaluations == {"cond": 8, "uncond": 8}
    with attach(case.pipe, "cfg:scale=3"):
        assert (tiny.run(case) - first).abs().max() > 1e-2


def made_single(rule: Rule, rows: slice) -> Guided:
    given = {name: toys.normal(3, 4, 4, seed=s, dtype=torch.float32)[rows] for s, name in enumerate(("cond", "uncond"))}
    return toys.guided(rule, given=given)


# -- CFG-MP+ ----------------------------------------------------------------------------------------------------------


def flow_of(name: str, x: Tensor, t: float, conditions: dict[str, Tensor]) -> Tensor:
    return toys.Toy(FLOW_PREDICTION, schedule=FLOW)(x, FLOW.level(t), conditions[name]).native


def test_anderson_mixing_follows_its_recurrence() -> None:
    rule = CFGMP(3.0, 4, mixing="anderson", ridge=1e-4)
    guided = made(rule, FLOW_PREDICTION, FLOW)
    given, h = guided.conditions, (0.7 - 0.8) / 2

    def image(z: Tensor) -> Tensor:
        back = z - h * flow_of("uncond", z, 0.8, given)
        return back + h * flow_of("cond", back, 0.8, given)

    z, last = X, None
    for _ in range(4):
        now = image(z)
        residual, target = now - z, now
        if last is not None:
            change = residual - last[1]
            share = (dot(change, residual) / (dot(change, change) + 1e-4)).reshape(3, 1, 1)
            target = now - share * (now - last[0])
        last, z = (now, residual), target
    u = flow_of("uncond", z, 0.8, given)
    wanted = z + (0.7 - 0.8) * (u + 3.0 * (flow_of("cond", z, 0.8, given) - u))
    got = samplers.sample(guided, X, sampler="euler", grid=(FLOW.level(0.8), FLOW.level(0.7)), steps=1)
    assert torch.allclose(got, wanted, atol=1e-10)
    plain = made(replace(rule, mixing="none"), FLOW_PREDICTION, FLOW)
    assert (
        samplers.sample(plain, X, sampler="euler", grid=(FLOW.level(0.8), FLOW.level(0.7)), steps=1) - got
    ).norm() > 0
    assert plain.evaluations == guided.evaluations == {"cond": 15, "uncond": 15}
    huge = made(replace(rule, ridge=1e30), FLOW_PREDICTION, FLOW)
    assert torch.allclose(run(huge, grid="flow"), run(plain, grid="flow"), atol=1e-10)


def test_anderson_mixing_reaches_the_fixed_point_sooner() -> None:
    """The map is linear with one slope in all directions: two residuals say where its fixed point, 0, is."""

    def left(mixing: str, iterations: int) -> float:
        rule = CFGMP(1.0, iterations, mixing=mixing, ridge=1e-12)
        ctx = replace(toys.context(X, FLOW.level(0.9), FLOW.level(0.2)), schedule=FLOW)
        wide, narrow = 1.6, 0.3

        def answer(w: Any) -> Any:
            point = ctx.x if w.ask.at is None else w.ask.at.x
            toy = toys.Toy(FLOW_PREDICTION, wide if w.ask.branch == "cond" else narrow, FLOW)
            return toy(point, FLOW.level(0.9), torch.zeros_like(point)).native, FLOW_PREDICTION

        result = Dialogue(rule, ctx, Counter()).advance(lambda wanted: [answer(w) for w in wanted])
        assert result is not None
        return float(result.x.norm())

    assert left("anderson", 3) < 1e-6 * float(X.norm()) and left("none", 3) > 0.1 * float(X.norm())


def test_projecting_after_the_step() -> None:
    """Another order: where a step ended, with that step's half."""
    guided = made(CFGMP(3.0, 2, place="after"), FLOW_PREDICTION, FLOW)
    given, grid = guided.conditions, tuple(FLOW.level(t) for t in (0.99, 0.9, 0.7, 0.5, 0.2))
    x = X
    for i, step in enumerate(samplers.iterate(guided, X, sampler="euler", grid=grid, steps=4)):
        t, goal = grid[i].sigma, grid[i + 1].sigma
        for _ in range(2 if i > 0 and t > 0.6 else 0):
            h = (t - grid[i - 1].sigma) / 2
            x = x - h * flow_of("uncond", x, t, given)
            x = x + h * flow_of("cond", x, t, given)
        u = flow_of("uncond", x, t, given)
        x = x + (goal - t) * (u + 3.0 * (flow_of("cond", x, t, given) - u))
        assert torch.allclose(step.x, x, atol=1e-10)
    assert guided.evaluations == {"cond": 3 * (4 + 2 * 2), "uncond": 3 * (4 + 2 * 2)}


# -- weight schedules -------------------------------------------------------------------------------------------------


def test_bent_shapes_and_the_other_reading() -> None:
    def scales(**settings: Any) -> list[float]:
        guided = made(WeightSchedule(inner=CFG(4.0), **settings))
        run(guided, steps=8)
        return [step["scale"] for step in guided.steps]

    taus = [(i + 0.5) / 8 for i in range(8)]
    assert scales(shape="power", power=2.0) == pytest.approx([1 + 3 * (1 - math.cos(math.pi * t**2)) / 2 for t in taus])
    assert scales(shape="exponential", power=0.7, of="scale") == pytest.approx([4 * math.exp(0.7 * t) for t in taus])
    assert scales(shape="linear", of="scale", floor=0.0) == pytest.approx([8 * t for t in taus])
    assert sum(scales(shape="cosine", of="scale", floor=0.0)) / 8 == pytest.approx(4.0)
    assert min(scales(shape="linear", of="scale", floor=2.0)) == 2.0


# -- areas and packed latents -----------------------------------------------------------------------------------------


def test_areas() -> None:
    assert confined("a:left b_c:0-0.25/0.5-1") == {
        "prompt:a": Area(right=0.5),
        "prompt:b_c": Area(0.0, 0.25, 0.5, 1.0),
    }
    like = torch.zeros(1, 4, 6, 5)
    left = Area(right=0.5).mask(like)
    assert left.shape == (6, 5) and left[0].tolist() == pytest.approx([1, 1, 0.5, 0, 0])
    assert (Area().mask(like) == 1).all()
    for area in (Area(0.1, 0.47, 0.2, 0.9), Area(0.3, 0.31, 0, 1)):
        share = (area.right - area.left) * (area.bottom - area.top)
        assert float(area.mask(like).mean()) == pytest.approx(share, rel=1e-5)


def test_a_prompt_confined_to_an_area() -> None:
    """Its term is that of the plain rule inside, and absent outside; in any space."""
    level = toys.SD.level(500.0)
    for kind in (SAMPLE, EPSILON):
        plain, without = (made(Composable(3.0, p), kind)(X, level).denoised for p in ("a:2 b:-1", "b:-1"))
        confined_ = made(Composable(3.0, "a:2 b:-1", "a:left"), kind)(X, level).denoised
        assert torch.allclose(confined_[..., :2], plain[..., :2], atol=1e-11)
        assert torch.allclose(confined_[..., 2:], without[..., 2:], atol=1e-11)
        assert (plain - without)[..., 2:].abs().max() > 0.1


def test_packing_is_that_of_diffusers() -> None:
    from diffusers import FluxPipeline

    pictures = toys.normal(2, 3, 6, 10)
    packing = Packing(3, 5)
    tokens = FluxPipeline._pack_latents(pictures, 2, 3, 6, 10)
    assert torch.equal(packing.packed(pictures), tokens) and torch.equal(packing.unpacked(tokens), pictures)
    ids = FluxPipeline._prepare_latent_image_ids(1, 3, 5, torch.device("cpu"), torch.float32)
    assert packing_of_ids(ids, 15) == packing
    assert packing_of_ids(torch.cat([ids, ids + 1]), 15) == packing  # pictures to edit come behind
    assert packing_of_ids(ids, 14) is None and packing_of_ids(torch.zeros(4, 4), 4) is None


SPATIAL = {
    "fdg:scale=4,low_scale=2": lambda c, u: c + sum_of(pyramid(c - u, 2), (3.0, 1.0)),
    "composable:scale=3,prompts=cond:2,areas=cond:top": lambda c, u: u + 3 * (c - u) + 2 * (c - u) * top(c),
}


def sum_of(bands: list[Tensor], weights: tuple[float, ...]) -> Tensor:
    return from_pyramid([w * band for w, band in zip(weights, bands, strict=True)])


def top(x: Tensor) -> Tensor:
    return (torch.arange(x.shape[-2]) < x.shape[-2] // 2).to(x.dtype)[:, None]


@pytest.mark.parametrize("line", ["fdg:scale=4,low_scale=2", "fdg:scale=4,parallel=0.3", "cfg:scale=3 + higs:low=0",
                                  "cfg:scale=3 + threshold:percentile=0.9,mimic_scale=2"])  # fmt: skip
def test_spatial_rules_unpack_tokens(line: str) -> None:
    """With packed branches and a packing they do what they do to the pictures."""
    packing, rule = Packing(4, 3), guidance.parse(line)
    assert rule.spatial
    pictures = {name: toys.normal(2, 3, 8, 6, seed=i) for i, name in enumerate(("cond", "uncond", "history"))}
    tokens = {name: packing.packed(value) for name, value in pictures.items()}
    results = []
    for given, how in ((pictures, None), (tokens, packing)):
        ctx = toys.context(
            torch.zeros_like(given["cond"]), toys.SD.level(500.0), toys.SD.level(400.0), 1, 5,
            {("HiGS",): given["history"]},
        )  # fmt: skip
        results.append(answered(rule, given, SAMPLE, replace(ctx, packing=how)).denoised)
    assert torch.allclose(packing.unpacked(results[1]), results[0], atol=1e-11)
    assert (results[0] - answered(guidance.CFG(3.0), pictures).denoised).abs().max() > 1e-3


def test_sega_keeps_the_largest_of_each_channel_of_packed_latents() -> None:
    packing, rule = Packing(4, 3), SEGA(1.0, "a", share=0.5, warmup=0, momentum=0.0)
    pictures = {name: toys.normal(2, 3, 8, 6, seed=i) for i, name in enumerate(("cond", "uncond", "prompt:a"))}
    given = {name: packing.packed(value) for name, value in pictures.items()}
    ctx = replace(
        toys.context(torch.zeros_like(given["cond"]), toys.SD.level(500.0), toys.SD.level(400.0)), packing=packing
    )
    edit = packing.unpacked(answered(rule, given, EPSILON, ctx).noise) - pictures["cond"]
    assert torch.allclose(edit, largest(5.0 * (pictures["prompt:a"] - pictures["uncond"]), 0.5), atol=1e-11)
    assert rule.spatial and not replace(rule, share=0.0).spatial


def test_packed_pipelines() -> None:
    """Flux says its grid, and equal bands are CFG; without it spatial rules are refused in words, others are not."""
    case = tiny.flux()
    lines = ["cfg:scale=3", "fdg:scale=3,low_scale=3", "fdg:scale=6,low_scale=1"]
    results = []
    for line in lines:
        with attach(case.pipe, line):
            results.append(tiny.run(case))
    assert torch.allclose(results[0], results[1], atol=1e-4) and (results[0] - results[2]).abs().max() > 1e-3
    for line in ("fdg", "cfg + higs", "sega:concepts=ring", "cfg + threshold:mimic_scale=3",
                 "composable:prompts=ring,areas=ring:left"):  # fmt: skip
        with attach(case.pipe, line) as run_:
            assert tiny.run(case).isfinite().all()
        run_.adapter = replace(run_.adapter, packing=None)
        with run_, pytest.raises(UsageError, match="needs rows and columns of pixels"):
            tiny.run(case)
    with attach(case.pipe, "sega:concepts=ring,share=0 + rescale") as run_:
        run_.adapter = replace(run_.adapter, packing=None)
        tiny.run(case)


# -- further prompts --------------------------------------------------------------------------------------------------

ENCODED = ("StableDiffusionPipeline", "StableDiffusionXLPipeline", "StableDiffusion3Pipeline", "FluxPipeline",
           "StableDiffusionControlNetPipeline", "DiTPipeline")  # fmt: skip


@pytest.mark.parametrize("name", ENCODED)
def test_a_further_prompt_is_what_the_pipeline_makes_of_it(name: str) -> None:
    """AND with the same two pictures of another prompt: composable 0 * main + w * other is CFG on that other prompt."""
    case = tiny.CASES[name]()
    key = "class_labels" if name == "DiTPipeline" else "prompt"
    text = "11" if name == "DiTPipeline" else "a_green_hat"
    changed = {key: [11, 11] if name == "DiTPipeline" else ["a green hat"] * 2}
    with attach(case.pipe, CFG(4.0)):
        wanted, plain = tiny.run(case, **changed), tiny.run(case)
    with attach(case.pipe, f"composable:scale=0,prompts={text}:4") as run_:
        got = tiny.run(case)
    assert run_.evaluations == {"cond": 8, "uncond": 8, f"prompt:{text}": 8}
    close = 2e-2 if "ControlNet" in name else 1e-4  # the ControlNet still sees the main prompt
    assert (got - wanted).abs().max() < close * max(1.0, float(wanted.abs().max()))
    assert (got - plain).abs().max() > 1e-3


@pytest.mark.parametrize("line", ["perp-neg:negatives=rain:1.5", "sega:concepts='hat:5 rain:-4',warmup=0",
                                  "composable:prompts='hat:3 rain:-2' + interval:low=0.5",
                                  "composable:prompts=hat + cads"])  # fmt: skip
@pytest.mark.parametrize("name", ["StableDiffusionPipeline", "StableDiffusionXLPipeline"])
def test_rules_with_prompts_from_one_line(line: str, name: str) -> None:
    case = tiny.CASES[name]()
    with attach(case.pipe, line) as run_:
        first = tiny.run(case)
        again = tiny.run(case)
    assert torch.equal(first, again) and first.isfinite().all()
    assert any(branch.startswith("prompt:") for branch in run_.evaluations)
    texts = {"hat": "a tall hat", "rain": "heavy rain"}
    with attach(case.pipe, line, prompts=texts):
        assert (tiny.run(case) - first).abs().max() > 1e-4
    with attach(case.pipe, line, rows_per_call=4, seeds=[1, 2]):
        exact = tiny.run(case)
    assert (exact - first).abs().max() < 1e-3 * max(1.0, float(first.abs().max()))


def test_prompts_follow_the_call_and_are_encoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    case = tiny.text_to_image()
    seen: list[Any] = []
    encode = case.pipe.encode_prompt

    def noting(prompt: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append((prompt, kwargs.pop("clip_skip")))
        return encode(prompt, *args, **kwargs)

    monkeypatch.setattr(case.pipe, "encode_prompt", noting)
    with attach(case.pipe, "composable:prompts=a_hat"):
        tiny.run(case, clip_skip=1)
    assert [entry for entry in seen if entry[0] == "a hat"] == [("a hat", 1)]


@pytest.mark.parametrize("name", ["ZImagePipeline", "StableDiffusionInstructPix2PixPipeline"])
def test_other_pipelines_refuse_further_prompts(name: str) -> None:
    case = tiny.CASES[name]()
    with pytest.raises(UsageError, match="cannot be given the further prompt 'a hat'"):
        attach(case.pipe, "composable:prompts=a_hat")
    with (
        pytest.raises(UsageError, match="give a class number"),
        attach(tiny.dit().pipe, "composable:prompts=cat") as run_,
    ):
        tiny.run(replace(tiny.dit(), pipe=run_.pipe))


# -- fits of linear ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", name="sd")
def _sd() -> tiny.Case:
    return tiny.text_to_image()


def calls(case: tiny.Case, steps: int = 4, **changes: Any) -> list[dict[str, Any]]:
    generator = [torch.Generator().manual_seed(s) for s in (1, 2)]
    return [{**case.call, "num_inference_steps": steps, "generator": generator, **changes}]


def test_a_fit_serves_its_own_run_and_no_other(sd: tiny.Case, tmp_path: Path) -> None:
    fitted = fit_linear(sd.pipe, calls(sd, negative_prompt=["rain"] * 2), "cfg:scale=3", model="tiny")
    fitted.save(file := tmp_path / "fit.json")
    assert LinearCoefficients.load(file) == fitted and fitted.rule == "cfg:scale=3" and fitted.steps == 4
    assert fitted.null_prompt == "rain" and fitted.scheduler == "DDIMScheduler"
    assert fitted.network == network_name(sd.pipe.unet) and fitted.network.startswith("UNet2DConditionModel-")
    line = f"cfg:scale=3 + linear:file={file},guided=1"
    with attach(sd.pipe, line) as run_:
        tiny.run(sd, negative_prompt=["rain"] * 2)
        assert run_.evaluations == {"cond": 8, "uncond": 4}
        with pytest.raises(UsageError, match="negative='rain', not 'snow'"):
            tiny.run(sd, negative_prompt=["snow"] * 2)
        with pytest.raises(UsageError, match="fitted for 4 steps"):
            tiny.run(sd, steps=5, negative_prompt=["rain"] * 2)
    for other in ("cfg:scale=4", "apg:scale=3", "cfg:scale=3 + rescale"):
        with pytest.raises(UsageError, match="rule='cfg:scale=3', not"):
            guidance.parse(f"{other} + linear:file={file}")
    guidance.parse(f"cfg:scale=3 + linear:file={file} + adaptive + interval:low=0.3")  # these go around it
    with pytest.raises(UsageError, match="model='tiny', not 'other'"):
        guidance.parse(f"cfg:scale=3 + linear:file={file},model=other")
    network = sd.pipe.unet
    sd.pipe.unet = tiny.unet(seed=1)
    try:
        with pytest.raises(UsageError, match="fitted for network="):
            attach(sd.pipe, line)
    finally:
        sd.pipe.unet = network
    scheduler, sd.pipe.scheduler = sd.pipe.scheduler, DDPMScheduler.from_config(sd.pipe.scheduler.config)
    try:
        with pytest.raises(UsageError, match="fitted for scheduler='DDIMScheduler'"):
            attach(sd.pipe, line)
    finally:
        sd.pipe.scheduler = scheduler


def test_a_fit_estimates_what_it_saw(sd: tiny.Case, tmp_path: Path) -> None:
    """On the run that it was fitted on: close to full guidance, far from none; also as part of a policy."""
    fit_linear(sd.pipe, calls(sd), "cfg:scale=3").save(file := tmp_path / "fit.json")
    results = {}
    for line in ("cfg:scale=3", "none", f"cfg:scale=3 + linear:file={file},guided=1",
                 f"policy:plan='3 linear:3 3 linear:3',file={file}"):  # fmt: skip
        with attach(sd.pipe, line):
            results[line.partition(":")[0] + str("linear" in line)] = tiny.run(sd)
    full = results["cfgFalse"]
    assert (results["cfgTrue"] - full).norm() < 0.3 * (results["noneFalse"] - full).norm()
    assert torch.equal(results["policyTrue"], results["cfgTrue"])
    with (
        attach(sd.pipe, f"policy:plan='3 cond linear:3',file={file}"),
        pytest.raises(UsageError, match="every earlier"),
    ):
        tiny.run(sd)


@pytest.mark.parametrize(
    ("line", "words"),
    [("cfg:scale=3 + adaptive", "fit without it"), ("cfg:scale=1", "no null prediction"), ("none", "no null")],
)
def test_what_cannot_be_fitted_is_refused(line: str, words: str, sd: tiny.Case) -> None:
    with pytest.raises(UsageError, match=words):
        fit_linear(sd.pipe, calls(sd), line)


def test_the_name_of_a_network() -> None:
    one, same, other = tiny.unet(), tiny.unet(), tiny.unet(seed=1)
    assert network_name(one) == network_name(same) != network_name(other)
    assert network_name(one) != network_name(same.to(torch.bfloat16))
    assert network_name(other.to("meta")) != network_name(one)


def test_fit_linear_ag_from_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    how = ["--steps", "5", "--sampler", "ddim"]
    fit = ["fit-linear-ag", "two red stars on navy", "--seeds", "0,1", "-g", "cfg:scale=3", "--file", "fit.json"]
    assert command([*fit, *how, "--dry-run"]) == 0 and not Path("fit.json").exists()
    assert command([*fit, *how]) == 0
    out = capsys.readouterr().out
    assert "5 steps fitted on 2 pictures" in out and "cfg:scale=3 + linear:file=fit.json" in out
    content = json.loads(Path("fit.json").read_text())
    assert content["model"] == "embedded" and content["rule"] == "cfg:scale=3" and len(content["rhos"]) == 5
    line = "cfg:scale=3 + linear:file=fit.json,guided=1"
    generate = ["generate", "two red stars on navy", *how, "-g"]
    assert command([*generate, line, "-o", "a"]) == 0
    assert "5 cond + 3 uncond evaluations" in capsys.readouterr().out
    for wrong in (["--negative", "rain"], ["--sampler", "euler-ancestral"], ["--steps", "6"]):
        assert command([*generate, line, "-o", f"b{wrong[1]}", *wrong]) == 2
        assert "fit" in capsys.readouterr().err
    assert not Path("beuler-ancestral").exists()  # refused before anything was begun
    assert command([*fit, "-o", "runs/x"]) == 2 and "--file" in capsys.readouterr().err
    assert command([*fit[:-1], "nowhere/fit.json"]) == 2 and "cannot write" in capsys.readouterr().err


def test_one_line_with_prompts_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = "composable:scale=3,prompts='a_white_ring:2'"
    run_ = ["generate", "a red star on navy", "-g", line, "--steps", "2", "-o", str(tmp_path / "run")]
    assert command(run_) == 0
    assert "2 prompt:a_white_ring" in capsys.readouterr().out
