"""The traps of swapping a rule under an unmodified pipeline, each as a test."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, ClassVar

import accelerate.hooks
import diffusers as D
import pytest
import tiny
import torch
from attach_tools import rows_seen
from peft import LoraConfig
from tiny import CASES

import pilotage
from pilotage import guidance, samplers
from pilotage.errors import UsageError
from pilotage.guidance.pipelines.shadow import Shadow
from pilotage.guidance.rule import Ask, Context, Guide, Point, Rule

CFG = guidance.CFG(5.0)


@pytest.fixture
def sd() -> tiny.Case:
    return tiny.text_to_image()


def call(case: tiny.Case, prompts: Any, steps: int = 4, **changes: Any) -> torch.Tensor:
    """A seeded call on these prompts, seed i + 1 for picture i."""
    count = (len(prompts) if isinstance(prompts, list) else 1) * changes.get("num_images_per_prompt", 1)
    generator = [torch.Generator().manual_seed(s + 1) for s in range(count)]
    given = {**case.call, "prompt": prompts, "generator": generator, "num_inference_steps": steps, **changes}
    return case.pipe(**given, return_dict=False)[0]


# -- when and what to split -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prompts", [["one"], ["one", "two"], ["one", "two", "three"]], ids=len)
def test_an_unguided_batch_is_never_split(sd: tiny.Case, prompts: list[str]) -> None:
    """Two unguided rows look like one doubled row; the pipeline's own flag tells them apart."""
    off = call(sd, prompts, guidance_scale=1.0)
    with pilotage.attach(sd.pipe, "none") as run:
        assert torch.equal(call(sd, prompts, guidance_scale=1.0), off)
    assert run.evaluations == {"cond": 4 * len(prompts)}
    stock = call(sd, prompts)
    with pilotage.attach(sd.pipe, CFG) as run:
        assert torch.equal(call(sd, prompts), stock)
        assert torch.equal(call(sd, prompts * 2), call(sd, prompts * 2))
    assert run.evaluations == {"cond": 8 * len(prompts), "uncond": 8 * len(prompts)}


def test_dit_knows_its_unguided_batches_by_the_null_class() -> None:
    case = CASES["DiTPipeline"]()
    off = tiny.run(case, guidance_scale=1.0)
    with pilotage.attach(case.pipe, "none") as run:
        assert torch.equal(tiny.run(case, guidance_scale=1.0), off)
    assert run.evaluations == {"cond": 8}
    assert case.pipe.transformer.config.out_channels == 2 * case.pipe.transformer.config.in_channels  # learned sigma


def test_guidance_switched_off_by_a_callback_in_mid_run(sd: tiny.Case) -> None:
    """From there on the batch has half the rows; the rule rests, as the pipeline's own guidance would."""

    def off(pipe: Any, step: int, time: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if step == 1:
            pipe._guidance_scale = 0.0
            tensors["prompt_embeds"] = tensors["prompt_embeds"].chunk(2)[1]
        return tensors

    settings: dict[str, Any] = dict(callback_on_step_end=off, callback_on_step_end_tensor_inputs=["prompt_embeds"])
    stock = tiny.run(sd, 5, **settings)
    with pilotage.attach(sd.pipe, CFG) as run:
        assert torch.equal(tiny.run(sd, 5, **settings), stock)
    assert run.evaluations == {"cond": 10, "uncond": 4}
    assert [step["scale"] for step in run.steps] == [5.0, 5.0, 1.0, 1.0, 1.0]


def test_z_image_stops_guiding_by_itself() -> None:
    """Its cfg_truncation leaves the last steps without negative rows."""
    case = CASES["ZImagePipeline"]()
    settings = dict(cfg_truncation=0.5, cfg_normalization=False)
    stock = tiny.run(case, 6, **settings)
    with pilotage.attach(case.pipe, guidance.CFG(5.0)) as run:  # theirs is c + 4 (c - u)
        assert (tiny.run(case, 6, **settings) - stock).abs().max() < 1e-5
    assert 0 < run.evaluations["uncond"] < 12 == run.evaluations["cond"]
    assert (stock - tiny.run(case, 6)).abs().max() > 1e-3


def test_added_conditions_are_sliced_with_the_rows() -> None:
    """SDXL's pooled text and time ids: different for the two prompts, and for the negative ones."""
    case = CASES["StableDiffusionXLPipeline"]()
    # With negative sizes stock 0.42.1 repeats [negative, positive] for every prompt, though its rows are sorted by
    # branch; for one prompt that is right, and for two it is theirs, which we reproduce.
    sizes = dict(negative_original_size=(64, 32), negative_target_size=(8, 8), original_size=(32, 16))
    for prompts in (tiny.TWO_PROMPTS[:1], tiny.TWO_PROMPTS):
        stock = call(case, prompts, **sizes)
        assert (stock - call(case, prompts)).abs().max() > 1e-3
        with pilotage.attach(case.pipe, CFG):
            assert torch.equal(call(case, prompts, **sizes), stock)
    rule = guidance.parse("cfg:scale=5 + adaptive:threshold=-1")
    with pilotage.attach(case.pipe, rule) as run:
        both = call(case, tiny.TWO_PROMPTS, original_size=(32, 16))
        assert run.evaluations == {"cond": 8, "uncond": 2}
        for row in range(2):
            with torch.no_grad():
                settings = {**case.call, "prompt": [tiny.TWO_PROMPTS[row]], "original_size": (32, 16)}
                generator = [torch.Generator().manual_seed(row + 1)]
                alone = case.pipe(**settings, num_inference_steps=4, generator=generator, return_dict=False)[0]
            assert torch.allclose(alone[0], both[row], atol=2e-5)
        one = call(case, tiny.TWO_PROMPTS[:1], **sizes)
    with pilotage.attach(case.pipe, "none"):
        free = call(case, tiny.TWO_PROMPTS[:1], **sizes)
    assert torch.allclose(free, call(case, tiny.TWO_PROMPTS[:1], guidance_scale=1.0, **sizes), atol=1e-5)
    assert (one - free).abs().max() > 1e-3


def test_controlnet_residuals_are_sliced_with_the_rows() -> None:
    case = CASES["StableDiffusionControlNetPipeline"]()
    for scale in (1.0, 0.0):
        off = tiny.run(case, guidance_scale=1.0, controlnet_conditioning_scale=scale)
        with pilotage.attach(case.pipe, "none"):
            assert torch.allclose(tiny.run(case, controlnet_conditioning_scale=scale), off, atol=1e-5)
    with (
        rows_seen(case.pipe.controlnet) as control,
        rows_seen(case.pipe.unet) as network,
        pilotage.attach(case.pipe, "none"),
    ):
        tiny.run(case)
    assert control == [4] * 4 and network == [2] * 4  # said in the adapter's notes


def test_the_pipelines_own_rescale_is_overruled(sd: tiny.Case) -> None:
    stock = tiny.run(sd)
    assert (tiny.run(sd, guidance_rescale=0.7) - stock).abs().max() > 1e-2
    with pilotage.attach(sd.pipe, CFG):
        assert torch.equal(tiny.run(sd, guidance_rescale=0.7), stock)
    with pilotage.attach(sd.pipe, "cfg:scale=5 + rescale:phi=0.7"):
        assert torch.allclose(tiny.run(sd), tiny.run(sd, guidance_rescale=0.7), atol=1e-5)
    with pilotage.attach(sd.pipe, "cfg:scale=5 + rescale:phi=0.7"):
        ours = tiny.run(sd)
    assert torch.allclose(ours, tiny.run(sd, guidance_rescale=0.7), atol=2e-5)


def test_flux_calls_are_paired_by_step() -> None:
    """A conditional call without a partner (no negative prompt) is a clear error, and leaves nothing behind."""
    case = CASES["FluxPipeline"]()
    stock = tiny.run(case)
    with pilotage.attach(case.pipe, CFG) as run:
        with pytest.raises(UsageError, match=r"needs the branch 'uncond'.*true_cfg_scale above 1.*negative_prompt"):
            tiny.run(case, negative_prompt=None)
        with pytest.raises(UsageError, match="needs the branch 'uncond'"):
            tiny.run(case, true_cfg_scale=1.0)
        assert torch.equal(tiny.run(case), stock)
    assert run.evaluations == {"cond": 8, "uncond": 8}


def test_flux_waits_for_the_second_call_and_skips_it_when_it_can() -> None:
    case = CASES["FluxPipeline"]()
    with rows_seen(case.pipe.transformer) as seen, pilotage.attach(case.pipe, "cfg + interval:low=1,high=1e9"):
        tiny.run(case)
    rhos = [float(s / (1 - s)) if s < 1 else float("inf") for s in case.pipe.scheduler.sigmas[:-1]]
    inside = sum(1 < rho <= 1e9 for rho in rhos)
    assert 0 < inside < 4 and len(seen) == 4 + inside


# -- what cannot work -------------------------------------------------------------------------------------------------


def test_a_pipeline_without_an_adapter_says_where_to_add_one() -> None:
    class MarblePipeline:
        pass

    with pytest.raises(UsageError, match=r"no adapter for MarblePipeline .*guidance/pipelines/\*_rows\.py"):
        pilotage.attach(MarblePipeline(), CFG)


def test_a_subclass_uses_the_row_of_its_parent(sd: tiny.Case) -> None:
    class Mine(D.StableDiffusionPipeline):
        pass

    pipe = tiny.stable_diffusion(Mine)
    mine = tiny.Case(pipe, sd.call, sd.off)
    stock = tiny.run(mine)
    with pilotage.attach(pipe, CFG):
        assert torch.equal(tiny.run(mine), stock)


def test_distilled_models_refuse_rules_that_need_a_negative_branch() -> None:
    network = tiny.unet(time_cond_proj_dim=32)
    case = tiny.text_to_image()
    case.pipe.unet = network
    for rule in (CFG, guidance.parse("apg + interval"), guidance.CFGPP()):
        with pytest.raises(UsageError, match=r"guidance-distilled.*rule 'none'"):
            pilotage.attach(case.pipe, rule)
    stock = tiny.run(case)
    with pilotage.attach(case.pipe, "none"):
        assert torch.equal(tiny.run(case), stock)


def test_missing_branches_and_networks_name_the_setting(sd: tiny.Case) -> None:
    with pilotage.attach(sd.pipe, CFG), pytest.raises(UsageError, match="prepared none; pass guidance_scale above 1"):
        tiny.run(sd, guidance_scale=1.0)
    with pytest.raises(UsageError, match=r"needs the network 'weak': attach\(pipe, rule, networks=\{'weak'"):
        pilotage.attach(sd.pipe, guidance.Autoguidance())
    with pytest.raises(UsageError, match="StableDiffusionPipeline has no 'image' branch"):
        pilotage.attach(sd.pipe, guidance.ImageCFG())
    pix = CASES["StableDiffusionInstructPix2PixPipeline"]()
    with (
        pilotage.attach(pix.pipe, guidance.ImageCFG()),
        pytest.raises(UsageError, match="image_guidance_scale of at least"),
    ):
        tiny.run(pix, image_guidance_scale=0.5)
    with pytest.raises(UsageError, match="takes a rule or a line"):
        pilotage.attach(sd.pipe, 5)  # type: ignore[arg-type]
    with pilotage.attach(sd.pipe, CFG, seeds=[1]), pytest.raises(UsageError, match="1 seeds for 2 pictures"):
        tiny.run(sd)


def test_two_rules_on_one_pipeline_are_refused(sd: tiny.Case) -> None:
    kin = D.AutoPipelineForImage2Image.from_pipe(sd.pipe)
    with pilotage.attach(sd.pipe, CFG):
        for pipe in (sd.pipe, kin):
            with pytest.raises(UsageError, match="already attached"), pilotage.attach(pipe, "none"):
                pass
    with pilotage.attach(sd.pipe, CFG):
        pass


def test_a_network_that_is_called_past_the_rule_is_noticed(sd: tiny.Case) -> None:
    other = tiny.unet(seed=4)
    with pilotage.attach(sd.pipe, CFG), pytest.raises(UsageError, match="was not called through the attached rule"):
        sd.pipe.scheduler.set_timesteps(3)
        sd.pipe.unet = other  # after the run began
        sd.pipe.scheduler.step(torch.zeros(1, 4, 8, 8), sd.pipe.scheduler.timesteps[0], torch.zeros(1, 4, 8, 8))


# -- others who patch the same module ---------------------------------------------------------------------------------


def lora(case: tiny.Case) -> None:
    case.pipe.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))


@pytest.mark.parametrize("when", ["before", "inside"])
def test_lora(sd: tiny.Case, when: str) -> None:
    plain = tiny.run(sd)
    torch.manual_seed(0)
    if when == "before":
        lora(sd)
    with pilotage.attach(sd.pipe, CFG):
        if when == "inside":
            lora(sd)
        ours = tiny.run(sd)
        weaker = tiny.run(sd, cross_attention_kwargs={"scale": 0.3})
    assert torch.equal(ours, tiny.run(sd)) and (ours - plain).abs().max() > 1e-3
    assert torch.equal(weaker, tiny.run(sd, cross_attention_kwargs={"scale": 0.3}))
    assert (weaker - ours).abs().max() > 1e-3


def test_from_pipe_shares_the_rule_until_the_block_ends(sd: tiny.Case) -> None:
    stock = tiny.run(sd)
    with pilotage.attach(sd.pipe, "none"):
        kin = D.AutoPipelineForText2Image.from_pipe(sd.pipe)
        kin.set_progress_bar_config(disable=True)
    assert torch.equal(tiny.run(tiny.Case(kin, sd.call, sd.off)), stock)


def test_saving_while_attached(sd: tiny.Case, tmp_path: Any) -> None:
    stock = tiny.run(sd)
    with pilotage.attach(sd.pipe, "none"):
        sd.pipe.unet.save_pretrained(tmp_path)
    back = D.UNet2DConditionModel.from_pretrained(tmp_path)
    assert {k: v.shape for k, v in back.state_dict().items()} == {
        k: v.shape for k, v in sd.pipe.unet.state_dict().items()
    }
    sd.pipe.unet = back.eval()
    assert torch.allclose(tiny.run(sd), stock, atol=1e-6)


class Noted(accelerate.hooks.ModelHook):
    """Stands in for offloading: counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def pre_forward(self, module: Any, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        return args, kwargs


def put(case: tiny.Case) -> Noted:
    hook = Noted()
    accelerate.hooks.add_hook_to_module(case.pipe.unet, hook)
    return hook


def take(case: tiny.Case) -> None:
    accelerate.hooks.remove_hook_from_module(case.pipe.unet)


@pytest.mark.parametrize("removed", ["inside", "after", "between"])
@pytest.mark.parametrize("installed", ["before", "inside"])
def test_accelerate_hooks(sd: tiny.Case, installed: str, removed: str) -> None:
    """Below ours or on top of it, removed while ours is on or later: the rule acts, theirs too, and both go."""
    stock, off = tiny.run(sd), tiny.run(sd, guidance_scale=1.0)
    hook = put(sd) if installed == "before" else None
    with pilotage.attach(sd.pipe, "none") as run:
        hook = hook or put(sd)
        assert torch.equal(tiny.run(sd), off) and hook.calls == 4
        if removed == "inside":  # accelerate restores the forward that it saved, without the rule if it came first
            take(sd)
            assert torch.equal(tiny.run(sd), off) and hook.calls == 4
            assert run.evaluations == {"cond": 8}
    if removed == "after":
        assert torch.equal(tiny.run(sd), stock) and hook.calls == 8
    if removed != "inside":
        take(sd)
    assert torch.equal(tiny.run(sd), stock)
    with pilotage.attach(sd.pipe, "none"):
        assert torch.equal(tiny.run(sd), off)
    assert torch.equal(tiny.run(sd), stock)


def test_diffusers_hooks(sd: tiny.Case) -> None:
    from diffusers.hooks import HookRegistry, ModelHook

    class Counts(ModelHook):
        calls = 0

        def pre_forward(self, module: Any, *args: Any, **kwargs: Any) -> Any:
            type(self).calls += 1
            return args, kwargs

    stock, off = tiny.run(sd), tiny.run(sd, guidance_scale=1.0)
    with pilotage.attach(sd.pipe, "none"):
        registry = HookRegistry.check_if_exists_or_initialize(sd.pipe.unet)
        registry.register_hook(Counts(), "counts")
        assert torch.equal(tiny.run(sd), off) and Counts.calls == 4
    assert torch.equal(tiny.run(sd), stock) and Counts.calls == 8
    registry.remove_hook("counts")
    assert torch.equal(tiny.run(sd), stock)


FULL = [pytest.param(how, marks=pytest.mark.full) for how in ("wrapped", "wrapped inside")]


@pytest.mark.parametrize("how", ["in place", "in place inside", *FULL])
def test_compiled_networks(sd: tiny.Case, how: str) -> None:
    stock = tiny.run(sd, 2)
    torch._dynamo.reset()
    network = sd.pipe.unet
    graphs = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(len(graphs))
        return graph.forward

    if how == "in place":
        network.compile(backend=backend)
    elif how == "wrapped":
        sd.pipe.unet = torch.compile(network, backend=backend)
    with pilotage.attach(sd.pipe, CFG) as run:
        if how == "wrapped inside":
            sd.pipe.unet = torch.compile(network, backend=backend)
        elif how == "in place inside":
            network.compile(backend=backend)
        assert torch.allclose(tiny.run(sd, 2), stock, atol=1e-6)
    assert graphs and all(graph <= 1 for graph in graphs)  # the network is compiled in one piece, and our code is not
    assert run.evaluations == {"cond": 4, "uncond": 4}
    assert torch.allclose(tiny.run(sd, 2), stock, atol=1e-6)
    torch._dynamo.reset()


def test_deep_copies_made_inside_are_plain(sd: tiny.Case) -> None:
    """A copy has its own weights and no rule; a hook of diffusers would run the original's weights."""
    x, time, text = torch.ones(2, 4, 8, 8), 5, torch.ones(2, 3, 32)
    stock = sd.pipe.unet(x, time, text)[0]
    with pilotage.attach(sd.pipe, "none") as run:
        twin, times = copy.deepcopy(sd.pipe.unet), copy.deepcopy(sd.pipe.scheduler)
        assert torch.equal(twin(x, time, text)[0], stock) and run.steering is None
        with torch.no_grad():
            for parameter in twin.parameters():
                parameter.zero_()
        assert not twin(x, time, text)[0].any()
        times.set_timesteps(7)
        assert times.num_inference_steps == 7 and sd.pipe.scheduler.num_inference_steps != 7
    assert torch.equal(sd.pipe.unet(x, time, text)[0], stock)


def test_shadows_keep_the_signature() -> None:
    import inspect

    scheduler = tiny.ddim()
    before = inspect.signature(scheduler.step)
    shadow = Shadow(scheduler, "step", lambda original, *a, **k: original(*a, **k))
    assert inspect.signature(scheduler.step) == before and shadow.reached and shadow.on_top
    shadow.remove()
    assert "step" not in vars(scheduler)


def test_the_scheduler_may_be_exchanged_inside(sd: tiny.Case) -> None:
    ours = samplers.DPMPP2M.from_config(sd.pipe.scheduler.config)
    first = sd.pipe.scheduler
    with pilotage.attach(sd.pipe, CFG) as run:
        tiny.run(sd)
        sd.pipe.scheduler = ours
        exchanged = tiny.run(sd)
        assert "step" not in vars(first) and run.evaluations == {"cond": 8, "uncond": 8}
    assert "step" not in vars(ours) and torch.equal(tiny.run(sd), exchanged)


def test_the_network_may_be_exchanged_inside(sd: tiny.Case) -> None:
    first, other = sd.pipe.unet, tiny.unet(seed=4)
    with pilotage.attach(sd.pipe, CFG):
        tiny.run(sd)
        sd.pipe.unet = other
        ours = tiny.run(sd)
        assert "forward" not in vars(first)
    assert "forward" not in vars(other) and torch.equal(tiny.run(sd), ours)


# -- modes and precisions ---------------------------------------------------------------------------------------------


def test_several_pictures_a_prompt(sd: tiny.Case) -> None:
    stock = call(sd, tiny.TWO_PROMPTS, num_images_per_prompt=3)
    with pilotage.attach(sd.pipe, CFG) as run:
        assert torch.equal(call(sd, tiny.TWO_PROMPTS, num_images_per_prompt=3), stock)
    assert run.evaluations == {"cond": 24, "uncond": 24}


def test_inference_mode(sd: tiny.Case) -> None:
    stock = tiny.run(sd)
    with torch.inference_mode(), pilotage.attach(sd.pipe, "cfg:scale=5 + adaptive:threshold=2 + rescale:phi=0"):
        assert torch.equal(tiny.run(sd), stock)


@dataclass(frozen=True)
class Slope(Rule):
    """Reads a gradient through the network; the prediction stays as it is."""

    seen: list[float]
    passes: ClassVar[int] = 0

    def guide(self, ctx: Context) -> Guide:
        x = ctx.x.detach().clone().requires_grad_()
        c, p = yield Ask(), Ask(at=Point(x, ctx.level), grad=True)
        with torch.enable_grad():
            (slope,) = torch.autograd.grad(p.denoised.square().sum(), x)
        self.seen.append(float(slope.norm()))
        return c


def test_gradients_through_the_network_under_the_pipelines_no_grad(sd: tiny.Case) -> None:
    rule = Slope([])
    with pilotage.attach(sd.pipe, rule):
        ours = tiny.run(sd)
    assert torch.equal(ours, tiny.run(sd, guidance_scale=1.0))
    assert len(rule.seen) == 4 and min(rule.seen) > 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_pipelines(dtype: torch.dtype) -> None:
    case = tiny.text_to_image()
    case.pipe.to(dtype)
    stock = tiny.run(case)
    with pilotage.attach(case.pipe, CFG):
        ours = tiny.run(case)
    with pilotage.attach(case.pipe, "apg:scale=12"):
        other = tiny.run(case)
    with pilotage.attach(case.pipe, "none"):
        assert torch.equal(tiny.run(case), tiny.run(case, guidance_scale=1.0))
    assert ours.dtype == other.dtype == stock.dtype == dtype and other.isfinite().all()
    # We combine in float32, stock in half precision: apart by roundings of the half type, amplified over four steps.
    assert (ours.float() - stock.float()).abs().max() < (0.02 if dtype == torch.float16 else 0.15) * stock.abs().max()
    case.pipe.to(torch.float32)
    exact = tiny.run(case)
    assert (ours.float() - exact).abs().mean() < 1.5 * (stock.float() - exact).abs().mean()


def test_the_whole_run_is_differentiable(sd: tiny.Case) -> None:
    """Through the undecorated call, as reward training does it."""
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    inner = type(sd.pipe).__call__.__wrapped__
    settings: dict[str, Any] = dict(
        prompt="a star", num_inference_steps=3, output_type="latent", return_dict=False, height=16, width=16
    )
    slopes = []
    for rule in (None, CFG):
        if rule is None:
            out = inner(sd.pipe, latents=latents, guidance_scale=5.0, **settings)[0]
        else:
            with pilotage.attach(sd.pipe, rule):
                out = inner(sd.pipe, latents=latents, guidance_scale=5.0, **settings)[0]
        slopes.append(torch.autograd.grad(out.square().sum(), latents)[0])
    assert slopes[0].abs().max() > 0 and torch.allclose(slopes[0], slopes[1], rtol=1e-4, atol=1e-5)


# -- further networks, rows ------------------------------------------------------------------------------------------


def test_autoguidance_with_a_second_network(sd: tiny.Case) -> None:
    weak = tiny.unet(seed=4)
    with rows_seen(weak) as seen, pilotage.attach(sd.pipe, "autoguidance:scale=3", {"weak": weak}) as run:
        ours = tiny.run(sd)
    assert run.evaluations == {"cond": 8, "weak": 8} and seen == [2] * 4
    assert {"difference", "cosine"} <= set(run.steps[0])
    # by hand, with the stock scheduler
    strong, scheduler = sd.pipe.unet, sd.pipe.scheduler
    text = sd.pipe.encode_prompt(tiny.TWO_PROMPTS, "cpu", 1, False)[0]
    x = torch.stack([torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(s)) for s in (1, 2)])
    scheduler.set_timesteps(4)
    with torch.no_grad():
        for t in scheduler.timesteps:
            c, b = strong(x, t, text)[0], weak(x, t, text)[0]
            x = scheduler.step(b + 3.0 * (c - b), t, x).prev_sample
    assert torch.allclose(ours, x, atol=1e-5)
    with pilotage.attach(sd.pipe, "autoguidance:scale=3", {"weak": strong}):
        assert torch.allclose(tiny.run(sd), tiny.run(sd, guidance_scale=1.0), atol=1e-5)


@pytest.mark.parametrize("line", ["cfg:scale=5", "apg:scale=8", "cfg++:lam=0.4"])
def test_adaptive_guidance_evaluates_only_the_rows_that_want_it(sd: tiny.Case, line: str) -> None:
    """A mixed batch costs what its pictures cost alone, and gives the same pictures."""
    prompts = ["a red star", "two blue rings", "a moon", "a green fish", "a house"]
    with pilotage.attach(sd.pipe, f"{line} + adaptive:threshold=2") as run:
        call(sd, prompts, 8)
    agreement = torch.stack([step["agreement"] for step in run.steps])
    values = agreement[2:5].flatten().sort().values
    threshold = float(values[6:8].mean())  # between two: a decision that rounding cannot flip
    rule = guidance.parse(f"{line} + adaptive:threshold={threshold!r}")
    with rows_seen(sd.pipe.unet) as seen, pilotage.attach(sd.pipe, rule) as run:
        together = call(sd, prompts, 8)
    dropped = [int(step["guided_rows"].sum()) for step in run.steps]
    assert seen == [5 + rows for rows in dropped] and 0 < sum(dropped) < 40 and len(set(dropped)) > 2
    alone = 0
    for i, prompt in enumerate(prompts):
        generator = torch.Generator().manual_seed(i + 1)
        with pilotage.attach(sd.pipe, rule) as run:
            given = {**sd.call, "prompt": [prompt], "generator": [generator], "num_inference_steps": 8}
            picture = sd.pipe(**given, return_dict=False)[0]
        assert torch.allclose(picture[0], together[i], atol=2e-4)
        alone += run.evaluations["uncond"]
    assert alone == sum(dropped)


@pytest.mark.parametrize("line", ["cfg:scale=5", "apg:scale=8 + adaptive:threshold=0.9", "none",
                                  "autoguidance + rescale", "cfg:scale=5 + icg + adaptive:threshold=0.9 + cads",
                                  ])  # fmt: skip
@pytest.mark.parametrize("rows", [4, 3])
def test_equal_rows_per_call_make_equal_bits_whatever_the_batch(sd: tiny.Case, line: str, rows: int) -> None:
    prompts = ["a red star", "two blue rings", "a moon"]
    networks = {"weak": tiny.unet(seed=4)}

    def pictures(which: list[int]) -> torch.Tensor:
        generator = [torch.Generator().manual_seed(i) for i in which]
        given = {**sd.call, "prompt": [prompts[i] for i in which], "generator": generator}
        attached = pilotage.attach(sd.pipe, line, networks, rows_per_call=rows, seeds=which)
        with rows_seen(sd.pipe.unet) as seen, attached as run:
            out = sd.pipe(**given, num_inference_steps=5, return_dict=False)[0]
        assert set(seen) == {rows}
        if "icg" not in line:  # whose wrong conditions are evaluations of "cond" as well
            assert run.evaluations["cond"] == 5 * len(which)  # before padding
        return out

    whole = pictures([0, 1, 2])
    for which in ([0], [1], [2], [2, 0], [1, 1]):
        assert torch.equal(pictures(which), whole[which])


def test_learned_sigma_and_padding() -> None:
    case = CASES["DiTPipeline"]()
    whole = tiny.run(case)
    with pilotage.attach(case.pipe, guidance.CFG(5.0), rows_per_call=3):
        assert torch.allclose(tiny.run(case), whole, atol=1e-4)


def test_scales_by_row(sd: tiny.Case) -> None:
    with pilotage.attach(sd.pipe, guidance.CFG((1.0, 6.0))) as run:
        both = tiny.run(sd)
    assert run.evaluations == {"cond": 8, "uncond": 4}
    assert torch.allclose(both[0], tiny.run(sd, guidance_scale=1.0)[0], atol=1e-5)
    assert torch.allclose(both[1], tiny.run(sd, guidance_scale=6.0)[1], atol=1e-5)
