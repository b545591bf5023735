"""The training loop on a reward: updates of a method, looked at on held-out prompts and watched for overoptimisation.

    trained = train(FinetuneSpec(prompts=["embedded:train:200"], reward="colour:target=red"))
    pipe.load_lora_weights(trained.result)

The same spec again goes on where it stopped. What any training does stands in `training.trainer`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from ..generation.environment import threads
from ..generation.models import device_named
from ..storage import make_folder
from ..training import checkpoint, run_folder, trainer
from ..training.dealing import Deal
from ..training.learner import Learner
from ..training.look import Look
from ..training.memory_plan import plan
from ..training.numbers import Numbers
from ..training.pipeline_learner import PipelineLearner
from ..training.sharding import Sharding
from ..training.trainer import Told, Trained, accelerator_for, stepper_for
from ..training.update import LEARNER, Part
from .guardrails import Guard, Notice
from .held_out import HeldOut
from .method import UpdateContext
from .model_card import write_card
from .opening import Opened, open_run
from .spec import FinetuneSpec


def train(
    spec: FinetuneSpec,
    *,
    opened: Opened | None = None,
    told: Told | None = None,
    planned: Callable[[list[str]], None] | None = None,
) -> Trained:
    """Train, or go on, or find everything done. told: each line of the log, and planned: the estimate of the memory,
    before anything is computed; both on the first process.

    opened: what `open_run` gives, for models and rewards that a spec cannot name. Raises UsageError for a folder that
    holds another run, and for whatever cannot be trained.
    """
    run_folder.refuse_other_run(spec.folder(), spec)
    with threads(spec.threads):
        accelerator = accelerator_for(spec)
        opened = opened or open_run(spec, accelerator.device, Sharding.found(accelerator))
        if planned is not None:
            lines = plan(opened.learner, spec, list(opened.modules)).lines()
            if accelerator.is_main_process:
                planned(lines)
        return Run(spec, opened, accelerator, told or (lambda entry: None)).go()


def memory_of(spec: FinetuneSpec) -> list[str]:
    """The estimate of the memory, for which the model is loaded."""
    opened = open_run(spec, device_named(spec.device))
    return plan(opened.learner, spec, list(opened.modules)).lines()


class Run(trainer.Run):
    """A learner, a method and a reward in the loop of every training."""

    spec: FinetuneSpec
    guard: Guard

    def __init__(self, spec: FinetuneSpec, opened: Opened, accelerator: Any, told: Told):
        stepper = stepper_for(spec, opened.learner.parameters, accelerator, ema=spec.ema)
        result = spec.folder() / (run_folder.LORA if spec.train == "lora" else run_folder.NETWORK)
        super().__init__(spec, accelerator, told, {LEARNER: stepper}, Guard(spec.limits), result)
        self.opened = opened
        self.deal = Deal(spec.training_prompts(), spec.batch, spec.seed, self.processes)
        self.held_out = HeldOut(
            spec.held_out_prompts(), spec.held_out_seeds, spec.sampling, spec.rows, opened.reward, opened.judges,
            opened.features, self.processes,
        )  # fmt: skip

    def parts(self, numbers: Numbers) -> Generator[Part, None, None]:
        yield from self.opened.method.update(self.context(numbers))

    def context(self, numbers: Numbers) -> UpdateContext:
        prompts, seeds = self.deal.of(self.update)
        return UpdateContext(
            self.opened.learner, self.opened.reward, self.spec.sampling, prompts, seeds, update=self.update,
            updates=self.spec.updates, rows=self.spec.rows, run_seed=self.spec.seed, state=self.memory,
            gather=self.gather, log=numbers.add,
        )  # fmt: skip

    def pictures_of_update(self) -> int:
        return self.opened.method.pictures(self.spec.batch)

    def look(self) -> Look:
        return self.held_out.look(self.opened.learner)

    def began(self, look: Look) -> None:
        judges = {name: look.spread[name] for name in look.judges}
        self.guard.base(look.spread["reward"], judges, look.numbers["diversity"])

    def updated(self, numbers: Mapping[str, Any]) -> list[Notice]:
        return self.guard.rewarded(numbers["reward"]) if "reward" in numbers else []

    def looked(self, look: Look) -> list[Notice]:
        return self.guard.evaluated(look.numbers["reward"], look.judges, look.numbers["diversity"])

    @property
    def loaded(self) -> Sequence[nn.Module]:
        return self.opened.modules

    def make_whole(self) -> None:
        if isinstance(self.opened.learner, PipelineLearner):
            self.opened.learner.make_whole(self.processes.rank == 0)

    def write_result(self) -> None:
        _save(self.opened.learner, self.spec, self.result)
        learner = self.opened.learner
        network = learner.model.attribute if isinstance(learner, PipelineLearner) else "unet"
        write_card(self.result, self.spec, self.opened.reward, self.looks, self.pictures, self.stopped, network)


def _save(learner: Learner, spec: FinetuneSpec, folder: Path) -> None:
    """What was learnt: a LoRA, a network, or for other learners their parameters."""
    make_folder(folder)
    if isinstance(learner, PipelineLearner):
        learner.save(folder)
    else:
        checkpoint.write(folder / "parameters.safetensors", [p.detach() for p in learner.parameters])
