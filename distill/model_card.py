"""The card beside a student: what it is, how it was made, what it cost, how to load it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..storage import write_text
from ..training.trainer import CARD
from .method import DistillMethod
from .spec import DistillSpec

_HEAD = """\
---
library_name: diffusers
base_model: {model}
tags: [{tags}]
---
# {model}, distilled to {steps}

{what} of `{model}`, distilled with pilotage by `{method}` from that model guided by `{guidance}`: {updates} updates,
{pictures} pictures sampled.{stopped}

| on held-out prompts | before | after |
|---|---|---|
{rows}

Precision, recall, density, coverage and distance compare {count} pictures of the student with the teacher's
(`{sampler}`, {teacher_steps} steps), in the features `{features}`.

{drawn} A student is faster than its teacher, not better: look at what it lost.

## Use

{use}
"""

_TOLD = (
    "The network is told the scale of the guidance, {scale:g} where it was looked at and {low:g} to {high:g} while it "
    "learnt: draw without any other."
)

_FULL = """\
    pilotage generate "a prompt" --model {folder} --steps {steps}

```python
pipe = DiffusionPipeline.from_pretrained("{folder}")
pipe("a prompt", {arguments})
```"""

_LORA = """\
    pilotage generate "a prompt" --model {folder} --steps {steps}

```python
pipe.load_lora_weights("{folder}")
pipe.scheduler = {scheduler}.from_pretrained("{folder}/scheduler")
pipe("a prompt", {arguments})
```"""


def write_card(
    folder: Path, spec: DistillSpec, method: DistillMethod, looks: dict[str, dict[str, Any]], pictures: int,
    stopped: str = "", stock: Any = None,
) -> Path:  # fmt: skip
    """README.md in the folder of the student. looks: "before" and "after", as the log has evaluations. stock: the
    teacher's scheduler."""
    lora, steps = spec.train == "lora", method.steps
    scheduler = "DDIMScheduler" if stock is None else type(method.scheduler(stock)).__name__
    text = _HEAD.format(
        model=spec.model,
        tags="distillation, lora" if lora else "distillation",
        steps="one step" if steps == 1 else f"{steps} steps",
        what=f"A LoRA of rank {spec.lora.rank}" if lora else "A copy",
        method=spec.method,
        guidance=spec.guidance,
        updates=looks["after"].get("at", spec.updates),
        pictures=pictures,
        stopped=f" Training {stopped}." if stopped else "",
        rows="\n".join(_rows(looks["before"], looks["after"])),
        count=len(spec.held_out_prompts()) * spec.held_out_seeds,
        sampler=spec.sampler,
        teacher_steps=spec.steps,
        features=spec.features or "pixels at 16x16",
        drawn=_drawn(method),
        use=(_LORA if lora else _FULL).format(
            folder=folder, steps=steps, scheduler=scheduler, arguments=_arguments(spec, method)
        ),
    )
    write_text(folder / CARD, text)
    return folder / CARD


def _drawn(method: DistillMethod) -> str:
    if method.scales is None:
        return "Guidance is in the weights: draw without any."
    low, high = method.scales
    return _TOLD.format(scale=method.recommended()["call"]["guidance_scale"], low=low, high=high)


def _arguments(spec: DistillSpec, method: DistillMethod) -> str:
    """Of the pipeline's call, as the student was made to be drawn with."""
    told = {"guidance_scale": 1.0, **spec.call, **method.recommended().get("call", {})}
    size = dict(zip(("width", "height"), spec.size, strict=True)) if spec.size else {}
    return ", ".join(
        f"{name}={value!r}" for name, value in {"num_inference_steps": method.steps, **told, **size}.items()
    )


def _rows(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    numbers = {f"judge: {name}": (value, after["judge"][name]) for name, value in before["judge"].items()}
    numbers |= {name: (value, after["held_out"][name]) for name, value in before["held_out"].items()}
    return [f"| {name.replace('_', ' ')} | {one:.4g} | {other:.4g} |" for name, (one, other) in numbers.items()]
