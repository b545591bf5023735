"""Adapters: what is loaded makes the same pictures, mixtures are sums of weights, and switching is safe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_parts import stable_diffusion
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from pilotage.errors import UsageError
from pilotage.samplers import sample
from pilotage.training import lora
from pilotage.training.lora import LoraSettings
from pilotage.training.pipeline_learner import PipelineLearner

PROMPTS = ["a red star", "two blue rings"]


def learner(settings: LoraSettings | None = LoraSettings(), disturbed: int = 0, **more: Any) -> PipelineLearner:  # noqa: B008
    """disturbed: a seed for values of B that are not zero."""
    made = PipelineLearner(stable_diffusion(), settings, **more)
    return disturb(made, disturbed) if disturbed else made


def disturb(made: PipelineLearner, seed: int) -> PipelineLearner:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in made.parameters:
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return made


def picture(pipe: Any) -> Tensor:
    pipe.vae.requires_grad_(False)  # another convolution is taken then, and the last bit differs
    generators = [torch.Generator().manual_seed(s) for s in (1, 2)]
    return torch.as_tensor(pipe(PROMPTS, num_inference_steps=4, generator=generators, output_type="np").images)


def written(made: PipelineLearner, folder: Path) -> Path:
    lora.save_lora(lora.lora_state(made.pipe.unet), folder)
    return folder


def loaded(*folders: tuple[Path, float]) -> Any:
    pipe = stable_diffusion()
    for number, (folder, _) in enumerate(folders):
        pipe.load_lora_weights(str(folder), adapter_name=f"a{number}")
    pipe.set_adapters([f"a{n}" for n in range(len(folders))], [weight for _, weight in folders])
    return pipe


def test_adapters_start_at_the_base_model_and_depend_on_the_seed_alone() -> None:
    one, again, other = learner(seed=3), learner(seed=3), learner(seed=4)
    assert torch.equal(picture(one.pipe), picture(stable_diffusion()))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters, again.parameters))
    assert not all(torch.equal(a, b) for a, b in zip(one.parameters, other.parameters))
    assert all(p.requires_grad and p.dtype == torch.float32 for p in one.parameters)
    assert sum(p.requires_grad for p in one.pipe.unet.parameters()) == len(one.parameters)


def test_the_file_loads_in_diffusers_and_makes_the_same_pictures(tmp_path: Path) -> None:
    made = learner(disturbed=1)
    folder = written(made, tmp_path / "lora")
    assert torch.equal(picture(loaded((folder, 1.0))), picture(made.pipe))
    assert not torch.allclose(picture(made.pipe), picture(stable_diffusion()), atol=1e-3)


def test_a_scale_other_than_one_is_in_the_file(tmp_path: Path) -> None:
    made = learner(LoraSettings(rank=2, alpha=8), disturbed=1)
    folder = written(made, tmp_path / "lora")
    assert torch.allclose(picture(loaded((folder, 1.0))), picture(made.pipe), atol=1e-6)


def test_a_mixture_is_the_sum_of_the_changes(tmp_path: Path) -> None:
    one = written(learner(LoraSettings(rank=2), disturbed=1), tmp_path / "one")
    two = written(learner(LoraSettings(rank=3, targets=("to_q", "to_v")), disturbed=2), tmp_path / "two")
    state = lora.mixed([(one, 0.25), (two, 0.75)])
    first, second = lora.read_lora(one), lora.read_lora(two)
    for name in (n for n in state if n.endswith("lora_A.weight")):
        other = name.replace("lora_A", "lora_B")
        wanted = 0.25 * first[other].double() @ first[name].double()
        if name in second:
            wanted = wanted + 0.75 * second[other].double() @ second[name].double()
        assert torch.allclose(state[other].double() @ state[name].double(), wanted, atol=1e-7)
    both = tmp_path / "both"
    lora.save_lora(state, both)
    assert torch.allclose(picture(loaded((both, 1.0))), picture(loaded((one, 0.25), (two, 0.75))), atol=1e-5)


def test_ends_of_a_mixture_are_its_parts_to_the_bit(tmp_path: Path) -> None:
    one, two = (written(learner(disturbed=n), tmp_path / str(n)) for n in (1, 2))
    for weights, folder in (((1.0, 0.0), one), ((0.0, 1.0), two)):
        state, alone = lora.mixed([(one, weights[0]), (two, weights[1])]), lora.read_lora(folder)
        assert state.keys() == alone.keys() and all(torch.equal(state[n], alone[n]) for n in alone)
        both = tmp_path / "both"
        lora.save_lora(state, both)
        assert torch.equal(picture(loaded((both, 1.0))), picture(loaded((folder, 1.0))))
    lora.save_lora(lora.mixed([(one, 1.0), (two, 1.0)], scale=0.0), tmp_path / "none")
    assert torch.equal(picture(loaded((tmp_path / "none", 1.0))), picture(stable_diffusion()))


def test_averaging_a_and_b_would_be_another_model(tmp_path: Path) -> None:
    one, two = (written(learner(disturbed=n), tmp_path / str(n)) for n in (1, 2))
    state, first, second = lora.mixed([(one, 0.5), (two, 0.5)]), lora.read_lora(one), lora.read_lora(two)
    name = next(n for n in state if n.endswith("lora_A.weight"))
    other = name.replace("lora_A", "lora_B")
    naive = (first[other] + second[other]) / 2 @ (first[name] + second[name]) / 2
    assert not torch.allclose(state[other] @ state[name], naive, atol=1e-2)


def test_what_cannot_be_mixed_is_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no LoRA"):
        lora.mixed([(tmp_path / "nothing", 1.0)])
    with pytest.raises(UsageError, match="nothing to mix"):
        lora.mixed([])
    (tmp_path / lora.FILE).write_bytes(b"not one")
    with pytest.raises(UsageError, match="cannot read"):
        lora.read_lora(tmp_path)
    with pytest.raises(UsageError, match="no layer"):
        learner(LoraSettings(targets=("nowhere",)))


def test_the_norm_of_the_change() -> None:
    made = learner(LoraSettings(rank=2, alpha=4), disturbed=1)
    state = lora.lora_state(made.pipe.unet)
    total = sum(
        (state[n.replace("lora_A", "lora_B")].double() @ state[n].double()).square().sum()
        for n in state
        if n.endswith("lora_A.weight")
    )
    assert made.change() == pytest.approx(float(total) ** 0.5, rel=1e-6)
    assert learner().change() == 0


# -- the pipeline as a learner ---------------------------------------------------------------------------------------


def run(made: PipelineLearner, denoiser: Any) -> Tensor:
    levels = made.levels("trailing", 4)
    return sample(denoiser, made.start(["1", "2"], levels), sampler="ddim", grid=levels)


def test_it_samples_what_the_pipeline_samples() -> None:
    made = learner(disturbed=1)
    made.pipe.scheduler.register_to_config(timestep_spacing="trailing")
    made.pipe.scheduler.final_alpha_cumprod = torch.tensor(1.0)  # our runs end at clean data
    levels, denoiser = made.levels("trailing", 4), made.denoiser(PROMPTS, "cfg:scale=7.5")
    x = made.start(["1", "2"], levels) / levels[0].sigma  # the pipeline begins with unit noise
    with torch.no_grad():
        pictures = made.decode(sample(denoiser, x, sampler="ddim", grid=levels))
    assert torch.allclose(pictures.clamp(0, 1).permute(0, 2, 3, 1), picture(made.pipe), atol=1e-5)


def test_a_picture_does_not_depend_on_its_company() -> None:
    made = learner(disturbed=1)
    with torch.no_grad():
        both = run(made, made.denoiser(PROMPTS))
        levels = made.levels("trailing", 4)
        alone = sample(made.denoiser(PROMPTS[1:]), made.start(["2"], levels), sampler="ddim", grid=levels)
    assert torch.allclose(both[1:], alone, atol=1e-5)


@pytest.mark.parametrize("settings", [LoraSettings(), None])
def test_the_base_is_the_model_before_training(settings: LoraSettings | None) -> None:
    made = learner(settings)
    with torch.no_grad():
        before = run(made, made.denoiser(PROMPTS))
        disturb(made, 1)
        assert not torch.allclose(run(made, made.denoiser(PROMPTS)), before, atol=1e-3)
        with made.base():
            assert torch.equal(run(made, made.denoiser(PROMPTS)), before)


def test_checkpoints_in_the_vae_change_no_picture_and_no_gradient() -> None:
    def decoded(stored: bool) -> tuple[Tensor, Tensor]:
        made = learner(network_checkpoints=stored)
        assert made.model.vae.decoder.gradient_checkpointing == stored
        x = torch.randn(2, *made.shape, generator=torch.Generator().manual_seed(0)).requires_grad_()
        pictures = made.decode(x)
        pictures.square().sum().backward()
        assert x.grad is not None
        return pictures.detach(), x.grad

    for found, wanted in zip(decoded(True), decoded(False), strict=True):
        assert torch.equal(found, wanted)


@pytest.mark.parametrize("inside", [False, True])
def test_a_base_pass_before_the_backward_pass_changes_no_gradient(inside: bool) -> None:
    """Checkpoints compute again during the backward pass: with the adapters as they were. inside: the network stores
    its blocks' inputs only, and the base pass is in the graph too."""

    def gradients(stored: bool, between: bool) -> list[Tensor]:
        made = learner(disturbed=1, network_checkpoints=inside and stored)
        denoiser, x = made.denoiser(PROMPTS), made.start(["1", "2"], made.levels("trailing", 4)).requires_grad_()
        level = made.levels("trailing", 4)[1]
        function = lambda x: denoiser(x, level).denoised  # noqa: E731
        y = checkpoint(function, x, use_reentrant=False) if stored else function(x)
        with made.base():
            base = made.denoiser(PROMPTS)
            base_of = lambda y: base(y, level).denoised  # noqa: E731
            z = checkpoint(base_of, y, use_reentrant=False) if stored else base_of(y)
            loss = (y - (z if inside else z.detach())).square().sum()
            if between:
                loss.backward()
        if not between:
            loss.backward()
        return [p.grad.clone() for p in made.parameters if p.grad is not None]

    plain = gradients(stored=False, between=False)
    assert len(plain) == len(learner().parameters)
    for between in (False, True):
        stored = gradients(stored=True, between=between)
        assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in zip(plain, stored, strict=True))


def test_the_decoder_is_differentiable_and_stores_its_input_only() -> None:
    made = learner()
    x = made.start(["1"], made.levels("trailing", 4)).requires_grad_()
    kept: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        pictures = made.decode(x)
    assert max(kept, default=0) <= x.numel()
    (gradient,) = torch.autograd.grad(pictures.sum(), x)
    (wanted,) = torch.autograd.grad(made._decode(x).sum(), x)
    assert torch.allclose(gradient, wanted) and bool(gradient.abs().sum() > 0)


def test_bfloat16_runs_and_what_learns_stays_float32() -> None:
    made = learner(disturbed=1, precision="bf16")
    full = learner(disturbed=1)
    denoiser, level = made.denoiser(PROMPTS), made.levels("trailing", 4)[1]
    x = made.start(["1", "2"], made.levels("trailing", 4))
    prediction = denoiser(x, level).native
    prediction.square().sum().backward()
    assert made.pipe.unet.conv_in.weight.dtype == torch.bfloat16 and prediction.dtype == torch.float32
    assert all(p.dtype == torch.float32 and p.grad is not None for p in made.parameters)
    assert torch.allclose(prediction, full.denoiser(PROMPTS)(x, level).native, atol=0.1)


def test_a_pass_without_graph_leaves_no_casts_behind() -> None:
    """Autocast's cache of weights would hand a later pass casts that have no graph."""
    made = learner(disturbed=1, precision="bf16")
    denoiser, level = made.denoiser(PROMPTS), made.levels("trailing", 4)[1]
    x = made.start(["1", "2"], made.levels("trailing", 4))
    with torch.autocast("cpu", torch.bfloat16):
        with torch.no_grad():
            denoiser(x, level)
        denoiser(x, level).native.square().sum().backward()
    assert all(p.grad is not None for p in made.parameters)


def test_other_pipelines_are_refused() -> None:
    from tiny_unets import inpaint

    with pytest.raises(UsageError, match="cannot be used as a denoiser"):
        PipelineLearner(inpaint().pipe)


def test_the_command_line_mixes_adapters(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from pilotage.cli.main import run

    state = {"unet.a.lora_A.weight": torch.ones(1, 3), "unet.a.lora_B.weight": torch.ones(2, 1)}
    for name, factor in (("one", 1.0), ("two", 3.0)):
        lora.save_lora({key: factor * tensor for key, tensor in state.items()}, tmp_path / name)
    line = ["mix-lora", f"{tmp_path / 'one'}:0.5", f"{tmp_path / 'two'}:0.25", "-o", str(tmp_path / "both")]
    assert run(line) == 0 and "2 adapters of 1 layers" in capsys.readouterr().out
    found = lora.read_lora(tmp_path / "both")
    change = found["unet.a.lora_B.weight"] @ found["unet.a.lora_A.weight"]
    assert torch.allclose(change, torch.full((2, 3), 0.5 + 0.25 * 9))
    for wrong in ("one", f"{tmp_path / 'one'}:much", ":1"):
        assert run(["mix-lora", wrong, "-o", str(tmp_path / "none")]) == 2
        assert "FOLDER:WEIGHT" in capsys.readouterr().err and not (tmp_path / "none").exists()
