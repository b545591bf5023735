"""The loop: what a spec refuses, what is watched, what stops a run, and that memory tricks change no gradient."""

from __future__ import annotations

import json
import math
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from finetune_toys import ToyLearner, near
from generation_tools import ROOT, pilotage
from tiny_parts import stable_diffusion
from tiny_unets import xl
from torch import Tensor, nn

from pilotage.errors import UsageError
from pilotage.finetune import FinetuneSpec, LoraSettings, Opened, Part, PipelineLearner, Reward, UpdateContext, train
from pilotage.finetune.guardrails import Guard, Limits, Spread
from pilotage.finetune.held_out import HeldOut, embedded_judge
from pilotage.finetune.method import Method, Sampling
from pilotage.finetune.methods.registry import make_method
from pilotage.finetune.opening import open_scores, refuse_own_judge
from pilotage.generation.settings import presets, purpose_of, resolve
from pilotage.training import run_folder
from pilotage.training.offload import activations_on_cpu
from pilotage.training.optimisers import average_gradients, make_optimiser
from pilotage.training.stepping import Stepper

BRIGHT = Reward("bright", lambda pictures, prompts: pictures.mean((1, 2, 3)))


def toy(method: Method | None = None, reward: Reward | None = None, **judges: Reward) -> Opened:
    """Latents of three numbers are pictures of one pixel."""
    method = method or make_method("draft-k:truncation=2")
    return Opened(ToyLearner(size=3), method, reward or near(0.5, 0.2, 0.8), judges)


def spec(folder: Path, **changes: Any) -> FinetuneSpec:
    settings: dict[str, Any] = dict(
        prompts=["a red star", "two rings", "a fish"], held_out=["a green star", "a tree"], held_out_seeds=4,
        features=None, reward="brightness", guidance="none", steps=4, updates=4, batch=4, rows=4, evaluate_every=2,
        sheet_every=0, checkpoint_every=2, output=str(folder), device="cpu", learning_rate=0.01,
        limits={"explosion": 1e9, "diversity": 0.0},
    )  # fmt: skip
    return FinetuneSpec(**{**settings, **changes})


# -- the run ---------------------------------------------------------------------------------------------------------


def test_a_run_raises_its_reward_and_leaves_what_the_readme_promises(tmp_path: Path) -> None:
    said: list[dict[str, Any]] = []
    done = train(
        spec(tmp_path, updates=20, evaluate_every=10), opened=toy(redder=near(0.9, 0.1, 0.1)), told=said.append
    )
    assert done.updates == done.made == 20 and not done.stopped
    assert done.after["held_out"]["reward"] > done.before["held_out"]["reward"] + 0.1
    lines = run_folder.read_log(tmp_path)
    assert [line["update"] for line in lines] == list(range(21)) == [entry["update"] for entry in said]
    assert [line["pictures"] for line in lines] == [4 * n for n in range(21)]
    assert [line["update"] for line in lines if "held_out" in line] == [0, 10, 20]
    assert lines[10]["judge"].keys() == {"redder"} and "weight_change" in lines[10]["held_out"]
    assert sorted(p.name for p in (tmp_path / "sheets").iterdir()) == ["000000.png", "000020.png"]
    card = (tmp_path / "lora" / "README.md").read_text()
    assert "| judge: redder |" in card and "| reward | -" in card and "draft" not in card.splitlines()[0]
    assert (tmp_path / "index.html").is_file() and yaml.safe_load((tmp_path / "run.yaml").read_text())["spec"]


@pytest.mark.parametrize("kind", ["network", "sdxl"])
def test_all_weights_and_sdxl_are_trained_and_come_back(tmp_path: Path, kind: str) -> None:
    make = (lambda: xl()) if kind == "sdxl" else stable_diffusion
    learner = PipelineLearner(make(), LoraSettings() if kind == "sdxl" else None, seed=3)
    changes = {"train": "lora" if kind == "sdxl" else "all", "learning_rate": 0.01}
    opened = Opened(learner, make_method("draft-k:truncation=1"), BRIGHT)
    done = train(spec(tmp_path, updates=2, evaluate_every=0, **changes), opened=opened)
    assert done.result.name == ("lora" if kind == "sdxl" else "network")
    assert done.after["held_out"]["reward"] > done.before["held_out"]["reward"]
    pipe = make()
    if kind == "sdxl":
        pipe.load_lora_weights(str(done.result))
    else:
        pipe.unet = type(pipe.unet).from_pretrained(done.result)
    x, level = learner.start(["1"], learner.levels("trailing", 4)), learner.levels("trailing", 4)[1]
    loaded = PipelineLearner(pipe, None).denoiser(["a star"])
    with torch.no_grad():
        assert torch.allclose(loaded(x, level).native, learner.denoiser(["a star"])(x, level).native, atol=1e-6)
    if kind == "network":  # whose kernels may take another path for other places in memory
        kept, mine = pipe.unet.state_dict(), learner.pipe.unet.state_dict()
        assert kept.keys() == mine.keys() and all(torch.equal(kept[n], mine[n]) for n in mine)


def gradients_of(opened: Opened, **changes: Any) -> list[Tensor]:
    """The step's gradients, by an optimiser that only remembers them."""
    from accelerate import Accelerator

    from pilotage.finetune.trainer import Run

    run = Run(spec(Path("nowhere"), **changes), opened, Accelerator(cpu=True), lambda entry: None)
    seen: list[Tensor] = []

    def step() -> Any:
        seen.extend(p.grad.clone() for p in opened.learner.parameters if p.grad is not None)
        run.stepper.forget()
        return type("Stepped", (), {"norm": 0.0, "failed": False})

    run.stepper.step = step
    run._learn()
    return seen


def tiny(**settings: Any) -> Opened:
    learner = PipelineLearner(stable_diffusion(), seed=3, **settings)
    with torch.no_grad():
        for parameter in learner.parameters:
            parameter += 0.1
    return Opened(learner, make_method("draft-k:truncation=2"), BRIGHT)


def test_accumulation_offload_and_checkpoints_change_no_gradient() -> None:
    plain = gradients_of(tiny())
    assert len(plain) == len(tiny().learner.parameters) and all(bool(g.abs().sum() > 0) for g in plain)
    ways: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({}, {"rows": 1}), ({}, {"offload": True}), ({"network_checkpoints": True}, {})
    ]  # fmt: skip
    for settings, changes in ways:
        other = gradients_of(tiny(**settings), **changes)
        assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-7) for a, b in zip(plain, other, strict=True)), changes


# -- what goes wrong -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Failing(Method):
    """Lowers the parameters' squares; the loss is not finite in the updates that are told."""

    fails: tuple[int, ...] = ()
    rewards: tuple[float, ...] = ()

    def update(self, ctx: UpdateContext) -> Iterator[Part]:
        ctx.log(reward=self.rewards[ctx.update] if self.rewards else 0.0)
        factor = math.nan if ctx.update in self.fails else 1.0
        yield Part(sum((p - 1).square().sum() for p in ctx.learner.parameters) * factor)


def weights(opened: Opened) -> list[Tensor]:
    return [p.detach().clone() for p in opened.learner.parameters]


def test_a_step_that_is_not_finite_is_left_out_and_said(tmp_path: Path) -> None:
    with_failure, without = toy(Failing((1,))), toy(Failing())
    done = train(spec(tmp_path / "a", updates=3), opened=with_failure)
    train(spec(tmp_path / "b", updates=2), opened=without)
    assert all(torch.equal(a, b) for a, b in zip(weights(with_failure), weights(without)))
    assert done.notices == ["update 2: the loss or its gradient was not finite; this step was left out"]
    assert not done.stopped and run_folder.read_log(tmp_path / "a")[2]["loss"] is None


def test_three_in_a_row_stop_the_run_and_the_weights_before_are_kept(tmp_path: Path) -> None:
    opened, other = toy(Failing((2, 3, 4))), toy(Failing())
    done = train(spec(tmp_path / "a", updates=9), opened=opened)
    train(spec(tmp_path / "b", updates=2), opened=other)
    assert done.updates == 5 and "3 times in a row" in done.notices[-2] and "are kept" in done.notices[-1]
    assert all(torch.equal(a, b) for a, b in zip(weights(opened), weights(other)))
    again = train(spec(tmp_path / "a", updates=9), opened=toy(Failing()))
    assert again.made == 0 and again.stopped == done.stopped, "a run that stopped is finished"


def test_an_exploding_reward_goes_back_to_the_last_good_evaluation(tmp_path: Path) -> None:
    opened, other = toy(Failing(rewards=(0.0, 0.0, 0.0, 1e6, 0.0))), toy(Failing())
    done = train(spec(tmp_path / "a", updates=5, limits={"diversity": 0}), opened=opened)
    train(spec(tmp_path / "b", updates=2), opened=other)
    assert done.updates == 4 and "exploded" in done.notices[0] and "after update 2, when all was well" in done.stopped
    assert all(torch.equal(a, b) for a, b in zip(weights(opened), weights(other)))
    assert done.after["held_out"] == run_folder.read_log(tmp_path / "a")[2]["held_out"]


def test_collapsed_diversity_stops(tmp_path: Path) -> None:
    """A constant picture pleases a constant reward best."""
    opened = toy(make_method("draft"), near(0.5, 0.5, 0.5))
    done = train(
        spec(tmp_path, updates=60, batch=32, rows=32, learning_rate=0.05, limits={"explosion": 1e9}), opened=opened
    )
    assert done.updates < 60 and "grew alike" in done.notices[-2] and done.stopped


def guard(**limits: Any) -> Guard:
    made = Guard(Limits(**limits))
    made.base(Spread(1.0, 0.5), {"taste": Spread(2.0, 1.0)}, diversity=4.0)
    return made


def test_the_judge_that_falls_while_the_reward_rises_stops_early() -> None:
    made = guard(patience=2, tolerance=0.1)
    assert made.evaluated(1.5, {"taste": 2.3}, 4.0) == []
    assert made.evaluated(1.6, {"taste": 2.25}, 4.0) == [], "within the tolerance of its best"
    assert made.evaluated(1.4, {"taste": 1.0}, 4.0) == [], "both fell: nobody is fooled"
    (first,) = made.evaluated(1.9, {"taste": 2.1}, 4.0)
    assert not first.stops and "from 2.3 to 2.1" in first.text
    restored = Guard(made.limits)
    restored.recall(json.loads(json.dumps(made.plain())))
    assert restored == made
    (second,) = restored.evaluated(2.0, {"taste": 2.0}, 4.0)
    assert second.stops and "2 evaluations in a row" in second.text
    assert made.evaluated(2.0, {"taste": 2.4}, 4.0) == [], "a new best forgives"
    assert not any(n.stops for _ in range(9) for n in guard(patience=0).evaluated(3.0, {"taste": 0.0}, 4.0))


def test_limits_of_reward_and_diversity() -> None:
    made = guard()
    assert made.rewarded(100.0) == [] and made.rewarded(1.0 + 151.0)[0].stops and made.rewarded(math.nan) == []
    assert made.evaluated(1.0, {}, 2.81) == [] and made.evaluated(1.0, {}, 2.79)[0].stops
    assert "70%" not in made.evaluated(1.0, {}, 2.0)[0].text and "50%" in made.evaluated(1.0, {}, 2.0)[0].text


# -- steps -----------------------------------------------------------------------------------------------------------


def test_a_step_is_that_of_adamw_on_the_clipped_gradient() -> None:
    mine, theirs = (nn.Parameter(torch.tensor([1.0, -2.0])) for _ in range(2))
    stepper = Stepper([mine], make_optimiser("adamw", [mine], 0.1, (0.9, 0.99), 0.01), clip=1.0, ema=0.9)
    optimiser = torch.optim.AdamW([theirs], lr=0.1, betas=(0.9, 0.99), weight_decay=0.01)
    average = theirs.detach().clone()
    for scale in (3.0, 0.1, 5.0):
        stepper.backward(scale * mine.square().sum() / 2)
        stepper.backward(scale * mine.square().sum() / 2)
        assert stepper.step().norm == pytest.approx(float((2 * scale * theirs.detach()).norm()))
        gradient = 2 * scale * theirs.detach()
        theirs.grad = gradient / max(1.0, float(gradient.norm()))
        optimiser.step()
        average = 0.9 * average + 0.1 * theirs.detach()
        assert torch.allclose(mine, theirs, atol=1e-6) and torch.allclose(stepper.average[0], average, atol=1e-6)
    with stepper.averaged():
        assert torch.equal(mine, stepper.average[0])
    assert torch.allclose(mine, theirs, atol=1e-6)


def test_an_overflow_of_fp16_lowers_the_scale_and_is_no_failure() -> None:
    parameter = nn.Parameter(torch.ones(2))
    stepper = Stepper([parameter], make_optimiser("adamw", [parameter], 0.1), scaled=True)
    before = stepper.scaler.get_scale()
    stepper.backward(parameter.sum() * math.inf)
    stepped = stepper.step()
    assert not stepped.failed and not math.isfinite(stepped.norm) and stepper.scaler.get_scale() == before / 2
    assert torch.equal(parameter, torch.ones(2))
    stepper.backward(parameter.sum())
    assert stepper.step().norm == pytest.approx(2**0.5), "unscaled before it is clipped"
    assert bool((parameter < 1).all())


def test_gradients_of_processes_are_averaged_in_their_places() -> None:
    parameters = [nn.Parameter(torch.zeros(2, 3)), nn.Parameter(torch.zeros(4))]
    parameters[0].grad = torch.arange(6.0).reshape(2, 3)
    average_gradients(parameters, lambda vector: vector / 2)
    assert torch.equal(parameters[0].grad, torch.arange(6.0).reshape(2, 3) / 2)
    assert torch.equal(parameters[1].grad, torch.zeros(4))


SCRIPT = """
import json, sys, torch
torch.set_num_threads(1)
sys.path.insert(0, "tests")
from finetune_toys import ToyLearner, near
from pilotage.finetune import FinetuneSpec, Opened, make_method, train, trainer
trainer.ALIKE_EVERY = 2
opened = Opened(ToyLearner(size=3), make_method("draft-k:truncation=2"), near(0.5, 0.2, 0.8))
assert train(FinetuneSpec(**json.loads(sys.argv[3])), opened=opened).updates == 2
torch.save([p.detach() for p in opened.learner.parameters], f"{sys.argv[1]}-{sys.argv[2]}.pt")
"""


def by(world: int, folder: Path) -> list[list[Tensor]]:
    """The parameters of each of `world` processes."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    running = []
    for rank in range(world):
        ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
        where = {"MASTER_ADDR": "localhost", "MASTER_PORT": port, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": 1}
        environment = {**os.environ, **{name: str(value) for name, value in (ranks | where).items()}}
        told = json.dumps(spec(folder, updates=2).plain())
        command = [sys.executable, "-c", SCRIPT, str(folder), str(rank), told]
        running.append(subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE))
    errors = [process.communicate(timeout=240)[1].decode() for process in running]
    assert [process.returncode for process in running] == [0] * world, "".join(e[-2000:] for e in errors)
    return [torch.load(f"{folder}-{rank}.pt", weights_only=True) for rank in range(world)]


def test_two_processes_learn_what_one_learns(tmp_path: Path) -> None:
    alone = toy()
    train(spec(tmp_path / "one", updates=2), opened=alone)
    first, second = by(2, tmp_path / "two")
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert all(torch.allclose(a, b, atol=1e-9) for a, b in zip(weights(alone), first, strict=True))
    one, two = (run_folder.read_log(tmp_path / name) for name in ("one", "two"))
    assert [line["reward"] for line in two[1:]] == pytest.approx([line["reward"] for line in one[1:]], abs=1e-6)
    assert two[2]["held_out"] == pytest.approx(one[2]["held_out"], abs=1e-6)
    assert train(spec(tmp_path / "two", updates=3), opened=toy()).made == 1  # one process goes on with what two began


# -- looking ---------------------------------------------------------------------------------------------------------


def test_a_look_is_always_at_the_same_pictures_and_of_each_alone() -> None:
    sampling = Sampling("ddim:eta=1", "trailing", 4, "none")
    held = HeldOut(["a", "bb"], 4, sampling, 4, near(0.5, 0.2, 0.8), {"other": BRIGHT})
    learner = ToyLearner(size=3).disturb()
    one, again, parts = held.look(learner), held.look(learner), replace(held, rows=3).look(learner)
    assert one.numbers == again.numbers and torch.equal(one.shown, again.shown)
    assert torch.equal(one.shown, parts.shown) and one.shown.shape == (2, 4, 3, 1, 1)
    pictures = one.shown.flatten(0, 1).flatten(1).double() / 255
    assert one.judges["other"] == pytest.approx(float(pictures.mean()), abs=1e-6)
    assert one.spread["other"].deviation == pytest.approx(float(pictures.mean(1).std(correction=0)), abs=1e-6)
    assert one.numbers["diversity"] == pytest.approx(
        float(torch.stack([torch.pdist(p).mean() for p in pictures.split(4)]).mean()) / 3**0.5, rel=1e-5
    )


def test_the_embedded_judge_counts_what_the_caption_states() -> None:
    from pilotage.zoo import world

    scenes = [world.scene(i, "test") for i in range(24)]
    pictures = torch.stack([torch.from_numpy(s.draw().copy()).permute(2, 0, 1) for s in scenes]).float() / 255
    judge, captions = embedded_judge(), [s.caption for s in scenes]
    assert float(judge(pictures, captions).mean()) > 0.9
    assert float(judge(pictures, captions[1:] + captions[:1]).mean()) < 0.2
    assert set(judge(pictures, captions).tolist()) <= {0.0, 1.0}


# -- memory ----------------------------------------------------------------------------------------------------------


# -- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"method": "alignprob"}, "did you mean alignprop"),
        ({"method": "draft-k:trunc=1"}, "no setting 'trunc'"),
        ({"prompts": ["embedded:valid:20"]}, "cannot read 'embedded:valid:20'"),
        ({"prompts": ["missing.txt"]}, "no prompt file missing.txt"),
        ({"sampler": "stock"}, "no stock sampler"),
        ({"lora": {"rang": 4}}, "rang"),
        ({"lora": {"rank": 0}}, "rank of 1 or more"),
        ({"limits": {"patient": 4}}, "patient"),
        ({"learning_rate": -1}, "learning_rate: must be greater than 0"),
        ({"betas": [0.9, 1.0]}, "below 1"),
        ({"train": "some"}, "train: must be 'lora' or 'all'"),
        ({"width": 16}, "both width and height"),
        ({"optimiser": "adamw"}, "did you mean optimizer"),
        ({"optimizer": "adamw8bit"}, "bitsandbytes"),
        ({"tracker": "tensorboard"}, "tensorboard is not installed"),
    ],
)
def test_bad_settings_are_one_line(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    installed = {"adamw8bit": "bitsandbytes", "tensorboard": "tensorboard"}
    package = installed.get(str(next(iter(changes.values()))))
    if package and __import__("importlib.util").util.find_spec(package):
        pytest.skip("it is installed here")
    with pytest.raises(UsageError) as error:
        spec(tmp_path, **changes)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_judges_are_never_the_training_reward() -> None:
    plain, other = Reward("a", BRIGHT.scores, model="clip-1"), Reward("b", BRIGHT.scores, model="clip-2")
    mixture = Reward("c", BRIGHT.scores, model="clip-1; clip-2", parts=(plain, other))
    refuse_own_judge(plain, other)
    refuse_own_judge(Reward("colour:target=red", BRIGHT.scores), Reward("saturation", BRIGHT.scores))
    for reward, judge in ((mixture, other), (plain, mixture), (BRIGHT, BRIGHT)):
        with pytest.raises(UsageError, match="is part of the training reward"):
            refuse_own_judge(reward, judge)
    with pytest.raises(UsageError, match="colour"):
        open_scores(FinetuneSpec(reward="colour:target=red", judges=["colour:target=blue"]), torch.device("cpu"))


def test_the_embedded_model_brings_its_judge() -> None:
    cpu = torch.device("cpu")
    _, judges = open_scores(FinetuneSpec(reward="adherence"), cpu)
    assert judges["adherence"].model.startswith("embedded judge")
    reward, judges = open_scores(FinetuneSpec(reward="adherence", held_out=["a castle at night"]), cpu)
    assert not judges and not reward.model.startswith("embedded judge")


def test_the_command_says_what_is_wrong_before_it_loads_a_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*anything: Any, **settings: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("pilotage.training.pipeline_learner.load", never)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("")
    lines = {
        (): "no prompts to train on",
        ("a star",): "no reward to raise",
        ("a star", "-r", "beauty"): "beauty",
        ("a star", "-r", "jpeg-kilobytes", "-m", "alignprop"): "needs a gradient",
        ("a star", "-r", "saturation", "--judge", "saturation"): "choose another judge",
        ("a star", "-r", "saturation", "--set", "precision=fp16", "--device", "cpu"): "fp16 needs a GPU",
        ("a star", "-r", "saturation", "-o", tmp_path / "full"): "is not empty",
        ("a star", "--preset", "finetune-embeded"): "did you mean finetune-embedded",
        ("--prompts", tmp_path / "no.txt"): "no prompt file",
    }
    for arguments, said in lines.items():
        assert pilotage("finetune", *arguments) == 2, arguments
        error = capsys.readouterr().err.strip().splitlines()
        assert said in error[-1] and error[-1].startswith("error: "), (arguments, error)


@pytest.mark.parametrize("name", presets("finetune"))
def test_every_preset_is_valid_and_says_its_purpose(name: str) -> None:
    assert len(purpose_of(presets("finetune")[name])) > 20
    made = resolve(FinetuneSpec, name, kind="finetune")
    assert made == FinetuneSpec(**yaml.safe_load(made.as_yaml()))


def test_dry_run_prints_the_settings_and_the_memory(capsys: pytest.CaptureFixture[str]) -> None:
    assert pilotage("finetune", "--preset", "finetune-embedded", "--set", "lora.rank=2", "--dry-run") == 0
    out = capsys.readouterr().out
    settings = yaml.safe_load(out)
    assert settings["lora"]["rank"] == 2 and settings["reward"] == "adherence:least=0.02"
    assert "# weights: " in out and "# peak, about: " in out


def test_the_command_trains_and_generate_uses_the_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = ["updates=1", "held_out_seeds=2", "held_out=[a red star on navy]", "steps=2"]
    flags = [part for setting in settings for part in ("--set", setting)]
    command = ["finetune", "a blue ring on white", "-r", "colour:target=red", "-m", "draft-k:truncation=1",
               "--batch", 1, "-o", tmp_path / "run", "--device", "cpu", *flags]  # fmt: skip
    assert pilotage(*command) == 0
    told = capsys.readouterr()
    assert "judge adherence" in told.out and "memory: peak, about" in told.err and "held out: reward" in told.err
    assert pilotage(*command) == 0 and "was trained already" in capsys.readouterr().out
    lora = tmp_path / "run" / "lora"
    assert pilotage("generate", "two red stars on navy", "--steps", 2, "--lora", lora, "-o", tmp_path / "made") == 0
    assert (tmp_path / "made" / "000000.png").is_file()


def test_activations_that_wait_elsewhere_leave_the_weights_where_they_are() -> None:
    network = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.SiLU(), torch.nn.Linear(8, 8)).requires_grad_(False)
    x = torch.randn(4, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()

    def gradient(modules: list[torch.nn.Module] | None) -> tuple[Tensor, int]:
        moved = []
        plain = torch.empty

        def counted(*given: Any, **more: Any) -> Tensor:
            moved.append(given[0])
            return plain(*given, **more)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("pilotage.training.offload.torch.empty", counted)
            with nullcontext() if modules is None else activations_on_cpu(modules):
                loss = network(x).square().sum()
        return torch.autograd.grad(loss, x)[0], sum(tuple(size) == (8, 8) for size in moved)

    (plain, _), (kept, weights), (all_of_it, both) = gradient(None), gradient([network]), gradient([])
    assert torch.equal(plain, kept) and torch.allclose(plain, all_of_it, rtol=1e-5)
    assert weights == 0 and both == 2
