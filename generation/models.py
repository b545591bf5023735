"""Pipelines by name: the embedded model, a folder, or a hub id. The only place that knows where models come from."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UsageError
from .memory import Memory
from .placing import chosen, place, placed_beside, quantisation
from .recommended import base_of, student_of
from .spec import RunSpec

if TYPE_CHECKING:
    import torch
    from diffusers import DiffusionPipeline
    from torch import nn

TASKS = ("text", "image", "inpaint")
MODELS = {
    "embedded": "the model that ships: 32x32 scenes of coloured shapes; brings its own weak network",
    "folder": "any pipeline saved with save_pretrained, such as ./my-model",
    "hub id": "owner/name; from the local cache, or downloaded with --allow-download",
}


def load(
    name: str = "embedded",
    *,
    dtype: torch.dtype | str = "float32",
    device: str = "auto",
    task: str = "text",
    allow_download: bool = False,
) -> DiffusionPipeline:
    """A ready diffusers pipeline. name: "embedded", a folder, or a hub id. task: "text", "image" or "inpaint".

    Only safetensors are read and no code of the model is run. Nothing is downloaded unless `allow_download`.
    """
    return _unplaced(name, dtype, task, allow_download).to(device_named(device))


def _unplaced(
    name: str, dtype: torch.dtype | str, task: str, allow_download: bool, quantize: str | None = None
) -> DiffusionPipeline:
    """A pipeline in the computer's memory; what is quantised may be on the device already."""
    import torch

    dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    with quiet():
        pipe = for_task(_opened(student_of(name), dtype, allow_download, quantize), task)
        pipe.set_progress_bar_config(disable=True)
        return pipe


def _opened(name: str, dtype: torch.dtype, allow_download: bool, quantize: str | None = None) -> Any:
    if name == "embedded":
        if quantize:
            raise UsageError("the embedded model is small and is not quantised; leave memory.quantize out")
        return _embedded(dtype)
    base = base_of(name)
    if base is None:
        return _from_pretrained(name, dtype, allow_download, quantisation(quantize))
    return _with_student(_opened(base, dtype, allow_download, quantize), Path(name))


def _with_student(pipe: Any, folder: Path) -> Any:
    """The base of a student whose adapters lie in a folder, with those in its weights, and its scheduler."""
    import diffusers

    from ..samplers import diffusers_schedulers

    try:
        pipe.load_lora_weights(str(folder), adapter_name="student", local_files_only=True, use_safetensors=True)
        pipe.fuse_lora(adapter_names=["student"])
        pipe.unload_lora_weights()
        config = json.loads((folder / "scheduler" / "scheduler_config.json").read_text(encoding="utf-8"))
        name = config["_class_name"]
        kind = getattr(diffusers, name, None) or getattr(diffusers_schedulers, name)
        pipe.scheduler = kind.from_config(config)
    except Exception as error:  # peft and diffusers raise many kinds
        raise UsageError(f"cannot use the student in {folder}: {' '.join(str(error).split())[:200]}") from None
    return pipe


def device_named(name: str) -> str:
    """The device of a spec: "auto" is the GPU when there is one. Refuses a device that is not here."""
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise UsageError(f"this machine or this torch has no {name}; use device cpu, and see pilotage doctor")
    if name.startswith("cuda:") and int(name[5:]) >= torch.cuda.device_count():
        raise UsageError(f"there is no {name} here; the devices are cuda:0 to cuda:{torch.cuda.device_count() - 1}")
    if name == "mps" and not torch.backends.mps.is_available():
        raise UsageError("this machine or this torch has no mps; use device cpu")
    return name


def for_task(pipe: Any, task: str) -> Any:
    """The pipeline of the same model that takes a picture, or a picture and a mask."""
    import inspect

    import diffusers

    wanted = {"text": (), "image": ("image",), "inpaint": ("image", "mask_image")}[task]
    takes = inspect.signature(type(pipe).__call__).parameters
    if all(name in takes for name in wanted) and (task == "inpaint" or "mask_image" not in takes):
        return pipe
    auto = {
        "text": diffusers.AutoPipelineForText2Image,
        "image": diffusers.AutoPipelineForImage2Image,
        "inpaint": diffusers.AutoPipelineForInpainting,
    }[task]
    try:
        return auto.from_pipe(pipe)
    except ValueError:
        raise UsageError(
            f"diffusers has no pipeline that makes {type(pipe).__name__} work from {wanted or 'text'}"
        ) from None


def _zoo(module: str) -> Any:
    """A module of the zoo. It is data, reached by name, so that nothing below depends on it."""
    return importlib.import_module(f"{__package__.rpartition('.')[0]}.zoo.{module}")


def _embedded(dtype: torch.dtype) -> Any:
    return _zoo("embedded").load(dtype)


def guidance_defaults(name: str) -> dict[str, dict[str, Any]]:
    """Settings of guidance rules that suit this model, by rule name."""
    return _zoo("embedded").guidance_defaults() if name == "embedded" else {}


def embedded_files() -> Path:
    """The folder of the embedded model's weights. A UsageError when it is not there."""
    folder = Path(str(_zoo("embedded").WEIGHTS))
    if not (folder / "model_index.json").is_file():
        raise UsageError("the weights of the embedded model are missing; install pilotage again")
    return folder


def _from_pretrained(name: str, dtype: torch.dtype, allow_download: bool, quantised: Any = None) -> Any:
    from diffusers import DiffusionPipeline

    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "model_index.json").is_file():
            raise UsageError(
                f"{name} is no pipeline folder: it has no model_index.json; save one with pipe.save_pretrained"
            )
        allow_download = False
    elif folder.exists() or not _like_hub_id(name):
        raise UsageError(
            f"there is no model {name!r}: give embedded, a folder with a model_index.json, or a hub id owner/name"
        )
    importlib.import_module(f"{__package__.rpartition('.')[0]}.samplers.diffusers_schedulers")  # a student may have one
    try:
        return DiffusionPipeline.from_pretrained(
            str(folder) if folder.is_dir() else name,
            dtype=dtype,
            local_files_only=not allow_download,
            use_safetensors=True,
            **({"quantization_config": quantised} if quantised is not None else {}),
        )
    except Exception as error:  # loaders of folders that lie raise nearly anything
        raise UsageError(_why_not(name, folder.is_dir(), allow_download, error)) from None


def _like_hub_id(name: str) -> bool:
    owner, slash, rest = name.partition("/")
    return bool(slash and owner.strip(".~") and rest and "/" not in rest)


def _why_not(name: str, is_folder: bool, allow_download: bool, error: Exception) -> str:
    said = " ".join(str(error).split())[:200]
    if is_folder:
        return f"cannot load the model in {name}: {said}"
    if not allow_download:
        return f"the model {name} is not in the local cache; add --allow-download to fetch it, or give a folder"
    return f"cannot download {name}: check the name and the network ({said})"


@contextmanager
def quiet() -> Iterator[None]:
    """Without the libraries' own progress bars and advice, which would tear ours."""
    import diffusers.utils.logging as diffusers_logging
    import transformers.utils.logging as transformers_logging

    before = diffusers_logging.get_verbosity(), transformers_logging.get_verbosity()
    for library in (diffusers_logging, transformers_logging):
        library.set_verbosity_error()
        library.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        diffusers_logging.set_verbosity(before[0])
        transformers_logging.set_verbosity(before[1])


# -- what a spec needs beside the pipeline -------------------------------------------------------------------


@dataclass
class Loaded:
    """A pipeline ready for specs of one `key`; weak networks are loaded when a rule first asks for one."""

    key: tuple[Any, ...]
    pipe: Any
    scheduler: Any  # the model's own
    revision: str
    memory: Memory = field(default_factory=Memory)
    weak: dict[str | None, Any] = field(default_factory=dict)

    def fits(self, spec: RunSpec) -> bool:
        """Was it loaded for such a spec? What memory=auto chose is as good as auto."""
        *own, asked = self.key
        *wanted, memory = key_of(spec)
        return own == wanted and memory in (asked, self.memory)

    def networks(self, spec: RunSpec, needs: tuple[str, ...]) -> dict[str, nn.Module]:
        """The further networks that a rule asks for."""
        if "weak" not in needs:
            return {}
        if spec.weak not in self.weak:
            self.weak[spec.weak] = placed_beside(load_weak(spec, self.pipe), self.memory, self.key[2])
        return {"weak": self.weak[spec.weak]}


def key_of(spec: RunSpec) -> tuple[Any, ...]:
    """Specs with equal keys share a pipeline."""
    own = (spec.model, spec.dtype, device_named(spec.device), task_of(spec), spec.lora, spec.lora_scale)
    return (*own, spec.memory)


def task_of(spec: RunSpec) -> str:
    return "inpaint" if spec.mask else "image" if spec.image else "text"


def open_model(spec: RunSpec) -> Loaded:
    """Everything that is loaded once for a run; its `memory` says what `memory=auto` has chosen."""
    device = device_named(spec.device)
    pipe = _unplaced(spec.model, spec.dtype, task_of(spec), spec.allow_download, spec.memory.quantize)
    if spec.lora:
        _add_lora(pipe, spec)
    memory = chosen(spec.memory, pipe, spec, device)
    place(pipe, memory, device)
    kept = memory.model_copy(update={"auto": False})
    return Loaded(key_of(spec), pipe, pipe.scheduler, revision_of(spec.model, pipe), kept)


def _add_lora(pipe: Any, spec: RunSpec) -> None:
    if not hasattr(pipe, "load_lora_weights"):
        raise UsageError(f"{type(pipe).__name__} takes no LoRA; leave lora out")
    assert spec.lora is not None
    lora = student_of(spec.lora)
    if not Path(lora).exists() and not _like_hub_id(spec.lora):
        raise UsageError(f"there is no LoRA {spec.lora!r}; give a safetensors file, a folder or a hub id")
    try:
        with quiet():  # diffusers warns of every LoRA that has no part for the text encoder
            pipe.load_lora_weights(
                lora, adapter_name="pilotage", local_files_only=not spec.allow_download, use_safetensors=True
            )
        pipe.set_adapters("pilotage", spec.lora_scale)
    except Exception as error:  # peft and diffusers raise many kinds
        raise UsageError(f"cannot use the LoRA {spec.lora}: {' '.join(str(error).split())[:200]}") from None


def load_weak(spec: RunSpec, pipe: Any) -> nn.Module:
    """The weaker network of autoguidance, of the same class as the pipeline's own."""
    import torch

    from ..guidance.pipelines import adapter_of

    name = adapter_of(pipe).network
    strong = getattr(pipe, name)
    dtype = getattr(torch, spec.dtype)
    if spec.weak in (None, "embedded"):
        if spec.model != "embedded" and spec.weak is None:
            raise UsageError("autoguidance needs a weaker network of this model: weak=FOLDER (embedded brings its own)")
        return _beside(strong, _zoo("embedded").load_weak(dtype))
    assert spec.weak is not None
    folder = Path(spec.weak)
    if not folder.is_dir():
        raise UsageError(f"there is no folder {spec.weak} with a weak network")
    inside = {"subfolder": name} if (folder / "model_index.json").is_file() else {}
    try:
        with quiet():
            kept = {"local_files_only": True, "use_safetensors": True}
            weak = type(strong).from_pretrained(str(folder), dtype=dtype, **kept, **inside)
    except (OSError, ValueError, RuntimeError) as error:
        raise UsageError(f"cannot load a weak {name} from {spec.weak}: {' '.join(str(error).split())[:200]}") from None
    return _beside(strong, weak)


def _beside(strong: nn.Module, weak: nn.Module) -> nn.Module:
    """On the same device, unless the strong one has none because its layers wait elsewhere (`offload`)."""
    place = next(strong.parameters()).device
    return (weak if place.type == "meta" else weak.to(place)).eval()


# -- which weights exactly -----------------------------------------------------------------------------------


def revision_of(name: str, pipe: Any) -> str:
    """What tells one version of a model from another: the hub's commit, or a hash of the folder."""
    folder = Path(name)
    if name == "embedded":
        folder = embedded_files()
    if folder.is_dir():
        return fingerprint(folder)
    commit = getattr(pipe, "config", {}).get("_commit_hash") or Path(str(pipe.config.get("_name_or_path", ""))).name
    return str(commit)


def fingerprint(folder: Path) -> str:
    """A hash of names, sizes, and both ends of each file: enough to tell versions apart, quick for gigabytes."""
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts):
        size = path.stat().st_size
        digest.update(f"{path.relative_to(folder).as_posix()}\0{size}\0".encode())
        with path.open("rb") as file:
            digest.update(file.read(1 << 16))
            if size > 1 << 17:
                file.seek(-(1 << 16), os.SEEK_END)
                digest.update(file.read(1 << 16))
    return digest.hexdigest()[:16]
