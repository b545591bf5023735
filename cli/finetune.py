"""pilotage finetune"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from . import training_options as options
from .training_options import HOW, WHAT

if TYPE_CHECKING:
    from ..training.trainer import Trained


def finetune(
    prompt: options.Prompt = None,
    prompts: options.Prompts = None,
    reward: Annotated[
        str | None,
        typer.Option(
            "--reward", "-r", help='What is raised: "0.7 * adherence + 0.3 * saturation".', rich_help_panel=WHAT
        ),
    ] = None,
    judges: Annotated[
        list[str] | None,
        typer.Option("--judge", help="A reward that is watched and not trained on.", rich_help_panel=WHAT),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option("--method", "-m", help="One of `pilotage list methods`, with settings.", rich_help_panel=WHAT),
    ] = None,
    model: options.Model = None,
    allow_download: options.AllowDownload = None,
    updates: options.Updates = None,
    batch: options.Batch = None,
    rows: options.Rows = None,
    learning_rate: options.LearningRate = None,
    guidance: Annotated[
        str | None, typer.Option("--guidance", "-g", help="A rule, while training.", rich_help_panel=HOW)
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of the sampler.", rich_help_panel=HOW)] = None,
    seed: options.Seed = None,
    device: options.Device = None,
    output: options.Output = None,
    preset: options.Preset = None,
    config: options.Config = None,
    assignments: options.Assignments = None,
    dry_run: options.DryRun = False,
) -> None:
    """Train adapters so that pictures please a reward.

    The same command again resumes, to the bit, or finds everything done.

      pilotage finetune --preset finetune-embedded

      pilotage finetune --prompts animals.txt --model ./sd15 --reward aesthetic --judge pickscore -o runs/animals

      accelerate launch --num_processes 2 -m pilotage finetune --config run.yaml

      pilotage generate "two red stars on navy" --lora runs/animals/lora
    """
    from ..finetune import trainer
    from ..finetune.spec import FinetuneSpec
    from ..generation.settings import resolve

    flags = {
        "prompts": options.all_prompts(prompt, prompts), "reward": reward, "judges": judges or None, "method": method,
        "model": model, "allow_download": allow_download, "updates": updates, "batch": batch, "rows": rows,
        "learning_rate": learning_rate, "guidance": guidance, "steps": steps, "seed": seed, "device": device,
        "output": output,
    }  # fmt: skip
    spec = resolve(FinetuneSpec, preset, config, flags, assignments or [], kind="finetune")
    if dry_run:
        options.plan(spec, lambda: trainer.memory_of(spec))
    elif done := options.with_progress(spec, trainer.train):
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
