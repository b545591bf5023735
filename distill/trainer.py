"""The loop of a distillation: updates of a method, looked at beside the teacher, kept, and resumed to the bit.

    trained = train(DistillSpec(method="f-distill:divergence=jensen-shannon"))
    pipe = pilotage.load(trained.result)        # draws in one step

The same spec again goes on where it stopped. What any training does stands in `training.trainer`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from ..errors import UsageError
from ..generation.environment import threads
from ..generation.models import device_named, revision_of
from ..samplers.noise import derived_seed
from ..storage import make_folder
from ..training import checkpoint, run_folder, trainer
from ..training.dealing import Deal
from ..training.look import Look
from ..training.memory_plan import plan
from ..training.numbers import Numbers
from ..training.pipeline_learner import PipelineLearner
from ..training.sharding import Sharding
from ..training.trainer import Told, Trained, accelerator_for, stepper_for
from ..training.update import LEARNER, Part
from .data import Latents, items, taught
from .guardrails import Guard, Notice
from .method import DistillContext, Pictures
from .model_card import write_card
from .opening import Opened, open_run
from .roles import STUDENT
from .spec import DistillSpec
from .student import STUDENT as RESULT
from .student import write_student
from .watch import Watch


def train(
    spec: DistillSpec,
    *,
    opened: Opened | None = None,
    told: Told | None = None,
    planned: Callable[[list[str]], None] | None = None,
) -> Trained:
    """Distil, or go on, or find everything done. told: each line of the log, and {"preparing", "done", "of"} while what
    the training needs is made; planned: the estimate of the memory, before anything is computed. Both on the first
    process.

    opened: what `open_run` gives, for models that a spec cannot name. Raises UsageError for a folder that holds another
    run, and for whatever cannot be distilled.
    """
    run_folder.refuse_other_run(spec.folder(), spec)
    with threads(spec.threads):
        accelerator = accelerator_for(spec)
        opened = opened or open_run(spec, accelerator.device, Sharding.found(accelerator))
        if planned is not None:
            lines = _memory(spec, opened)
            if accelerator.is_main_process:
                planned(lines)
        return Run(spec, opened, accelerator, told or (lambda entry: None)).go()


def memory_of(spec: DistillSpec) -> list[str]:
    """The estimate of the memory, for which the model is loaded."""
    return _memory(spec, open_run(spec, device_named(spec.device)))


def _memory(spec: DistillSpec, opened: Opened) -> list[str]:
    roles = opened.roles.parameters()
    helpers = [parameter for role, parameters in roles.items() if role != STUDENT for parameter in parameters]
    return plan(opened.roles.student, spec, opened.modules, further=helpers, guidance="none").lines()


class Run(trainer.Run):
    """Roles and a method in the loop of every training."""

    spec: DistillSpec
    guard: Guard

    def __init__(self, spec: DistillSpec, opened: Opened, accelerator: Any, told: Told):
        self.opened, self.roles, self.method = opened, opened.roles, opened.method
        steppers = {
            LEARNER if role == STUDENT else role: stepper_for(
                spec, parameters, accelerator, None if role == STUDENT else spec.fake_learning_rate,
                spec.ema if role == STUDENT else 0.0,
            )
            for role, parameters in self.roles.parameters().items()
        }  # fmt: skip
        super().__init__(spec, accelerator, told, steppers, Guard(spec.limits), spec.folder() / RESULT)
        self.deal = Deal(spec.training_prompts(), spec.batch, spec.seed, self.processes)
        self.latents = self._latents()
        self.data_deal = (
            Deal(range(len(self.latents)), spec.batch, derived_seed(spec.seed, "data"), self.processes)
            if self.latents
            else None
        )
        self.watch = self._watch()

    def _latents(self) -> Latents | None:
        spec = self.spec
        if not self.method.needs_data or spec.data is None:
            return None
        prompts = spec.training_prompts()
        of = items(spec.data, self.roles.teacher, spec.sampling, prompts, spec.rows, spec.seed, self._model())
        return Latents(self.folder / "data", of, self.processes)

    def _model(self) -> str:
        """The teacher, by its weights."""
        of = self.opened.pipe
        return (
            self.spec.model if of is None else f"{self.spec.model} {revision_of(self.spec.model, of)} {self.spec.size}"
        )

    def _watch(self) -> Watch:
        spec, prompts = self.spec, self.spec.held_out_prompts()
        told = [prompt for prompt in prompts for _ in range(spec.held_out_seeds)]
        seeds = [str(seed) for _ in prompts for seed in range(spec.held_out_seeds)]
        of = taught(self.roles.teacher, spec.sampling, told, seeds, spec.rows, self._model())
        theirs = Latents(self.folder / "teacher", of, self.processes)
        return Watch(prompts, spec.held_out_seeds, spec.rows, self.method, theirs, self.opened.features, self.processes)

    # -- what a training says ----------------------------------------------------------------------------------

    def prepare(self) -> None:
        for name, latents in (("the teacher's pictures", self.watch.teacher), ("real latents", self.latents)):
            if latents is not None:
                latents.make(partial(self._preparing, name))
        self.accelerator.wait_for_everyone()

    def _preparing(self, what: str, done: int, of: int) -> None:
        if self.processes.rank == 0:
            self.told({"preparing": what, "done": done, "of": of})

    def parts(self, numbers: Numbers) -> Generator[Part, None, None]:
        for part in self.method.update(self.context(numbers)):
            yield Part(part.loss, part.steps, LEARNER) if part.role == STUDENT else part

    def context(self, numbers: Numbers) -> DistillContext:
        share = self.spec.batch // self.processes.world
        return DistillContext(
            self.roles, self.spec.guidance, self._dealt, self._data, self.processes.rank * share, self.spec.batch,
            update=self.update, updates=self.spec.updates, rows=self.spec.rows, run_seed=self.spec.seed,
            state=self.memory, gather=self.gather, log=numbers.add,
            lockstep=self.processes.world if self.opened.sharding else 1,
        )  # fmt: skip

    def _dealt(self, draw: int) -> Pictures:
        return Pictures(*self.deal.of(self.update * self.method.draws + draw))

    def _data(self, draw: int) -> Pictures:
        if self.latents is None or self.data_deal is None:
            raise UsageError(f"{self.spec.method} asks for real latents; give data=teacher:1000")
        numbers, seeds = self.data_deal.of(self.update * self.method.draws + draw)
        of = self.latents.items
        clean: Tensor = self.latents.of(numbers).to(self.roles.student.device)
        starts = None if of.starts is None else [of.starts[i] for i in numbers]
        return Pictures([of.prompts[i] for i in numbers], seeds, clean, starts)

    def pictures_of_update(self) -> int:
        return self.spec.batch * self.method.draws

    def look(self) -> Look:
        return self.watch.look(self.roles.student)

    def updated(self, numbers: Mapping[str, Any]) -> list[Notice]:
        return self.guard.weighed(numbers["effective"], self.spec.batch) if "effective" in numbers else []

    def looked(self, look: Look) -> list[Notice]:
        return self.guard.looked()

    @property
    def loaded(self) -> Sequence[nn.Module]:
        return self.opened.modules

    def make_whole(self) -> None:
        if isinstance(self.roles.student, PipelineLearner):
            self.roles.student.make_whole(self.processes.rank == 0)

    def write_result(self) -> None:
        student = self.roles.student
        if isinstance(student, PipelineLearner):
            write_student(self.result, student, self.opened.pipe, self.method, self.spec)
        else:
            make_folder(self.result)
            checkpoint.write(self.result / "parameters.safetensors", [p.detach() for p in student.parameters])
        stock = None if self.opened.pipe is None else self.opened.pipe.scheduler
        write_card(self.result, self.spec, self.method, self.looks, self.pictures, self.stopped, stock)
