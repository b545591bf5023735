"""Any pipeline that `attach` knows as the model that learns: what it draws is what the pipeline's own call draws."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_tokens
import tiny_transformers
import tiny_unets
import tiny_videos
import torch
from finetune_toys import context, gradients, of, train
from tiny_parts import Case, stable_diffusion, vae
from torch import Tensor

from pilotage.errors import UsageError
from pilotage.finetune import FinetuneSpec, Opened
from pilotage.finetune import train as train_run
from pilotage.finetune.method import Method, Sampling
from pilotage.finetune.methods.alignprop import AlignProp
from pilotage.finetune.methods.draft import DRaFTK
from pilotage.finetune.methods.flow_grpo import DanceGRPO, FlowGRPO
from pilotage.finetune.opening import open_learner
from pilotage.guidance.pipelines import attach
from pilotage.guidance.pipelines.denoiser import denoiser_of
from pilotage.guidance.pipelines.forms import LENGTHS, evaluate
from pilotage.samplers import sample
from pilotage.samplers.stock import calls_of
from pilotage.training import lora
from pilotage.training.lora import LoraSettings
from pilotage.training.pipeline_learner import PipelineLearner

STEPS = 3
SETTINGS = ("true_cfg_scale", "guidance_scale", "output_type", "width", "height", "prompt", "class_labels")


def told_by_number(pipe: Any, given: dict[str, Any]) -> Any:
    """A pipeline without text encoders, whose prompts "0" and "1" are rows of the given embeddings; of the negative
    ones, the first."""
    cls = type(pipe)
    parameters = inspect.signature(cls.__call__).parameters

    def call(self: Any, prompt: Any = None, negative_prompt: Any = None, **further: Any) -> Any:
        rows = numbers(prompt)
        own: dict[str, Any] = {n: None for n in ("prompt", "negative_prompt") if n in parameters}
        for name, value in given.items():
            if name.startswith("negative_") and value is not None:
                own[name] = [value[0]] * len(rows) if isinstance(value, list) else value[[0] * len(rows)]
            elif "prompt_" in name and not name.startswith("negative_"):
                own[name] = [value[row] for row in rows] if isinstance(value, list) else value[rows]
        return cls.__call__(self, **own, **further)

    taken = {**parameters, "prompt": prompt_parameter("prompt"), "negative_prompt": prompt_parameter("negative_prompt")}
    order = sorted(taken.values(), key=lambda parameter: parameter.kind)
    call.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [p.replace(default=None) if p.kind is p.POSITIONAL_OR_KEYWORD and p.name != "self" else p for p in order]
    )
    pipe.__class__ = type(cls.__name__, (cls,), {"__call__": call, "__module__": cls.__module__})
    return pipe


def numbers(prompts: str | list[str]) -> list[int]:
    """Of prompts that are no numbers, whether they have an odd length."""
    texts = [prompts] if isinstance(prompts, str) else prompts
    return [int(text) if text.isdecimal() else len(text) % 2 for text in texts]


def prompt_parameter(name: str) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=None)


def by_number(build: Callable[[], Case], **parts: Callable[[], Any]) -> Callable[[], Case]:
    """Of a case that is given embeddings; parts: what it lacks of the pipeline."""

    def made() -> Case:
        case = build()
        case.pipe.register_modules(**{name: part() for name, part in parts.items()})
        embeddings = {name: case.call.pop(name) for name in list(case.call) if "prompt" in name}
        told_by_number(case.pipe, embeddings)
        return case

    return made


def classes() -> Case:
    case = tiny_transformers.dit()
    case.call.pop("class_labels")
    return case


def kolors() -> Case:
    """Its call loses the pooled embeddings that it is given."""
    case = tiny_unets.kolors_text_to_image()
    cond, uncond, pooled, unpooled = case.pipe.encode_prompt()

    def encode_prompt(prompt: Any, *args: Any, **further: Any) -> Any:
        rows = numbers(prompt)
        first = [0] * len(rows)
        return cond[rows], uncond[first], pooled[rows], unpooled[first]

    case.pipe.encode_prompt = encode_prompt
    return case


def sana_vae() -> Any:
    return tiny_transformers.sana_controlnet().pipe.vae


def qwen_vae() -> Any:
    return tiny_tokens.qwen_image().pipe.vae


def flux_2_vae() -> Any:
    return tiny_tokens.flux_2_klein().pipe.vae


def flux_dev() -> Case:
    """Its scale is an input of the network."""
    case = tiny_tokens.flux(network=dict(guidance_embeds=True))
    case.call |= dict(guidance_scale=2.0)
    return case


def one_frame(case: Case) -> Case:
    case.call |= dict(num_frames=1, height=32, width=32)
    return case


BUILT: dict[str, Callable[[], Case]] = {
    "StableDiffusionXLPipeline": tiny_unets.stable_diffusion_xl,
    "KolorsPipeline": kolors,
    "StableDiffusion3Pipeline": tiny_transformers.stable_diffusion_3,
    "FluxPipeline": tiny_tokens.flux,
    "FluxPipeline (dev)": flux_dev,
    "Flux2KleinPipeline": by_number(tiny_tokens.flux_2_klein),
    "Flux2Pipeline": by_number(tiny_tokens.flux_2),
    "ChromaPipeline": tiny_tokens.chroma,
    "PixArtAlphaPipeline": tiny_transformers.pixart_alpha,
    "PixArtSigmaPipeline": tiny_transformers.pixart,
    "DiTPipeline": classes,
    "HunyuanDiTPipeline": by_number(tiny_transformers.hunyuan_dit),
    "AuraFlowPipeline": by_number(tiny_transformers.aura_flow),
    "Lumina2Pipeline": by_number(tiny_transformers.lumina_2, vae=lambda: vae(shift_factor=0.06)),
    "CogView4Pipeline": by_number(tiny_transformers.cogview_4),
    "QwenImagePipeline": by_number(tiny_tokens.qwen_image),
    "SanaPipeline": by_number(tiny_transformers.sana, vae=sana_vae),
    "CogView3PlusPipeline": by_number(tiny_transformers.cogview_3_plus),
    "BriaPipeline": tiny_tokens.bria,
    "OvisImagePipeline": by_number(tiny_tokens.ovis),
    "LongCatImagePipeline": tiny_tokens.longcat_text_to_image,
    "Krea2Pipeline": by_number(tiny_tokens.krea_2, vae=qwen_vae),
    "NucleusMoEImagePipeline": by_number(tiny_tokens.nucleus, vae=qwen_vae),
    "HunyuanImagePipeline": by_number(tiny_transformers.hunyuan_image_base, vae=vae),
    "PRXPipeline": by_number(tiny_transformers.prx, vae=lambda: vae(shift_factor=0.06)),
    "ErnieImagePipeline": by_number(tiny_transformers.ernie, vae=flux_2_vae),
    "LuminaPipeline": by_number(tiny_transformers.lumina, vae=lambda: vae(3)),
    "WanPipeline": by_number(lambda: one_frame(tiny_videos.wan_text_to_video()), vae=tiny_videos.wan_vae),
    "ZImagePipeline": by_number(tiny_transformers.z_image),
}


@cache
def built(name: str) -> tuple[Case, PipelineLearner]:
    return opened(BUILT[name]())


def opened(case: Case, settings: LoraSettings | None = LoraSettings(), **more: Any) -> tuple[Case, PipelineLearner]:  # noqa: B008
    call = {key: value for key, value in case.call.items() if key not in SETTINGS and "prompt_embeds" not in key}
    network = case.pipe.components.get("transformer")
    if network is not None and getattr(network.config, "guidance_embeds", False):
        call["guidance_scale"] = case.call["guidance_scale"]
    size = (case.call["width"], case.call["height"]) if "width" in case.call else None
    call.pop("negative_prompt", None)
    return case, PipelineLearner(case.pipe, settings, size=size, call=call, **more)


PROMPTS = ["0", "1"]


def stock(case: Case, rule: str) -> Tensor:
    """The pipeline's own pictures (B, 3, H, W) under the rule, of seeds 1 and 2 (some take one at a time)."""
    prompts = PROMPTS[: len(case.seeds)]
    call: dict[str, Any] = {k: v for k, v in case.call.items() if k not in ("prompt", "negative_prompt")}
    given: dict[str, Any] = {"prompt": prompts, "negative_prompt": [""] * len(prompts)}
    if type(case.pipe).__name__ == "DiTPipeline":
        given = {"class_labels": [0, 1]}
    if type(case.pipe).__name__ == "StableDiffusionXLPipeline":  # whose own empty negative prompt is zeros
        given.pop("negative_prompt")
    generators = [torch.Generator().manual_seed(seed) for seed in case.seeds]
    with attach(case.pipe, rule):
        pictures = case.pipe(
            **{**call, **given, "output_type": "np"},
            num_inference_steps=STEPS,
            generator=generators[0] if len(generators) == 1 else generators,
            return_dict=False,
        )[0]
    found = torch.as_tensor(pictures).movedim(-1, 1)
    return found.squeeze(2) if found.dim() == 5 else found


@pytest.mark.parametrize("rule", ["none", "cfg:scale=3"])
@pytest.mark.parametrize("name", BUILT)
def test_it_draws_what_the_pipeline_draws(name: str, rule: str) -> None:
    if name == "Flux2Pipeline" and rule != "none":
        pytest.skip("distilled: it has no negative branch")
    case, learner = built(name)
    wanted = stock(case, rule)
    calls = calls_of(case.pipe.scheduler)
    levels = (*(call.level for call in calls), calls[-1].goal)
    seeds = [str(seed) for seed in case.seeds]
    x = learner.start(seeds, levels) / levels[0].sigma  # the pipeline begins with unit noise
    with torch.no_grad():
        last = sample(learner.denoiser(PROMPTS[: len(seeds)], rule), x, sampler="ddim", grid=levels)
        pictures = learner.decode(last).clamp(0, 1)
    assert pictures.shape == wanted.shape
    assert float((pictures - wanted).abs().max()) < 1e-4
    assert float(wanted.std()) > 1e-2  # there is something to see


# -- conditions -------------------------------------------------------------------------------------------------------


def level_of(learner: PipelineLearner) -> Any:
    return learner.levels("trailing", 4)[1]


@pytest.mark.parametrize("name", ["StableDiffusion3Pipeline", "QwenImagePipeline", "ZImagePipeline", "Flux2Pipeline"])
def test_a_row_does_not_depend_on_its_company(name: str) -> None:
    _, learner = built(name)
    x, level = torch.randn(2, *learner.shape, generator=torch.Generator().manual_seed(1)), level_of(learner)
    with torch.no_grad():
        both = learner.denoiser(PROMPTS)(x, level).native
        alone = learner.denoiser(PROMPTS[1:])(x[1:], level).native
    assert torch.allclose(both[1:], alone, atol=1e-5)
    assert float((both[0] - both[1]).abs().max()) > 1e-3


def test_prompts_of_different_lengths_are_not_padded() -> None:
    """Z-Image's two texts have 6 and 5 tokens: filled up in the tree, cut again for the network."""
    _, learner = built("ZImagePipeline")
    both, one = learner.conditions.of(PROMPTS), learner.conditions.of(PROMPTS[1:])
    assert both[LENGTHS].tolist() == [[6, 16], [5, 16]] and LENGTHS not in one
    assert both["cap_feats"].shape == (2, 6, 16) and torch.equal(both["cap_feats"][1:, :5], one["cap_feats"])
    seen: list[list[int]] = []
    hook = learner.network.register_forward_pre_hook(lambda m, args, kwargs: seen.append([len(c) for c in kwargs["cap_feats"]]), with_kwargs=True)  # fmt: skip # noqa: E501
    with torch.no_grad():
        learner.denoiser([*PROMPTS, "0"])(torch.randn(3, *learner.shape), level_of(learner))
    hook.remove()
    assert seen == [[6, 6], [5]]


def test_further_arguments_keep_their_rows_where_prompts_have_different_lengths() -> None:
    _, learner = built("ZImagePipeline")
    given: list[list[float]] = []

    def network(x: Any, t: Tensor, scale: Tensor, **told: Any) -> Any:
        given.append(scale[:, 0].tolist())
        return SimpleNamespace(sample=[-row * s for row, s in zip(x, scale[:, 0])])

    x, condition = torch.randn(3, *learner.shape), learner.conditions.of([*PROMPTS, "0"])
    found = evaluate(network, x, torch.full((3,), 500.0), **condition, scale=torch.tensor([[1.0], [2.0], [3.0]]))
    assert given == [[1.0, 3.0], [2.0]]
    assert torch.allclose(found, x * torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1, 1))


def test_looking_at_a_pipeline_leaves_nothing_behind() -> None:
    case = tiny_transformers.stable_diffusion_3()
    pipe, before = case.pipe, dict(case.pipe.scheduler.__dict__)
    bar, state = pipe._progress_bar_config, torch.get_rng_state()
    denoiser_of(pipe, "a", "cfg:scale=3", size=(16, 16))
    assert pipe.scheduler.__dict__ == before and pipe._progress_bar_config is bar
    assert torch.equal(torch.get_rng_state(), state)
    assert "forward" not in pipe.transformer.__dict__ and "step" not in pipe.scheduler.__dict__


def test_the_scale_of_a_distilled_network_is_an_input() -> None:
    case = flux_dev()
    calls = [{"max_sequence_length": 16, "guidance_scale": scale} for scale in (1.0, 2.0)]
    one, two = (PipelineLearner(case.pipe, None, base=case.pipe.transformer, size=(16, 16), call=c) for c in calls)
    assert [float(learner.conditions.of(["a"])["guidance"]) for learner in (one, two)] == [1.0, 2.0]
    x, level = torch.randn(1, *one.shape), level_of(one)
    with torch.no_grad():
        assert not torch.equal(one.denoiser(["a"])(x, level).native, two.denoiser(["a"])(x, level).native)


# -- pictures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["StableDiffusion3Pipeline", "FluxPipeline", "SanaPipeline", "Flux2KleinPipeline"])
def test_encoding_is_the_way_back(name: str) -> None:
    """Of the affine map before the decoder; the autoencoders themselves are random."""
    _, learner = built(name)
    x = torch.randn(2, *learner.shape, generator=torch.Generator().manual_seed(1))
    tail = learner.model.tail  # type: ignore[attr-defined]
    assert torch.allclose(tail.back(tail.into(x)), x, atol=1e-5)
    with torch.no_grad():
        assert learner.encode(learner.decode(x)).shape == x.shape


def test_pictures_have_the_size_that_is_asked_for() -> None:
    case = tiny_transformers.stable_diffusion_3()
    learner = PipelineLearner(case.pipe, size=(16, 24), call={"max_sequence_length": 16})
    assert learner.shape == (4, 12, 8)
    with torch.no_grad():
        assert learner.decode(torch.zeros(1, *learner.shape)).shape == (1, 3, 24, 16)
    with pytest.raises(UsageError, match="divisible by"):
        PipelineLearner(case.pipe, size=(17, 24))
    with pytest.raises(UsageError, match="does not draw 18x16 but rounds it"):
        PipelineLearner(tiny_tokens.flux().pipe, size=(18, 16), call={"max_sequence_length": 16})


# -- learning ---------------------------------------------------------------------------------------------------------

TRAINED = {name: BUILT[name] for name in (
    "StableDiffusion3Pipeline", "FluxPipeline", "PixArtSigmaPipeline", "SanaPipeline", "QwenImagePipeline",
    "KolorsPipeline", "HunyuanDiTPipeline", "Flux2KleinPipeline")}  # fmt: skip
BRIGHT = of(lambda pictures: pictures.mean(1))
FLOWING = Sampling("euler", "trailing", 3, "none")
GUIDED = Sampling("euler", "trailing", 3, "cfg:scale=2")


def learner_of(name: str, **more: Any) -> PipelineLearner:
    return opened(BUILT[name](), **more)[1]


def disturbed(learner: PipelineLearner) -> PipelineLearner:
    """With adapters that do something."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in learner.parameters:
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return learner


@pytest.mark.parametrize("name", TRAINED)
def test_a_reward_rises_through_the_run(name: str) -> None:
    learner = learner_of(name)
    frozen = {n: p.clone() for n, p in learner.network.named_parameters() if not p.requires_grad}
    prompts, levels = ["a red circle", "two squares"], learner.levels("trailing", 3)

    def reward() -> float:
        with torch.no_grad():
            x = sample(learner.denoiser(prompts), learner.start(["0", "1"], levels), sampler="euler", grid=levels)
            return float(learner.decode(x).mean())

    before = reward()
    train(AlignProp(), learner, 3, rate=0.02, reward=BRIGHT, count=2, sampling=FLOWING)
    assert reward() > before
    for n, p in learner.network.named_parameters():
        assert n not in frozen or torch.equal(p, frozen[n])
    with learner.base():
        assert reward() == pytest.approx(before, abs=1e-7)


UPDATES: list[tuple[str, Method]] = [
    ("StableDiffusion3Pipeline", FlowGRPO(inner_steps=1, group=2)),
    ("FluxPipeline", FlowGRPO(inner_steps=1, group=2)),
    ("StableDiffusion3Pipeline", DRaFTK()),
    ("FluxPipeline", DanceGRPO(inner_steps=1, group=2)),
]


@pytest.mark.parametrize(
    ("name", "method"), UPDATES, ids=lambda value: value if isinstance(value, str) else type(value).__name__
)
def test_methods_make_updates_of_flow_models(name: str, method: Method) -> None:
    """The same with all rows together, alone, and with the blocks' inputs stored only."""

    def found(rows: int, **more: Any) -> Tensor:
        learner = disturbed(learner_of(name, **more))
        made = gradients(method, context(learner, BRIGHT, 2, GUIDED, rows=rows))
        return torch.cat([gradient.flatten() for gradient in made])

    whole = found(64)
    assert bool(whole.isfinite().all()) and float(whole.norm()) > 0
    for other in (found(1), found(64, network_checkpoints=True)):
        assert float((other - whole).norm() / whole.norm()) < 1e-3


@pytest.mark.parametrize("name", ["StableDiffusion3Pipeline", "FluxPipeline", "PixArtSigmaPipeline"])
def test_bfloat16_runs_and_what_learns_stays_float32(name: str) -> None:
    low, full = disturbed(learner_of(name, precision="bf16")), disturbed(learner_of(name))
    x = torch.randn(2, *low.shape, generator=torch.Generator().manual_seed(1))
    made = low.denoiser(PROMPTS)(x, level_of(low)).native
    made.square().sum().backward()
    assert low.weights == torch.bfloat16 and made.dtype == torch.float32
    assert all(p.dtype == torch.float32 for p in low.parameters)
    wanted = full.denoiser(PROMPTS)(x, level_of(full)).native
    assert float((made - wanted).norm() / wanted.norm()) < 0.1


def test_all_weights_learn_too() -> None:
    learner = learner_of("FluxPipeline", settings=None)
    x, level = torch.randn(1, *learner.shape), level_of(learner)
    learner.denoiser(["a"])(x, level).native.square().sum().backward()
    assert sum(p.grad is not None for p in learner.parameters) > len(learner.parameters) / 2
    with torch.no_grad():
        for parameter in learner.parameters:
            parameter += 0.1
        with learner.base():
            assert torch.equal(learner.denoiser(["a"])(x, level).native, found_by(learner, x, level))
        assert not torch.allclose(learner.denoiser(["a"])(x, level).native, found_by(learner, x, level))


def found_by(learner: PipelineLearner, x: Tensor, level: Any) -> Tensor:
    fresh = learner_of("FluxPipeline", settings=None)
    found: Tensor = fresh.denoiser(["a"])(x, level).native
    return found


class Stop(Exception):
    """Somebody pulled the plug."""


def test_a_run_that_was_stopped_goes_on_to_the_bit(tmp_path: Path) -> None:
    def run(folder: str, last: int | None = None) -> dict[str, Tensor]:
        def told(entry: dict[str, Any]) -> None:
            if entry["update"] == last:
                raise Stop

        spec = FinetuneSpec(
            prompts=["a red star", "two rings"], held_out=["a green star"], held_out_seeds=2, features=None,
            reward="brightness", guidance="cfg:scale=2", steps=3, updates=4, batch=2, rows=2, evaluate_every=2,
            sheet_every=4, checkpoint_every=2, output=str(tmp_path / folder), device="cpu", learning_rate=0.01,
        )  # fmt: skip
        opened = Opened(learner_of("FluxPipeline", seed=3), DRaFTK(), BRIGHT)
        with suppress(Stop):
            train_run(spec, opened=opened, told=told)
        return {} if last else lora.read_lora(tmp_path / folder / "lora")

    whole, _, resumed = run("a"), run("b", last=3), run("b")
    assert whole.keys() == resumed.keys() and all(torch.equal(whole[key], resumed[key]) for key in whole)
    assert any(bool(whole[key].any()) for key in whole if "lora_B" in key)


# -- adapters ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*TRAINED, "DiTPipeline", "ZImagePipeline", "WanPipeline", "Krea2Pipeline"])
def test_what_is_saved_is_loaded_by_the_pipeline(name: str, tmp_path: Path) -> None:
    learner = disturbed(learner_of(name))
    learner.save(tmp_path)
    prefix = "unet." if name == "KolorsPipeline" else "transformer."
    assert all(key.startswith(prefix) for key in lora.read_lora(tmp_path))
    pipe = BUILT[name]().pipe
    network = pipe.unet if prefix == "unet." else pipe.transformer
    if hasattr(pipe, "load_lora_weights"):
        pipe.load_lora_weights(str(tmp_path))
    else:
        lora.wear_lora(network, tmp_path)
    fresh = PipelineLearner(pipe, None, network=network, base=network, conditions=learner.conditions)
    x, level = torch.randn(2, *learner.shape, generator=torch.Generator().manual_seed(1)), level_of(learner)
    with torch.no_grad():
        wanted = learner.denoiser(PROMPTS)(x, level).native
        assert torch.allclose(fresh.denoiser(PROMPTS)(x, level).native, wanted, atol=1e-5)
        with learner.base():
            assert not torch.allclose(learner.denoiser(PROMPTS)(x, level).native, wanted, atol=1e-3)


def test_the_attention_layers_by_the_networks_own_names() -> None:
    def names(name: str) -> set[str]:
        state = lora.lora_state(learner_of(name).network, "transformer")
        return {
            key.removesuffix(".lora_A.weight").replace("attention", "attn").split("attn")[-1]
            for key in state
            if "lora_A" in key
        }

    joint = {".add_q_proj", ".add_k_proj", ".add_v_proj", ".to_add_out"}
    plain = {".to_q", ".to_k", ".to_v", ".to_out.0"}
    assert names("StableDiffusion3Pipeline") == names("FluxPipeline") == plain | joint
    assert names("Flux2KleinPipeline") == plain | joint | {".to_qkv_mlp_proj", ".to_out"}
    assert names("PRXPipeline") == {".img_qkv_proj", ".txt_kv_proj", ".to_out.0"}


def test_targets_that_no_layer_has_are_refused_with_names_that_there_are() -> None:
    with pytest.raises(UsageError, match=r"no layer of SD3Transformer2DModel is called nowhere; .*to_q"):
        learner_of("StableDiffusion3Pipeline", settings=LoraSettings(targets=("nowhere",)))


def test_a_lora_of_another_network_is_refused(tmp_path: Path) -> None:
    learner_of("FluxPipeline").save(tmp_path)
    with pytest.raises(UsageError, match="of another network"):
        lora.wear_lora(BUILT["DiTPipeline"]().pipe.transformer, tmp_path)


# -- the middle -------------------------------------------------------------------------------------------------------

MIDDLES = {
    "StableDiffusion3Pipeline": (2, 32, 8, 8),
    "FluxPipeline": (2, 32, 4, 4),
    "PixArtSigmaPipeline": (2, 24, 4, 4),
    "SanaPipeline": (2, 8, 4, 4),
    "Flux2KleinPipeline": (2, 32, 21, 1),
    "KolorsPipeline": (2, 16, 4, 4),
    "Lumina2Pipeline": (2, 8, 10, 1),
}


@pytest.mark.parametrize("name", MIDDLES)
def test_the_middle_of_the_network(name: str) -> None:
    learner = disturbed(learner_of(name))
    x = torch.randn(2, *learner.shape, generator=torch.Generator().manual_seed(1)).requires_grad_()
    features = learner.inner(PROMPTS, x, level_of(learner))
    assert features.shape == MIDDLES[name]
    (gradient,) = torch.autograd.grad(features.square().sum(), x)
    assert float(gradient.abs().min(dim=0).values.max()) > 0
    with torch.no_grad():
        alone = learner.inner(PROMPTS[1:], x[1:], level_of(learner))
    assert torch.allclose(features[1:], alone, atol=1e-5)


# -- what cannot be ---------------------------------------------------------------------------------------------------

REFUSALS = {
    "AudioLDM2Pipeline": "draws sound",
    "KandinskyV22Pipeline": "not called with a prompt",
    "KandinskyPriorPipeline": "draws no pictures",
    "StableDiffusionControlNetPipeline": "of the noisy latents",
    "StableDiffusionXLImg2ImgPipeline": "its latents",
    "HiDreamImagePipeline": "no row a sample",
    "WanPipeline (two experts)": "several networks",
    "StableAudioPipeline": "scales what the network sees",
    "LongCatAudioDiTPipeline": "draws no pictures",
    "PRXPixelPipeline": "noise of size 2",
    "IFPipeline": "one of several stages",
    "AnimateDiffPipeline": "frames of a film as rows",
    "Ideogram4Pipeline": "several networks",
    "QwenImage21Pipeline": "sees more than the latents",
}
ALL = {**tiny_unets.CASES, **tiny_transformers.CASES, **tiny_videos.CASES}


@pytest.mark.parametrize("name", REFUSALS)
def test_pipelines_that_need_more_than_a_prompt_are_refused(name: str) -> None:
    case = ALL[name]()
    call = {k: v for k, v in case.call.items() if k not in (*SETTINGS, "image_embeds", "negative_image_embeds")}
    call = {k: v[:1] if isinstance(v, (Tensor, list)) and len(v) == 2 else v for k, v in call.items()}
    call |= {"prompt": None} if "prompt_embeds" in call else {}
    with pytest.raises(UsageError, match=REFUSALS[name]):
        PipelineLearner(case.pipe, call=call)


def test_what_a_call_lacks_is_said() -> None:
    case = tiny_unets.CASES["StableDiffusionInpaintPipeline"]()
    with pytest.raises(UsageError, match="cannot be used as a denoiser of prompts: its own call says"):
        PipelineLearner(case.pipe)
    with pytest.raises(UsageError, match="no adapter for"):
        PipelineLearner(type("Nobody", (), {})())


def test_a_rule_without_its_branch_is_refused() -> None:
    with pytest.raises(UsageError, match="prepares no 'uncond' branch"):
        learner_of("Flux2Pipeline").denoiser(["a"], "cfg:scale=3")


def test_a_network_without_checkpoints_is_refused() -> None:
    with pytest.raises(UsageError, match="no gradient checkpoints"):
        learner_of("HunyuanDiTPipeline", network_checkpoints=True)


def test_stable_diffusion_by_its_own_call_is_what_its_encoders_say() -> None:
    """The pipelines that are read directly could be captured as well."""
    from pilotage.guidance.pipelines.model import Captured, model_of

    for pipe in (stable_diffusion(), tiny_unets.stable_diffusion_xl().pipe):
        direct, captured = model_of(pipe, (16, 16)), Captured(pipe, (16, 16))
        assert captured.shape == direct.shape
        for negative in (False, True):
            one, two = (model.condition("" if negative else "a star", negative) for model in (direct, captured))
            assert torch.equal(one["encoder_hidden_states"], two["encoder_hidden_states"])
            for name, tensor in one.get("added_cond_kwargs", {}).items():
                assert torch.equal(tensor, two["added_cond_kwargs"][name])
        x = torch.randn(1, *direct.shape, generator=torch.Generator().manual_seed(1))
        assert torch.allclose(direct.decode(x), captured.decode(x), atol=1e-6)


def test_a_frozen_pipeline_is_read_in_half_precision_but_for_its_vae(tmp_path: Path) -> None:
    stable_diffusion().save_pretrained(tmp_path)
    spec = FinetuneSpec(model=str(tmp_path), prompts=["a"], reward="saturation", precision="bf16", device="cpu")
    pipe = open_learner(spec, torch.device("cpu"))[0].pipe
    found = {name: next(getattr(pipe, name).parameters()).dtype for name in ("unet", "text_encoder", "vae")}
    assert found == {"unet": torch.bfloat16, "text_encoder": torch.bfloat16, "vae": torch.float32}
