"""A pipeline's network, prompts and a rule as one denoiser, for runs that the pipeline's own call cannot do: back to
noise, or with a gradient."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ...samplers.denoiser import NetworkDenoiser
from ..grammar import parse
from ..guided import Guided
from ..rule import Rule
from .forms import evaluate
from .model import PipelineModel, StableDiffusion, model_of


@dataclass(frozen=True, eq=False)
class _Network:
    """The network in its own dtype, whatever that of x."""

    network: Any

    def __call__(self, x: Tensor, time: Tensor, **condition: Any) -> Tensor:
        return evaluate(self.network, x.to(self.network.dtype), time, **condition)


def denoiser_of(
    pipe: Any,
    prompts: str | Sequence[str],
    rule: Rule | str = "none",
    *,
    negative: str = "",
    networks: Mapping[str, Any] | None = None,
    decode: Any = None,
    size: tuple[int, int] | None = None,
    model: PipelineModel | None = None,
) -> Guided:
    """The guided denoiser that `pipe(prompts)` samples from, on latents (B, C, H, W) in the network's scaling.

    prompts: one for all rows, or one a row; of a class-conditional model the numbers or names of classes. rule: a Rule
    or a line of the grammar. negative: the text of "uncond". networks: further networks of the same conditioning by
    branch name, {"weak": unet2}. size: (width, height) of the pictures, its own by default. model: of this pipeline,
    `model_of(pipe, size, call)`, so that it is looked at once only. For another prompt pass `condition_of(...)` as the
    condition of a call.

    Any text-to-image pipeline that `attach` knows; latents that the pipeline packs into tokens are pictures here too.
    Raises UsageError for pipelines whose network is told more than follows from a prompt.
    """
    model = model or model_of(pipe, size)
    made = parse(rule) if isinstance(rule, str) else rule
    schedule, kind = model.schedule, model.kind
    nets = {"main": model.network, **(networks or {})}
    conditions = {"cond": condition_of(pipe, prompts, model=model)}
    if "uncond" in made.needs:
        conditions["uncond"] = condition_of(pipe, negative, negative=True, model=model)
    return Guided(
        {name: NetworkDenoiser(_Network(net), schedule, kind) for name, net in nets.items()}, made, conditions, decode
    )


def condition_of(
    pipe: Any,
    prompts: str | Sequence[str],
    *,
    size: tuple[int, int] | None = None,
    negative: bool = False,
    model: PipelineModel | None = None,
) -> dict[str, Any]:
    """What the network is told of the prompts, one row each; a single text is one row that all pictures share.

    negative: encode as the pipeline does a negative prompt; SDXL makes an empty one zeros.
    """
    model = model or model_of(pipe, size)
    texts = [prompts] if isinstance(prompts, str) else list(prompts)
    return model.encoded(texts, negative) if isinstance(model, StableDiffusion) else model.conditions(texts, negative)
