"""The loop of every training: updates, looked at on held-out prompts, watched, kept, and resumed to the bit.

`finetune.trainer` and `distill.trainer` say what an update is, what is looked at, and what the result is. Several
processes (`accelerate launch`) share an update's prompts; their gradients are averaged by hand before they are clipped,
so that they are those of one process.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, closing, nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import UsageError
from ..evaluation.meeting import answered, patience
from ..evaluation.processes import Processes, leave_at_exit
from ..generation.lock import locked
from ..generation.models import device_named
from ..storage import disk_errors, make_folder
from . import checkpoint, run_folder
from .guardrails import Guard, Notice
from .look import Look, shown
from .numbers import Numbers, flat
from .offload import activations_on_cpu
from .optimisers import make_optimiser
from .sharding import gathered, is_part, refuse_other_engines, without_parts
from .spec import TrainingSpec
from .stepping import Stepper
from .update import LEARNER, Part

Told = Callable[[dict[str, Any]], None]
ALIKE_EVERY = 25  # updates, after which the processes compare their parameters
CARD = "README.md"  # of the result; there when the run is finished


@dataclass(frozen=True)
class Trained:
    """A run folder as it is after `train`. updates: that were done. result: the folder of what was learnt.

    before, after: what was seen on the held-out prompts. stopped: why it ended early. made: updates of this call.
    """

    folder: Path
    spec: Any
    updates: int
    result: Path
    before: dict[str, Any]
    after: dict[str, Any]
    stopped: str = ""
    notices: list[str] = field(default_factory=list)
    made: int = 0


def accelerator_for(spec: TrainingSpec) -> Any:
    """accelerate's, on the device of the spec; it moves and casts nothing here."""
    from accelerate import Accelerator, InitProcessGroupKwargs

    refuse_other_engines()
    device_named(spec.device)  # accelerate would take the CPU without a word where there is no GPU
    waits = InitProcessGroupKwargs(timeout=timedelta(seconds=patience()))
    made = Accelerator(cpu=spec.device == "cpu", mixed_precision="no", log_with=spec.tracker,
                       project_dir=str(spec.folder()), kwargs_handlers=[waits])  # fmt: skip
    leave_at_exit()
    if spec.batch % made.num_processes:
        raise UsageError(f"a batch of {spec.batch} cannot be dealt to {made.num_processes} processes evenly; give "
                         f"--batch {-(-spec.batch // made.num_processes) * made.num_processes}")  # fmt: skip
    return made


def stepper_for(
    spec: TrainingSpec, parameters: Sequence[nn.Parameter], accelerator: Any, rate: float | None = None, ema: float = 0
) -> Stepper:
    """rate: the spec's learning rate without it."""
    optimiser = make_optimiser(spec.optimizer, parameters, rate or spec.learning_rate, spec.betas, spec.weight_decay)
    together = accelerator.num_processes > 1 and not is_part(parameters[0])  # FSDP averages what it shards
    return Stepper(
        parameters,
        optimiser,
        clip=spec.clip,
        ema=ema,
        scaled=spec.precision == "fp16",
        reduce=(lambda vector: accelerator.reduce(vector, "mean")) if together else None,
    )


class Run(ABC):
    """update: how many are done. memory: the method's. looks: evaluations by name: before, after, good.

    steppers: what learns, by role; the first is what the training is about. result: the folder that `write_result`
    fills, the card last.
    """

    def __init__(
        self, spec: TrainingSpec, accelerator: Any, told: Told, steppers: Mapping[str, Stepper], guard: Guard,
        result: Path,
    ):  # fmt: skip
        self.spec, self.accelerator, self.told = spec, accelerator, told
        self.steppers, self.guard, self.result = dict(steppers), guard, result
        self.processes = Processes(accelerator.process_index, accelerator.num_processes)
        self.folder = spec.folder()
        self.memory: dict[str, Any] = {}
        self.update = self.pictures = 0
        self.seconds, self.stopped = 0.0, ""
        self.notices: list[str] = []
        self.passed_over: list[str] = []  # damaged checkpoints, for the next line of the log
        self.looks: dict[str, dict[str, Any]] = {}

    # -- what a kind of training says --------------------------------------------------------------------------

    def prepare(self) -> None:  # noqa: B027, most have nothing
        """What is made once before the first update, on every process; what is there already is not made again."""

    @abstractmethod
    def parts(self, numbers: Numbers) -> Generator[Part, None, None]:
        """The losses of the next update."""

    @property
    def loaded(self) -> Sequence[nn.Module]:
        """Everything with weights that the run has."""
        return ()

    @abstractmethod
    def pictures_of_update(self) -> int:
        """How many pictures an update samples, over all processes."""

    @abstractmethod
    def look(self) -> Look:
        """At the model as it is now; the same on every process."""

    def make_whole(self) -> None:  # noqa: B027, most are
        """What was learnt, where its weights were sharded, on the first process; called on every one, at the end."""

    @abstractmethod
    def write_result(self) -> None:
        """What was learnt, and its card, into `result`; on the first process."""

    def began(self, look: Look) -> None:  # noqa: B027, a guard may need no base
        """The look before training."""

    def updated(self, numbers: Mapping[str, Any]) -> list[Notice]:
        """What an update's numbers say."""
        return []

    def looked(self, look: Look) -> list[Notice]:
        """What an evaluation says."""
        return []

    # -- the whole ---------------------------------------------------------------------------------------------

    @property
    def stepper(self) -> Stepper:
        """Of what the training is about."""
        return next(iter(self.steppers.values()))

    def go(self) -> Trained:
        made = 0 if self._finished() else self._go_on()
        return Trained(self.folder, self.spec, self.update, self.result, self.looks["before"], self.looks["after"],
                       self.stopped, list(self.notices), made)  # fmt: skip

    def _finished(self) -> bool:
        """Then nothing is written, not even a lock."""
        if not (self.result / CARD).is_file():
            return False
        self._resume()
        return bool(self.stopped) or self.update >= self.spec.updates

    def _go_on(self) -> int:
        """To the end, alone in the folder. How many updates were made."""
        with ExitStack() as held, answered():
            self.processes.by_first(lambda: self._take_over(held))
            started = self._resume()
            self._begin()
            self.prepare()
            if not self.looks:
                self._first_look()
            while self.update < self.spec.updates and not self.stopped:
                self._one()
            self._end()
            return self.update - started

    def _take_over(self, held: ExitStack) -> None:
        make_folder(self.folder)
        held.enter_context(locked(self.folder))

    def _begin(self) -> None:
        if self._first:
            run_folder.begin(self.folder, self.spec)
            run_folder.cut_log(self.folder, self.update if self.looks else -1)
        self.accelerator.wait_for_everyone()
        if self.spec.tracker:
            self.accelerator.init_trackers("pilotage")

    @property
    def _first(self) -> bool:
        """Is this the process that writes?"""
        return self.processes.rank == 0

    def _first_look(self) -> None:
        look = self._look()
        self.began(look)
        self.looks["before"] = look.plain(self.update)
        self._sheet(look)
        self._say({"update": 0, "seconds": 0.0, "pictures": 0} | shown(self.looks["before"]))

    def _one(self) -> None:
        """An update, and whatever is due after it."""
        begun = time.perf_counter()
        numbers, notices = self._learn()
        if not any(notice.stops for notice in notices):
            notices += self._look_if_due(numbers)
        self.seconds += time.perf_counter() - begun
        stop = next((notice for notice in notices if notice.stops), None)
        said = list(dict.fromkeys(f"update {self.update}: {notice.text}" for notice in notices))
        if stop is not None:
            self._stop()
            said.append(f"update {self.update}: {self.stopped}")
        self.notices += said
        said, self.passed_over = [*self.passed_over, *said], []
        head = {"update": self.update, "seconds": round(self.seconds, 3), "pictures": self.pictures}
        self._say(head | numbers | ({"notices": said} if said else {}))
        if self._due(self.spec.sheet_every):
            self._page()
        if stop is not None or self._due(self.spec.checkpoint_every):
            self._keep()

    def _end(self) -> None:
        """The last look, and the result."""
        if self.looks.get("after", {}).get("at") != self.update:
            look = self._look()
            self.looks["after"] = look.plain(self.update)
            self._sheet(look)
        self._keep()
        with self.stepper.averaged():
            self.make_whole()
            if self._first:
                with disk_errors(self.result):
                    self.write_result()
        self._page()
        if self.spec.tracker:
            self.accelerator.end_training()
        self.accelerator.wait_for_everyone()

    def _page(self) -> None:
        if self._first:
            from .page import write_page

            write_page(self.folder)

    # -- one update --------------------------------------------------------------------------------------------

    def _learn(self) -> tuple[dict[str, Any], list[Notice]]:
        """The parts and steps of an update. Its numbers, averaged over steps and processes; a step's loss is the sum of
        its parts, as its gradient is. Losses and norms of further roles have the role's name before theirs."""
        numbers, loss = Numbers(), 0.0
        notices: list[Notice] = []
        self._forget()
        with closing(self.parts(numbers)) as parts:
            while (part := self._next(parts)) is not None and not any(notice.stops for notice in notices):
                stepper = self.steppers[part.role]
                stepper.backward(part.loss)
                loss += float(part.loss.detach())
                if part.steps:
                    stepped = stepper.step()
                    name = "" if part.role == LEARNER else f"{part.role}_"
                    numbers.add(**{f"{name}loss": loss, f"{name}grad_norm": stepped.norm})
                    loss = 0.0
                    notices += self.guard.step(not stepped.failed)
                    self._forget()
                del part
        self.pictures += self.pictures_of_update()
        self.update += 1
        if self.processes.world > 1 and self.update % ALIKE_EVERY == 0:
            self._compare_parameters()
        means: dict[str, Any] = numbers.means(self.processes)
        return means, notices + self.updated(means)

    def _forget(self) -> None:
        for stepper in self.steppers.values():
            stepper.forget()

    def _next(self, parts: Generator[Part, None, None]) -> Part | None:
        """The next loss; its activations may wait in the computer's memory."""
        with activations_on_cpu(self.loaded) if self.spec.offload else nullcontext():
            return next(parts, None)

    def gather(self, values: Any) -> Any:
        """A tensor (B, ...) of this process to those of all."""
        return self.accelerator.gather(values) if self.processes.world > 1 else values

    def _compare_parameters(self) -> None:
        """Processes that drifted apart would train different models without a word."""
        learning = [p for stepper in self.steppers.values() for p in stepper.parameters if not is_part(p)]
        if not learning:
            return
        sums = torch.stack([p.detach().float().sum() for p in learning])
        everybody = self.accelerator.gather(sums[None])
        if not bool((everybody == everybody[0]).all()):
            raise UsageError(f"after update {self.update} the processes differ in their parameters; start from the "
                             "last checkpoint with the same versions on every machine")  # fmt: skip

    # -- looking -----------------------------------------------------------------------------------------------

    def _due(self, every: int) -> bool:
        return bool(every) and self.update % every == 0

    def _look_if_due(self, numbers: dict[str, Any]) -> list[Notice]:
        """An evaluation and a sheet where they are due, and after the last update; the evaluation's numbers go to the
        log's line."""
        last = self.update == self.spec.updates
        evaluate, sheet = last or self._due(self.spec.evaluate_every), last or self._due(self.spec.sheet_every)
        if not evaluate and not sheet:
            return []
        look = self._look()
        if sheet:
            self._sheet(look)
        if not evaluate:
            return []
        self.looks["after"] = look.plain(self.update)
        numbers |= shown(self.looks["after"])
        notices = self.looked(look)
        if not notices:
            self._keep_good()
        return notices

    def _look(self) -> Look:
        with self.stepper.averaged():
            return self.look()

    def _sheet(self, look: Look) -> None:
        if self._first:
            run_folder.write_sheet(self.folder, self.update, look.shown)

    def _say(self, entry: dict[str, Any]) -> None:
        if self._first:
            run_folder.add_to_log(self.folder, entry)
            self.told(entry)
        if self.spec.tracker:
            self.accelerator.log(flat(entry), step=entry["update"])

    # -- keeping -----------------------------------------------------------------------------------------------

    @property
    def _good(self) -> Path:
        return self.folder / run_folder.CHECKPOINTS / run_folder.GOOD

    def _keep_good(self) -> None:
        """The weights of an evaluation at which all was well."""
        self.looks["good"] = self.looks["after"]
        weights = {role: gathered(stepper.weights(), self._first) for role, stepper in self.steppers.items()}
        if self._first:
            make_folder(self._good.parent)
            checkpoint.write(self._good, weights)

    def _stop(self) -> None:
        """Go back to the weights of the last good evaluation; steps that were left out have spoilt nothing."""
        self.accelerator.wait_for_everyone()
        if self.guard.lost or "good" not in self.looks:
            self.stopped = f"stopped; the weights after update {self.update} are kept, look at them"
            return
        try:
            kept = checkpoint.read(self._good)
        except checkpoint.Damaged as error:
            self.stopped = f"stopped; the present weights are kept, for {error}"
            return
        for role, stepper in self.steppers.items():
            stepper.recall_weights(kept[role])
        self.stopped = f"stopped; the weights after update {self.looks['good']['at']}, when all was well, are kept"
        self.looks["after"] = self.looks["good"] | {"at": self.update}

    def _keep(self) -> None:
        """A checkpoint, with what every process's method remembers; the first one writes."""
        memories = self._memories()
        training = {role: gathered(stepper.plain(), self._first) for role, stepper in self.steppers.items()}
        if self._first:
            state = {
                "update": self.update, "pictures": self.pictures, "seconds": self.seconds, "stopped": self.stopped,
                "looks": self.looks, "notices": self.notices, "guard": self.guard.plain(), "memories": memories,
                "training": training,
            }  # fmt: skip
            checkpoint.keep(self.folder / run_folder.CHECKPOINTS, self.update, state)
        self.accelerator.wait_for_everyone()

    def _memories(self) -> list[Any]:
        """What each process's method remembers; one of them where all remember the same, such as a target network,
        which then need not be sent."""
        mine = gathered(self.memory, self._first)
        digests = self.processes.gathered(checkpoint.digest(without_parts(self.memory)))
        return [mine] if len(set(digests)) == 1 else self.processes.gathered(mine)

    def _resume(self) -> int:
        """Take up the last checkpoint that is whole; how many updates it has."""
        state, said = checkpoint.last(self.folder / run_folder.CHECKPOINTS)
        if state is None:
            return 0
        self.memory = self._memory_of(state["memories"])
        for role, stepper in self.steppers.items():
            stepper.recall(state["training"][role])
        self.guard.recall(state["guard"])
        self.update, self.pictures, self.seconds = state["update"], state["pictures"], state["seconds"]
        self.looks, self.stopped, self.notices = state["looks"], state["stopped"], state["notices"] + said
        self.passed_over = said
        return self.update

    def _memory_of(self, memories: list[Any]) -> Any:
        """This process's share of what was remembered; any number of processes may go on with what all shared."""
        if len(memories) == self.processes.world:
            return memories[self.processes.rank]
        if all(checkpoint.same(memory, memories[0]) for memory in memories):
            return memories[0]
        raise UsageError(f"{self.folder} was begun by {len(memories)} processes that remember each its own, and "
                         f"{self.processes.world} are here; start as many")  # fmt: skip
