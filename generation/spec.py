"""RunSpec: what a run is. One model is the YAML file, the target of `--set`, the PNG metadata and the resume key."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
    ValidationInfo,
    model_validator,
)

from ..documents import Unreadable, plain_yaml
from ..errors import UsageError, nearest
from .memory import CHANGING, Memory, as_memory
from .recommended import recommended
from .seeds import Seed, read_seeds, spell_seeds

# What a run may differ in without its pictures differing; of `memory`, all but what it calls changing.
NOT_IDENTITY = ("output", "preview_every", "allow_download")
MOST_PICTURES = 10_000_000  # a slip, or a file of a stranger, should not fill the memory


def _as_texts(value: Any) -> Any:
    """One prompt may stand alone; YAML reads a bare 3 as a number."""
    return [str(v) for v in ([value] if isinstance(value, (str, int, float)) else value or [])]


def _as_guidance(value: Any, info: ValidationInfo) -> str:
    """The line with what the model's own measurements add to it, such as the threshold of adaptive guidance."""
    from ..guidance.grammar import parse, spell
    from .models import guidance_defaults

    measured = guidance_defaults(info.data.get("model", "embedded"))
    return spell(parse(str(value), measured), always=measured)


def _as_sampler(value: Any) -> str:
    from ..samplers.aliases import refuse_unknown
    from ..samplers.registry import make_sampler

    refuse_unknown(str(value))
    if value != "stock":
        make_sampler(str(value))
    return str(value)


def _as_grid(value: Any) -> str | None:
    from ..samplers.aliases import in_our_words
    from ..samplers.grids import parse_grid

    if value is None:
        return None
    line = in_our_words(str(value))
    parse_grid(line)
    return line


Seeds = Annotated[tuple[Seed, ...], BeforeValidator(read_seeds), PlainSerializer(spell_seeds)]
Size = Annotated[int | None, Field(ge=8, multiple_of=8, le=16384)]
Texts = Annotated[tuple[str, ...], BeforeValidator(_as_texts)]
Guidance = Annotated[str, BeforeValidator(_as_guidance)]
SamplerLine = Annotated[str, BeforeValidator(_as_sampler)]
Switches = Annotated[
    Memory, BeforeValidator(as_memory), PlainSerializer(lambda memory: memory.model_dump(exclude_defaults=True))
]
GridLine = Annotated[str | None, BeforeValidator(_as_grid)]


class RunSpec(BaseModel):
    """Every setting of a run. Unknown keys are refused; what is missing gets a default that suits the model."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), coerce_numbers_to_str=True)

    # what is drawn
    prompts: Texts = ()
    negative: str | None = Field(
        None, description="what should not be there; needs a rule with an unconditional branch"
    )
    seeds: Seeds = (0,)
    paired: bool = Field(False, description="the first prompt with the first seed, and so on, not all with all")
    width: Size = None
    height: Size = None
    image: str | None = Field(None, description="start from this picture")
    strength: float = Field(0.8, gt=0, le=1, description="how much of the picture is redrawn")
    mask: str | None = Field(None, description="white is redrawn; needs image")
    # by whom
    model: str = Field("embedded", description="embedded, a folder, or a hub id", min_length=1)
    weak: str | None = Field(None, description="a weaker network for autoguidance: a folder of its own")
    lora: str | None = Field(None, description="a LoRA: a safetensors file, a folder or a hub id")
    lora_scale: float = 1.0
    # how
    guidance: Guidance = "cfg:scale=5"
    sampler: SamplerLine = "dpmpp-2m"
    grid: GridLine = None
    steps: int = Field(30, ge=1, le=10_000)
    teleport: str | None = Field(None, description="leave the first steps out: a file of pilotage fit-teleport")
    call: dict[str, Any] = Field(default_factory=dict, description="further arguments of the pipeline's own call")
    # where, and in what portions
    batch_size: int = Field(8, ge=1, le=65_536)
    exact: bool = Field(False, description="pad every batch, so that a picture is bitwise the same alone or in company")
    rows_per_call: int | None = Field(None, ge=1, description="rows of every network call in exact mode")
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    device: str = Field("auto", pattern=r"^(auto|cpu|mps|cuda|cuda:\d+)$")
    threads: int | None = Field(None, ge=1, le=4096)
    memory: Switches = Field(Memory(), description="auto, none, or switches of memory.Memory")
    output: str | None = None
    preview_every: int = Field(0, ge=0, description="write preview.png every so many steps; 0 never")
    allow_download: bool = False

    def __init__(self, /, **settings: Any):
        try:
            super().__init__(**settings)
        except ValidationError as error:
            raise in_one_line(error, type(self)) from None

    @model_validator(mode="before")
    @classmethod
    def _suit_the_model(cls, given: Any) -> Any:
        """Defaults that suit the embedded model, or those that a model's folder asks for; others have presets."""
        if not isinstance(given, dict):
            return given
        model = str(given.get("model", "embedded"))
        embedded = {"guidance": "cfg:scale=3", "steps": 25}
        suited = embedded if model == "embedded" else recommended(model, picture=bool(given.get("image")))
        return suited | given

    @model_validator(mode="before")
    @classmethod
    def _know_names_from_elsewhere(cls, given: Any) -> Any:
        """Such as "DPM++ 2M Karras", a sampler and a grid; a grid that is given stands."""
        from ..samplers.aliases import resolved

        if not isinstance(given, dict) or not (found := resolved(str(given.get("sampler", "")))):
            return given
        sampler, grid = found
        return given | {"sampler": sampler} | ({"grid": grid} if grid and given.get("grid") is None else {})

    @model_validator(mode="after")
    def _belong_together(self) -> Self:
        if self.mask and not self.image:
            raise UsageError("a mask needs the picture it belongs to; give image as well")
        if self.image and int(self.steps * self.strength) < 1:
            raise UsageError(f"strength {self.strength} of {self.steps} steps is no step at all; raise one of them")
        if self.teleport and (self.image or self.sampler == "stock"):
            raise UsageError("teleport moves whole runs of one of our samplers; leave image out, and the stock sampler")
        if self.paired and len(self.prompts) not in (0, len(self.seeds)):
            raise UsageError(f"paired needs as many seeds as prompts, not {len(self.seeds)} and {len(self.prompts)}")
        return self

    # -- the pictures ----------------------------------------------------------------------------------------

    def pictures(self) -> list[tuple[str, Seed]]:
        """(prompt, seed) of each picture, in the order of their numbers."""
        if not self.prompts:
            raise UsageError(
                'no prompt, so no pictures; give one, such as "two red stars on navy", or a --prompts file'
            )
        if self.paired:
            return list(zip(self.prompts, self.seeds, strict=True))
        if len(self.prompts) * len(self.seeds) > MOST_PICTURES:
            count = f"{len(self.prompts)} prompts with {len(self.seeds)} seeds"
            raise UsageError(f"{count} are more than {MOST_PICTURES} pictures; make several runs of it")
        return [(prompt, seed) for prompt in self.prompts for seed in self.seeds]

    # -- other forms -----------------------------------------------------------------------------------------

    def changed(self, **settings: Any) -> Self:
        """The same with other settings, validated; dotted keys reach into `call` and `memory`."""
        return type(self)(**with_settings(self.plain(), settings))

    def plain(self) -> dict[str, Any]:
        """As JSON and YAML have it."""
        return self.model_dump(mode="json")

    def identity(self) -> dict[str, Any]:
        """What decides how the pictures look."""
        return identity_of(self.plain())

    def as_yaml(self) -> str:
        """The resolved spec, without settings that are not in use."""
        shown = {key: value for key, value in self.plain().items() if value not in (None, {}, [])}
        return yaml.safe_dump(shown, sort_keys=False, allow_unicode=True, width=110)


def identity_of(plain: Mapping[str, Any]) -> dict[str, Any]:
    """Of a spec in its plain form what decides how the pictures look; switches for memory only where they are in use,
    by names such as "memory.vae_tiling"."""
    memory = plain.get("memory") or {}
    changing = {f"memory.{name}": memory[name] for name in CHANGING if memory.get(name)}
    kept = {key: value for key, value in plain.items() if key not in (*NOT_IDENTITY, "memory")}
    return kept | changing


def with_settings(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of nested settings with changes; "a.b" reaches inside a."""
    result = dict(base)
    for key, value in changes.items():
        first, dot, rest = key.partition(".")
        if dot:
            inner = result.get(first) or {}
            if not isinstance(inner, Mapping):
                raise UsageError(f"{key}: {first} has no settings inside; set {first} itself")
            result[first] = with_settings(inner, {rest: value})
        else:
            result[first] = value
    return result


def read_yaml(path: Path) -> dict[str, Any]:
    """The settings of a YAML file; a run.yaml gives those of its run. Nothing is executed."""
    try:
        found = plain_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"there is no settings file {path}") from None
    except IsADirectoryError:
        raise UsageError(f"{path} is a folder; give a YAML file in it") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {path}: {_reason(error)}") from None
    except Unreadable as error:
        raise UsageError(f"{path} is no YAML that can be used: {error}") from None
    if not isinstance(found, dict):
        raise UsageError(f"{path} holds no settings; write lines such as steps: 25")
    return found["spec"] if isinstance(found.get("spec"), dict) else found


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or "it is not text"


def in_one_line(error: ValidationError, model: type[BaseModel]) -> UsageError:
    """The first thing that pydantic found wrong, as a line with the fix."""
    first = error.errors()[0]
    raised = first.get("ctx", {}).get("error")
    if isinstance(raised, UsageError):
        return raised
    name = ".".join(str(part) for part in first["loc"] if not str(part).startswith("function"))
    if first["type"] == "extra_forbidden":
        inside: Any = model.model_fields[str(first["loc"][0])].annotation if len(first["loc"]) > 1 else None
        known = [f"{first['loc'][0]}.{field}" for field in getattr(inside, "model_fields", {})]
        known = known or list(model.model_fields)
        return UsageError(f"unknown key {name!r}: {nearest(name, known)}")
    if first["type"] == "unexpected_keyword_argument":  # of a dataclass inside, such as lora.rank
        inner = model.model_fields[str(first["loc"][0])].annotation
        known = [f"{first['loc'][0]}.{field.name}" for field in fields(inner)] if is_dataclass(inner) else []
        return UsageError(f"unknown key {name!r}: {nearest(name, known)}")
    wrong = first["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    return UsageError(f"{name}: {wrong[0].lower()}{wrong[1:]}, not {first['input']!r}")
