"""The options that every command taking a run spec has, declared once."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_type_hints

import typer

if TYPE_CHECKING:
    from ..generation.spec import RunSpec

S = TypeVar("S", bound="RunSpec")
_PICTURE, _MODEL, _HOW, _WHERE = "The picture", "The model", "Guidance and sampling", "The run"


def _declared(
    prompt: Annotated[
        list[str] | None, typer.Argument(help="What to draw; several prompts may be given.", show_default=False)
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            help="Prompts from a text file (one a line) or a CSV with a column prompt.", rich_help_panel=_PICTURE
        ),
    ] = None,
    negative: Annotated[str | None, typer.Option(help="What should not be there.", rich_help_panel=_PICTURE)] = None,
    seeds: Annotated[
        str | None, typer.Option(help="0-63, or 1,4,9-12, or 17:2 for repeat 2 of seed 17.", rich_help_panel=_PICTURE)
    ] = None,
    paired: Annotated[
        bool | None,
        typer.Option(
            "--paired/--crossed",
            help="Prompt i with seed i; otherwise every prompt with every seed.",
            rich_help_panel=_PICTURE,
        ),
    ] = None,
    width: Annotated[
        int | None, typer.Option(help="In pixels; the model's own size without it.", rich_help_panel=_PICTURE)
    ] = None,
    height: Annotated[int | None, typer.Option(help="In pixels.", rich_help_panel=_PICTURE)] = None,
    image: Annotated[str | None, typer.Option(help="Start from this picture.", rich_help_panel=_PICTURE)] = None,
    strength: Annotated[
        float | None, typer.Option(help="How much of it is redrawn, 0 to 1.", rich_help_panel=_PICTURE)
    ] = None,
    mask: Annotated[
        str | None, typer.Option(help="Redraw only where this picture is white.", rich_help_panel=_PICTURE)
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="embedded, a folder, or a hub id such as owner/name.", rich_help_panel=_MODEL)
    ] = None,
    weak: Annotated[
        str | None, typer.Option(help="Folder of a weaker network, for autoguidance.", rich_help_panel=_MODEL)
    ] = None,
    lora: Annotated[
        str | None, typer.Option(help="A LoRA: a safetensors file, a folder or a hub id.", rich_help_panel=_MODEL)
    ] = None,
    lora_scale: Annotated[
        float | None, typer.Option(help="How strongly it acts; 1 is fully.", rich_help_panel=_MODEL)
    ] = None,
    allow_download: Annotated[
        bool | None,
        typer.Option(
            "--allow-download/--no-download", help="Fetch the model from the hub if need be.", rich_help_panel=_MODEL
        ),
    ] = None,
    guidance: Annotated[
        str | None,
        typer.Option(
            "--guidance", "-g", help='A rule, such as "apg:scale=10 + interval:low=0.3".', rich_help_panel=_HOW
        ),
    ] = None,
    sampler: Annotated[
        str | None, typer.Option(help="One of `pilotage list samplers`, or stock.", rich_help_panel=_HOW)
    ] = None,
    grid: Annotated[str | None, typer.Option(help="One of `pilotage list grids`.", rich_help_panel=_HOW)] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of the sampler.", rich_help_panel=_HOW)] = None,
    teleport: Annotated[
        str | None, typer.Option(help="Leave the first steps out: a file of fit-teleport.", rich_help_panel=_HOW)
    ] = None,
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", help="The run folder; below runs/ without it.", rich_help_panel=_WHERE),
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Pictures made together.", rich_help_panel=_WHERE)] = None,
    exact: Annotated[
        bool | None,
        typer.Option(
            "--exact/--no-exact",
            help="Bitwise the same picture alone or in a batch; pads batches.",
            rich_help_panel=_WHERE,
        ),
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, float16 or bfloat16.", rich_help_panel=_WHERE)] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, mps, cuda or cuda:1.", rich_help_panel=_WHERE)] = None,
    threads: Annotated[int | None, typer.Option(help="Threads of torch.", rich_help_panel=_WHERE)] = None,
    memory: Annotated[
        str | None,
        typer.Option(
            help="auto: offload, slicing and tiling by what is free; none. Switches: --set memory.vae_tiling=true.",
            rich_help_panel=_WHERE,
        ),
    ] = None,
    preview_every: Annotated[
        int | None, typer.Option(help="Write preview.png every so many steps.", rich_help_panel=_WHERE)
    ] = None,
    preset: Annotated[
        str | None, typer.Option(help="Settings that ship; see `pilotage list presets`.", rich_help_panel=_WHERE)
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="Settings from a YAML file, such as the run.yaml of a run.", rich_help_panel=_WHERE),
    ] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="Any setting: --set steps=30 --set call.max_sequence_length=256.", rich_help_panel=_WHERE
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the resolved settings and stop.", rich_help_panel=_WHERE)
    ] = False,
) -> None:
    """Never called: only its signature is used."""


@dataclass(frozen=True)
class Given:
    """What the command line gave. Settings that are None were not given."""

    settings: dict[str, Any]
    prompts: Path | None
    preset: str | None
    config: Path | None
    assignments: list[str]
    dry_run: bool

    def resolve(self, model: type[S], default_preset: str | None = None, **more: Any) -> S:
        """default < preset < file < flag, as one validated spec."""
        from ..errors import UsageError
        from ..generation.memory import as_memory
        from ..generation.prompts import read_prompts
        from ..generation.settings import resolve

        flags = self.settings | more
        if flags.get("memory") is not None:
            flags["memory"] = as_memory(flags["memory"])  # a block, for --set to reach into
        if self.prompts is not None:
            if flags.get("prompts"):
                raise UsageError("give prompts on the line or with --prompts, not both")
            flags |= read_prompts(self.prompts)
        return resolve(model, self.preset or default_preset, self.config, flags, self.assignments)


def takes_spec(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options above to a command, which gets them as its first argument, a `Given`."""
    shared, hints = inspect.signature(_declared).parameters, get_type_hints(_declared, include_extras=True)
    own_hints = get_type_hints(command, include_extras=True)
    own = [p for p in list(inspect.signature(command).parameters.values())[1:]]

    @functools.wraps(command)
    def wrapper(**values: Any) -> None:
        settings = {name: values.pop(name) for name in shared}
        more = {name: settings.pop(name) for name in ("prompts", "preset", "config", "assignments", "dry_run")}
        settings["prompts"] = settings.pop("prompt") or None
        command(Given(settings, **(more | {"assignments": more["assignments"] or []})), **values)

    both = [p.replace(annotation=hints[n], kind=p.KEYWORD_ONLY) for n, p in shared.items()]
    both += [p.replace(annotation=own_hints[p.name], kind=p.KEYWORD_ONLY) for p in own]
    wrapper.__signature__ = inspect.Signature(both)  # type: ignore[attr-defined]
    wrapper.__annotations__ = {p.name: p.annotation for p in both}
    return wrapper
