"""Run by torchrun: what sharded weights do, told to `test_training_sharded.py` as JSON. argv: the file, the task."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

os.environ |= {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
torch.set_num_threads(1)

from test_finetune_pipelines import BUILT, opened  # noqa: E402
from test_training_sharded import ALL, AVERAGED, DISTIL, FINETUNE  # noqa: E402

from pilotage import distill, finetune  # noqa: E402
from pilotage.distill.opening import open_run as open_distillation  # noqa: E402
from pilotage.errors import UsageError  # noqa: E402
from pilotage.finetune.opening import open_run as open_fine_tuning  # noqa: E402
from pilotage.training.lora import LoraSettings  # noqa: E402
from pilotage.training.pipeline_learner import network_of  # noqa: E402
from pilotage.training.sharding import Sharding, gathered, is_part  # noqa: E402
from pilotage.training.trainer import accelerator_for  # noqa: E402

TASKS: dict[str, Callable[[Path], Any]] = {}


def task(function: Callable[[Path], Any]) -> Callable[[Path], Any]:
    TASKS[function.__name__] = function
    return function


def sharding() -> Sharding:
    found = Sharding.found(accelerator_for(FINETUNE))
    assert found is not None
    return found


def share(network: nn.Module) -> float:
    """How much of a network's weights lies on this process."""
    parts = [p.to_local().numel() if is_part(p) else p.numel() for p in network.parameters()]  # type: ignore[attr-defined]
    return sum(parts) / sum(p.numel() for p in network.parameters())


@task
def adapters(folder: Path) -> Any:
    spec = FINETUNE.changed(output=str(folder / "adapters"))
    held = open_fine_tuning(spec, "cpu", sharding())
    shared = share(held.learner.network)
    finetune.train(spec, opened=held)
    return shared


@task
def all_weights(folder: Path) -> Any:
    """With checkpoints of blocks and an average; the first update only, the rest is for one process."""
    spec = FINETUNE.changed(output=str(folder / "all_weights"), **{**ALL, "updates": 1})
    held = open_fine_tuning(spec, "cpu", sharding())
    shared = [share(network) for network in (held.learner.network, held.learner._base)]
    finetune.train(spec, opened=held)
    return shared


@task
def copies(folder: Path) -> Any:
    """A whole copy on each "host", of one process: gradients are averaged between copies."""
    from torch.distributed.device_mesh import init_device_mesh

    mesh = init_device_mesh("cpu", (2, 1), mesh_dim_names=("dp_replicate", "dp_shard"))
    spec = FINETUNE.changed(output=str(folder / "copies"), **{**ALL, "updates": 1})
    held = open_fine_tuning(spec, "cpu", Sharding(torch.device("cpu"), mesh))
    shared = share(held.learner.network)
    finetune.train(spec, opened=held)
    return shared


@task
def distilled(folder: Path) -> Any:
    """A student, a fake and a head that looks at the middle of the teacher; all weights learn."""
    spec = DISTIL.changed(output=str(folder / "distilled"))
    held = open_distillation(spec, "cpu", sharding())
    shared = [share(role.network) for role in (held.roles.student, held.roles.fake)]
    distill.train(spec, opened=held)
    return shared


@task
def begun(folder: Path) -> Any:
    """A student that begins with another's weights and keeps an average of itself."""
    spec = DISTIL.changed(output=str(folder / "begun"), start=str(folder / "distilled"), **AVERAGED)
    distill.train(spec, opened=open_distillation(spec, "cpu", sharding()))


@task
def families(folder: Path) -> Any:
    """The gradients of adapters on tiny pipelines, the largest difference from whole weights'."""
    names = [name for name in os.environ.get("FAMILIES", "").split(",") if name] or list(BUILT)
    return {name: _family(name) for name in names}


def _family(name: str) -> Any:
    def gradients(shared: bool) -> tuple[float, list[torch.Tensor]]:
        case = BUILT[name]()
        if shared:
            sharding().place(case.pipe, [network_of(case.pipe)])
        learner = opened(case, LoraSettings(rank=2))[1]
        for index, parameter in enumerate(learner.parameters):
            generator = torch.Generator().manual_seed(index)
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
        level = learner.levels("trailing", 4)[1]
        rows = 1 if "frames" in name else 2
        x = torch.randn(rows, *learner.shape, generator=torch.Generator().manual_seed(0))
        said = learner.denoiser(["0", "0"][:rows])(x, level).native
        said.square().mean().backward()
        return share(learner.network) if shared else 1.0, [
            said.detach(),
            *(p.grad for p in learner.parameters if p.grad is not None),
        ]

    try:
        (_, wanted), (part, found) = gradients(False), gradients(True)
    except UsageError as error:
        return str(error)
    largest = max(float(w.abs().max()) for w in wanted)
    return part, max(float((a - gathered(b)).abs().max()) for a, b in zip(wanted, found, strict=True)) / largest


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    told = {name: TASKS[name](folder) for name in sys.argv[2:]}
    if int(os.environ["RANK"]) == 0:
        (folder / "told.json").write_text(json.dumps(told))
