"""What `attach` must know about a pipeline class: one row of plain facts each, in `*_rows.py`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from ...errors import UsageError
from ...samplers.prediction import Parameterization
from ...samplers.schedule import Level
from ..packing import Packing

Arguments = dict[str, Any]


def one_flag(pipe: Any, arguments: Arguments) -> bool:
    """Most pipelines say at each call whether they guide (it can change within a run, through a callback)."""
    return bool(pipe.do_classifier_free_guidance)


def local_flag(pipe: Any, arguments: Arguments) -> bool:
    """Some pipelines keep the same flag in a local variable of their call."""
    return bool(local_of(pipe, "do_classifier_free_guidance"))


def local_of(pipe: Any, name: str) -> Any:
    """A local variable of the pipeline's `__call__` that is running now: the only place where some facts stand.

    Counting or comparing rows cannot replace it: an unguided batch may be even, and its pictures may share their noise.
    """
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_code.co_name == "__call__" and name in frame.f_code.co_varnames + frame.f_code.co_cellvars:
            values = frame.f_locals
            if values.get("self") is pipe:
                return values[name]
        frame = frame.f_back
    raise UsageError(
        f"the call of {type(pipe).__name__} has no variable {name!r}, by which its adapter tells guided calls from "
        "others; correct its row in guidance/pipelines/*_rows.py"
    )


DISTILLED = "distilled: its scale is an input of the network; for rules without a negative branch"


@dataclass(frozen=True)
class Adapter:
    """One pipeline class.

    layout: "stacked" - one call whose batch holds every branch; "listed" - the same, as Python lists of samples;
        "in turn" - one call a branch, told apart by their order between two scheduler steps.
    branches: the order in which the pipeline holds them when it guides; without guidance there is "cond" alone.
    batched: the network's arguments that have a row a sample (trees of tensors); all others are shared.
    sample, time: the arguments that hold x and the time. network_time: from the scheduler's time to the network's.
    network: the pipeline's attribute that is called.
    encode: the network's conditioning for another text (`prompts.py`), for rules with further prompts. packing: how
    tokens stand for pictures, from the pipeline, the network's arguments and the number of tokens.
    guides: whether this call holds every branch, or the branches that it holds. on: what to pass to the pipeline so
        that it prepares all branches.
    flip: the network predicts the negated flow. conditioned_by: the arguments a conditioning edit sees.

    For odd ones. folded: batched arguments with several rows (frames) a sample, one sample's after another's. channels:
    of x, from the pipeline and a tensor of the network's rows, where the network's config does not say it;
    channel_axis: where they lie. frames: the axis of a film's frames. answer: the field of the network's output. kind:
    what the network predicts, where the pipeline converts that before the scheduler sees it. level_time: the network's
    time, where a level says it and the scheduler's time does not. experts: attributes of further networks, each called
    in `network`'s stead at levels of its own. part: the view of x that the scheduler steps, where the network also sees
    given frames. handed: what the scheduler is handed for a prediction, where the pipeline edits it on the way. picked:
    of some rows, the arguments whose rows do not come first or are no tensors, from the arguments, the rows and their
    number. aside: calls of the network that predict nothing (they fill a cache) and are left alone. kept: the arguments
    as they may be used later and for fewer rows, where the pipeline changes them behind our back.
    """

    layout: Literal["stacked", "listed", "in turn"] = "stacked"
    branches: tuple[str, ...] = ("uncond", "cond")
    batched: tuple[str, ...] = ()
    conditioned_by: tuple[str, ...] = ("encoder_hidden_states",)
    sample: str = "sample"
    time: str = "timestep"
    network_time: Callable[[float], float] = float
    network: str = "unet"
    guides: Callable[[Any, Arguments], bool | tuple[str, ...]] = one_flag
    on: str = "guidance_scale above 1 (its value has no effect)"
    on_settings: tuple[tuple[str, Any], ...] = (("guidance_scale", 2.0),)
    flip: bool = False
    folded: tuple[str, ...] = ()
    channels: Callable[[Any, Tensor], int] | None = None
    channel_axis: int = 1
    frames: int | None = None
    answer: str = "sample"
    kind: Parameterization | None = None
    level_time: Callable[[Level], float] | None = None
    experts: tuple[str, ...] = ()
    part: Callable[[Any, Tensor], Tensor] | None = None
    handed: Callable[[Any, Tensor], Tensor] | None = None
    picked: Callable[[Arguments, Sequence[int], int], Arguments] | None = None
    aside: Callable[[Arguments], bool] | None = None
    kept: Callable[[Arguments], Arguments] | None = None
    encode: Callable[[Any, str, Arguments], Mapping[str, Any]] | None = None
    packing: Callable[[Any, Arguments, int], Packing | None] | None = None
    notes: str = ""

    def branches_of(self, pipe: Any, arguments: Arguments) -> tuple[str, ...]:
        """The branches that a call with these arguments holds; for "in turn" layouts see `attach`."""
        if self.layout == "in turn":
            return self.branches
        held = self.guides(pipe, arguments)
        return held if isinstance(held, tuple) else self.branches if held else ("cond",)

    def time_at(self, level: Level) -> float:
        """What the network is told at a level."""
        return self.network_time(level.time) if self.level_time is None else self.level_time(level)
