"""pilotage distill"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import training_options as options
from .training_options import HOW, WHAT

if TYPE_CHECKING:
    from ..training.trainer import Trained

_SHOWN = ("adherence", "coverage", "recall", "distance")


def distill(
    prompt: options.Prompt = None,
    prompts: options.Prompts = None,
    method: Annotated[
        str | None,
        typer.Option(
            "--method", "-m", help='One of `pilotage list distillations`: "f-distill:divergence=forward-kl".',
            rich_help_panel=WHAT,
        ),
    ] = None,
    model: options.Model = None,
    guidance: Annotated[
        str | None,
        typer.Option("--guidance", "-g", help="The teacher's rule, which goes into the student.", rich_help_panel=WHAT),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="Real pictures: teacher:2000, embedded:SPLIT:COUNT, or a folder with captions.", rich_help_panel=WHAT
        ),
    ] = None,
    start: Annotated[
        Path | None, typer.Option(help="Begin with the student of that run.", rich_help_panel=WHAT)
    ] = None,
    train: Annotated[
        str | None, typer.Option(help="What learns of the student: lora or all.", rich_help_panel=WHAT)
    ] = None,
    allow_download: options.AllowDownload = None,
    updates: options.Updates = None,
    batch: options.Batch = None,
    rows: options.Rows = None,
    learning_rate: options.LearningRate = None,
    steps: Annotated[int | None, typer.Option(help="Steps of the teacher.", rich_help_panel=HOW)] = None,
    seed: options.Seed = None,
    device: options.Device = None,
    output: options.Output = None,
    preset: options.Preset = None,
    config: options.Config = None,
    assignments: options.Assignments = None,
    dry_run: options.DryRun = False,
) -> None:  # fmt: skip
    """Teach a student to draw in one step, or a few, what a guided teacher draws in many.

    The same command again resumes, to the bit, or finds everything done.

      pilotage distill --preset distill-embedded --output runs/fast

      pilotage generate "two red stars on navy" --model runs/fast --steps 1

      pilotage distill --model ./sd15 --prompts prompts.txt --guidance cfg:scale=4 --data teacher:5000 --train lora

      torchrun --nproc-per-node 2 -m pilotage distill --config run.yaml
    """
    from ..distill import trainer
    from ..distill.spec import DistillSpec
    from ..generation.settings import resolve

    flags = {
        "prompts": options.all_prompts(prompt, prompts), "method": method, "model": model, "guidance": guidance,
        "data": data, "start": None if start is None else str(start), "train": train, "updates": updates,
        "allow_download": allow_download, "batch": batch, "rows": rows, "learning_rate": learning_rate, "steps": steps,
        "seed": seed, "device": device, "output": output,
    }  # fmt: skip
    spec = resolve(DistillSpec, preset, config, flags, assignments or [], kind="distill")
    if dry_run:
        options.plan(spec, lambda: trainer.memory_of(spec))
    elif done := options.with_progress(spec, trainer.train):
        _tell(done)


def _tell(done: Trained) -> None:
    from ..distill.methods.registry import make_method

    print("was distilled already" if not done.made else f"{done.updates} updates: {done.folder / 'index.html'}")
    for group in ("judge", "held_out"):
        after = done.after[group]
        for name in (name for name in _SHOWN if name in after):
            teacher = after.get(f"{name} of the teacher")
            beside = "" if teacher is None else f", the teacher {teacher:.4g}"
            print(f"{name}: {done.before[group][name]:.4g} before, {after[name]:.4g} after{beside}")
    steps = make_method(done.spec.method).steps
    print(f'try: pilotage generate "{done.spec.held_out_prompts()[0]}" --model {done.folder} --steps {steps}')
