"""The attention family: each rule against an independently perturbed network, and that nothing stays behind."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import diffusers as D
import peft
import pytest
import tiny
import torch
import torch.nn.functional as F
from diffusers.models import attention_processor
from torch import Tensor, nn

from pilotage import samplers
from pilotage.errors import UsageError
from pilotage.guidance import CFG, Adaptive, Guided, Interval, Rescale, Unguided, attach
from pilotage.guidance.attention import layers
from pilotage.guidance.attention import patch as patching
from pilotage.guidance.attention.layers import attentions, blocks, chosen, middle, share
from pilotage.guidance.attention.nag import NAG
from pilotage.guidance.attention.nasa import NASA
from pilotage.guidance.attention.negative import Text
from pilotage.guidance.attention.pag import PAG, IdentityAttention
from pilotage.guidance.attention.patch import Attend, Intercept, Scene
from pilotage.guidance.attention.sag import SAG, Heard, ListenedAttention, Listening
from pilotage.guidance.attention.seg import SEG, BlurredQueries, blur
from pilotage.guidance.attention.slg import SLG, SkippedAttention, SkippedBlocks
from pilotage.guidance.attention.tpg import TPG, ShuffledTokens
from pilotage.guidance.packing import Packing
from pilotage.guidance.rule import Ask, Rule
from pilotage.samplers.denoiser import NetworkDenoiser
from pilotage.samplers.prediction import FLOW_PREDICTION, Prediction
from pilotage.samplers.schedule import RectifiedFlow, stable_diffusion_schedule

SD, FLOW = stable_diffusion_schedule(), RectifiedFlow()
BATCH = 3


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@dataclass
class Bench:
    """A tiny network as a denoiser, its inputs, and conditions."""

    module: Any
    x: Tensor
    conditions: dict[str, dict[str, Any]]
    flow: bool = False
    batched: tuple[str, ...] = ()
    callable: Any = None  # how the module is called, if not by itself

    @property
    def level(self) -> Any:
        return FLOW.level(0.6) if self.flow else SD.level(500.0)

    def denoiser(self, module: Any = None) -> NetworkDenoiser:
        module = self.module if module is None else module
        call = self.callable(module) if self.callable else module
        return NetworkDenoiser(call, FLOW if self.flow else SD, "flow_prediction" if self.flow else "epsilon")

    def guided(self, rule: Rule, module: Any = None) -> Guided:
        return Guided({"main": self.denoiser(module)}, rule, self.conditions)

    def answer(self, rule: Rule, module: Any = None) -> Tensor:
        with torch.no_grad():
            return self.guided(rule, module)(self.x, self.level).native

    def branch(self, name: str = "cond", module: Any = None, x: Tensor | None = None) -> Tensor:
        with torch.no_grad():
            return self.denoiser(module)(self.x if x is None else x, self.level, self.conditions[name]).native


class FluxCall(nn.Module):
    """Flux with the positions of a 4 x 4 grid."""

    def __init__(self, network: Any):
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, time: Tensor, encoder_hidden_states: Tensor, **given: Any) -> Any:
        grid = torch.stack(torch.meshgrid(torch.arange(1.0), torch.arange(4.0), torch.arange(4.0), indexing="ij"), -1)
        return self.network(x, timestep=time, encoder_hidden_states=encoder_hidden_states, img_ids=grid.reshape(16, 3),
                            txt_ids=torch.zeros(encoder_hidden_states.shape[1], 3), **given)  # fmt: skip


def unet() -> Bench:
    conditions = {
        name: {"encoder_hidden_states": normal(BATCH, 7, 32, seed=s)} for name, s in (("cond", 1), ("uncond", 2))
    }
    module = tiny.unet()
    for name, weight in module.named_parameters():  # sharper maps, and a text that matters
        if name.endswith(("to_q.weight", "to_k.weight")):
            weight.data *= 3
        if "attn2.to_out.0.weight" in name or "attn2.to_v" in name:
            weight.data *= 3
    return Bench(module, normal(BATCH, 4, 8, 12), conditions)


def sd3() -> Bench:
    conditions = {
        name: {"encoder_hidden_states": normal(BATCH, 7, 32, seed=s), "pooled_projections": normal(BATCH, 64, seed=s)}
        for name, s in (("cond", 1), ("uncond", 2))
    }
    return Bench(
        tiny.stable_diffusion_3().pipe.transformer, normal(BATCH, 4, 8, 8), conditions, flow=True, callable=Sd3Call
    )


class Sd3Call(nn.Module):
    def __init__(self, network: Any):
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, time: Tensor, **given: Any) -> Any:
        return self.network(x, timestep=time, **given)


def dit() -> Bench:
    conditions = {
        "cond": {"class_labels": torch.tensor([3, 7, 5])},
        "uncond": {"class_labels": torch.tensor([1000] * 3)},
    }
    return Bench(tiny.dit().pipe.transformer, normal(BATCH, 4, 8, 8), conditions, callable=DitCall)


class DitCall(nn.Module):
    """Without the learned sigma."""

    def __init__(self, network: Any):
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, time: Tensor, **given: Any) -> Any:
        return self.network(x, timestep=time, **given).sample[:, :4]


def flux() -> Bench:
    conditions = {
        name: {"encoder_hidden_states": normal(BATCH, 7, 32, seed=s), "pooled_projections": normal(BATCH, 32, seed=s)}
        for name, s in (("cond", 1), ("uncond", 2))
    }
    return Bench(tiny.flux().pipe.transformer, normal(BATCH, 16, 4), conditions, flow=True, callable=FluxCall)


BENCHES: dict[str, Callable[[], Bench]] = {"unet": unet, "sd3": sd3, "dit": dit, "flux": flux}
_MADE: dict[str, Bench] = {}


def bench(name: str) -> Bench:
    if name not in _MADE:
        _MADE[name] = BENCHES[name]()
    return _MADE[name]


PERTURBED = [PAG(), SEG(), SEG(sigma=1.0), SLG(), SLG(skip="attention"), TPG()]
EVERYWHERE = [(name, rule) for name in BENCHES for rule in PERTURBED]
WITH_TEXT = [NAG(), NAG(norm="l2"), NASA(0.5)]


def untouched(module: nn.Module) -> None:
    assert not [name for name, part in module.named_modules() if "forward" in part.__dict__]


# -- weights, costs and nothing left behind ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rule", [PAG(0.0), SEG(0.0), SLG(0.0), TPG(0.0), SAG(0.0), NASA(0.0), NAG(1.0), NAG(alpha=0.0)]
)
@pytest.mark.parametrize("plain", [Unguided(), CFG(3.0)])
def test_weight_zero_is_the_plain_rule(rule: Rule, plain: Rule) -> None:
    here = bench("unet")
    a = here.guided(plain + rule if not isinstance(plain, Unguided) else rule)
    b = here.guided(plain)
    with torch.no_grad():
        assert torch.equal(a(here.x, here.level).native, b(here.x, here.level).native)
    assert a.evaluations == b.evaluations


@pytest.mark.parametrize(("name", "rule"), EVERYWHERE)
def test_it_does_something_and_leaves_nothing(name: str, rule: Any) -> None:
    here = bench(name)
    processors = dict(here.module.attn_processors) if hasattr(here.module, "attn_processors") else {}
    made = here.guided(rule)
    with torch.no_grad():
        guided = made(here.x, here.level).native
    assert made.evaluations == {"cond": 2 * BATCH}
    cond = here.branch()
    bad = cond - (guided - cond) / rule.weight
    assert (bad - cond).abs().max() > 1e-4 * cond.abs().max()
    untouched(here.module)
    after = dict(here.module.attn_processors) if processors else {}
    assert all(after[k] is v for k, v in processors.items()) and len(after) == len(processors)
    assert torch.equal(here.branch(), cond)


@pytest.mark.parametrize(("name", "rule"), [*EVERYWHERE, *((n, r) for n in ("unet", "sd3", "flux") for r in WITH_TEXT)])
def test_exceptions_leave_nothing(name: str, rule: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Inside the network, and inside a rule that has just been answered."""
    here = bench(name)
    processors = dict(here.module.attn_processors) if hasattr(here.module, "attn_processors") else {}
    plain = here.branch()
    last = [part for part in here.module.modules() if isinstance(part, nn.Linear)][-1]
    with monkeypatch.context() as patched:
        patched.setattr(type(last), "forward", lambda *a, **k: (_ for _ in ()).throw(RuntimeError("inside")))
        with pytest.raises(RuntimeError, match="inside"):
            here.answer(rule)
    untouched(here.module)

    @dataclass(frozen=True)
    class Broken(Rule):
        def guide(self, ctx: Any) -> Any:
            yield from rule.guide(ctx)
            raise RuntimeError("rule")

    with pytest.raises(RuntimeError, match="rule"):
        here.answer(Broken())
    untouched(here.module)
    assert all(here.module.attn_processors[k] is v for k, v in processors.items())
    assert torch.equal(here.branch(), plain)


def test_asks_compare_by_value() -> None:
    same = [lambda: IdentityAttention("mid"), lambda: BlurredQueries("", 2.0), lambda: SkippedBlocks("7-9"),
            lambda: ShuffledTokens("", 5), lambda: NAG().patch(None), lambda: NASA().patch(None)]  # fmt: skip
    for make in same:
        assert Ask(patch=make()) == Ask(patch=make()) and hash(Ask(patch=make())) == hash(Ask(patch=make()))
    assert len({m() for m in same}) == len(same)
    assert BlurredQueries("", 1.0) != BlurredQueries("", 2.0) and IdentityAttention("a") != IdentityAttention("b")
    text = normal(1, 2, 3)
    assert NAG(negative=text) == NAG(negative=text) != NAG(negative=text.clone()) and "tensor" not in repr(
        NAG(negative=text)
    )
    assert Text(text) == Text(text) and Text(text) != Text(text.clone())


def test_equal_asks_are_evaluated_once() -> None:
    here = bench("unet")
    made = here.guided(PAG(2.0) + PAG(1.0) + SEG())
    with torch.no_grad():
        guided = made(here.x, here.level).native
    assert made.evaluations == {"cond": 3 * BATCH}
    cond, pag, seg = here.branch(), here.answer(PAG(3.0)), here.answer(SEG())
    assert torch.allclose(guided, pag + seg - cond, atol=1e-5)


# -- each against an independently perturbed network -------------------------------------------------------------------


def test_pag_alone_is_branch_guidance_with_one_plus_weight() -> None:
    """diffusers' processor on a copy: it computes the plain rows and the perturbed ones side by side."""
    here = bench("unet")
    theirs = copy.deepcopy(here.module)
    for name, layer in theirs.named_modules():
        if "mid_block" in name and name.endswith("attn1"):
            layer.processor = attention_processor.PAGIdentitySelfAttnProcessor2_0()
    cond = here.conditions["cond"]["encoder_hidden_states"]
    with torch.no_grad():
        both = theirs(torch.cat([here.x] * 2), here.level.time, torch.cat([cond] * 2)).sample
    c, b = both.chunk(2)
    assert torch.allclose(here.answer(PAG(3.0)), c + 3.0 * (c - b), atol=1e-5)
    assert torch.allclose(here.answer(PAG(3.0)), b + 4.0 * (c - b), atol=1e-5)
    assert (c - b).abs().max() > 1e-2


@pytest.mark.parametrize(("guidance_scale", "adaptive"), [(0.0, 0.0), (5.0, 0.0), (5.0, 0.004)])
def test_pag_is_diffusers_pag_pipeline(guidance_scale: float, adaptive: float) -> None:
    case = tiny.text_to_image()
    theirs = D.StableDiffusionPAGPipeline(
        **case.pipe.components, pag_applied_layers="mid", requires_safety_checker=False
    )
    theirs.set_progress_bar_config(disable=True)
    other = tiny.Case(theirs, case.call, case.off)
    wanted = tiny.run(other, pag_scale=3.0, pag_adaptive_scale=adaptive, guidance_scale=guidance_scale)
    case.pipe.unet.set_attn_processor(attention_processor.AttnProcessor2_0())
    rule = PAG(3.0, adaptive=adaptive)
    with attach(case.pipe, CFG(guidance_scale) + rule if guidance_scale else rule) as made:
        ours = tiny.run(case)
    cond = 14 if adaptive else 16  # the last step has none
    assert made.evaluations == ({"cond": cond, "uncond": 8} if guidance_scale else {"cond": cond})
    assert torch.allclose(ours, wanted, atol=1e-4)


def test_pag_is_diffusers_pag_pipeline_for_joint_attention() -> None:
    case = tiny.stable_diffusion_3()
    theirs = D.StableDiffusion3PAGPipeline(**{k: v for k, v in case.pipe.components.items() if k not in (
        "image_encoder", "feature_extractor")}, pag_applied_layers="transformer_blocks.1")  # fmt: skip
    theirs.set_progress_bar_config(disable=True)
    wanted = tiny.run(tiny.Case(theirs, case.call, case.off), pag_scale=2.0)
    case.pipe.transformer.set_attn_processor(attention_processor.JointAttnProcessor2_0())
    with attach(case.pipe, CFG(5.0) + PAG(2.0, layers="1")) as made:
        ours = tiny.run(case)
    assert made.evaluations == {"cond": 16, "uncond": 8}
    assert torch.allclose(ours, wanted, atol=1e-4)


def reference_blur(q: Tensor, sigma: float) -> Tensor:
    """SusungHong/SEG-SDXL, gaussian_blur_2d, on (N, C, H, W) with H = W."""
    size = math.ceil(6 * sigma) + 1 - math.ceil(6 * sigma) % 2
    size = min(size, q.shape[-1] - (q.shape[-1] % 2 - 1))
    taps = torch.linspace(-(size - 1) / 2, (size - 1) / 2, steps=size, dtype=q.dtype)
    line = torch.exp(-0.5 * (taps / sigma) ** 2)
    line = line / line.sum()
    kernel = (line[:, None] @ line[None]).expand(q.shape[1], 1, size, size)
    return F.conv2d(F.pad(q, [size // 2] * 4, mode="reflect"), kernel, groups=q.shape[1])


@pytest.mark.parametrize("size", [1, 2, 5, 8])
@pytest.mark.parametrize("sigma", [0.3, 1.0, 2.5, 100.0])
def test_seg_blur_is_the_authors(size: int, sigma: float) -> None:
    q = normal(2, 3, size, size).double()
    line = blur(size, sigma, q)
    ours = line @ q @ line.T
    assert torch.allclose(ours, reference_blur(q, sigma) if size > 1 else q, atol=1e-12)
    assert torch.allclose(line.sum(1), torch.ones(size, dtype=torch.float64))


def with_queries(module: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A copy whose mid-block self-attentions change their projected queries (B, tokens, C) of a 4 x 6 grid."""
    other = copy.deepcopy(module)
    for name, layer in other.named_modules():
        if "mid_block" in name and name.endswith("attn1"):
            layer.to_q.register_forward_hook(lambda _m, _i, out: change(out))
    return other


def test_seg_equals_a_copy_with_blurred_queries() -> None:
    here = bench("unet")
    mean = with_queries(here.module, lambda q: q.mean(1, keepdim=True).expand_as(q))
    vertical, horizontal = blur(4, 1.0, here.x), blur(6, 1.0, here.x)
    smooth = with_queries(
        here.module,
        lambda q: torch.einsum("ih,jw,bhwc->bijc", vertical, horizontal, q.unflatten(1, (4, 6))).flatten(1, 2),
    )
    cond = here.branch()
    for sigma, other in ((math.inf, mean), (10000.0, mean), (1.0, smooth)):
        bad = here.branch(module=other)
        assert torch.allclose(here.answer(SEG(3.0, sigma=sigma)), cond + 3.0 * (cond - bad), atol=1e-5)


def test_seg_limits_and_the_swapped_branches_of_diffusers() -> None:
    """sigma -> 0 is the conditional prediction, a large finite one is nearly flat but is no mean; inf is the mean."""
    here = bench("unet")
    cond = here.branch()
    assert torch.equal(here.answer(SEG(3.0, sigma=0.0)), cond)
    assert torch.allclose(here.answer(SEG(3.0, sigma=0.05)), cond, atol=1e-5)
    one, infinite = here.answer(SEG(3.0, sigma=1.0)), here.answer(SEG(3.0, sigma=math.inf))
    assert (one - infinite).abs().max() > 1e-2 * (infinite - cond).abs().max()
    q = normal(1, 2, 24, 3)
    scene = Scene(grids={"": (4, 6)})
    rows = BlurredQueries("", math.inf).attended(
        Attend(q, normal(1, 2, 24, 3, seed=1), normal(1, 2, 24, 3, seed=2), {}), slice(None), "a", scene
    )
    assert (rows - rows[:, :, :1]).abs().max() < 1e-6  # all rows of the map are alike


class Identity(nn.Module):
    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return hidden_states


def test_slg_equals_a_copy_without_the_block() -> None:
    here = bench("unet")
    other = copy.deepcopy(here.module)
    other.mid_block.attentions[0].transformer_blocks[0] = Identity()
    cond = here.branch()
    assert torch.allclose(here.answer(SLG(2.0)), cond + 2.0 * (cond - here.branch(module=other)), atol=1e-5)
    here = bench("dit")
    other = copy.deepcopy(here.module)
    other.transformer_blocks[1] = Identity()
    cond = here.branch()
    assert torch.allclose(here.answer(SLG(2.0, layers="1")), cond + 2.0 * (cond - here.branch(module=other)), atol=1e-4)


def test_slg_equals_sd3s_own_skip_layers() -> None:
    here = bench("sd3")
    cond = here.branch()
    for named, skipped in (("0", [0]), ("", [1]), ("0-1", [0, 1])):
        given = {**here.conditions["cond"], "skip_layers": skipped}
        with torch.no_grad():
            bad = here.denoiser()(here.x, here.level, given).native
        assert torch.allclose(here.answer(SLG(2.8, layers=named)), cond + 2.8 * (cond - bad), atol=1e-4)


@pytest.mark.parametrize("name", ["unet", "sd3", "dit", "flux"])
def test_stg_attention_skip_equals_a_copy_with_silent_values(name: str) -> None:
    """With zero output projections the attention adds nothing (Flux's single block has none)."""
    here = bench(name)
    sites = attentions(here.module)
    target = next(n for n, layer in middle(sites) + sites[:1] if getattr(layer, "to_out", None) is not None)
    other = copy.deepcopy(here.module)
    layer = other.get_submodule(target)
    for part in (layer.to_out[0], getattr(layer, "to_add_out", None)):
        if part is not None:
            part.weight.data.zero_()
            part.bias.data.zero_()
    cond = here.branch()
    rule = SLG(2.0, skip="attention", layers=f"^{target}$".replace(".", r"\."))
    assert torch.allclose(here.answer(rule), cond + 2.0 * (cond - here.branch(module=other)), atol=1e-4)


def test_tpg_equals_a_copy_that_shuffles(monkeypatch: pytest.MonkeyPatch) -> None:
    here = bench("unet")
    other = copy.deepcopy(here.module)
    rule = TPG(3.0, seed=4)
    from pilotage.samplers.noise import derived_seed

    drawn = torch.Generator().manual_seed(derived_seed(4, "tpg", 0, 0))
    norms: list[tuple[Tensor, Tensor]] = []

    def shuffle(_m: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        x = args[0] if args else kwargs["hidden_states"]
        y = x[:, torch.randperm(x.shape[1], generator=drawn)]
        norms.append((x.norm(dim=2).sort(1).values, y.norm(dim=2).sort(1).values))
        return ((y, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": y})

    down = [block for name, block in blocks(other) if "down_blocks" in name]
    for block in down:
        block.register_forward_pre_hook(shuffle, with_kwargs=True)
    cond, bad = here.branch(), here.branch(module=other)
    assert all(torch.allclose(a, b) for a, b in norms) and len(norms) == len(down) > 0
    assert torch.allclose(here.answer(rule), cond + 3.0 * (cond - bad), atol=1e-5)
    assert torch.equal(here.answer(rule), here.answer(rule))
    assert not torch.equal(here.answer(rule), here.answer(replace(rule, seed=5)))
    monkeypatch.setattr(torch, "randperm", lambda n, generator: torch.arange(n))
    for name in BENCHES:
        assert torch.equal(bench(name).answer(rule), bench(name).branch())  # the identity permutation


def test_tpg_steps_differ_and_runs_repeat() -> None:
    here, seen = bench("unet"), []
    made = here.guided(TPG())
    original = ShuffledTokens.changes
    try:
        ShuffledTokens.changes = lambda self, root, scene: (seen.append(self.seed), original(self, root, scene))[1]
        runs = [samplers.sample(made, here.x, sampler="euler", steps=3) for _ in range(2)]
    finally:
        ShuffledTokens.changes = original
    assert len(set(seen)) == 3 and seen[:3] == seen[3:] and torch.equal(*runs)


# -- SAG ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("guidance_scale", [1.0, 5.0])
def test_sag_is_diffusers_sag_pipeline(guidance_scale: float) -> None:
    case = tiny.text_to_image()
    for name, weight in case.pipe.unet.named_parameters():
        if "mid_block" in name and name.endswith(("to_q.weight", "to_k.weight")):
            weight.data *= 4  # maps with something in them
    case.pipe.unet.register_to_config(attention_head_dim=8)  # theirs takes it for the number of heads
    heads = case.pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn1.heads
    case.pipe.unet.register_to_config(attention_head_dim=heads)
    parts = {k: v for k, v in case.pipe.components.items()}
    theirs = D.StableDiffusionSAGPipeline(**parts, requires_safety_checker=False)
    theirs.set_progress_bar_config(disable=True)
    wanted = tiny.run(tiny.Case(theirs, case.call, case.off), sag_scale=0.75, guidance_scale=guidance_scale)
    case.pipe.unet.set_attn_processor(attention_processor.AttnProcessor2_0())
    rule = CFG(guidance_scale) + SAG(0.75) if guidance_scale > 1 else SAG(0.75)
    with attach(case.pipe, rule) as made:
        ours = tiny.run(case)
    plain = tiny.run(case, guidance_scale=guidance_scale)
    assert made.evaluations == ({"cond": 8, "uncond": 16} if guidance_scale > 1 else {"cond": 16})
    assert torch.allclose(ours, wanted, atol=2e-4 * float(wanted.abs().max()))
    assert (ours - plain).abs().max() > 10 * (ours - wanted).abs().max()


def test_sag_with_an_empty_mask_is_nothing() -> None:
    here = bench("unet")
    assert torch.allclose(here.answer(SAG(3.0, threshold=1e9)), here.branch(), atol=1e-4)
    assert (here.answer(SAG(3.0)) - here.branch()).abs().max() > 1e-3


def test_sag_listens_without_a_further_evaluation() -> None:
    here = bench("unet")
    for rule, count in ((CFG(3.0) + SAG(), {"cond": BATCH, "uncond": 2 * BATCH}), (SAG(), {"cond": 2 * BATCH}),
                        (CFG(3.0) + SAG() + Rescale(0.5), {"cond": BATCH, "uncond": 2 * BATCH}),
                        (CFG(1.0) + SAG(), {"cond": 3 * BATCH})):  # fmt: skip
        made = here.guided(rule)
        with torch.no_grad():
            made(here.x, here.level)
        assert made.evaluations == count
    assert Listening("uncond", patch=ListenedAttention("", Heard())) == Ask("uncond")
    assert Ask("uncond") in {Listening("uncond", patch=ListenedAttention("", Heard()))}
    assert Listening("uncond", patch=1) != Ask("cond") and Listening("uncond", grad=True) != Ask("uncond")


def test_sag_terms_add_to_cfg() -> None:
    """c, u and the degraded branch from their formulas."""
    here = bench("unet")
    rule = SAG(2.0)
    heard = Heard()
    with torch.no_grad(), ListenedAttention("", heard).on(here.module):
        u = here.denoiser()(here.x, here.level, here.conditions["uncond"])
    assert heard.parts[0].shape == (BATCH, 4, 6)
    assert torch.allclose(heard.parts[0].sum((1, 2)), torch.full((BATCH,), 24.0), atol=1e-3)  # each query gives 1
    assert torch.equal(u.native, here.branch("uncond"))
    x = rule.degraded(u, (heard.parts[0] > 1).float())
    worse = here.branch("uncond", x=x)
    assert torch.allclose(here.answer(CFG(3.0) + rule), here.answer(CFG(3.0)) + 2.0 * (u.native - worse), atol=1e-4)


def test_sag_on_packed_latents_blurs_the_picture() -> None:
    """Flux: the degraded x is the picture's, blurred, packed again; and a whole run."""
    packing, rule = Packing(4, 6), SAG(2.0, sigma=1.5)
    tokens, pictures = normal(BATCH, 24, 16), Packing(4, 6).unpacked(normal(BATCH, 24, 16))
    mask = (normal(BATCH, 4, 6, seed=3) > 0).float()
    level = FLOW.level(0.6)
    packed = Prediction(tokens, level, normal(BATCH, 24, 16, seed=4), FLOW_PREDICTION)
    whole = Prediction(pictures, level, packing.unpacked(packed.native), FLOW_PREDICTION)
    assert torch.equal(packing.unpacked(rule.degraded(packed, mask, packing)), rule.degraded(whole, mask))
    assert torch.equal(rule.degraded(packed, 0 * mask, packing), tokens)

    case = tiny.flux()
    runs = {}
    for line in ("cfg:scale=3", "cfg:scale=3 + sag:threshold=0", "cfg:scale=3 + sag:threshold=1000", "sag:threshold=0"):
        with attach(case.pipe, line) as made:
            runs[line] = (tiny.run(case), made.evaluations)
    (plain, _), (blurred, counts), (empty, _), (alone, _) = runs.values()
    assert counts == {"cond": 8, "uncond": 16} and torch.allclose(empty, plain, atol=1e-4)
    assert (blurred - plain).abs().max() > 1e-3 and alone.isfinite().all()
    video = replace_context(normal(2, 4, 3, 8, 8))
    with pytest.raises(UsageError, match="use pag or seg"):
        next(SAG().guide(video))


# -- negative prompts inside the attention -----------------------------------------------------------------------------


@contextmanager
def paired_attention(
    combine: Callable[[Tensor, Tensor], Tensor], pictures: Callable[[Any], slice | None]
) -> Iterator[None]:
    """The authors' way: a batch [positive; negative] whose picture tokens both get the combination of the two."""
    stock = F.scaled_dot_product_attention

    def attend(query: Tensor, key: Tensor, value: Tensor, **settings: Any) -> Tensor:
        z = stock(query, key, value, **settings)
        where = pictures((query, key))
        if where is None:
            return z
        towards, away = z[:, :, where].chunk(2)
        z = z.clone()
        z[:, :, where] = combine(towards, away).repeat(2, 1, 1, 1)
        return z

    class Mode(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is stock:
                named = {**dict(zip(("query", "key", "value", "attn_mask"), args)), **(kwargs or {})}
                return attend(**named)
            return func(*args, **(kwargs or {}))

    with Mode():
        yield


TEXT = 7
WHERE = {
    "unet": lambda qk: slice(None) if qk[1].shape[2] == TEXT else None,
    "sd3": lambda qk: slice(0, qk[0].shape[2] - TEXT),
    "flux": lambda qk: slice(TEXT, None),
}


def nasa(towards: Tensor, away: Tensor) -> Tensor:
    return towards - 0.5 * away


def nag_of(p: float) -> Callable[[Tensor, Tensor], Tensor]:
    def combine(towards: Tensor, away: Tensor) -> Tensor:
        """chenDarYen's processors: tokens with their heads joined, scale 5, tau 1.2, alpha 0.25."""
        a, b = (z.transpose(1, 2).flatten(2) for z in (towards, away))
        g = a * 5.0 - b * 4.0
        ratio = g.norm(p=p, dim=-1, keepdim=True) / a.norm(p=p, dim=-1, keepdim=True)
        g = g * torch.minimum(ratio, ratio.new_tensor(1.2)) / ratio
        return (g * 0.25 + a * 0.75).unflatten(2, (towards.shape[1], -1)).transpose(1, 2)

    return combine


CASES: list[tuple[Any, Callable[[Tensor, Tensor], Tensor]]] = [
    (NASA(0.5), nasa),
    (NAG(5.0, 1.2, 0.25), nag_of(1)),
    (NAG(5.0, 1.2, 0.25, "l2"), nag_of(2)),
]


@pytest.mark.parametrize("name", ["unet", "sd3", "flux"])
@pytest.mark.parametrize(("rule", "combine"), CASES)
def test_negative_attention_equals_the_paired_batch(name: str, rule: Any, combine: Any) -> None:
    """From the branch "uncond", and from embeddings that all rows share, at one evaluation."""
    here = bench(name)
    shared = here.conditions["uncond"]["encoder_hidden_states"][:1]
    for negative in (None, shared):
        pos = here.conditions["cond"]
        text = here.conditions["uncond"]["encoder_hidden_states"] if negative is None else shared.expand(BATCH, -1, -1)
        both = {k: torch.cat([v, v if k != "encoder_hidden_states" else text]) for k, v in pos.items()}
        if negative is None and "pooled_projections" in both:
            both["pooled_projections"] = torch.cat([pos["pooled_projections"]] * 2)
        with torch.no_grad(), paired_attention(combine, WHERE[name]):
            wanted = here.denoiser()(torch.cat([here.x] * 2), here.level, both).native[:BATCH]
        made = here.guided(replace(rule, negative=negative))
        with torch.no_grad():
            ours = made(here.x, here.level).native
        assert made.evaluations == ({"cond": BATCH} if negative is not None else {"cond": BATCH, "uncond": BATCH})
        assert torch.allclose(ours, wanted, atol=2e-5 * max(1.0, float(wanted.abs().max())))
        assert (ours - here.branch()).abs().max() > 1e-4


@pytest.mark.parametrize("name", ["unet", "sd3", "flux"])
def test_equal_prompts(name: str) -> None:
    """NAG does nothing; NASA scales every attention to the text by 1 - weight, and gives no NaN at weight 1."""
    here = bench(name)
    text = here.conditions["cond"]["encoder_hidden_states"][:1]
    given = {**here.conditions["cond"], "encoder_hidden_states": text.expand(BATCH, -1, -1)}
    same = replace(here, conditions={"cond": given, "uncond": given})
    plain = same.branch()
    for negative in (None, text):
        assert torch.allclose(same.answer(NAG(negative=negative)), plain, atol=1e-4)
        assert same.answer(NASA(1.0, negative=negative)).isfinite().all()
        with torch.no_grad(), paired_attention(lambda a, _: 0.7 * a, WHERE[name]):
            both = {k: torch.cat([v, v]) for k, v in given.items()}
            scaled = same.denoiser()(torch.cat([same.x] * 2), same.level, both).native[:BATCH]
        assert torch.allclose(same.answer(NASA(0.3, negative=negative)), scaled, atol=1e-4)


def test_nag_is_capped_token_by_token() -> None:
    towards, away = normal(2, 3, 5, 4), 100 * normal(2, 3, 5, 4, seed=1)
    for norm, p in (("l1", 1), ("l2", 2)):
        z = NAG(5.0, 2.5, 1.0, norm).patch(None).combined(towards, away)
        length, limit = (t.transpose(1, 2).flatten(2).norm(p=p, dim=-1) for t in (z, towards))
        assert (length <= 2.5 * limit * (1 + 1e-5)).all() and torch.allclose(length, 2.5 * limit)
    zero = torch.zeros_like(towards)
    assert torch.equal(NAG(5.0).patch(None).combined(zero, zero), zero)
    half = NAG(5.0).patch(None).combined(towards.half() * 1e3, away.half() * 50)
    assert half.dtype == torch.float16 and half.isfinite().all()


def test_nasa_is_linear_in_its_weight() -> None:
    towards, away = normal(2, 3, 5, 4), normal(2, 3, 5, 4, seed=1)
    zs = [NASA(w).patch(None).combined(towards, away) for w in (0.0, 0.5, 1.0)]
    assert torch.equal(zs[0], towards) and torch.allclose(zs[0] + zs[2], 2 * zs[1], atol=1e-6)


@pytest.mark.parametrize("make", [tiny.text_to_image, tiny.stable_diffusion_xl, tiny.stable_diffusion_3])
def test_negative_attention_in_a_pipeline_with_a_negative_prompt(make: Callable[[], tiny.Case]) -> None:
    case = make()
    call = {**case.call, "negative_prompt": ["grey", "dull"]}
    plain = tiny.run(case, **{**call, **case.off})
    made: dict[str, Tensor] = {}
    for rule in (NAG(), NASA(0.5)):
        with attach(case.pipe, rule) as run:
            made[type(rule).__name__] = tiny.run(case, **call)
        assert run.evaluations == {"cond": 8, "uncond": 8}
        assert (made[type(rule).__name__] - plain).abs().max() > 1e-4
    with attach(case.pipe, NASA(0.5)):
        single = case.pipe(**{**call, "prompt": call["prompt"][:1], "negative_prompt": ["grey"]}, num_inference_steps=4,
                           generator=[torch.Generator().manual_seed(1)], return_dict=False)[0]  # fmt: skip
    assert torch.allclose(torch.as_tensor(single), made["NASA"][:1], atol=2e-3 * float(single.abs().max()))


def test_negative_embeddings_in_a_distilled_pipeline() -> None:
    """No negative branch: Flux without true_cfg, and Stable Diffusion with its guidance off. One evaluation a step."""
    flux_case, sd_case = tiny.flux(), tiny.text_to_image()
    with torch.no_grad():
        far = flux_case.pipe.encode_prompt("grey", "grey", max_sequence_length=16)[0]
        near = sd_case.pipe.encode_prompt("grey", "cpu", 1, False)[0]
    for case, text in ((flux_case, far), (sd_case, near)):
        plain = tiny.run(case, **case.off)
        for rule in (NAG(negative=text), NASA(0.5, negative=text)):
            with attach(case.pipe, rule) as made:
                steered = tiny.run(case, **case.off)
            assert made.evaluations == {"cond": 8}
            assert (steered - plain).abs().max() > 1e-4
            with attach(case.pipe, rule, rows_per_call=2):
                assert torch.allclose(tiny.run(case, **case.off), steered, atol=1e-3)
        untouched(case.pipe.transformer if case is flux_case else case.pipe.unet)


def test_rows_without_their_partners_are_refused() -> None:
    case = tiny.text_to_image()
    for rows in (1, 4, 3):
        with attach(case.pipe, NAG(), rows_per_call=rows), pytest.raises(UsageError, match="negative= embeddings"):
            tiny.run(case, negative_prompt=["grey", "dull"])
    flux_case = tiny.flux()
    with attach(flux_case.pipe, NAG()), pytest.raises(UsageError, match="negative= embeddings"):
        tiny.run(flux_case)
    here = bench("unet")
    short = {**here.conditions, "uncond": {"encoder_hidden_states": normal(BATCH, 5, 32)}}
    with pytest.raises(UsageError, match="negative= embeddings"):
        replace(here, conditions=short).answer(NAG())
    with pytest.raises(UsageError, match="equal numbers"):
        bench("flux").answer(NAG(negative=normal(1, 3, 32)))
    with pytest.raises(UsageError, match="one prompt"):
        here.answer(NAG(negative=normal(2, 3, 32)))
    untouched(here.module)


def test_prompts_of_unequal_length() -> None:
    """Separate softmaxes: the negative embeddings may be shorter where text is no sequence of its own."""
    for name in ("unet", "sd3"):
        here = bench(name)
        assert here.answer(NAG(negative=normal(1, 4, 32))).isfinite().all()


# -- rows, precision, composition --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "rule"), [*EVERYWHERE, ("unet", CFG(3.0) + SAG()), ("unet", SAG()),
                                            *((n, r) for n in ("unet", "sd3", "flux") for r in WITH_TEXT)])  # fmt: skip
def test_no_row_sees_its_mates(name: str, rule: Rule) -> None:
    here = bench(name)
    together = here.answer(rule)
    for row in range(BATCH):
        one = slice(row, row + 1)
        alone = replace(here, x=here.x[one], conditions={
            n: {k: v[one] for k, v in given.items()} for n, given in here.conditions.items()})  # fmt: skip
        assert torch.allclose(alone.answer(rule), together[one], atol=2e-5 * float(together.abs().max()))


@pytest.mark.parametrize(
    "rule", [PAG((0.0, 3.0, 1.0)), SEG((0.0, 3.0, 1.0)), TPG((0.0, 3.0, 1.0)), SAG((0.0, 3.0, 1.0))]
)
def test_a_weight_a_row(rule: Any) -> None:
    here = bench("unet")
    made = here.guided(rule)
    with torch.no_grad():
        answer = made(here.x, here.level).native
    assert made.evaluations == {"cond": BATCH + 2}
    for row, weight in enumerate(rule.weight):
        one = here.answer(replace(rule, weight=weight))[row]
        assert torch.allclose(answer[row], one, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rule", [*PERTURBED, SAG(), CFG(5.0) + PAG(), NAG(), NASA(0.5)])
def test_half_precision(rule: Rule, dtype: torch.dtype) -> None:
    here = bench("unet")
    low = replace(
        here,
        module=copy.deepcopy(here.module).to(dtype),
        x=here.x.to(dtype),
        conditions={
            n: {"encoder_hidden_states": v["encoder_hidden_states"].to(dtype)} for n, v in here.conditions.items()
        },
        callable=HalfCall,
    )
    answer, exact = low.answer(rule), here.answer(rule)
    assert answer.dtype == torch.float32 and answer.isfinite().all()
    if not isinstance(rule, SAG):  # its mask is a threshold
        assert (answer - exact).abs().max() < 0.2 * exact.abs().max()


class HalfCall(nn.Module):
    def __init__(self, network: Any):
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, time: Tensor, **given: Any) -> Any:
        return self.network(x.to(next(self.network.parameters()).dtype), time, **given)


def test_cfg_and_pag_cost_three_evaluations_and_add() -> None:
    here = bench("unet")
    made = here.guided(CFG(4.0) + PAG(2.0))
    with torch.no_grad():
        answer = made(here.x, here.level).native
    assert made.evaluations == {"cond": 2 * BATCH, "uncond": BATCH}
    c, u, p = here.branch(), here.branch("uncond"), here.answer(PAG(1.0))
    assert torch.allclose(answer, u + 4.0 * (c - u) + 2.0 * (p - c), atol=1e-4)


def test_windows_and_decisions() -> None:
    """Outside the window one branch; a row that adaptive has dropped costs one evaluation."""
    case = tiny.text_to_image()
    early = CFG(5.0) + PAG(3.0) + Interval(0.0, 0.5, "fraction")
    with attach(case.pipe, early) as made:
        tiny.run(case)
    assert made.evaluations == {"cond": 12, "uncond": 4}
    with attach(case.pipe, CFG(5.0) + PAG(3.0) + Adaptive(-1.0)) as made:
        tiny.run(case)
    assert made.evaluations == {"cond": 10, "uncond": 2}
    with attach(case.pipe, CFG(5.0) + SAG() + Adaptive(-1.0)) as made:
        tiny.run(case)
    assert made.evaluations == {"cond": 8, "uncond": 4}
    with attach(case.pipe, PAG(3.0) + Adaptive(-1.0)) as made:
        tiny.run(case, **case.off)
    assert made.evaluations == {"cond": 16}  # nothing to compare, so nothing is dropped
    untouched(case.pipe.unet)


def test_adaptive_that_drops_some_rows() -> None:
    """Each row equals the row alone."""
    here = bench("unet")
    rule = CFG(5.0) + PAG(3.0) + SAG() + Adaptive(0.9)
    run: dict[str, Any] = dict(sampler="euler", steps=5)
    with torch.no_grad():
        made = here.guided(rule)
        together = samplers.sample(made, here.x, **run)
        counts = made.evaluations
        alone = []
        for row in range(BATCH):
            given = {n: {k: v[row : row + 1] for k, v in c.items()} for n, c in here.conditions.items()}
            one = Guided({"main": here.denoiser()}, rule, given)
            alone.append(samplers.sample(one, here.x[row : row + 1], **run))
    assert torch.allclose(together, torch.cat(alone), atol=1e-2 * float(together.abs().max()))
    assert sum(counts.values()) <= 4 * 5 * BATCH


# -- networks in other clothes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", [PAG(), SEG(), SLG(), TPG(), SAG(), NAG(), NASA(0.5)])
def test_peft_networks(rule: Rule) -> None:
    here = bench("unet")
    settings = peft.LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False)
    torch.manual_seed(3)
    wrapped = peft.get_peft_model(copy.deepcopy(here.module), settings)
    merged = copy.deepcopy(wrapped).merge_and_unload()
    assert torch.allclose(here.answer(rule, wrapped), here.answer(rule, merged), atol=1e-3)
    assert (here.answer(rule, wrapped) - here.answer(rule)).abs().max() > 1e-3
    untouched(wrapped)


def test_compiled() -> None:
    """A patched call must not run the graph of the plain one, nor the other way round."""
    here = bench("unet")
    torch._dynamo.reset()
    module = copy.deepcopy(here.module)
    compiled = torch.compile(module, backend="eager")
    cond = here.branch()
    for rule in (PAG(), SLG(), PAG(), SEG(sigma=1.0), NASA(0.5), SAG(), TPG(), NAG()):
        assert torch.allclose(here.branch(module=compiled), cond, atol=1e-5)
        assert torch.allclose(here.answer(rule, compiled), here.answer(rule), atol=1e-4)
    untouched(module)
    case = tiny.text_to_image()
    with attach(case.pipe, CFG(3.0) + SEG()):
        plain = tiny.run(case)
    case.pipe.unet = torch.compile(case.pipe.unet, backend="eager")
    with attach(case.pipe, CFG(3.0) + SEG()) as made:
        assert torch.allclose(tiny.run(case), plain, atol=1e-3)
    assert made.evaluations == {"cond": 16, "uncond": 8}


def test_other_processors() -> None:
    """Without torch's fused attention there is nothing to intercept: an error that says what to do."""
    here = bench("unet")
    module = copy.deepcopy(here.module)
    module.set_attn_processor(attention_processor.AttnProcessor())
    for rule in (PAG(), SEG(), SAG(), NAG()):
        with pytest.raises(UsageError, match="disable_attention_slicing"):
            here.answer(rule, module)
        untouched(module)
    module.set_attn_processor(attention_processor.AttnProcessor2_0())
    module.fuse_qkv_projections()
    assert torch.allclose(here.answer(PAG(), module), here.answer(PAG()), atol=1e-4)


def test_a_network_called_inside_a_forward_of_somebody_elses() -> None:
    """A forward that was shadowed before (accelerate does) is called, and put back."""
    here = bench("unet")
    module = copy.deepcopy(here.module)
    layer = module.mid_block.attentions[0].transformer_blocks[0].attn1
    calls: list[int] = []
    stock = layer.forward

    def theirs(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return stock(*args, **kwargs)

    layer.forward = theirs
    assert torch.allclose(here.answer(PAG(), module), here.answer(PAG()), atol=1e-5)
    assert layer.forward is theirs and len(calls) == 2


# -- layers ------------------------------------------------------------------------------------------------------------


def test_layers_by_name_and_number() -> None:
    root = bench("unet").module
    sites = attentions(root)
    names = [name for name, _ in sites]
    assert [n for n, _ in chosen(sites, "mid_block", middle, root)] == [n for n in names if n.startswith("mid_block")]
    assert [n for n, _ in chosen(sites, "m0", middle, root)] == [n for n in names if n.startswith("mid_block")][:1]
    assert [n for n, _ in chosen(sites, "0|u0", middle, root)] == [
        names[0],
        next(n for n in names if n.startswith("up")),
    ]
    assert len(chosen(sites, "0-99", middle, root)) == len(sites)
    for wrong in ("nowhere", "99", "(", ""):
        if wrong:
            with pytest.raises(UsageError):
                chosen(sites, wrong, middle, root)
    twenty_four = [(f"transformer_blocks.{i}", nn.Identity()) for i in range(24)]
    assert [n for n, _ in share(7 / 24, 9 / 24)(twenty_four)] == [f"transformer_blocks.{i}" for i in (7, 8, 9)]
    assert [n for n, _ in share(0.25, 1.0)(twenty_four)] == [f"transformer_blocks.{i}" for i in range(6, 24)]
    two = D.SD3Transformer2DModel(
        sample_size=8, patch_size=1, in_channels=4, num_layers=3, attention_head_dim=8, num_attention_heads=4,
        caption_projection_dim=32, joint_attention_dim=32, pooled_projection_dim=64, out_channels=4,
        pos_embed_max_size=96, dual_attention_layers=(0, 1),
    )  # fmt: skip
    found = attentions(two)
    assert [n for n, _ in middle(found)] == ["transformer_blocks.1.attn", "transformer_blocks.1.attn2"]
    assert [n for n, _ in chosen(found, "2", middle, two)] == ["transformer_blocks.2.attn"]
    with pytest.raises(UsageError, match="attention family"):
        PAG().patch(None).on(lambda x, level: x).__enter__()  # type: ignore[arg-type]
    z_image = tiny.z_image().pipe.transformer
    with pytest.raises(UsageError, match="do not know ZImage"), PAG().patch(None).on(z_image):  # type: ignore[arg-type]
        pass


def test_identity_attention_of_an_identity_map_is_nothing() -> None:
    """Queries and keys that single out each token."""
    q = 1e3 * torch.eye(8).expand(2, 1, 8, 8)
    call = Attend(q, q, normal(2, 1, 8, 8), {})
    assert torch.allclose(IdentityAttention().attended(call, slice(None), "a", Scene()), call.run(), atol=1e-6)
    assert torch.allclose(IdentityAttention().attended(call, slice(0, 6), "a", Scene()), call.run(), atol=1e-6)
    with Intercept(lambda call: call.value) as mode:
        F.scaled_dot_product_attention(q, q, key_value := normal(2, 1, 8, 8))
        again = F.scaled_dot_product_attention(q, q, key_value)
    assert mode.met and torch.allclose(again, call.run() * 0 + again)


# -- defects of public implementations (guidance.md section 5) ---------------------------------------------------------


def test_without_cfg_the_second_pass_is_perturbed_and_conditional() -> None:
    """diffusers' guiders pass the negative inputs there and never call the hooks, and use s for 1 + s."""
    here = bench("unet")
    for rule in (PAG(2.8), SLG(2.8), SEG(2.8)):
        made = here.guided(rule)
        with torch.no_grad():
            answer = made(here.x, here.level).native
        assert "uncond" not in made.evaluations
        negative_pass = here.branch() + 2.8 * (here.branch() - here.branch("uncond"))
        assert (answer - negative_pass).abs().max() > 1e-2
    c, b = torch.full((1, 1), 2.0), torch.full((1, 1), 1.0)
    guide = PAG(2.8).guide(replace_context(c))
    guide.send(None)
    with pytest.raises(StopIteration) as stop:
        guide.send(tuple(prediction(t) for t in (c, b)))
    assert stop.value.value.native.item() == pytest.approx(4.8)


def prediction(native: Tensor) -> Any:
    from pilotage.samplers.prediction import EPSILON, Prediction

    return Prediction(native, SD.level(500.0), native, EPSILON)


def replace_context(x: Tensor) -> Any:
    from pilotage.guidance.rule import Context

    level = SD.level(500.0)
    return Context(x, level, level, level, 0, 1, 0, SD, {})


def test_the_first_step_can_be_perturbed_and_pag_is_on_at_all_steps() -> None:
    case = tiny.text_to_image()
    with attach(case.pipe, PAG()) as made:
        tiny.run(case, steps=5, **case.off)
    assert made.evaluations == {"cond": 20} and PAG().weight == 3.0
    with attach(case.pipe, PAG() + Interval(0.0, 0.2, "fraction")) as made:
        tiny.run(case, steps=5, **case.off)
    assert made.evaluations == {"cond": 12}  # step 0 is in the window


def test_patching_has_one_door() -> None:
    assert layers.KNOWN and all(hasattr(D, name) for name in layers.KNOWN)
    assert isinstance(SkippedAttention(), patching.Patch)
