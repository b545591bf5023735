"""What a pipeline tells its network, read from its own call: run for one prompt and stopped at the network.

Everything that a pipeline does between a prompt and its network (encoders, masks, position tables, guidance embeddings,
packing) is thereby its own, whatever the class; the adapter row says which arguments have a row a sample and where the
branches lie. Nothing is left behind: the scheduler, the progress bar and the global generator are as before.
"""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers.schedulers.scheduling_utils import SchedulerOutput
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ...errors import UsageError
from .adapter import Adapter, Arguments
from .layouts import Layout, pick_rows
from .shadow import Shadow
from .signature import argument_names, entry_of, named_arguments

STEPS = 2  # of the call; one is too few for some schedulers


class _Stopped(Exception):
    """What was wanted of the call is known."""


@dataclass(frozen=True)
class Call:
    """A call of a pipeline. settings: further arguments, above the defaults here. size: (width, height)."""

    pipe: Any
    adapter: Adapter
    size: tuple[int, int] | None = None
    settings: Mapping[str, Any] | None = None

    def arguments(self, text: str, negative: str | None, generator: torch.Generator) -> Arguments:
        """negative: None without guidance, or the negative prompt; "" is what the pipeline does without one."""
        taken = inspect.signature(type(self.pipe).__call__).parameters
        given: Arguments = {"num_inference_steps": STEPS, "generator": generator, "num_frames": 1}
        given |= {"use_resolution_binning": False}  # pictures have the size that was asked for
        if self.size is not None:
            if "height" not in taken:
                raise UsageError(f"{self.name} draws pictures of one size; leave out size")
            given |= {"width": self.size[0], "height": self.size[1]}
        if negative is not None:
            given |= dict(self.adapter.on_settings) | ({"negative_prompt": negative} if negative else {})
        given = {name: value for name, value in given.items() if name in taken}
        return given | self._prompt(text, taken) | dict(self.settings or {})

    def _prompt(self, text: str, taken: Mapping[str, Any]) -> Arguments:
        if "prompt" in taken:
            return {"prompt": text}
        if "class_labels" not in taken:
            raise UsageError(f"{self.name} is not called with a prompt, so it cannot be used as a denoiser of prompts")
        names = getattr(self.pipe, "labels", None) or {}
        if not text or text.isdecimal():
            return {"class_labels": [int(text or 0)]}
        if text not in names:
            raise UsageError(f"{self.name} draws classes and has none called {text!r}; give a class number")
        return {"class_labels": self.pipe.get_label_ids([text])}

    @property
    def name(self) -> str:
        return type(self.pipe).__name__

    @property
    def network(self) -> Any:
        network = getattr(self.pipe, self.adapter.network, None)
        if network is None:
            raise UsageError(f"this {self.name} has no {self.adapter.network}; load it first")
        return network

    def run(
        self, text: str, negative: str | None, on_network: Any, on_step: Any, generator: torch.Generator | None = None
    ) -> None:
        """The pipeline's call, with these in place of the network's forward and of the scheduler's step, until one of
        them raises `_Stopped`. Each is given the original and the arguments."""
        generator = generator or torch.Generator().manual_seed(0)
        with _restored(self.pipe), _without_hooks(self.network), torch.inference_mode(False), torch.no_grad():
            scheduler, network = self.pipe.scheduler, self.network
            shadows = [Shadow(network, entry_of(network), on_network), Shadow(scheduler, "step", on_step)]
            try:
                self.pipe(**self.arguments(text, negative, generator))
            except (_Stopped, UsageError):
                raise
            except Exception as error:
                said = " ".join(str(error).split())[:200]
                raise UsageError(
                    f"{self.name} cannot be used as a denoiser of prompts: its own call says {type(error).__name__}: "
                    f"{said}; give what it lacks with call={{...}}, or use the text-to-image pipeline of the model"
                ) from error
            finally:
                for shadow in shadows:
                    shadow.remove()


@contextmanager
def _restored(pipe: Any) -> Iterator[None]:
    """Inside, the pipeline is quiet; what its call leaves in the scheduler and the global generator is taken back."""
    bar = getattr(pipe, "_progress_bar_config", None)
    scheduler, before = pipe.scheduler, dict(pipe.scheduler.__dict__)
    pipe.set_progress_bar_config(disable=True)
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        scheduler.__dict__.clear()
        scheduler.__dict__.update(before)
        if bar is None:
            del pipe._progress_bar_config
        else:
            pipe._progress_bar_config = bar


@contextmanager
def _without_hooks(network: Any) -> Iterator[None]:
    """Inside, nothing is done before or after a call of the network, which computes nothing: hooks that gather its
    weights from other processes would wait for their calls."""
    held = network._forward_pre_hooks, network._forward_hooks
    network._forward_pre_hooks, network._forward_hooks = OrderedDict(), OrderedDict()
    try:
        yield
    finally:
        network._forward_pre_hooks, network._forward_hooks = held


# -- until the network ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Told:
    """The network's arguments for one row of one branch. x: (1, ...), as the scheduler has it."""

    arguments: Arguments
    x: Tensor
    layout: Layout


def told(call: Call, text: str, branch: str = "cond", generator: torch.Generator | None = None) -> Told:
    """What the network is told of a text: as the prompt, or with branch="uncond" as the negative prompt.

    Raises UsageError where the pipeline needs more than a prompt, or prepares no such branch.
    """
    adapter, found, turns = call.adapter, [], iter(call.adapter.branches)
    layout = Layout.of(adapter, call.network, call.pipe)

    def on_network(original: Any, *args: Any, **kwargs: Any) -> Any:
        arguments = named_arguments(call.network, args, kwargs)
        if adapter.aside is not None and adapter.aside(arguments):
            return original(*args, **kwargs)
        arguments = arguments if adapter.kept is None else adapter.kept(arguments)
        held = (next(turns),) if adapter.layout == "in turn" else adapter.branches_of(call.pipe, arguments)
        if branch not in held and adapter.layout == "in turn":
            x = layout.x_of(arguments, range(len(arguments[adapter.sample])))
            return layout.output_of(torch.zeros_like(x), 1, None, arguments)
        if branch in held:
            found.append(_row(adapter, layout, arguments, held.index(branch), len(held)))
        raise _Stopped

    def on_step(original: Any, *args: Any, **kwargs: Any) -> Any:
        raise _Stopped

    with suppress(_Stopped):
        call.run(text, None if branch == "cond" else text, on_network, on_step, generator)
    if not found:
        raise UsageError(f"{call.name} prepares no {branch!r} branch; choose a rule without it, such as none")
    one: Told = found[0]
    return one


def _row(adapter: Adapter, layout: Layout, arguments: Arguments, row: int, branches: int) -> Told:
    """Of a call that holds one row a branch."""
    rows = len(arguments[adapter.sample])
    if rows != branches:
        raise UsageError(f"the network is given {rows} rows for one prompt; ask for one picture a prompt")
    x = layout.x_of(arguments, [row]).clone()
    if adapter.channels is not None:  # which may ask the call that runs now
        count = x.shape[adapter.channel_axis]
        layout = replace(layout, adapter=replace(adapter, channels=lambda pipe, tensor: count))
    if rows > 1:
        picked = lambda k, v: pick_rows(v, [row], rows, layout.listed, k in adapter.folded)  # noqa: E731
        arguments = {k: picked(k, v) if k in adapter.batched else v for k, v in arguments.items()}
    return Told(dict(arguments), x, layout)


# -- the first noise --------------------------------------------------------------------------------------------------


class _Drawn(TorchFunctionMode):
    """Normal noise from a given generator becomes given numbers; remembers the shapes that were asked for."""

    def __init__(self, generator: torch.Generator, values: Callable[[int], Tensor]):
        super().__init__()
        self.generator, self.values = generator, values
        self.shapes: list[tuple[int, ...]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is not torch.randn or (kwargs or {}).get("generator") is not self.generator:
            return result
        self.shapes.append(tuple(result.shape))
        return self.values(result.numel()).view(result.shape).to(result.device)


def told_of_noise(call: Call, values: Callable[[int], Tensor]) -> tuple[Told, tuple[int, ...]]:
    """A capture with the numbers `values(n)` in place of the first noise, and the shape (1, ...) of that noise."""
    generator = torch.Generator().manual_seed(0)
    with _Drawn(generator, values) as drawn:
        found = told(call, "", generator=generator)
    shape = next((shape for shape in drawn.shapes if torch.Size(shape).numel() == found.x.numel()), None)
    if shape is None:
        raise UsageError(f"{call.name} starts from something else than noise; use the text-to-image pipeline")
    return found, shape


# -- after the last step ----------------------------------------------------------------------------------------------


def given_to_decoder(call: Call, vae: Any, x: Tensor) -> tuple[Tensor, Arguments]:
    """What the pipeline's tail makes of the last x (1, ...): the VAE's latents, and the other arguments of its decode.

    The network is not evaluated.
    """
    adapter, found = call.adapter, []
    layout = Layout.of(adapter, call.network, call.pipe)

    def on_network(original: Any, *args: Any, **kwargs: Any) -> Any:
        arguments = named_arguments(call.network, args, kwargs)
        if adapter.aside is not None and adapter.aside(arguments):
            return original(*args, **kwargs)
        held = 1 if adapter.layout == "in turn" else len(adapter.branches_of(call.pipe, arguments))
        rows = range(len(arguments[adapter.sample]) // held)
        return layout.output_of(torch.zeros_like(layout.x_of(arguments, rows)), held, None, arguments)

    def on_step(original: Any, *args: Any, **kwargs: Any) -> Any:
        names = argument_names(type(call.pipe.scheduler).step)
        sample = {**dict(zip(names, args, strict=False)), **kwargs}["sample"]
        given = x.to(sample.device).view(1, *sample.shape[1:]).expand(sample.shape)
        return SchedulerOutput(prev_sample=given) if kwargs.get("return_dict", True) else (given,)

    def on_decode(original: Any, *args: Any, **kwargs: Any) -> Any:
        name = None if args else next(name for name, value in kwargs.items() if isinstance(value, Tensor))
        further = {k: v for k, v in kwargs.items() if k not in (name, "return_dict")}
        found.append((args[0] if name is None else kwargs[name], further))
        raise _Stopped

    shadow = Shadow(vae, "decode", on_decode)
    try:
        call.run("", None, on_network, on_step)
    except _Stopped:
        pass
    finally:
        shadow.remove()
    if not found:
        raise UsageError(f"{call.name} makes its pictures without its VAE; it cannot be used as a denoiser")
    answer: tuple[Tensor, Arguments] = found[0]
    return answer
