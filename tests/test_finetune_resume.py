"""A run that was stopped goes on to the bit; what is damaged, another run's or finished is told apart."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from finetune_toys import FLOW, VP, ToyLearner, near
from tiny_parts import stable_diffusion
from torch import Tensor

from pilotage.errors import UsageError
from pilotage.finetune import FinetuneSpec, Opened, Part, PipelineLearner, Reward, UpdateContext, train
from pilotage.finetune.method import Method
from pilotage.finetune.methods.registry import METHODS, make_method
from pilotage.samplers import sample
from pilotage.samplers.noise import SeededNoise
from pilotage.training import checkpoint, run_folder


class Stop(Exception):
    """Somebody pulled the plug."""


@dataclass(frozen=True)
class Remembering(Method):
    """Backpropagation with two steps an update, a baseline from a moving average, and a random weight."""

    def update(self, ctx: UpdateContext) -> Iterator[Part]:
        for half in (0, 1):
            prompts, seeds = ctx.prompts[half::2], ctx.seeds[half::2]
            levels = ctx.learner.levels(ctx.sampling.grid, ctx.sampling.steps)
            denoiser = ctx.learner.denoiser(prompts, ctx.sampling.guidance)
            x = sample(denoiser, ctx.learner.start(seeds, levels), sampler=ctx.sampling.sampler, grid=levels,
                       noise=SeededNoise(seeds))  # fmt: skip
            rewards = ctx.reward(ctx.learner.decode(x), prompts)
            mean = ctx.state.setdefault("mean", torch.zeros(()))
            weight = 1 + 0.1 * torch.randn((), generator=torch.Generator().manual_seed(ctx.seed("weight", half)))
            yield Part(-((rewards - mean) * weight).mean())
            ctx.state["mean"] = 0.9 * mean + 0.1 * rewards.detach().mean()
            ctx.state.setdefault("seen", {})[ctx.update] = (float(rewards.detach().mean()), [half])
        ctx.log(reward=rewards.detach().mean())


def toy(reward: Reward | None = None) -> Opened:
    """Latents of three numbers are pictures of one pixel."""
    return Opened(ToyLearner(size=3), Remembering(), reward or near(0.5, 0.2, 0.8))


def tiny() -> Opened:
    reward = Reward("bright", lambda pictures, prompts: pictures.mean((1, 2, 3)))
    return Opened(PipelineLearner(stable_diffusion(), seed=3), make_method("draft-k:truncation=2"), reward)


def spec(folder: Path, **changes: Any) -> FinetuneSpec:
    settings: dict[str, Any] = dict(
        prompts=["a red star", "two rings", "a fish"], held_out=["a green star"], held_out_seeds=2, features=None,
        reward="brightness", guidance="none", steps=4, updates=6, batch=4, rows=4, evaluate_every=2, sheet_every=4,
        checkpoint_every=2, output=str(folder), device="cpu", learning_rate=0.01, ema=0.5, limits={"explosion": 1e9},
    )  # fmt: skip
    return FinetuneSpec(**{**settings, **changes})


def killed_after(update: int) -> Any:
    def told(entry: dict[str, Any]) -> None:
        if entry["update"] == update:
            raise Stop

    return told


def outcome(folder: Path) -> dict[str, bytes]:
    """All that was learnt, said and drawn."""
    files = [p for p in folder.rglob("*") if p.is_file() and p.suffix in (".safetensors", ".png", ".md")]
    found = {str(p.relative_to(folder)): p.read_bytes() for p in files if p.parent.name != run_folder.CHECKPOINTS}
    lines = [{k: v for k, v in line.items() if k != "seconds"} for line in run_folder.read_log(folder)]
    return found | {"log": json.dumps(lines).encode()}


def training(folder: Path) -> list[Tensor]:
    state, _ = checkpoint.last(folder / run_folder.CHECKPOINTS)
    return list(checkpoint.flattened({k: v for k, v in state.items() if k != "seconds"})[1].values())


@pytest.mark.parametrize(("opened", "at"), [(toy, 3), (toy, 4), (tiny, 3)])
def test_killed_and_resumed_is_the_same_to_the_bit(tmp_path: Path, opened: Any, at: int) -> None:
    """at: killed between two checkpoints, and right before one."""
    whole = train(spec(tmp_path / "a"), opened=opened())
    with pytest.raises(Stop):
        train(spec(tmp_path / "b"), opened=opened(), told=killed_after(at))
    resumed = train(spec(tmp_path / "b"), opened=opened())
    assert (whole.made, resumed.made, resumed.updates) == (6, 4, 6)
    assert resumed.before == whole.before and resumed.after == whole.after
    text = (tmp_path / "b" / "lora" / "README.md").read_text()
    (tmp_path / "b" / "lora" / "README.md").write_text(text.replace(str(tmp_path / "b"), str(tmp_path / "a")))
    assert outcome(tmp_path / "a") == outcome(tmp_path / "b")
    assert all(torch.equal(a, b) for a, b in zip(training(tmp_path / "a"), training(tmp_path / "b"), strict=True))


LINES = {"ddpo": "ddpo", "flow-grpo": "flow-grpo:group=2", "dance-grpo": "dance-grpo:group=2"}


@pytest.mark.parametrize("name", METHODS)
def test_every_method_resumes_to_the_bit(tmp_path: Path, name: str) -> None:
    """Whatever it remembers is kept."""
    flow = "grpo" in name

    def opened() -> Opened:
        learner = ToyLearner(FLOW if flow else VP, size=3)
        return Opened(learner, make_method(LINES.get(name, name)), near(0.5, 0.2, 0.8))

    settings: dict[str, Any] = dict(updates=4, evaluate_every=0, method=LINES.get(name, name))
    settings |= {"sampler": "euler"} if flow else {}
    whole = train(spec(tmp_path / "a", **settings), opened=opened())
    with pytest.raises(Stop):
        train(spec(tmp_path / "b", **settings), opened=opened(), told=killed_after(3))
    assert train(spec(tmp_path / "b", **settings), opened=opened()).after == whole.after
    assert all(torch.equal(a, b) for a, b in zip(training(tmp_path / "a"), training(tmp_path / "b"), strict=True))
    assert run_folder.read_log(tmp_path / "a")[-1]["pictures"] == make_method(LINES.get(name, name)).pictures(4) * 4


def test_killed_before_the_first_checkpoint_begins_again(tmp_path: Path) -> None:
    with pytest.raises(Stop):
        train(spec(tmp_path), opened=toy(), told=killed_after(1))
    assert train(spec(tmp_path), opened=toy()).made == 6
    assert [line["update"] for line in run_folder.read_log(tmp_path)] == list(range(7))


def test_the_same_command_again_finds_everything_done(tmp_path: Path) -> None:
    first = train(spec(tmp_path), opened=toy())
    before = outcome(tmp_path)
    again = train(spec(tmp_path), opened=toy())
    assert (first.made, again.made) == (6, 0) and again.after == first.after
    assert outcome(tmp_path) == before


def test_settings_that_decide_nothing_may_change(tmp_path: Path) -> None:
    with pytest.raises(Stop):
        train(spec(tmp_path), opened=toy(), told=killed_after(2))
    assert train(spec(tmp_path, sheet_every=1, checkpoint_every=3), opened=toy()).updates == 6


def test_another_run_in_the_folder_is_refused_with_what_differs(tmp_path: Path) -> None:
    with pytest.raises(Stop):
        train(spec(tmp_path), opened=toy(), told=killed_after(2))
    with pytest.raises(UsageError, match=r"learning_rate is 0.01 there and 0.02 here\. Choose another output") as told:
        train(spec(tmp_path, learning_rate=0.02, batch=8), opened=toy())
    assert "batch is 4 there and 8 here" in str(told.value) and "\n" not in str(told.value)


def test_a_run_may_be_made_longer_unless_its_pace_depends_on_its_length(tmp_path: Path) -> None:
    train(spec(tmp_path / "whole", updates=5), opened=(whole := toy()))
    train(spec(tmp_path / "parts", updates=3), opened=toy())
    done = train(spec(tmp_path / "parts", updates=5), opened=(parts := toy()))
    assert done.made == 2 and done.updates == 5
    assert all(torch.equal(a, b) for a, b in zip(whole.learner.parameters, parts.learner.parameters, strict=True))
    assert train(spec(tmp_path / "parts", updates=4), opened=toy()).made == 0
    assert spec(tmp_path, method="b2-diffurl").paced and not spec(tmp_path, method="b2-diffurl:stages=4").paced


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("do not touch")
    with pytest.raises(UsageError, match="is not empty"):
        train(spec(tmp_path), opened=toy())


@pytest.mark.parametrize("damage", ["cut", "flip", "empty"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path: Path, damage: str) -> None:
    whole = train(spec(tmp_path / "a"), opened=toy())
    with pytest.raises(Stop):
        train(spec(tmp_path / "b"), opened=toy(), told=killed_after(5))
    path = tmp_path / "b" / run_folder.CHECKPOINTS / "000004.safetensors"
    held = bytearray(path.read_bytes())
    held[-3] ^= 4
    path.write_bytes({"cut": bytes(held[:-50]), "flip": bytes(held), "empty": b""}[damage])
    resumed = train(spec(tmp_path / "b"), opened=toy())
    assert resumed.made == 4 and any("damaged" in notice for notice in resumed.notices)
    assert resumed.after == whole.after


def test_no_whole_checkpoint_is_said(tmp_path: Path) -> None:
    with pytest.raises(Stop):
        train(spec(tmp_path), opened=toy(), told=killed_after(3))
    for path in (tmp_path / run_folder.CHECKPOINTS).glob("0*.safetensors"):
        path.write_bytes(b"")
    with pytest.raises(UsageError, match=r"no checkpoint .* can be read"):
        train(spec(tmp_path), opened=toy())


# -- what a checkpoint holds -----------------------------------------------------------------------------------------


def test_a_tree_comes_back_as_it_was(tmp_path: Path) -> None:
    tree: dict[Any, Any] = {
        "a": [1, 2.5, None, True, "text", float("inf")], 3: (torch.arange(3), torch.tensor(0.1, dtype=torch.float64)),
        "tensor": {"pairs": {"tuple": torch.ones(2, 2, dtype=torch.bfloat16)}}, "empty": torch.zeros(0),
        "turned": torch.arange(6).reshape(2, 3).T, "x": {}, (1, "b"): [(), []],
    }  # fmt: skip
    path = tmp_path / "tree.safetensors"
    checkpoint.write(path, tree)
    found = checkpoint.read(path)
    assert found.keys() == tree.keys() and found["a"] == tree["a"] and found[(1, "b")] == [(), []]
    assert isinstance(found[3], tuple) and found["x"] == {}
    for a, b in zip(checkpoint.flattened(tree)[1].values(), checkpoint.flattened(found)[1].values(), strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)


def test_what_would_not_come_back_is_refused() -> None:
    with pytest.raises(UsageError, match="cannot be kept"):
        checkpoint.flattened({"a": object()})


def test_two_checkpoints_are_kept(tmp_path: Path) -> None:
    for update in (2, 4, 6):
        checkpoint.keep(tmp_path, update, {"update": update})
    assert sorted(p.stem for p in tmp_path.iterdir()) == ["000004", "000006"]
    assert checkpoint.last(tmp_path) == ({"update": 6}, [])


def test_seeds_of_pictures_are_those_of_their_places() -> None:
    """Alone and as one of several processes, before and after a resume."""
    from pilotage.evaluation.processes import Processes
    from pilotage.training.dealing import Deal

    prompts = list("abcdefg")
    alone = Deal(prompts, 4, 5)
    for update in range(5):
        shares: Sequence[Deal] = [Deal(prompts, 4, 5, Processes(rank, 2)) for rank in (0, 1)]
        assert alone.of(update) == tuple(a + b for a, b in zip(*(share.of(update) for share in shares)))
    dealt = [prompt for update in range(7) for prompt in alone.of(update)[0]]
    assert all(sorted(dealt[7 * i : 7 * i + 7]) == prompts for i in range(4)), "each comes once each time through"
    assert dealt[:7] != dealt[7:14]
    with pytest.raises(UsageError, match="cannot be dealt"):
        Deal(prompts, 5, 5, Processes(0, 2))
