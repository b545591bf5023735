"""What a stranger stumbled over: settings refused too late, notes that nobody saw, looks that were not logged."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from finetune_toys import ToyLearner, near
from torch import Tensor

from pilotage.errors import UsageError, nearest
from pilotage.finetune import FinetuneSpec, Opened, Part, UpdateContext, train
from pilotage.finetune.method import Method, Sampling
from pilotage.finetune.methods.registry import make_method
from pilotage.finetune.opening import open_run
from pilotage.training import run_folder


def toy(method: Method | str = "draft-k:truncation=2") -> Opened:
    """Latents of three numbers are pictures of one pixel."""
    made = make_method(method) if isinstance(method, str) else method
    return Opened(ToyLearner(size=3), made, near(0.5, 0.2, 0.8))


def spec(folder: Path, **changes: Any) -> FinetuneSpec:
    settings: dict[str, Any] = dict(
        prompts=["a red star", "two rings", "a fish"], held_out=["a green star", "a tree"], held_out_seeds=4,
        features=None, reward="brightness", guidance="none", steps=4, updates=4, batch=4, rows=4, evaluate_every=0,
        sheet_every=0, checkpoint_every=2, output=str(folder), device="cpu", learning_rate=0.01,
        limits={"explosion": 1e9, "diversity": 0.0},
    )  # fmt: skip
    return FinetuneSpec(**{**settings, **changes})


class Killed(Exception):
    pass


def killed_after(update: int) -> Any:
    def told(entry: dict[str, Any]) -> None:
        if entry["update"] == update:
            raise Killed

    return told


# -- settings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "changes", "said"),
    [
        ("ddpo", {"sampler": "dpmpp-2m"}, "not single Gaussian draws"),
        ("b2-diffurl", {"sampler": "ddim"}, "takes no noise"),
        ("flow-grpo", {"steps": 1}, "at least two steps"),
        ("draft-k:truncation=10", {}, "truncation=10 of a run of 4 steps"),
        ("alignprop:kl=0.1,divergence=step", {"sampler": "ddim"}, "needs noise in each step"),
        ("refl:kl=0.1,divergence=step", {"sampler": "ddim"}, "needs noise in each step"),
    ],
)
def test_how_a_method_cannot_sample_is_said_before_anything_is_drawn(
    method: str, changes: dict[str, Any], said: str
) -> None:
    sampling = Sampling(**{"sampler": "ddim:eta=1", "steps": 4, "guidance": "none", **changes})
    with pytest.raises(UsageError, match=said):
        make_method(method).check(ToyLearner(size=3), sampling)


@pytest.mark.parametrize("method", ["ddpo", "b2-diffurl", "flow-grpo", "dance-grpo", "fpo", "alignprop:kl=1", "refl"])
def test_the_usual_sampler_suits_every_method(method: str) -> None:
    make_method(method).check(ToyLearner(size=3), Sampling(steps=4, guidance="none"))


def test_a_dry_run_and_a_run_open_only_what_can_be_trained(tmp_path: Path) -> None:
    wrong = FinetuneSpec(
        prompts=["embedded:train:4"], reward="saturation", method="ddpo", sampler="dpmpp-2m", output=str(tmp_path)
    )
    with pytest.raises(UsageError, match="use ddim:eta=1"):
        open_run(wrong)


def test_a_folder_without_an_update_goes_to_the_next_run(tmp_path: Path) -> None:
    """As after settings that were refused on the way, and mended."""
    with pytest.raises(Killed):
        train(spec(tmp_path, learning_rate=0.02), opened=toy(), told=killed_after(0))
    done = train(spec(tmp_path), opened=toy())
    assert done.made == 4 and [line["update"] for line in run_folder.read_log(tmp_path)] == [0, 1, 2, 3, 4]
    assert "learning_rate: 0.01" in (tmp_path / "run.yaml").read_text()
    with pytest.raises(UsageError, match="holds another run"):
        train(spec(tmp_path, learning_rate=0.02), opened=toy())


def test_a_folder_with_an_update_before_its_first_checkpoint_is_still_refused(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        train(spec(tmp_path), opened=toy(), told=killed_after(1))
    with pytest.raises(UsageError, match="holds another run"):
        train(spec(tmp_path, learning_rate=0.02), opened=toy())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_without_a_gpu_is_refused_and_not_the_cpu(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no cuda"):
        train(spec(tmp_path, device="cuda"), opened=toy())


def test_prompts_that_a_reward_cannot_read_are_refused_before_anything_is_drawn(tmp_path: Path) -> None:
    settings = {"output": str(tmp_path / "a"), "steps": 2, "held_out": ["a red star"]}
    for reward in ("adherence", "colour:target=red + 0.5 * (minimum of adherence + saturation)"):
        with pytest.raises(UsageError, match="hello"):
            open_run(FinetuneSpec(prompts=["a red star", "hello world"], reward=reward, **settings))
        with pytest.raises(UsageError, match="hello"):
            open_run(FinetuneSpec(prompts=["a red star"], reward=reward, **{**settings, "held_out": ["hello world"]}))
    open_run(FinetuneSpec(prompts=["hello world"], reward="saturation", **settings))
    assert not (tmp_path / "a").exists()


def test_typos_inside_a_setting_get_a_proposal(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"unknown key 'lora\.rnk': did you mean lora\.rank"):
        spec(tmp_path, lora={"rnk": 4})
    with pytest.raises(UsageError, match=r"unknown key 'limits\.patince': did you mean limits\.patience"):
        spec(tmp_path, limits={"patince": 4})
    assert nearest("rde", ["red", "blue", "red"]) == "did you mean red?"


# -- what is told ----------------------------------------------------------------------------------------------------


def test_the_last_look_is_in_the_log_and_on_a_sheet_whatever_is_due(tmp_path: Path) -> None:
    done = train(spec(tmp_path, updates=3, evaluate_every=2), opened=toy())
    lines = run_folder.read_log(tmp_path)
    assert [line["update"] for line in lines if "held_out" in line] == [0, 2, 3]
    assert lines[-1]["held_out"] == done.after["held_out"]
    assert sorted(path.name for path in (tmp_path / "sheets").iterdir()) == ["000000.png", "000003.png"]


def test_the_page_is_there_while_a_run_goes_on(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        train(spec(tmp_path, sheet_every=1), opened=toy(), told=killed_after(3))
    assert "2 updates" in (tmp_path / "index.html").read_text()


def test_a_damaged_checkpoint_is_told_in_the_next_line(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        train(spec(tmp_path, updates=6), opened=toy(), told=killed_after(5))
    (tmp_path / run_folder.CHECKPOINTS / "000004.safetensors").write_bytes(b"")
    told: list[dict[str, Any]] = []
    done = train(spec(tmp_path, updates=6), opened=toy(), told=told.append)
    assert ["damaged" in str(entry.get("notices", "")) for entry in told] == [True, False, False, False]
    assert sum("damaged" in notice for notice in done.notices) == 1
    assert "damaged" in (tmp_path / "index.html").read_text()


@pytest.mark.parametrize("rows", [4, 2, 1])
def test_the_logged_loss_is_that_of_the_update_whatever_goes_together(tmp_path: Path, rows: int) -> None:
    """The mean of -R over the pictures."""
    train(spec(tmp_path, updates=1, rows=rows), opened=toy())
    line = run_folder.read_log(tmp_path)[1]
    assert line["loss"] == pytest.approx(-line["reward"], rel=1e-6)  # pictures are float32


def test_a_card_says_when_nothing_was_held_out(tmp_path: Path) -> None:
    with_some = train(spec(tmp_path / "a", updates=1), opened=toy())
    with_none = train(spec(tmp_path / "b", updates=1, held_out=[]), opened=toy())
    assert "Prompts that were not trained on, 4 seeds" in (with_some.result / "README.md").read_text()
    text = (with_none.result / "README.md").read_text()
    assert "that were not trained on" not in text and "none were held out" in text


# -- what is kept ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stumbling(Method):
    """A failed step and an exploding reward in the same update, the third; the steps before it are large."""

    def update(self, ctx: UpdateContext) -> Iterator[Part]:
        ctx.log(reward=1e12 if ctx.update == 2 else 0.0)
        loss: Tensor = sum((p - 1).square().sum() for p in ctx.learner.parameters)  # type: ignore[assignment]
        yield Part(loss)
        if ctx.update == 2:
            loss = sum((p - 1).square().sum() for p in ctx.learner.parameters)  # type: ignore[assignment]
            yield Part(loss * float("nan"))


def test_a_stop_whose_good_weights_are_damaged_keeps_the_present_ones(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Spoiling(Stumbling):
        def update(self, ctx: UpdateContext) -> Iterator[Part]:
            if ctx.update == 2:
                (good,) = tmp_path.rglob("good.safetensors")
                good.write_bytes(good.read_bytes()[:-9])
            yield from super().update(ctx)

    done = train(spec(tmp_path / "a", evaluate_every=2), opened=toy(Spoiling()))
    assert "the present weights are kept" in done.stopped and "good.safetensors" in done.stopped


def test_one_failed_step_does_not_keep_the_weights_of_an_explosion(tmp_path: Path) -> None:
    opened, other = toy(Stumbling()), toy(Stumbling())
    done = train(spec(tmp_path / "a", evaluate_every=2), opened=opened)
    train(spec(tmp_path / "b", updates=2), opened=other)
    assert done.updates == 3 and "after update 2, when all was well" in done.stopped
    for a, b in zip(opened.learner.parameters, other.learner.parameters, strict=True):
        assert torch.equal(a, b)
