"""The training loop: updates of a method, looked at on held-out prompts, watched, kept, and resumed to the bit.

    trained = train(FinetuneSpec(prompts=["embedded:train:200"], reward="colour:target=red"))
    pipe.load_lora_weights(trained.result)

The same spec again goes on where it stopped. Several processes (`accelerate launch`) share an update's prompts; their
gradients are averaged by hand before they are clipped, so that they are those of one process.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..errors import UsageError
from ..evaluation.processes import Processes, leave_at_exit
from ..generation.environment import threads
from ..generation.models import device_named
from ..storage import make_folder
from . import checkpoint, run_folder
from .dealing import Deal
from .guardrails import Guard, Notice
from .held_out import HeldOut, Look
from .learner import Learner
from .lora import lora_state, save_lora
from .memory_plan import plan
from .method import Part, UpdateContext
from .model_card import CARD, write_card
from .numbers import Numbers, flat
from .opening import Opened, open_run
from .optimisers import make_optimiser
from .pipeline_learner import PipelineLearner
from .spec import FinetuneSpec
from .stepping import Stepper

Told = Callable[[dict[str, Any]], None]
ALIKE_EVERY = 25  # updates, after which the processes compare their parameters


@dataclass(frozen=True)
class Trained:
    """A run folder as it is after `train`. updates: that were done. result: the folder of the adapters or weights.

    before, after: what was seen on the held-out prompts. stopped: why it ended early. made: updates of this call.
    """

    folder: Path
    spec: FinetuneSpec
    updates: int
    result: Path
    before: dict[str, Any]
    after: dict[str, Any]
    stopped: str = ""
    notices: list[str] = field(default_factory=list)
    made: int = 0


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
        from accelerate import Accelerator

        device_named(spec.device)  # accelerate would take the CPU without a word where there is no GPU
        accelerator = Accelerator(cpu=spec.device == "cpu", mixed_precision="no", log_with=spec.tracker,
                                  project_dir=str(spec.folder()))  # fmt: skip
        leave_at_exit()
        opened = opened or open_run(spec, accelerator.device)
        if planned is not None and accelerator.is_main_process:
            planned(plan(opened.learner, spec, list(opened.modules)).lines())
        return Run(spec, opened, accelerator, told or (lambda entry: None)).go()


class Run:
    """update: how many are done. memory: the method's. looks: evaluations by name: before, after, good."""

    def __init__(self, spec: FinetuneSpec, opened: Opened, accelerator: Any, told: Told):
        self.spec, self.opened, self.accelerator, self.told = spec, opened, accelerator, told
        self.processes = Processes(accelerator.process_index, accelerator.num_processes)
        self.folder = spec.folder()
        self.deal = Deal(spec.training_prompts(), spec.batch, spec.seed, self.processes)
        self.stepper = _stepper(spec, opened, accelerator if self.processes.world > 1 else None)
        self.held_out = HeldOut(
            spec.held_out_prompts(), spec.held_out_seeds, spec.sampling, spec.rows, opened.reward, opened.judges,
            opened.features, self.processes,
        )  # fmt: skip
        self.guard = Guard(spec.limits)
        self.memory: dict[str, Any] = {}
        self.update = self.pictures = 0
        self.seconds, self.stopped = 0.0, ""
        self.notices: list[str] = []
        self.passed_over: list[str] = []  # damaged checkpoints, for the next line of the log
        self.looks: dict[str, dict[str, Any]] = {}

    # -- the whole ---------------------------------------------------------------------------------------------

    def go(self) -> Trained:
        started = self._resume()
        if not self._finished():
            self._begin()
            if not self.looks:
                self._first_look()
            while self.update < self.spec.updates and not self.stopped:
                self._one()
            self._end()
        return Trained(self.folder, self.spec, self.update, self.result, self.looks["before"], self.looks["after"],
                       self.stopped, list(self.notices), self.update - started)  # fmt: skip

    def _finished(self) -> bool:
        done = bool(self.stopped) or self.update == self.spec.updates
        return done and (self.result / CARD).is_file()

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
        judges = {name: look.spread[name] for name in look.judges}
        self.guard.base(look.spread["reward"], judges, look.numbers["diversity"])
        self.looks["before"] = self._plain(look)
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
        said = [f"update {self.update}: {notice.text}" for notice in notices]
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
            self.looks["after"] = self._plain(look)
            self._sheet(look)
        self._keep()
        if self._first:
            self._write_result()
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
        """The method's parts and steps. Its numbers, averaged over steps and processes; a step's loss is the sum of its
        parts, as its gradient is."""
        numbers, loss = Numbers(), 0.0
        notices: list[Notice] = []
        self.stepper.forget()
        with closing(self.opened.method.update(self._context(numbers))) as parts:  # type: ignore[type-var]
            while (part := self._next(parts)) is not None and not any(notice.stops for notice in notices):
                self.stepper.backward(part.loss)
                loss += float(part.loss.detach())
                if part.steps:
                    stepped = self.stepper.step()
                    numbers.add(loss=loss, grad_norm=stepped.norm)
                    loss = 0.0
                    notices += self.guard.step(not stepped.failed)
                del part
        self.pictures += self.opened.method.pictures(self.spec.batch)
        self.update += 1
        if self.processes.world > 1 and self.update % ALIKE_EVERY == 0:
            self._compare_parameters()
        means: dict[str, Any] = numbers.means(self.processes)
        return means, notices + (self.guard.rewarded(means["reward"]) if "reward" in means else [])

    def _next(self, parts: Iterator[Part]) -> Part | None:
        """The next loss; its activations may wait in the computer's memory."""
        place: AbstractContextManager[Any] = nullcontext()
        if self.spec.offload:
            place = torch.autograd.graph.save_on_cpu(pin_memory=self.opened.learner.device.type == "cuda")
        with place:
            return next(parts, None)

    def _context(self, numbers: Numbers) -> UpdateContext:
        prompts, seeds = self.deal.of(self.update)
        gather = self.accelerator.gather if self.processes.world > 1 else lambda values: values
        return UpdateContext(
            self.opened.learner, self.opened.reward, self.spec.sampling, prompts, seeds, self.update,
            self.spec.updates, self.spec.rows, self.spec.seed, self.memory, gather, numbers.add,
        )  # fmt: skip

    def _compare_parameters(self) -> None:
        """Processes that drifted apart would train different models without a word."""
        sums = torch.stack([p.detach().float().sum() for p in self.opened.learner.parameters])
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
        self.looks["after"] = self._plain(look)
        numbers |= shown(self.looks["after"])
        notices = self.guard.evaluated(look.numbers["reward"], look.judges, look.numbers["diversity"])
        if not notices:
            self._keep_good()
        return notices

    def _look(self) -> Look:
        with self.stepper.averaged():
            return self.held_out.look(self.opened.learner)

    def _plain(self, look: Look) -> dict[str, Any]:
        return {"held_out": look.numbers, "judge": look.judges, "at": self.update}

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
        if self._first:
            make_folder(self._good.parent)
            checkpoint.write(self._good, self.stepper.weights())

    def _stop(self) -> None:
        """Go back to the weights of the last good evaluation; steps that were left out have spoilt nothing."""
        self.accelerator.wait_for_everyone()
        if self.guard.failed >= self.spec.limits.not_finite or "good" not in self.looks:
            self.stopped = f"stopped; the weights after update {self.update} are kept, look at them"
            return
        try:
            kept = checkpoint.read(self._good)
        except checkpoint.Damaged as error:
            self.stopped = f"stopped; the present weights are kept, for {error}"
            return
        self.stepper.recall_weights(kept)
        self.stopped = f"stopped; the weights after update {self.looks['good']['at']}, when all was well, are kept"
        self.looks["after"] = self.looks["good"] | {"at": self.update}

    def _keep(self) -> None:
        """A checkpoint, with what every process's method remembers; the first one writes."""
        memories = self.processes.gathered(self.memory)
        if self._first:
            state = {
                "update": self.update, "pictures": self.pictures, "seconds": self.seconds, "stopped": self.stopped,
                "looks": self.looks, "notices": self.notices, "guard": self.guard.plain(), "memories": memories,
                "training": self.stepper.plain(),
            }  # fmt: skip
            checkpoint.keep(self.folder / run_folder.CHECKPOINTS, self.update, state)
        self.accelerator.wait_for_everyone()

    def _resume(self) -> int:
        """Take up the last checkpoint that is whole; how many updates it has."""
        state, said = checkpoint.last(self.folder / run_folder.CHECKPOINTS)
        if state is None:
            return 0
        if len(state["memories"]) != self.processes.world:
            raise UsageError(f"{self.folder} was begun by {len(state['memories'])} processes and "
                             f"{self.processes.world} are here; start as many")  # fmt: skip
        self.stepper.recall(state["training"])
        self.guard.recall(state["guard"])
        self.memory = state["memories"][self.processes.rank]
        self.update, self.pictures, self.seconds = state["update"], state["pictures"], state["seconds"]
        self.looks, self.stopped, self.notices = state["looks"], state["stopped"], state["notices"] + said
        self.passed_over = said
        return self.update

    # -- the result --------------------------------------------------------------------------------------------

    @property
    def result(self) -> Path:
        return self.folder / (run_folder.LORA if self.spec.train == "lora" else run_folder.NETWORK)

    def _write_result(self) -> None:
        with self.stepper.averaged():
            _save(self.opened.learner, self.spec, self.result)
        write_card(self.result, self.spec, self.opened.reward, self.looks, self.pictures, self.stopped)


def _stepper(spec: FinetuneSpec, opened: Opened, accelerator: Any) -> Stepper:
    """accelerator: None where this process is alone."""
    parameters = opened.learner.parameters
    optimiser = make_optimiser(spec.optimizer, parameters, spec.learning_rate, spec.betas, spec.weight_decay)
    return Stepper(
        parameters,
        optimiser,
        clip=spec.clip,
        ema=spec.ema,
        scaled=spec.precision == "fp16",
        reduce=None if accelerator is None else lambda vector: accelerator.reduce(vector, "mean"),
    )


def _save(learner: Learner, spec: FinetuneSpec, folder: Path) -> None:
    """What was learnt: a LoRA, a network, or for other learners their parameters."""
    make_folder(folder)
    if not isinstance(learner, PipelineLearner):
        checkpoint.write(folder / "parameters.safetensors", [p.detach() for p in learner.parameters])
    elif spec.train == "lora":
        save_lora(lora_state(learner.pipe.unet), folder)
    else:
        learner.pipe.unet.save_pretrained(folder)


def shown(look: dict[str, Any]) -> dict[str, Any]:
    """An evaluation as the log has it."""
    return {"held_out": look["held_out"], "judge": look["judge"]}
