"""A student as others load it: a pipeline's folder, or adapters and a scheduler with the name of their base."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import nn

from ..errors import UsageError
from ..generation.recommended import write_recommended
from ..samplers.schedule import is_flow
from ..storage import make_folder
from ..training.lora import FILE, fill_lora, read_lora
from ..training.pipeline_learner import PipelineLearner
from .method import DistillMethod
from .spec import DistillSpec

STUDENT = "student"  # the folder of a run


def write_student(folder: Path, student: PipelineLearner, pipe: Any, method: DistillMethod, spec: DistillSpec) -> None:
    """All weights: what `DiffusionPipeline.from_pretrained` loads. A LoRA: what `load_lora_weights` does, with the
    scheduler's config. Either says how it wants to be drawn with, which `pilotage generate --model FOLDER` heeds."""
    make_folder(folder)
    scheduler = method.scheduler(pipe.scheduler)
    if student.adapter is None:
        parts = {**pipe.components, student.model.attribute: student.network, "scheduler": scheduler}
        made = type(pipe)(**parts, **_optional(pipe))
        made.save_pretrained(folder)
    else:
        student.save(folder)
        scheduler.save_pretrained(folder / "scheduler")
    base = None if student.adapter is None else spec.model
    settings = method.recommended()
    if method.steps > 1 and is_flow(pipe.scheduler):  # its scheduler chooses other levels than were learnt
        settings |= {"sampler": method.sampler, "grid": "trailing"}
    if spec.call:  # what the network was told while it learnt
        settings |= {"call": {**spec.call, **settings.get("call", {})}}
    if student.size is not None:
        settings |= {"width": student.size[0], "height": student.size[1]}
    by_hand = None if student.adapter is None else method.by_hand(pipe.scheduler)
    write_recommended(folder, settings, base, method.scales, by_hand)


def _optional(pipe: Any) -> dict[str, Any]:
    """Arguments of the pipeline's constructor that are no components."""
    import inspect

    names = inspect.signature(type(pipe).__init__).parameters
    return {name: pipe.config[name] for name in names if name in pipe.config and name not in pipe.components}


def student_folder(folder: Path) -> Path:
    """Of a run, or a student's own. UsageError where there is none."""
    found = next((path for path in (folder / STUDENT, folder) if path.is_dir()), None)
    if found is None:
        raise UsageError(f"there is no student in {folder}; give the folder of a distillation run")
    return found


def read_adapters(folder: Path, student: PipelineLearner) -> None:
    """Begin with the adapters of another run's student. UsageError where there are none that fit."""
    assert student.adapter is not None
    fill_lora(student.network, read_lora(student_folder(folder) / FILE), student.adapter, student.model.attribute)


def read_network(folder: Path, network: nn.Module, attribute: str) -> None:
    """Begin with the weights of another run's student. attribute: the pipeline's name of its network. UsageError where
    there are none that fit."""
    path = student_folder(folder) / attribute / "diffusion_pytorch_model.safetensors"
    try:
        network.load_state_dict(load_file(path))
    except (OSError, RuntimeError, ValueError, json.JSONDecodeError) as error:
        said = " ".join(str(error).split())[:200]
        raise UsageError(f"cannot begin with the student of {folder}: {said}; give a run of the same model") from None
