"""A distillation from a spec: what is watched, kept and resumed, and students that load as pipelines."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from distill_learners import FLOW, ToyLearner, toy_roles
from distill_learners import context as learner_context
from PIL import Image
from tiny_unets import xl
from torch import Tensor

import pilotage
from pilotage.distill import DistillSpec, Opened, make_method, open_run, train
from pilotage.distill import trainer as trainer_module
from pilotage.distill.data import Latents, items
from pilotage.distill.head import Head
from pilotage.distill.method import Pictures
from pilotage.distill.methods.registry import METHODS
from pilotage.distill.roles import Frozen
from pilotage.errors import UsageError
from pilotage.generation.settings import presets, purpose_of, resolve
from pilotage.training import run_folder
from pilotage.training.look import Look
from pilotage.training.pipeline_learner import PipelineLearner

ROOT = Path(__file__).resolve().parent.parent
F_DISTILL = "f-distill:critic_steps=2,strata=2,adversarial=0.1"


class Stop(Exception):
    """Somebody pulled the plug."""


def spec(folder: Path, **changes: Any) -> DistillSpec:
    settings: dict[str, Any] = {
        "prompts": ["star", "two squares", "moon"], "held_out": ["ring", "three discs"], "held_out_seeds": 4,
        "model": "toy", "method": F_DISTILL, "data": "teacher:12", "guidance": "cfg:scale=2", "sampler": "ddim",
        "grid": "trailing", "steps": 4, "updates": 4, "batch": 4, "rows": 4, "learning_rate": 0.01,
        "evaluate_every": 2, "sheet_every": 2, "checkpoint_every": 1, "device": "cpu", "output": str(folder),
    }  # fmt: skip
    return DistillSpec(**(settings | changes))


class Shown(ToyLearner):
    """Latents (3, 1, 1) are pictures of one pixel."""

    def decode(self, latents: Tensor) -> Tensor:
        return latents.expand(-1, 3, 8, 8).float() / 4 + 0.5


def toy(line: str = F_DISTILL) -> Opened:
    method = make_method(line)
    student = Shown(FLOW, size=3, hidden=8)
    roles = toy_roles(FLOW, size=3)
    roles.teacher, roles.student = Frozen(student), student
    if "fake" in method.roles:
        roles.fake = Shown(FLOW, size=3, hidden=8, seed=1)
    if "head" in method.roles:
        roles.head = Head((8, 1, 1), 0, 8)
    if "target" in method.roles:
        roles.target = student.twin()
    return Opened(roles, method)


def weights(opened: Opened) -> list[Tensor]:
    return [p.detach().clone() for own in opened.roles.parameters().values() for p in own]


def same(one: Opened, other: Opened) -> bool:
    return all(torch.equal(a, b) for a, b in zip(weights(one), weights(other), strict=True))


# -- a run ------------------------------------------------------------------------------------------------------------


def test_a_run_is_watched_and_its_folder_holds_everything(tmp_path: Path) -> None:
    said: list[dict[str, Any]] = []
    done = train(spec(tmp_path), opened=toy(), told=said.append)
    assert done.updates == done.made == 4 and not done.stopped
    lines = run_folder.read_log(tmp_path)
    assert [line["update"] for line in lines] == [0, 1, 2, 3, 4]
    assert [entry["update"] for entry in said if "update" in entry] == [0, 1, 2, 3, 4]
    assert [entry["preparing"] for entry in said[:4]] == ["the teacher's pictures"] * 2 + ["real latents"] * 2
    assert [line["update"] for line in lines if "held_out" in line] == [0, 2, 4]
    assert {"coverage", "recall", "density", "distance", "diversity"} <= lines[4]["held_out"].keys()
    assert {"loss", "fake_loss", "head_loss", "effective", "ratio", "pull"} <= lines[1].keys()
    assert [line["pictures"] for line in lines] == [12 * n for n in range(5)]  # three draws of four
    assert sorted(p.name for p in (tmp_path / "sheets").iterdir()) == ["000000.png", "000002.png", "000004.png"]
    with Image.open(tmp_path / "sheets" / "000004.png") as sheet:
        assert sheet.width > sheet.height  # student beside teacher
    page = (tmp_path / "index.html").read_text()
    assert "the dashed line is the teacher" in page and "Diversity of the teacher" not in page
    card = (tmp_path / "student" / "README.md").read_text()
    assert "distilled to one step" in card and "| coverage |" in card and "teacher_" not in card
    assert train(spec(tmp_path), opened=toy()).made == 0


def killed(parts: int) -> Callable[[Any], Any]:
    """The trainer's parts of an update, until so many have come."""
    left = [parts]

    def stopping(run: Any, numbers: Any) -> Any:
        for part in plain(run, numbers):
            left[0] -= 1
            if left[0] < 0:
                raise Stop
            yield part

    plain = trainer_module.Run.parts
    return stopping


@pytest.mark.parametrize("parts", [5, 8, 10, 15])  # in the fake's, the head's and the student's phase, and later
def test_a_run_that_was_stopped_in_any_phase_ends_as_one_that_was_not(
    tmp_path: Path, parts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(spec(tmp_path / "whole", ema=0.9), opened=(whole := toy()))
    monkeypatch.setattr(trainer_module.Run, "parts", killed(parts))
    with pytest.raises(Stop):
        train(spec(tmp_path / "parts", ema=0.9), opened=toy())
    monkeypatch.undo()
    done = train(spec(tmp_path / "parts", ema=0.9), opened=(resumed := toy()))
    assert done.updates == 4 and same(whole, resumed)
    numbers = [[{k: v for k, v in line.items() if k != "seconds"} for line in run_folder.read_log(tmp_path / name)]
               for name in ("whole", "parts")]  # fmt: skip
    assert numbers[0] == numbers[1]


@pytest.mark.parametrize("name", METHODS)
def test_every_method_runs_and_resumes_to_the_bit(tmp_path: Path, name: str) -> None:
    line = {"guidance": "guidance:fixed=true,strata=2,steps=2", "lcm": "lcm:steps=2"}.get(name, name)
    data = "teacher:6"
    settings = {"updates": 2, "evaluate_every": 0, "sheet_every": 0, "method": line, "data": data}
    train(spec(tmp_path / "whole", **settings), opened=(whole := toy(line)))
    train(spec(tmp_path / "parts", **(settings | {"updates": 1})), opened=toy(line))
    if make_method(line).paced:
        return
    train(spec(tmp_path / "parts", **settings), opened=(resumed := toy(line)))
    assert same(whole, resumed)
    assert all(bool(p.isfinite().all()) for p in weights(whole))


SCRIPT = """
import json, sys, torch
torch.set_num_threads(1)
sys.path.insert(0, "tests")
from test_distill_trainer import toy, weights
from pilotage.distill import DistillSpec, train
opened = toy()
assert train(DistillSpec(**json.loads(sys.argv[3])), opened=opened).updates == 2
torch.save(weights(opened), f"{sys.argv[1]}-{sys.argv[2]}.pt")
"""


def test_two_processes_learn_what_one_learns(tmp_path: Path) -> None:
    alone = toy()
    train(spec(tmp_path / "one", updates=2), opened=alone)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    running = []
    for rank in range(2):
        ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
        where = {"MASTER_ADDR": "localhost", "MASTER_PORT": port, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": 1}
        environment = {**os.environ, **{name: str(value) for name, value in (ranks | where).items()}}
        told = json.dumps(spec(tmp_path / "two", updates=2).plain())
        command = [sys.executable, "-c", SCRIPT, str(tmp_path / "two"), str(rank), told]
        running.append(subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE))
    errors = [process.communicate(timeout=240)[1].decode() for process in running]
    assert [process.returncode for process in running] == [0, 0], "".join(e[-2000:] for e in errors)
    first, second = (torch.load(f"{tmp_path / 'two'}-{rank}.pt", weights_only=True) for rank in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(weights(alone), first, strict=True))


# -- students as pipelines --------------------------------------------------------------------------------------------


EMBEDDED: dict[str, Any] = {
    "model": "embedded", "prompts": ["embedded:train:8"], "held_out": ["embedded:heldout:2"], "held_out_seeds": 2,
    "data": "embedded:train:8", "guidance": "cfg:scale=3", "steps": 3, "updates": 1, "rows": 4, "features": None,
    "method": "f-distill:critic_steps=1,strata=1", "learning_rate": 1e-4, "evaluate_every": 0,
}  # fmt: skip


@pytest.mark.parametrize("kind", ["all", "lora"])
def test_a_student_draws_in_one_step_from_its_run_folder(tmp_path: Path, kind: str) -> None:
    made = spec(tmp_path / "run", **EMBEDDED, train=kind)
    opened = open_run(made)
    done = train(made, opened=opened)
    assert done.result == tmp_path / "run" / "student"
    told = pilotage.RunSpec(prompts=["a red ring on navy"], seeds=[0, 1], model=str(tmp_path / "run"), device="cpu")
    assert (told.guidance, told.steps, told.sampler) == ("none", 1, "stock")
    drawn = [sample.image for sample in pilotage.generate(told)]
    student, method = opened.roles.student, opened.method
    with torch.no_grad():
        latents = method.sample(student, Pictures(["a red ring on navy"] * 2, ["0", "1"]), 2)
        want = student.decode(latents).clamp(0, 1).mul(255).round().to(torch.uint8)
    for image, picture in zip(drawn, want, strict=True):
        got = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).reshape(*image.size, 3).permute(2, 0, 1)
        assert int((got.int() - picture.int()).abs().max()) <= 1
    rows = [sample.evaluations for sample in pilotage.generate(told)]
    assert all(sum(evaluations.values()) == 1 for evaluations in rows)
    if kind == "lora":  # the run's folder is a LoRA as well
        by_hand = {"guidance": "none", "sampler": "ddim", "grid": "trailing", "steps": 1, "lora": told.model}
        other = next(iter(pilotage.generate(told.changed(model="embedded", seeds=[0], **by_hand)))).image
        apart = [abs(a - b) for a, b in zip(other.tobytes(), drawn[0].tobytes(), strict=True)]
        assert max(apart) <= 2
    if kind == "all":
        from diffusers import DiffusionPipeline

        assert DiffusionPipeline.from_pretrained(done.result, local_files_only=True).scheduler.config.timestep_spacing


def test_a_student_that_is_told_its_scale_draws_at_the_one_that_it_was_looked_at(tmp_path: Path) -> None:
    line = "guidance:scale_low=1,scale_high=6,scale=4,steps=2,strata=2"
    made = spec(tmp_path / "run", **(EMBEDDED | {"method": line, "train": "all", "updates": 2}))
    opened = open_run(made)
    train(made, opened=opened)
    told = pilotage.RunSpec(prompts=["a red ring on navy"], seeds=[0], model=str(tmp_path / "run"), device="cpu")
    assert (told.steps, told.call) == (2, {"guidance_scale": 4.0})
    sample = next(iter(pilotage.generate(told)))
    assert sum(sample.evaluations.values()) == 2  # one a step
    with torch.no_grad():
        latents = opened.method.sample(opened.roles.student, Pictures(["a red ring on navy"], ["0"]), 1)
        want = opened.roles.student.decode(latents).clamp(0, 1)[0]
    got = torch.frombuffer(bytearray(sample.image.tobytes()), dtype=torch.uint8).reshape(32, 32, 3).permute(2, 0, 1)
    assert float((got / 255 - want).abs().mean()) < 0.02


@pytest.mark.parametrize(
    ("guidance", "kind"),
    [
        ("apg:scale=3", "lora"),
        ("autoguidance:scale=2", "all"),
        ("pag:weight=2", "lora"),
        ("cfg:scale=3 + rescale", "all"),
        ("cfg:scale=4 + interval:high=5", "lora"),
        ("cfg++:lam=0.6", "all"),
        ("classifier", "all"),
    ],
)
def test_any_rule_guides_the_teacher(guidance: str, kind: str) -> None:
    """The student's gradient is another one than with the teacher as it is, and than with plain CFG."""
    grads = []
    for rule in (guidance, "none", "cfg:scale=3"):
        settings = EMBEDDED | {"method": "vsd:strata=2", "guidance": rule, "train": kind}
        opened = open_run(made := spec(Path("nowhere"), **settings))
        ctx = learner_context(opened.roles, made.guidance, 2, prompts=("a red ring on navy", "two blue stars"))
        (part,) = opened.method.student(ctx, ctx.deal(0))  # type: ignore[attr-defined]
        grads.append(torch.autograd.grad(part.loss, opened.roles.student.parameters, allow_unused=True))
    mine, *others = ([g for g in of if g is not None] for of in grads)
    assert mine and all(bool(g.isfinite().all()) for g in mine)
    size = max(float(g.abs().max()) for g in mine)
    for other in others:
        assert max(float((a - b).abs().max()) for a, b in zip(mine, other, strict=True)) > 0.05 * size > 0


def test_a_student_takes_negative_prompts_by_attention(tmp_path: Path) -> None:
    """NASA: one evaluation still, and another picture."""
    train(spec(tmp_path / "run", **EMBEDDED))
    told = pilotage.RunSpec(prompts=["a red ring on navy"], seeds=[0], model=str(tmp_path / "run"), device="cpu")
    lines = {"none": "none", "nasa": "nasa:weight=0.5,branch=prompt:a_blue_star_on_sand"}
    drawn = {name: next(iter(pilotage.generate(told.changed(guidance=line)))) for name, line in lines.items()}
    assert [sum(sample.evaluations.values()) for sample in drawn.values()] == [1, 1]
    assert drawn["none"].image.tobytes() != drawn["nasa"].image.tobytes()


def test_adapters_share_one_network_and_the_teacher_is_that_without_any() -> None:
    """The trap of switching: a pass of another role between forward and backward changes no gradient, with the
    network's checkpoints either."""
    for checkpoints in (False, True):
        opened = open_run(spec(Path("nowhere"), **EMBEDDED, train="lora", network_checkpoints=checkpoints))
        roles = opened.roles
        assert roles.student.network is roles.fake.network is opened.pipe.unet  # type: ignore[union-attr, attr-defined]
        for learner in (roles.student, roles.fake):
            with torch.no_grad():
                for number, parameter in enumerate(learner.parameters):  # type: ignore[union-attr]
                    drawn = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
                    parameter.add_(0.05 * drawn)
        levels = roles.student.levels("trailing", 2)
        x = roles.student.start(["1"], levels)
        names = {"teacher": roles.teacher, "student": roles.student, "fake": roles.fake}
        said = {name: of.denoiser(["a star"])(x, levels[0]).native for name, of in names.items()}  # type: ignore
        assert not any(torch.equal(said[a], said[b]) for a, b in (("teacher", "student"), ("student", "fake")))
        plain = torch.autograd.grad(said["student"].square().sum(), roles.student.parameters, retain_graph=True)
        again = roles.student.denoiser(["a star"])(x, levels[0]).native.square().sum()
        for other in (roles.teacher, roles.fake):
            other.denoiser(["a star"])(x, levels[0])  # type: ignore[union-attr]
        between = torch.autograd.grad(again, roles.student.parameters)
        assert all(torch.equal(a, b) for a, b in zip(plain, between, strict=True))
        assert any(bool(g.any()) for g in between)


def test_a_run_may_begin_with_the_student_of_another(tmp_path: Path) -> None:
    first = spec(tmp_path / "first", **EMBEDDED, train="lora")
    opened = open_run(first)
    train(first, opened=opened)
    later = open_run(spec(tmp_path / "second", **EMBEDDED, train="lora", start=str(tmp_path / "first")))
    x, levels = opened.roles.student.start(["1"], opened.roles.student.levels("trailing", 2)), None
    level = opened.roles.student.levels("trailing", 2)[0]
    one, other = (o.roles.student.denoiser(["a star"])(x, level).native for o in (opened, later))
    assert levels is None and torch.allclose(one, other, atol=1e-5)
    with pytest.raises(UsageError, match="no student in"):
        open_run(spec(tmp_path / "third", **EMBEDDED, start=str(tmp_path / "nothing")))
    with pytest.raises(UsageError, match="other layers or another rank"):
        open_run(spec(tmp_path / "third", **EMBEDDED, train="lora", lora={"rank": 2}, start=str(tmp_path / "first")))


# -- data -------------------------------------------------------------------------------------------------------------


def test_latents_are_made_once_and_a_damaged_shard_again(tmp_path: Path) -> None:
    of = items("teacher:5", toy().roles.teacher, spec(tmp_path).sampling, ["star", "moon"], 2, 7)
    latents = Latents(tmp_path / "data", of)
    latents.make()
    whole = latents.of(range(5))
    assert whole.shape == (5, 3, 1, 1) and of.prompts == ["star", "moon", "star", "moon", "star"]
    assert torch.equal(latents.of([3, 1]), whole[[3, 1]])
    (path,) = (tmp_path / "data").iterdir()
    stamp = path.stat().st_mtime_ns
    Latents(tmp_path / "data", of).make()
    assert path.stat().st_mtime_ns == stamp
    path.write_bytes(path.read_bytes()[:40])
    again = Latents(tmp_path / "data", of)
    again.make()
    assert torch.equal(again.of(range(5)), whole)


def test_latents_of_another_origin_are_made_again(tmp_path: Path) -> None:
    teacher, how = toy().roles.teacher, spec(tmp_path).sampling
    first = items("teacher:3", teacher, how, ["star"], 2, 7)
    Latents(tmp_path / "data", first).make()
    for other in (
        items("teacher:3", teacher, how, ["moon"], 2, 7),
        items("teacher:3", teacher, how, ["star"], 2, 8),
        items("teacher:3", teacher, replace(how, guidance="cfg:scale=7"), ["star"], 2, 7),
        items("teacher:3", teacher, how, ["star"], 2, 7, "another model"),
    ):
        latents = Latents(tmp_path / "data", other)
        assert not latents._whole(0)
        latents.make()
        assert torch.equal(latents.of(range(3)), other.make([0, 1, 2]).float())


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
@pytest.mark.parametrize("line", ["vsd:student_steps={}", "lcm:steps={}", "ucgm-t:steps={}", "reflow:steps={}"])
def test_the_saved_scheduler_draws_at_the_levels_that_were_learnt(line: str, steps: int) -> None:
    pipe = pilotage.load("embedded")
    student, method = PipelineLearner(pipe), make_method(line.format(steps))
    scheduler = method.scheduler(pipe.scheduler)
    scheduler.set_timesteps(steps)
    learnt = [level.time for level in method.levels(student)[:-1]]
    assert scheduler.timesteps.tolist() == pytest.approx(learnt, abs=1)  # stock ones round


@pytest.mark.parametrize("kind", ["all", "lora"])
def test_a_student_with_a_sampler_of_ours_loads_in_another_process(tmp_path: Path, kind: str) -> None:
    line = "ucgm-t:steps=2,consistency=0,zeta=0.5,stochasticity=0,extrapolation=0.5,strata=1"
    train(spec(tmp_path / "run", **EMBEDDED | {"method": line, "train": kind}))
    drawn = ["generate", "a red ring on navy", "--model", str(tmp_path / "run"), "--output", str(tmp_path / "drawn")]
    done = subprocess.run([sys.executable, "-m", "pilotage", *drawn], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "UCGM" in (tmp_path / "run" / "student" / "README.md").read_text() or kind == "all"


def test_a_folder_of_pictures_with_captions_is_data(tmp_path: Path) -> None:
    teacher = open_run(spec(tmp_path / "run", **EMBEDDED)).roles.teacher
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name, colour in (("a.png", (255, 0, 0)), ("b.jpg", (0, 0, 255))):
        Image.new("RGB", (48, 40), colour).save(folder / name)
        (folder / name).with_suffix(".txt").write_text(f"a picture {name}\n")
    of = items(str(folder), teacher, spec(tmp_path).sampling, [], 4, 0)
    assert of.prompts == ["a picture a.png", "a picture b.jpg"] and of.starts is None
    clean = of.make([0, 1])
    assert clean.shape == (2, 4, 8, 8)
    red = teacher.decode(clean).clamp(0, 1)[0].mean((1, 2))
    assert red[0] > 2 * red[1:].max()
    (folder / "metadata.jsonl").write_text('{"file_name": "../../secret.png", "text": "x"}\n')
    with pytest.raises(UsageError, match="lies outside"):
        items(str(folder), teacher, spec(tmp_path).sampling, [], 4, 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "f-distil"}, "f-distill"),
        ({"method": "f-distill:divergence=js2"}, "divergence"),
        ({"data": None}, "needs real latents"),
        ({"method": "reflow", "data": "embedded:train:4"}, "teacher:2000"),
        ({"method": "f-distill:bins=0"}, "bins"),
        ({"method": "f-distill:adversarial=-1"}, "below 0"),
        ({"method": "pg-sb:scale_low=3,scale_high=2"}, "above"),
        ({"method": "ucgm-t", "precision": "bf16"}, "precision no"),
        ({"data": "nowhere/at/all"}, "there is no data"),
        ({"guidance": "none", "method": "pg-sb"}, "scale"),
        ({"precision": "fp16"}, "GPU"),
        ({"prompts": []}, "no prompts"),
    ],
)
def test_what_cannot_be_distilled_is_refused_in_one_line(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message) as told:
        train(spec(tmp_path / "run", **(EMBEDDED | changes)))
    assert "\n" not in str(told.value)
    assert not (tmp_path / "run").exists()


def test_a_look_needs_no_judge_and_no_features(tmp_path: Path) -> None:
    done = train(spec(tmp_path, updates=1), opened=toy())
    assert done.after["judge"] == {} and isinstance(done.after["held_out"]["coverage"], float)
    assert Look({}, {}, torch.zeros(0)).plain(3)["at"] == 3


# -- presets and the command line -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", presets("distill"))
def test_presets_of_distillation_are_whole(name: str) -> None:
    assert len(purpose_of(presets("distill")[name])) > 20
    made = resolve(DistillSpec, name, kind="distill")
    assert make_method(made.method).needs_data is False or made.data
    assert DistillSpec(**made.plain()) == made


def test_the_command_line_distils_and_says_how_to_draw(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from pilotage.cli.main import run

    line = ["distill", "embedded:train:4", "--output", str(tmp_path / "fast"), "--updates", "1", "--batch", "2"]
    line += ["--set", "held_out=[embedded:heldout:2]", "--set", "held_out_seeds=2", "--data", "embedded:train:4"]
    line += ["--method", "vsd:strata=1", "--rows", "2", "--steps", "2", "--device", "cpu", "--train", "lora"]
    assert run(line) == 0
    said = capsys.readouterr()
    assert (
        "adherence:" in said.out and "the teacher" in said.out and f"--model {tmp_path / 'fast'} --steps 1" in said.out
    )
    assert run([*line, "--dry-run"]) == 0 and "peak, about" in capsys.readouterr().out
    assert (
        run(["generate", "a red ring on navy", "--model", str(tmp_path / "fast"), "-o", str(tmp_path / "drawn")]) == 0
    )
    assert len(list((tmp_path / "drawn").glob("*.png"))) == 1
    capsys.readouterr()
    assert run(["distill", "--method", "f-distil"]) == 2 and "f-distill" in capsys.readouterr().err


def test_a_prompt_left_out_is_what_guidance_subtracts() -> None:
    """In SDXL zeros, not the empty text; a fake that was taught another one could not be guided."""
    learner = PipelineLearner(xl())
    x, level = learner.start(["1"], learner.levels("trailing", 2)), learner.levels("trailing", 2)[1]
    with torch.no_grad():
        none, empty = (learner.denoiser([prompt])(x, level).native for prompt in (None, ""))
        guided = learner.denoiser(["a star"], "cfg:scale=0")(x, level).native  # the unconditional branch alone
    assert torch.allclose(none, guided, atol=1e-6) and not torch.allclose(none, empty, atol=1e-4)


def test_methods_of_pairs_take_pairs_by_default() -> None:
    assert DistillSpec(method="reflow").data == DistillSpec(method="dmd").data == "teacher:2000"
    assert DistillSpec(method="f-distill").data == "embedded:train:4000"
