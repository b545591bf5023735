"""generate: from a spec to pictures, one by one. Files are optional; `folder.run` writes them.

A batch that does not fit into memory is made in halves, and so are those after it. That changes the last bits of its
pictures, as any other number of rows does, and each says so; in exact mode, where it must not, the run ends.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Any

from PIL import Image

from ..errors import UsageError
from .call import call_arguments, pictures_of
from .environment import threads
from .seeds import Seed
from .spec import RunSpec

if TYPE_CHECKING:
    from .models import Loaded


@dataclass(frozen=True)
class Batch:
    """What a picture shared with its batch mates; rows that pad a batch count, rows that pad a call do not."""

    pictures: int
    rows_per_call: int
    evaluations: dict[str, int]  # rows evaluated, by branch


@dataclass(frozen=True)
class Sample:
    """One picture. evaluations: its share of the batch's, by branch. seconds: its share of the time."""

    index: int
    prompt: str
    seed: Seed
    image: Image.Image
    evaluations: dict[str, float]
    batch: Batch
    seconds: float


@dataclass(frozen=True)
class Watch:
    """Who wants to know. step(done, of) after each step of a batch; preview(pictures) every `every` steps; said(note)
    when something was done in another way than asked."""

    step: Callable[[int, int], None] | None = None
    preview: Callable[[list[Image.Image]], None] | None = None
    said: Callable[[str], None] | None = None


def generate(
    spec: RunSpec,
    *,
    model: Loaded | None = None,
    only: Collection[int] | None = None,
    watch: Watch | None = None,
    fill: bool = False,
) -> Iterator[Sample]:
    """The pictures of a spec in order. What is wrong with the spec is raised here, before the first is made.

    model: from `models.open_model`, to share it between specs. only: the numbers of the pictures wanted; each is made
    in the batch that it has in the whole run, so that leaving others out does not change it. fill: pad the last batch.
    """
    return Generation(spec, model, watch or Watch(), fill or spec.exact).pictures(only)


class Generation:
    """One spec on one pipeline."""

    def __init__(self, spec: RunSpec, model: Loaded | None, watch: Watch, fill: bool):
        from ..guidance.grammar import parse
        from ..guidance.pipelines import adapter_of
        from .models import open_model
        from .scheduling import scheduler_for
        from .teleporting import Teleport

        self.spec, self.watch, self.fill = spec, watch, fill
        self.wanted = list(enumerate(spec.pictures()))
        self.most = spec.batch_size  # pictures that are made together; fewer once they did not fit
        self.inputs = pictures_of(spec)
        self.rule = parse(spec.guidance)
        self.model = model or open_model(spec)
        if not self.model.fits(spec):
            raise UsageError(
                "this pipeline was loaded for another model, dtype, device, task, LoRA or memory than the spec names"
            )
        self.pipe = self.model.pipe
        self.adapter = adapter_of(self.pipe)
        self.networks = self.model.networks(spec, self.rule.needs)
        self.scheduler = scheduler_for(spec, self.model.scheduler)
        self.teleport = Teleport(spec, self.pipe, self.scheduler) if spec.teleport else None
        self.pipe.scheduler = self.scheduler
        self._attached([0]).__enter__().__exit__(None, None, None)  # refuses what cannot work, before anything is made

    def pictures(self, only: Collection[int] | None) -> Iterator[Sample]:
        wanted = None if only is None else set(only)
        for batch in self.batches(wanted):
            for portion in self.portions(batch, wanted):
                yield from portion

    def batches(self, only: Collection[int] | None = None) -> list[int]:
        """The numbers of the batches that hold pictures wanted."""
        size = self.spec.batch_size
        if only is None:
            return list(range(-(-len(self.wanted) // size)))
        return sorted({index // size for index in only})

    def portions(self, number: int, only: Collection[int] | None = None) -> Iterator[list[Sample]]:
        """The pictures wanted of a batch, as they are made together: all at once, or as many as fit into memory."""
        part = self.wanted[number * self.spec.batch_size : (number + 1) * self.spec.batch_size]
        done = 0
        while done < len(part):
            portion = part[done : done + self.most]
            if only is None or any(index in only for index, _ in portion):
                made = self._fitting(portion)
                if made is None:
                    continue  # with fewer
                yield [sample for sample in made if only is None or sample.index in only]
            done += len(portion)

    def _fitting(self, part: list[tuple[int, tuple[str, Seed]]]) -> list[Sample] | None:
        """None when it did not fit; fewer are made from now on."""
        try:
            return self._made(part)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        release_memory()  # only here: the exception held what the call had made
        self._take_fewer(min(self.most, len(part)))
        return None

    def _take_fewer(self, tried: int) -> None:
        if self.spec.exact:
            raise UsageError(
                f"out of memory with {self.spec.batch_size} pictures in a batch, and exact mode cannot halve it: their "
                "bits would change; choose a smaller batch_size in another folder, or --memory auto"
            )
        if tried == 1:
            raise UsageError(
                "out of memory with a single picture; give --memory auto, dtype float16, or a smaller width and height"
            )
        self.most = tried // 2
        if self.watch.said:
            self.watch.said(
                f"out of memory with {tried} pictures in a batch, so that {self.most} are made together from now on; "
                "they may differ from those of a whole batch in their last digits"
            )

    def _made(self, part: list[tuple[int, tuple[str, Seed]]]) -> list[Sample]:
        padded = part + part[-1:] * (min(self.spec.batch_size, self.most) - len(part) if self.fill else 0)
        prompts, seeds = zip(*(what for _, what in padded), strict=True)
        self.pipe.scheduler = self.scheduler
        begun = perf_counter()
        with threads(self.spec.threads), self._attached(seeds) as run:
            images = self.pipe(**self._arguments(prompts, seeds)).images
        seconds = (perf_counter() - begun) / len(part)
        batch = Batch(len(padded), self.rows_per_call(len(padded)), run.evaluations)
        share = {branch: rows / len(padded) for branch, rows in run.evaluations.items()}
        return [
            Sample(index, prompt, seed, image, share, batch, seconds)
            for (index, (prompt, seed)), image in zip(part, images, strict=False)
        ]

    def _attached(self, seeds: Any) -> Any:
        from ..guidance.pipelines import attach

        rows = self.rows_per_call(self.spec.batch_size) if self.spec.exact else None
        return attach(self.pipe, self._rule(), self.networks, seeds=seeds, rows_per_call=rows)

    def rows_per_call(self, pictures: int) -> int:
        """Rows of the largest network call for a batch of so many pictures."""
        if self.spec.exact and self.spec.rows_per_call:
            return self.spec.rows_per_call
        shared = [b for b in self.rule.needs if b in self.adapter.branches]
        return pictures * (1 if self.adapter.layout == "in turn" else max(1, len(shared)))

    def _rule(self) -> Any:
        see, every = self.watch.preview, self.spec.preview_every
        if see is None or not every:
            return self.rule
        from .preview import decoded, watched

        size = (self.spec.width, self.spec.height) if self.spec.width and self.spec.height else None
        return watched(self.rule, lambda step, steps, latents: see(decoded(self.pipe, latents, size)), every)

    def _arguments(self, prompts: Any, seeds: Any) -> dict[str, Any]:
        on, needs = self.adapter.on_settings, self.rule.needs
        arguments = call_arguments(self.spec, self.pipe, on, needs, prompts, seeds, self.inputs)
        if self.teleport is not None:
            arguments["latents"] = self.teleport.latents(seeds)
        return self._with_steps(arguments)

    def _with_steps(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Tell the watcher after each step, where the pipeline offers it."""
        import inspect

        tell = self.watch.step
        if tell is None or "callback_on_step_end" not in inspect.signature(type(self.pipe).__call__).parameters:
            return arguments

        def after_step(pipe: Any, step: int, time: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            tell(step + 1, len(pipe.scheduler.timesteps))
            return tensors

        return arguments | {"callback_on_step_end": after_step}


_CPU = ("can't allocate memory", "not enough memory", "out of memory")  # what torch says of the computer's own


def is_out_of_memory(error: BaseException) -> bool:
    """Of the device, or of the computer."""
    import torch

    said = str(error).lower()
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(what in said for what in _CPU)


def release_memory() -> None:
    """What a failed call has left goes back to the device."""
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
