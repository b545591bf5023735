"""The card beside what was learnt: what it is, how it was made, what it did, how to load it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..storage import write_text
from ..training.trainer import CARD
from .rewards.reward import Reward
from .spec import FinetuneSpec

_HEAD = """\
---
library_name: diffusers
base_model: {model}
tags: [{tags}]
---
# {model}, fine-tuned for {reward}

{what} of `{model}`, trained with pilotage by `{method}` to raise the reward `{reward}`: {updates} updates, {pictures}
pictures sampled.{stopped}

| {where} | before | after |
|---|---|---|
{rows}

{prompts}, {seeds} seeds each, sampled as in training (`{sampler}`, grid `{grid}`, {steps} steps,
guidance `{guidance}`). The judges were not trained on. Diversity is the mean distance of two pictures of one prompt.

A reward is not quality: look at the pictures, and try the adapter at a lower scale.

## Use

{use}

## Reward

Model: {judged_by}. Licence: {licence}. Preprocessing: {preprocessing}.
"""

_HELD_OUT = "Prompts that were not trained on"
_NONE_HELD_OUT = "The first of the training prompts, as none were held out"

_LORA = """\
```python
pipe.load_lora_weights("{folder}", adapter_name="reward")
pipe.set_adapters("reward", 1.0)  # less is closer to the base model
```

(Where the pipeline has no such method: `pilotage.training.lora.wear_lora(pipe.{network}, "{folder}")`.)

    pilotage generate "a prompt" --model {model} --lora {folder} --guidance "{guidance}\""""

_NETWORK = """\
```python
pipe.{network} = type(pipe.{network}).from_pretrained("{folder}")
```"""


def write_card(
    folder: Path,
    spec: FinetuneSpec,
    reward: Reward,
    looks: dict[str, dict[str, Any]],
    pictures: int,
    stopped: str = "",
    network: str = "unet",
) -> Path:
    """README.md in the folder of the adapters. looks: "before" and "after", as the log has evaluations. network: the
    pipeline's part that learnt."""
    lora = spec.train == "lora"
    use = (_LORA if lora else _NETWORK).format(folder=folder, model=spec.model, guidance=spec.guidance, network=network)
    text = _HEAD.format(
        model=spec.model,
        tags="lora, reward-fine-tuning" if lora else "reward-fine-tuning",
        what=f"A LoRA of rank {spec.lora.rank}" if lora else "The network",
        method=spec.method,
        reward=spec.reward or reward.name,
        updates=looks["after"].get("at", spec.updates),
        pictures=pictures,
        stopped=f" Training {stopped}." if stopped else "",
        where="on held-out prompts" if spec.held_out else "on training prompts",
        rows="\n".join(_rows(looks["before"], looks["after"])),
        prompts=_HELD_OUT if spec.held_out else _NONE_HELD_OUT,
        seeds=spec.held_out_seeds,
        sampler=spec.sampler,
        grid=spec.grid,
        steps=spec.steps,
        guidance=spec.guidance,
        use=use,
        judged_by=reward.model,
        licence=reward.licence or "none stated",
        preprocessing=reward.preprocessing or "none",
    )
    write_text(folder / CARD, text)
    return folder / CARD


def _rows(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    numbers = {f"judge: {name}": (value, after["judge"][name]) for name, value in before["judge"].items()}
    numbers |= {name: (value, after["held_out"][name]) for name, value in before["held_out"].items()}
    return [f"| {name.replace('_', ' ')} | {one:.4g} | {other:.4g} |" for name, (one, other) in numbers.items()]
