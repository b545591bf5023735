"""Weights that two processes shard: what is learnt is what one process learns with whole weights."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from pilotage import distill, finetune
from pilotage.distill import DistillSpec
from pilotage.distill.method import DistillContext
from pilotage.distill.times import Times
from pilotage.errors import UsageError
from pilotage.evaluation.processes import Processes
from pilotage.finetune import FinetuneSpec
from pilotage.finetune.methods.registry import make_method
from pilotage.training import checkpoint, trainer
from pilotage.training.dealing import even_share
from pilotage.training.sharding import Sharding

HERE = Path(__file__).parent
BASE = HERE.parent / "zoo/weights/unet/diffusion_pytorch_model.safetensors"
SHORT: dict[str, Any] = {
    "prompts": ["embedded:train:8"], "updates": 2, "batch": 4, "rows": 2, "steps": 3, "device": "cpu", "threads": 1,
    "held_out": ["embedded:heldout:3"], "held_out_seeds": 2,
}  # fmt: skip
FINETUNE = FinetuneSpec(**SHORT, reward="colour:target=red", method="draft-k:truncation=1")
DISTIL = DistillSpec(**SHORT, method="dmd2:adversarial=0.01,critic_steps=1,strata=2", train="all", data="teacher:6")
FAMILIES = ("StableDiffusionXLPipeline", "StableDiffusion3Pipeline", "FluxPipeline (dev)", "ZImagePipeline")
AVERAGED = {"method": "lcm:decay=0.9,strata=2", "updates": 1, "data": "embedded:train:8"}
ALL = {"train": "all", "network_checkpoints": True, "ema": 0.9, "learning_rate": 1e-4}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """What two processes did with sharded weights: their folders, and what they told."""
    folder = tmp_path_factory.mktemp("shared")
    tasks = ["adapters", "all_weights", "copies", "distilled", "begun", "families"]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", str(HERE / "sharded_worker.py")]
    told = subprocess.run(
        [*command, str(folder), *tasks], capture_output=True, text=True, timeout=420,
        env=os.environ | {"OMP_NUM_THREADS": "1", "FAMILIES": ",".join(FAMILIES)},
    )  # fmt: skip
    assert told.returncode == 0, told.stderr[-3000:]
    return folder, json.loads((folder / "told.json").read_text())


def alike(one: Path, other: Path, name: str) -> None:
    """The same log, and the same weights: apart by a hundredth of how far they moved, since Adam makes steps of full
    length of gradients that are rounding alone."""
    for ours, theirs in zip(log(one), log(other), strict=True):
        for key in ours.keys() & {"loss", "grad_norm", "fake_loss", "fake_grad_norm", "head_loss", "reward"}:
            assert ours[key] == pytest.approx(theirs[key], rel=1e-4), key
    first, second, base = load_file(one / name), load_file(other / name), load_file(BASE)
    assert first.keys() == second.keys()
    moved = {n: first[n] - base[n] for n in first.keys() & base.keys()} or {n: first[n] for n in first if "lora_B" in n}
    assert norm({n: first[n] - second[n] for n in first}) < norm(moved) / 100


def norm(tensors: dict[str, Tensor]) -> float:
    return sum(float(tensor.double().square().sum()) for tensor in tensors.values()) ** 0.5


def log(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def test_adapters_on_shared_out_weights_learn_as_on_whole_ones(shared: Any, tmp_path: Path) -> None:
    folder, told = shared
    assert told["adapters"] < 0.6
    alone = finetune.train(FINETUNE.changed(output=str(tmp_path / "x")))
    alike(folder / "adapters", alone.folder, "lora/pytorch_lora_weights.safetensors")


def test_one_process_goes_on_with_what_two_began_on_parts_of_all_weights(shared: Any, tmp_path: Path) -> None:
    folder, told = shared
    assert max(told["all_weights"]) < 0.6  # of what learns, and of the copy from before
    begun = FINETUNE.changed(output=str(folder / "all_weights"), **ALL)
    both, alone = finetune.train(begun), finetune.train(FINETUNE.changed(output=str(tmp_path / "x"), **ALL))
    assert both.made == 1 and both.updates == 2
    alike(both.folder, alone.folder, "network/diffusion_pytorch_model.safetensors")
    changes = [log(run.folder)[-1]["held_out"]["weight_change"] for run in (both, alone)]
    assert changes[0] == pytest.approx(changes[1], rel=1e-4) and changes[0] > 0


def test_copies_on_two_hosts_learn_as_one_process(shared: Any, tmp_path: Path) -> None:
    folder, told = shared
    assert told["copies"] == 1
    alone = finetune.train(FINETUNE.changed(output=str(tmp_path / "x"), **{**ALL, "updates": 1}))
    alike(folder / "copies", alone.folder, "network/diffusion_pytorch_model.safetensors")


def test_a_network_that_was_shared_out_is_saved_as_its_own_class(shared: Any) -> None:
    config = json.loads((shared[0] / "all_weights/network/config.json").read_text())
    assert config["_class_name"] == "UNet2DConditionModel"


def test_a_student_on_shared_out_weights_is_that_of_whole_ones(shared: Any, tmp_path: Path) -> None:
    folder, told = shared
    assert max(told["distilled"]) < 0.6
    alone = distill.train(DISTIL.changed(output=str(tmp_path / "x")))
    alike(folder / "distilled", alone.folder, "student/unet/diffusion_pytorch_model.safetensors")


def test_a_target_and_another_students_weights(shared: Any, tmp_path: Path) -> None:
    folder, _ = shared
    spec = DISTIL.changed(output=str(tmp_path / "x"), start=str(folder / "distilled"), **AVERAGED)
    alone = distill.train(spec)
    alike(folder / "begun", alone.folder, "student/unet/diffusion_pytorch_model.safetensors")
    states = [checkpoint.last(run / "checkpoints")[0]["memories"] for run in (folder / "begun", alone.folder)]
    assert len(states[0]) == len(states[1]) == 1  # one target for both processes, whole
    ours, theirs = (checkpoint.flattened(state)[1] for state in states)
    assert ours.keys() == theirs.keys() and len(ours) > 100
    assert norm({n: ours[n] - theirs[n] for n in ours}) < 1e-4 * norm(theirs)


@pytest.mark.parametrize("name", FAMILIES)
def test_families_have_the_gradients_of_whole_weights(shared: Any, name: str) -> None:
    part, apart = shared[1]["families"][name]
    assert part < 0.6 and apart < 1e-5


# -- equal calls ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "world"), [(0, 2), (1, 3), (5, 2), (6, 3)])
def test_every_process_has_as_many_things_and_none_is_left_out(count: int, world: int) -> None:
    dealt = [even_share(count, Processes(rank, world)) for rank in range(world)]
    assert len({len(mine) for mine in dealt}) == 1
    assert {i for mine in dealt for i in mine} == set(range(count))


def context(batch: int, rows: int) -> Any:
    schedule = SimpleNamespace(T=999.0, levels=lambda times: list(times))
    teacher = SimpleNamespace(denoiser=lambda prompts: SimpleNamespace(schedule=schedule))
    nothing: Any = None
    return DistillContext(
        SimpleNamespace(teacher=teacher), "none", nothing, nothing, 0, batch, lockstep=3, update=0, updates=1,
        rows=rows, run_seed=0, state={}, gather=nothing, log=nothing,
    )  # type: ignore[arg-type, call-arg, unused-ignore]  # fmt: skip


def test_levels_that_do_not_come_evenly_are_refused() -> None:
    assert len(context(6, 4).groups(Times(strata=3), 2, "x")) == 1
    with pytest.raises(UsageError, match="4 noise levels of a batch of 6 do not come to 3 processes evenly"):
        context(6, 4).groups(Times(strata=4), 2, "x")


# -- what is refused ------------------------------------------------------------------------------------------------

TWO = SimpleNamespace(num_processes=2, device=torch.device("cpu"))


@pytest.mark.parametrize(("variable", "name"), [("DEEPSPEED", "DeepSpeed"), ("MEGATRON_LM", "Megatron")])
def test_engines_that_own_the_step_are_refused(monkeypatch: pytest.MonkeyPatch, variable: str, name: str) -> None:
    monkeypatch.setenv(f"ACCELERATE_USE_{variable}", "true")
    with pytest.raises(UsageError, match=f"^{name} takes one loss.*fsdp.yaml"):
        trainer.accelerator_for(FINETUNE)


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"FSDP_VERSION": "1"}, "fsdp_version: 2"),
        ({"FSDP_RESHARD_AFTER_FORWARD": "false"}, "fsdp_reshard_after_forward: true"),
        ({"FSDP_CPU_RAM_EFFICIENT_LOADING": "true"}, "fsdp_cpu_ram_efficient_loading: false"),
        ({"FSDP_ACTIVATION_CHECKPOINTING": "true"}, "network_checkpoints: true"),
    ],
)
def test_other_ways_of_sharing_out_are_refused(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], said: str
) -> None:
    for name, value in {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", **variables}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=said):
        Sharding.found(TWO)


def test_one_process_has_whole_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert Sharding.found(SimpleNamespace(num_processes=1)) is None


@pytest.mark.parametrize(
    ("method", "guidance", "precision", "said"),
    [
        ("draft-k", "cfg", "fp16", "take precision=bf16"),
        ("flow-grpo", "cfg", "bf16", "FlowGRPO asks the network more often on one process"),
        ("ddpo:fraction=0.5", "cfg", "bf16", "DDPO asks"),
        ("draft-k", "interval:low=0.1 + apg + adaptive", "bf16", "decides by the pictures"),
    ],
)
def test_what_calls_a_network_unequally_is_refused(method: str, guidance: str, precision: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Sharding(torch.device("cpu"), None).check(make_method(method), guidance, precision)


def test_what_calls_a_network_equally_is_not() -> None:
    for method in ("draft-k", "ddpo", "refl", "alignprop"):
        Sharding(torch.device("cpu"), None).check(make_method(method), "cfg + interval", "bf16")


@pytest.mark.parametrize("further", [{"optimizer": "adamw8bit"}, {"offload": True}])
def test_what_cannot_stand_parts_is_refused(further: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"adamw8bit is not known|give --set offload=false"):
        Sharding(torch.device("cpu"), None).check(make_method("draft-k"), "cfg", "bf16", **further)


def test_prompts_that_go_one_by_one_are_refused_at_once() -> None:
    asked: list[str] = []
    for varied in (True, False):
        learner = SimpleNamespace(has_lengths=lambda prompts, varied=varied: bool(asked.extend(prompts)) or varied)
        sharding = Sharding(torch.device("cpu"), None)
        sharding.check_prompts(learner, 1)
        if varied:
            with pytest.raises(UsageError, match="give rows=1"):
                sharding.check_prompts(learner, 2)
        else:
            sharding.check_prompts(learner, 2)
    assert len({len(text) for text in asked}) == 2


def test_a_batch_that_does_not_divide_is_refused_before_anything_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("accelerate.Accelerator", lambda **given: SimpleNamespace(num_processes=3))
    with pytest.raises(UsageError, match=r"a batch of 4 cannot be dealt to 3 processes evenly; give --batch 6"):
        trainer.accelerator_for(FINETUNE)


def test_a_class_that_is_not_in_the_network_is_named() -> None:
    network = torch.nn.Sequential(torch.nn.Sequential(torch.nn.Linear(2, 2)))
    with pytest.raises(UsageError, match="Sequential has no blocks called Linear, Typo"):
        Sharding(torch.device("cpu"), None, blocks=("Linear", "Typo")).shard(network)


def test_a_network_without_blocks_is_refused() -> None:
    with pytest.raises(UsageError, match=r"Linear has no blocks.*fsdp_transformer_layer_cls_to_wrap"):
        Sharding(torch.device("cpu"), None).shard(torch.nn.Linear(2, 2))
