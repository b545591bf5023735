"""What `attach` must know about a pipeline class: one row of plain facts each, in `*_rows.py`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

Arguments = dict[str, Any]


def one_flag(pipe: Any, arguments: Arguments) -> bool:
    """Most pipelines say at each call whether they guide (it can change within a run, through a callback)."""
    return bool(pipe.do_classifier_free_guidance)


@dataclass(frozen=True)
class Adapter:
    """One pipeline class.

    layout: "stacked" - one call whose batch holds every branch; "listed" - the same, as Python lists of samples;
        "in turn" - one call a branch, told apart by their order between two scheduler steps.
    branches: the order in which the pipeline holds them when it guides; without guidance there is "cond" alone.
    batched: the network's arguments that have a row a sample (trees of tensors); all others are shared.
    sample, time: the arguments that hold x and the time. network_time: from the scheduler's time to the network's.
    network: the pipeline's attribute that is called.
    guides: whether this call holds every branch. on: what to pass to the pipeline so that it prepares all branches.
    flip: the network predicts the negated flow. conditioned_by: the arguments a conditioning edit sees.
    """

    layout: Literal["stacked", "listed", "in turn"] = "stacked"
    branches: tuple[str, ...] = ("uncond", "cond")
    batched: tuple[str, ...] = ()
    conditioned_by: tuple[str, ...] = ("encoder_hidden_states",)
    sample: str = "sample"
    time: str = "timestep"
    network_time: Callable[[float], float] = float
    network: str = "unet"
    guides: Callable[[Any, Arguments], bool] = one_flag
    on: str = "guidance_scale above 1 (its value has no effect)"
    on_settings: tuple[tuple[str, Any], ...] = (("guidance_scale", 2.0),)
    flip: bool = False
    notes: str = ""

    def branches_of(self, pipe: Any, arguments: Arguments) -> tuple[str, ...]:
        """The branches that a call with these arguments holds; for "in turn" layouts see `attach`."""
        return self.branches if self.layout == "in turn" or self.guides(pipe, arguments) else ("cond",)
