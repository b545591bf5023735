"""run: a spec into a folder that can be resumed. The same command again finishes what is missing.

run.yaml          the spec, versions, revision of the model, hashes of the input pictures
000017.png        written under a temporary name, then renamed; carries the spec, seed and evaluations
manifest.jsonl    a line for each finished picture, appended after its batch is safely on the disk
log.jsonl         what happened: begin, resumed, memory, stopped, failed, done
run.lock          there while a process works here

Several processes (`accelerate launch`, `torchrun`) share the work batch by batch. The first one holds the lock, writes
run.yaml and the log, and gathers their manifests; each writes its own pictures.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from ..documents import plain_yaml
from ..errors import UsageError
from ..evaluation.processes import Processes
from ..storage import check_space, disk_errors, make_folder, write_text
from .dealing import Dealer, OthersEnded
from .environment import differences, environment, threads
from .lock import LOCK, locked
from .manifest import MANIFEST, finished_items, gather, hash_of, stamp
from .pictures import Generation, Sample, Watch
from .placing import side_of
from .run_log import LOG, RunLog, told_in_short
from .saving import save
from .spec import RunSpec, identity_of

if TYPE_CHECKING:
    from .models import Loaded

RUN = "run.yaml"
_Dumper: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)  # fifty thousand prompts take a second and a half without


@dataclass
class Finished:
    """A run folder as it is after `run`. items: the manifest's entries by number, on the first of several processes; on
    the others, of the pictures that they made. made: how many are new, by all processes."""

    folder: Path
    spec: RunSpec
    items: dict[int, dict[str, Any]]
    made: int = 0
    notes: list[str] = field(default_factory=list)

    @property
    def files(self) -> list[Path]:
        return [self.folder / self.items[index]["file"] for index in sorted(self.items)]

    @property
    def evaluations(self) -> dict[str, float]:
        """Evaluations a picture, by branch, on average."""
        branches = dict.fromkeys(b for item in self.items.values() for b in item["evaluations"])
        return {b: sum(i["evaluations"].get(b, 0) for i in self.items.values()) / len(self.items) for b in branches}

    @property
    def seconds(self) -> float:
        """Seconds a picture, on average."""
        return sum(item["seconds"] for item in self.items.values()) / max(1, len(self.items))


@dataclass(frozen=True)
class Listener:
    """Who wants to know how a run goes on. begun(finished, of) before the first picture; picture(sample) after each of
    this process is on the disk; reached(finished) now and then, of all processes; stop(): is this batch to be the last?
    """

    begun: Callable[[int, int], None] = lambda finished, of: None
    picture: Callable[[Sample], None] = lambda sample: None
    reached: Callable[[int], None] = lambda finished: None
    stop: Callable[[], bool] = lambda: False


def default_folder(spec: RunSpec) -> Path:
    """runs/<words of the first prompt>-<hash of the spec>: the same command finds the same folder."""
    words = re.sub(r"[^a-z0-9]+", "-", spec.pictures()[0][0].lower()).strip("-")[:40].strip("-")
    digest = hashlib.sha256(json.dumps(spec.identity(), sort_keys=True).encode()).hexdigest()[:8]
    return Path("runs") / "-".join(part for part in (words, digest) if part)


def run(
    spec: RunSpec,
    *,
    model: Loaded | None = None,
    watch: Watch | None = None,
    told: Callable[[Sample], None] | None = None,
    listener: Listener | None = None,
) -> Finished:
    """Make the pictures of a spec that its folder does not hold yet. Calling it again resumes.

    Under a launcher of several processes, every one of them calls it; an error of one ends all of them. told(sample)
    after each picture of this process is on the disk, or a listener for more. KeyboardInterrupt when the listener said
    stop. UsageError for what is wrong with the spec or the folder, and while another run works in it.
    """
    listener = listener or Listener(picture=told or (lambda sample: None))
    processes = Processes.found()
    folder = Path(spec.output) if spec.output else default_folder(spec)
    found = Found({})  # on the first process; the others need not know the entries

    def look() -> tuple[RunSpec, bool]:
        nonlocal found
        known = as_begun(folder, spec)
        refuse_other_run(folder, known)
        found = look_at(folder, len(spec.pictures()))
        return known, len(found.items) == len(spec.pictures())

    known, complete = processes.by_first(look)
    if complete:
        return Finished(folder, known, found.items)
    return _Run(folder, known, processes, listener, found).go(model, watch or Watch())


@dataclass(frozen=True)
class Found:
    """Entries of finished pictures, and the stamp of the manifests in which they stood."""

    items: dict[int, dict[str, Any]]
    stamp: list[tuple[str, int, int]] | None = None


def look_at(folder: Path, count: int) -> Found:
    """What is there of so many pictures. Nothing is written, and nothing is locked."""
    before = stamp(folder)
    return Found(finished_items(folder, count), before)


def as_begun(folder: Path, spec: RunSpec) -> RunSpec:
    """The spec, with what `memory=auto` chose when the run was begun."""
    if not spec.memory.auto or not (folder / RUN).is_file():
        return spec
    return spec.changed(memory=(_recorded(folder).get("spec", {}).get("memory") or {}) | {"auto": False})


class _Run:
    """One call of `run` with something to do, on one of its processes."""

    def __init__(self, folder: Path, spec: RunSpec, processes: Processes, listener: Listener, found: Found):
        self.folder, self.spec, self.processes, self.listener = folder, spec, processes, listener
        self.count = len(spec.pictures())
        self.seen, self.items = found, found.items
        self.found = 0  # pictures that were there
        self.notes: list[str] = []
        self.log: RunLog | None = None  # of the first process
        self.dealer: Dealer | None = None  # kept to the end: the first process serves the others

    @property
    def first(self) -> bool:
        return self.processes.rank == 0

    def go(self, model: Loaded | None, watch: Watch) -> Finished:
        with ExitStack() as held:
            missing = self.processes.by_first(lambda: self._take_over(held))
            if missing:
                self._work(model, watch, missing)
            return Finished(self.folder, self.spec, self.items, len(missing), self.notes)

    def _take_over(self, held: ExitStack) -> set[int]:
        """Lock the folder, and see what is left to do; on the first process."""
        held.enter_context(_nothing_if_refused(self.folder))
        make_folder(self.folder)
        held.enter_context(locked(self.folder))
        refuse_other_run(self.folder, self.spec)
        if stamp(self.folder) != self.seen.stamp:  # somebody was at work until now
            self.items = finished_items(self.folder, self.count)
        gather(self.folder, self.items)
        return set(range(self.count)) - self.items.keys()

    def _work(self, model: Loaded | None, watch: Watch, missing: set[int]) -> None:
        self.found = self.count - len(missing)
        try:
            generation = self._opened(model, watch)
            self._begin(generation, len(missing))
            self._make(generation, missing)
        except BaseException as error:
            if self.log is not None:
                self.log.ended(error)
            raise
        self._end()

    def _opened(self, model: Loaded | None, watch: Watch) -> Generation:
        """The model on every process; refuses what is wrong before anything is written."""
        opened: list[Generation] = []

        def make() -> dict[str, Any]:
            if self.processes.world > 1 and ":" in self.spec.device:
                raise UsageError(f"device {self.spec.device} is one for all processes; leave device auto")
            own = Watch(watch.step, watch.preview if self.first else None, self._say)
            opened.append(Generation(self.spec, model, own, self.spec.exact))
            return opened[0].model.memory.changing

        changing = self.processes.of_each(make)
        if any(other != changing[0] for other in changing):
            raise UsageError("memory=auto chose differently on each process; give the switches, such as "
                             "--set memory.vae_tiling=true")  # fmt: skip
        self.spec = self.spec.model_copy(update={"memory": opened[0].model.memory})
        return opened[0]

    def _say(self, note: str) -> None:
        """A batch was made in another way than asked."""
        self.notes.append(note)
        if self.log is not None:
            self.log.say("memory", note=note)

    def _begin(self, generation: Generation, missing: int) -> None:
        model = generation.model
        with threads(self.spec.threads):
            self.now = {"revision": model.revision, "inputs": input_hashes(self.spec), **environment(model.key[2])}
        self.notes += self.processes.by_first(lambda: self._begin_folder(generation.pipe, missing))
        self.processes.of_each(lambda: _refuse_unshared(self.folder, self.processes.rank))
        self.listener.begun(self.found, self.count)

    def _begin_folder(self, pipe: Any, missing: int) -> list[str]:
        """On the first process. What should be said."""
        resumed = (self.folder / RUN).is_file()
        refuse_other_run(self.folder, self.spec)  # with what memory=auto has chosen meanwhile
        said = _begin(self.folder, self.spec, self.now)
        check_space(self.folder, missing * _bytes_each(self.spec, pipe) + 1_000_000)
        self.log = RunLog(self.folder, self.count, self.found)
        self.log.say("resumed" if resumed else "begin", processes=self.processes.world)
        return said

    def _make(self, generation: Generation, missing: Collection[int]) -> None:
        dealer = self.dealer = Dealer(self.processes, generation.batches(missing))
        try:
            if self.listener.stop():  # while the model was loaded
                raise KeyboardInterrupt
            for number in dealer:
                made = sum(self._save(portion) for portion in generation.portions(number, missing))
                self._reached(dealer.made(made))
            dealer.wait(self._reached)
        except BaseException as error:
            told = isinstance(error, OthersEnded) and self.listener.stop()  # all were told to stop, others did first
            stopped = told or isinstance(error, KeyboardInterrupt)
            dealer.fail("it was stopped" if stopped else told_in_short(error))
            if told:
                raise KeyboardInterrupt from None
            raise

    def _reached(self, pictures: int) -> None:
        """So many new pictures of all processes are there. A batch is finished, or another process's is waited for."""
        if self.log is not None:
            self.log.progress(self.found + pictures)
        self.listener.reached(self.found + pictures)
        if self.listener.stop() and self.found + pictures < self.count:
            raise KeyboardInterrupt

    def _save(self, samples: list[Sample]) -> int:
        """How many they were."""
        self.items |= save(self.folder, self.processes.rank, samples, self.spec, self.now)
        for sample in samples:
            self.listener.picture(sample)
        return len(samples)

    def _end(self) -> None:
        """Gather the manifests, and see that all is there."""
        self.processes.of_each(lambda: None)  # every process has written its last line
        self.processes.by_first(self._gather)
        if self.log is not None:
            self.log.finished = self.count
            self.log.say("done")

    def _gather(self) -> None:
        if self.processes.world > 1:
            self.items = finished_items(self.folder, self.count)
            if len(self.items) < self.count:
                raise UsageError(
                    f"{self.count - len(self.items)} pictures of other processes are not in {self.folder}; is it on a "
                    "disk that all of them share? The same command does what is left"
                )
            gather(self.folder, self.items)


# -- beginning and resuming ----------------------------------------------------------------------------------


def refuse_other_run(folder: Path, spec: RunSpec) -> None:
    """A folder holds one run: refuse another spec, and a folder that is in use for something else."""
    with disk_errors(folder):
        if not folder.exists():
            return
        found = [*folder.glob("*.[pP][nN][gG]"), *folder.glob(MANIFEST)] if not (folder / RUN).is_file() else []
        next(folder.iterdir(), None)  # refuses a file
    if not (folder / RUN).is_file():
        if found:
            raise UsageError(f"{folder} holds pictures but no {RUN}; choose another output")
        return
    there = _recorded(folder).get("spec", {})
    if "updates" in there:
        raise UsageError(f"{folder} holds a training; choose another output")
    differing = differing_fields(there, spec)
    if differing:
        raise UsageError(
            f"{folder} holds another run: {'; '.join(differing)}. Choose another output, or the settings of that run"
        )


def _recorded(folder: Path) -> Mapping[str, Any]:
    try:
        now = (folder / RUN).stat()
        found = _parsed(folder / RUN, now.st_size, now.st_mtime_ns)
    except (OSError, ValueError):
        found = None
    if not isinstance(found, dict) or not isinstance(found.get("spec", {}), dict):
        raise UsageError(f"{folder / RUN} cannot be read; choose another output, or delete that folder")
    return found


@functools.lru_cache(maxsize=1)
def _parsed(path: Path, size: int, changed: int) -> Any:
    """Parsed once while it stays as it is: with many prompts that takes its time."""
    return plain_yaml(path.read_text(encoding="utf-8"))


def differing_fields(recorded: Mapping[str, Any], spec: RunSpec) -> list[str]:
    """`steps is 20 there and 25 here` for each field."""
    usual = {key: field.default for key, field in RunSpec.model_fields.items() if key != "memory"}
    there, here = usual | identity_of(recorded), spec.identity()
    names = [*here, *(key for key in there if key.startswith("memory.") and key not in here)]
    return [
        f"{key} is {_short(there.get(key))} there and {_short(here.get(key))} here"
        for key in names
        if there.get(key) != here.get(key)
    ]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


@contextmanager
def _nothing_if_refused(folder: Path) -> Iterator[None]:
    """A run that ends before its first picture leaves nothing that it wrote: a refusal may come as late as the first
    network call, and the folder would then refuse the command that mends it."""
    existed, resumed = folder.exists(), (folder / RUN).is_file()
    try:
        yield
    except BaseException:
        if not resumed and not any(folder.glob("*.png")) and not (folder / LOCK).exists():  # another run is at work
            for name in (RUN, LOG):
                (folder / name).unlink(missing_ok=True)
            if not existed:
                with suppress(OSError):  # somebody else has put something there
                    folder.rmdir()
        raise


def _begin(folder: Path, spec: RunSpec, now: dict[str, Any]) -> list[str]:
    """Write run.yaml, or when it is there, say how this machine differs from the one that began."""
    if (folder / RUN).is_file():
        for leftover in folder.glob("*.part"):
            leftover.unlink()
        recorded = _recorded(folder)
        said = differences(recorded, now)
        for what in ("revision", "inputs"):
            if recorded.get(what) != now[what]:
                raise UsageError(
                    f"{folder} was begun with another {what} of the model or input pictures; choose another output"
                )
        return (
            [f"this run was begun elsewhere, pictures may differ in their last digits: {', '.join(said)}"]
            if said
            else []
        )
    head = {"spec": spec.plain(), **now}
    write_text(folder / RUN, yaml.dump(head, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110))
    return []


def _refuse_unshared(folder: Path, rank: int) -> None:
    """Every process must see what the first one wrote."""
    if not (folder / RUN).is_file():
        raise UsageError(f"process {rank} does not see {folder.absolute()}; choose an output on a disk that all share")


def input_hashes(spec: RunSpec) -> dict[str, str]:
    """Hashes of the input pictures, so that a rerun knows whether they are still the same."""
    named = {"image": spec.image, "mask": spec.mask}
    return {name: hash_of(Path(path).expanduser()) for name, path in named.items() if path and Path(path).is_file()}


def _bytes_each(spec: RunSpec, pipe: Any) -> int:
    """A PNG is at most a little larger than its pixels."""
    side = side_of(pipe)
    return 3 * (spec.width or side) * (spec.height or side) + 16_384
