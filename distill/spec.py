"""DistillSpec: what a distillation run is. One model is the YAML file, the target of `--set`, and the key of a
resume."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from ..errors import UsageError
from ..training.spec import TrainingSpec
from .guardrails import Limits
from .methods.registry import make_method


def _as_method(value: Any) -> str:
    make_method(str(value))
    return str(value)


def _pairs(given: dict[str, Any]) -> bool:
    """Does the method of these settings learn from pairs? One that is wrong is refused later, with its reason."""
    try:
        return make_method(str(given.get("method", "f-distill"))).needs_pairs
    except UsageError:
        return False


class DistillSpec(TrainingSpec):
    """Every setting of a distillation run. Unknown keys are refused; what is missing gets a default.

    guidance, sampler, grid, steps: of the teacher. train: the student's weights; fake: those of the model of its score.
    """

    kind: ClassVar[str] = "distill"

    method: Annotated[str, BeforeValidator(_as_method)] = "f-distill"
    data: str | None = Field(
        None, description="real latents: teacher:2000, embedded:train:2000, or a folder of pictures with captions"
    )
    start: str | None = Field(None, description="begin with the student of another run: its folder")
    fake: Literal["lora", "all", "as the student"] = Field("as the student", description="what learns of the fake")
    fake_learning_rate: float | None = Field(None, gt=0, description="of the fake and the head; the student's without")
    steps: int = Field(25, ge=1, le=10_000, description="of the teacher, for pairs and for what is compared with")
    sampler: str = Field("dpmpp-2m", description="of the teacher")
    betas: tuple[float, float] = (0.9, 0.999)
    limits: Limits = Limits()

    @model_validator(mode="before")
    @classmethod
    def _suit_the_model(cls, given: Any) -> Any:
        """Defaults that suit the embedded model; other models have presets."""
        if isinstance(given, dict) and given.get("model", "embedded") == "embedded":
            suited = {
                "guidance": "cfg:scale=3", "grid": "exponential", "features": "embedded", "train": "all",
                "prompts": ["embedded:train:4000"], "held_out": ["embedded:heldout:48"], "held_out_seeds": 4,
                "data": "teacher:2000" if _pairs(given) else "embedded:train:4000",
            }  # fmt: skip
            return suited | given
        return given

    def title(self) -> str:
        return self.method

    @property
    def paced(self) -> bool:
        return make_method(self.method).paced

    @property
    def fake_lora(self) -> bool:
        """Is the fake adapters on the teacher's network?"""
        return (self.train if self.fake == "as the student" else self.fake) == "lora"
