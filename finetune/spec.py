"""FinetuneSpec: what a fine-tuning run is. One model is the YAML file, the target of `--set`, and the key of a
resume."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field, model_validator

from ..generation.spec import Texts
from ..training.spec import TrainingSpec
from .guardrails import Limits
from .methods.registry import make_method


def _as_method(value: Any) -> str:
    make_method(str(value))
    return str(value)


class FinetuneSpec(TrainingSpec):
    """Every setting of a fine-tuning run. Unknown keys are refused; what is missing gets a default."""

    kind: ClassVar[str] = "finetune"

    method: Annotated[str, BeforeValidator(_as_method)] = "alignprop"
    reward: str = Field("", description="what is raised: a line of rewards")
    judges: Texts = Field((), description="rewards that are only watched; none may be of the training reward's model")
    limits: Limits = Limits()

    @model_validator(mode="before")
    @classmethod
    def _suit_the_model(cls, given: Any) -> Any:
        """Defaults that suit the embedded model; other models have presets."""
        if isinstance(given, dict) and given.get("model", "embedded") == "embedded":
            return {"guidance": "cfg:scale=3", "held_out": ["embedded:heldout:8"], "features": "embedded"} | given
        return given

    def title(self) -> str:
        return f"{self.method.partition(':')[0]} {self.reward}"

    @property
    def paced(self) -> bool:
        return make_method(self.method).paced

    def notes(self) -> list[str]:
        found = super().notes()
        if not self.judges and self.model != "embedded":
            found.append("no judge: nothing will tell a better picture from a fooled reward; give one with --judge")
        return found
