"""pilotage finetune"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from ..finetune.spec import FinetuneSpec
    from ..finetune.trainer import Trained

_WHAT, _HOW, _RUN = "What is learnt", "How", "The run"


def finetune(
    prompt: Annotated[
        list[str] | None,
        typer.Argument(
            help="Prompts to train on; captions of the embedded world as embedded:SPLIT:COUNT.", show_default=False
        ),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(help="Prompts from a text file (one a line) or a CSV.", rich_help_panel=_WHAT),
    ] = None,
    reward: Annotated[
        str | None,
        typer.Option(
            "--reward", "-r", help='What is raised: "0.7 * adherence + 0.3 * saturation".', rich_help_panel=_WHAT
        ),
    ] = None,
    judges: Annotated[
        list[str] | None,
        typer.Option("--judge", help="A reward that is watched and not trained on.", rich_help_panel=_WHAT),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option("--method", "-m", help="One of `pilotage list methods`, with settings.", rich_help_panel=_WHAT),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="embedded, a folder, or a hub id such as owner/name.", rich_help_panel=_WHAT)
    ] = None,
    allow_download: Annotated[
        bool | None,
        typer.Option(
            "--allow-download/--no-download", help="Fetch the model from the hub if need be.", rich_help_panel=_WHAT
        ),
    ] = None,
    updates: Annotated[int | None, typer.Option(help="Updates of the weights.", rich_help_panel=_HOW)] = None,
    batch: Annotated[
        int | None, typer.Option(help="Prompts an update, over all processes.", rich_help_panel=_HOW)
    ] = None,
    rows: Annotated[
        int | None, typer.Option(help="Pictures that go through the network together.", rich_help_panel=_HOW)
    ] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Of AdamW.", rich_help_panel=_HOW)] = None,
    guidance: Annotated[
        str | None, typer.Option("--guidance", "-g", help="A rule, while training.", rich_help_panel=_HOW)
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of the sampler.", rich_help_panel=_HOW)] = None,
    seed: Annotated[int | None, typer.Option(help="Of everything that is drawn.", rich_help_panel=_HOW)] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda.", rich_help_panel=_RUN)] = None,
    output: Annotated[
        str | None, typer.Option("--output", "-o", help="The run folder; below runs/ without it.", rich_help_panel=_RUN)
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(help="Settings that ship: finetune-embedded and others of `pilotage list presets`.",
                     rich_help_panel=_RUN),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="Settings from a YAML file, such as the run.yaml of a run.", rich_help_panel=_RUN),
    ] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", help="Any setting: --set steps=30 --set lora.rank=16.", rich_help_panel=_RUN),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Print the settings and the memory that they need.", rich_help_panel=_RUN),
    ] = False,
) -> None:  # fmt: skip
    """Train adapters so that pictures please a reward.

    The same command again resumes, to the bit, or finds everything done.

      pilotage finetune --preset finetune-embedded

      pilotage finetune --prompts animals.txt --model ./sd15 --reward aesthetic --judge pickscore -o runs/animals

      accelerate launch --num_processes 2 -m pilotage finetune --config run.yaml

      pilotage generate "two red stars on navy" --lora runs/animals/lora
    """
    from ..finetune.spec import FinetuneSpec
    from ..generation.prompts import read_prompts
    from ..generation.settings import resolve

    flags: dict[str, Any] = {
        "prompts": [*(prompt or []), *(read_prompts(prompts)["prompts"] if prompts else [])] or None, "reward": reward,
        "judges": judges or None, "method": method, "model": model, "allow_download": allow_download,
        "updates": updates, "batch": batch, "rows": rows, "learning_rate": learning_rate, "guidance": guidance,
        "steps": steps, "seed": seed, "device": device, "output": output,
    }  # fmt: skip
    spec = resolve(FinetuneSpec, preset, config, flags, assignments or [], training=True)
    if dry_run:
        _plan(spec)
    else:
        _train(spec)


def _plan(spec: FinetuneSpec) -> None:
    """The settings, and an estimate of the memory, for which the model is loaded."""
    from ..finetune.opening import open_run
    from ..generation.models import device_named
    from ..training.memory_plan import plan
    from .console import say_notes

    print(spec.as_yaml(), end="")
    opened = open_run(spec, device_named(spec.device))
    for line in plan(opened.learner, spec, list(opened.modules)).lines():
        print(f"# {line}")
    say_notes(spec.notes())


def _train(spec: FinetuneSpec) -> None:
    from ..evaluation.processes import Processes
    from ..finetune.trainer import train
    from .console import say_notes
    from .progress import UpdateProgress

    first = Processes.found().rank == 0
    if first:
        say_notes(spec.notes())
    with UpdateProgress(spec.updates) as bar:
        done = train(spec, told=bar.update, planned=bar.planned)
    if first:
        if not done.made:
            say_notes(done.notices)  # otherwise the bar has said them
        _tell(done)


def _tell(done: Trained) -> None:
    print("was trained already" if not done.made else f"{done.updates} updates: {done.folder / 'index.html'}")
    for name, before in done.before["judge"].items():
        print(f"judge {name}: {before:.4g} before, {done.after['judge'][name]:.4g} after")
    for name in ("reward", "diversity"):
        print(f"{name}: {done.before['held_out'][name]:.4g} before, {done.after['held_out'][name]:.4g} after")
    if done.spec.train == "lora":
        print(f'try: pilotage generate "{done.spec.held_out_prompts()[0]}" --model {done.spec.model} '
              f'--guidance "{done.spec.guidance}" --lora {done.result}')  # fmt: skip
