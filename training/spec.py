"""TrainingSpec: what every training run is told. One model is the YAML file, the target of `--set`, and the key of a
resume; FinetuneSpec and DistillSpec add what is learnt and how."""

from __future__ import annotations

import hashlib
import importlib
import json
import re
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, ValidationInfo, model_validator

from ..errors import UsageError
from ..generation.prompts import read_prompts
from ..generation.spec import GridLine, Guidance, SamplerLine, Size, in_one_line, with_settings
from .lora import LoraSettings
from .optimisers import available
from .update import Sampling

# What a run may differ in without its weights differing.
NOT_IDENTITY = ("output", "allow_download", "offload", "checkpoint_every", "sheet_every", "tracker")
_CAPTIONS = re.compile(r"embedded:(train|test|heldout):([1-9]\d{0,6})")


def _as_prompts(value: Any, info: ValidationInfo) -> tuple[str, ...]:
    """Texts; an entry that names a .txt or .csv file stands for the prompts in it."""
    given = [value] if isinstance(value, (str, int, float)) else list(value or [])
    found: list[str] = []
    for text in map(str, given):
        found += read_prompts(Path(text))["prompts"] if text.endswith((".txt", ".csv")) else [text]
        if text.startswith("embedded:") and not _CAPTIONS.fullmatch(text):
            raise UsageError(f"cannot read {text!r}; write embedded:train:200, or test or heldout instead of train")
    return tuple(found)


Prompts = Annotated[tuple[str, ...], BeforeValidator(_as_prompts)]


class TrainingSpec(BaseModel):
    """Every setting that trainings share. Unknown keys are refused; what is missing gets a default."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), coerce_numbers_to_str=True)
    kind: ClassVar[str] = "training"  # how a run folder of it is called

    # what is learnt, and by whom
    prompts: Prompts = Field((), description="texts, files of them, or embedded:train:200 for captions of that world")
    model: str = Field("embedded", description="embedded, a folder, or a hub id", min_length=1)
    weak: str | None = Field(None, description="a weaker network for autoguidance: a folder of its own")
    train: Literal["lora", "all"] = "lora"
    lora: LoraSettings = LoraSettings()
    # how pictures are made
    guidance: Guidance = "cfg:scale=5"
    sampler: SamplerLine = "ddim:eta=1"
    grid: GridLine = "trailing"
    steps: int = Field(20, ge=1, le=10_000)
    width: Size = None
    height: Size = None
    call: dict[str, Any] = Field(
        default_factory=dict, description="arguments of the pipeline's call that its network is told, guidance_scale=1"
    )
    # how it learns
    updates: int = Field(100, ge=1)
    batch: int = Field(16, ge=1, description="prompts an update, over all processes")
    rows: int = Field(8, ge=1, description="pictures that go through the network together")
    optimizer: Literal["adamw", "adamw8bit"] = "adamw"
    learning_rate: float = Field(1e-3, gt=0)
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = Field(1e-4, ge=0)
    clip: float = Field(1.0, gt=0, description="the gradient's greatest norm")
    ema: float = Field(
        0.0, ge=0, lt=1, description="decay of the average of weights that is judged and kept; 0 is none"
    )
    seed: int = Field(0, ge=0, lt=2**63)
    # what it costs
    precision: Literal["no", "bf16", "fp16"] = "no"
    network_checkpoints: bool = Field(False, description="network and VAE store their blocks' inputs only")
    offload: bool = Field(False, description="activations wait in the computer's memory")
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda)$")
    threads: int | None = Field(None, ge=1, le=4096)
    # what is watched
    held_out: Prompts = Field((), description="prompts that are not trained on")
    held_out_seeds: int = Field(8, ge=2, description="pictures of each of them")
    features: str | None = Field(None, description="a feature network, in which diversity is measured")
    evaluate_every: int = Field(10, ge=0, description="updates; 0 is before and after only")
    sheet_every: int = Field(10, ge=0, description="updates; 0 is before and after only")
    checkpoint_every: int = Field(10, ge=1, description="updates")
    # where
    output: str | None = None
    tracker: Literal["tensorboard"] | None = None
    allow_download: bool = False

    def __init__(self, /, **settings: Any):
        try:
            super().__init__(**settings)
        except ValidationError as error:
            raise in_one_line(error, type(self)) from None

    @model_validator(mode="after")
    def _belong_together(self) -> Self:
        if self.sampler == "stock":
            raise UsageError("training has no stock sampler; choose one of `pilotage list samplers`")
        if (self.width is None) != (self.height is None):
            raise UsageError("give both width and height, or neither")
        if not available(self.optimizer):
            raise UsageError(f"{self.optimizer} needs bitsandbytes, which is not installed; use optimizer=adamw")
        if self.lora.rank < 1 or not self.lora.targets:
            raise UsageError("lora needs a rank of 1 or more and targets, such as lora.rank=4")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise UsageError(f"betas must be at least 0 and below 1, not {self.betas[0]} and {self.betas[1]}")
        if self.tracker and not any(map(_installed, ("tensorboard", "tensorboardX"))):
            raise UsageError("tensorboard is not installed: pip install tensorboard, or leave tracker out")
        return self

    # -- what it stands for ------------------------------------------------------------------------------------

    def training_prompts(self) -> list[str]:
        if not self.prompts:
            raise UsageError("no prompts to train on; give some, a file with --prompts, or embedded:train:200")
        return _captions(self.prompts)

    def held_out_prompts(self) -> list[str]:
        """Those, or the first of the training prompts where there are none."""
        return _captions(self.held_out) or self.training_prompts()[:8]

    @property
    def sampling(self) -> Sampling:
        return Sampling(self.sampler, self.grid or "trailing", self.steps, self.guidance)

    @property
    def size(self) -> tuple[int, int] | None:
        return (self.width, self.height) if self.width and self.height else None

    def title(self) -> str:
        """What a folder of its own is called after."""
        return ""

    def folder(self) -> Path:
        """output, or runs/<kind>-<title>-<hash of the spec>: the same command finds the same folder."""
        if self.output:
            return Path(self.output)
        words = re.sub(r"[^a-z0-9]+", "-", self.title().lower())[:40].strip("-")
        return Path("runs") / f"{self.kind}-{words}-{self.digest()[:8]}"

    def notes(self) -> list[str]:
        """What somebody should know before it runs, one line each."""
        if self.held_out:
            return []
        return ["no held-out prompts: the first training prompts are looked at; give some with held_out"]

    @property
    def paced(self) -> bool:
        """Does an update depend on how many there will be? If not, a run may be made longer later."""
        return True

    # -- other forms -------------------------------------------------------------------------------------------

    def changed(self, **settings: Any) -> Self:
        """The same with other settings, validated; dotted keys reach inside."""
        return type(self)(**with_settings(self.plain(), settings))

    def plain(self) -> dict[str, Any]:
        """As JSON and YAML have it."""
        return self.model_dump(mode="json")

    def identity(self) -> dict[str, Any]:
        """What decides what is learnt."""
        left_out = NOT_IDENTITY if self.paced else (*NOT_IDENTITY, "updates")
        return {key: value for key, value in self.plain().items() if key not in left_out}

    def digest(self) -> str:
        return hashlib.sha256(json.dumps(self.identity(), sort_keys=True).encode()).hexdigest()

    def as_yaml(self) -> str:
        """The resolved spec, without settings that are not in use."""
        shown = {key: value for key, value in self.plain().items() if value not in (None, {}, [], "")}
        return yaml.safe_dump(shown, sort_keys=False, allow_unicode=True, width=110)


def _captions(texts: tuple[str, ...]) -> list[str]:
    """Texts with those of the embedded world in their place."""
    found: list[str] = []
    for text in texts:
        named = _CAPTIONS.fullmatch(text)
        if named is None:
            found.append(text)
        else:
            world = importlib.import_module(f"{__package__.rpartition('.')[0]}.zoo.world")
            found += world.captions(range(int(named[2])), named[1])
    return found


def _installed(package: str) -> bool:
    from importlib.util import find_spec

    return find_spec(package) is not None
