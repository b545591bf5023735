"""Progress with time left, on stderr, when somebody is looking."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from ..generation.pictures import Sample


def _bar(shown: bool = True) -> Any:
    """What somebody sees who looks: what, how many of how many, time gone and time left."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        disable=not (shown and console.is_terminal),
        transient=True,
    )


@contextmanager
def reading() -> Iterator[Callable[[str, int, int | None], None]]:
    """A bar a source that is read: gives the `progress` of `evaluation.score`."""
    with _bar() as bar:
        tasks: dict[str, Any] = {}

        def told(source: str, done: int, of: int | None) -> None:
            if source not in tasks:
                tasks[source] = bar.add_task(f"reading {source}", total=of)
            bar.update(tasks[source], completed=done)

        yield told


class PictureProgress:
    """A bar in units of pictures that also moves with the steps of a batch."""

    def __init__(self, batch_size: int, shown: bool = True):
        self.bar = _bar(shown)
        self.batch_size, self.made, self.total = batch_size, 0, 0
        self.task: Any = None

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()

    def begin(self, label: str, finished: int, total: int) -> None:
        """A new bar of so many pictures, some of them there already."""
        self.made, self.total = finished, total
        if self.task is not None:
            self.bar.remove_task(self.task)
        self.task = self.bar.add_task(label, total=total, completed=finished)

    def begin_pictures(self, finished: int, total: int) -> None:
        """A bar of a run's pictures."""
        self.begin("pictures", finished, total)

    def reached(self, finished: int) -> None:
        """So many pictures are there, of all processes."""
        self.made = max(self.made, finished)
        self._show(self.made)

    def step(self, done: int, of: int) -> None:
        """A step of the present batch is done."""
        share = min(self.batch_size, self.total - self.made) * done / max(1, of)
        self._show(self.made + share)

    def picture(self, sample: Sample) -> None:
        self.made += 1
        self._show(self.made)

    def text(self, label: str) -> None:
        if self.task is not None:
            self.bar.update(self.task, description=label)

    def _show(self, completed: float) -> None:
        if self.task is not None:
            shown = self.bar.tasks[-1].completed
            self.bar.update(self.task, completed=max(shown, completed))


class UpdateProgress:
    """A bar of updates with the reward, and a line for what is seen on held-out prompts and for notices."""

    def __init__(self, updates: int):
        self.bar, self.updates, self.last = _bar(), updates, ""
        self.preparing: dict[str, Any] = {}  # bars of what is made before the first update
        self.task: Any = None

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()

    def planned(self, lines: list[str]) -> None:
        """What the run will need."""
        for line in lines:
            self._print(f"memory: {line}")

    def update(self, entry: dict[str, Any]) -> None:
        """A line of the log, or how far what it needs has been made."""
        if "preparing" in entry:
            self._prepare(entry["preparing"], entry["done"], entry["of"])
            return
        if self.task is None:
            self.task = self.bar.add_task("training", total=self.updates)
        shown = next((name for name in ("reward", "loss") if name in entry), None)
        if shown:
            self.last = f"{shown} {entry[shown]:.4g}"
        self.bar.update(self.task, completed=entry["update"], description=self.last or "training")
        if "held_out" in entry:
            seen = {**entry["held_out"], **{f"judge {name}": value for name, value in entry["judge"].items()}}
            told = [
                f"{name} {value:.4g}"
                for name, value in seen.items()
                if name.startswith(("reward", "div", "coverage", "distance", "judge")) and "of the teacher" not in name
            ]
            self._print(f"after {entry['update']} updates, held out: {', '.join(told)}")
        for notice in entry.get("notices", []):
            self._print(f"note: {notice}")

    def _prepare(self, what: str, done: int, of: int) -> None:
        if what not in self.preparing:
            self.preparing[what] = self.bar.add_task(f"making {what}", total=of)
        self.bar.update(self.preparing[what], completed=done)

    def _print(self, text: str) -> None:
        """Above the bar, or as a line where nobody looks at one."""
        self.bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
