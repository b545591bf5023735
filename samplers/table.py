"""docs/samplers.md from the registries: `python -m pilotage.samplers.table` writes it, a test sees that it is up to
date."""

from __future__ import annotations

from pathlib import Path

from ..markdown import limits_of, off_at, settings_of, table
from ..registry import Spec
from .grids import GRIDS
from .inversion.registry import INVERSIONS
from .registry import SAMPLERS

PLACE = Path(__file__).resolve().parent.parent / "docs" / "samplers.md"

_HEAD = """\
# Samplers, grids and inversions

Made from the registries by `python -m pilotage.samplers.table`; do not edit.

Every sampler works with every rule, on epsilon, v, x0 and flow models, in our own loop (`samplers.sample`,
differentiable) and as a diffusers scheduler in any pipeline:
`pipe.scheduler = samplers.UniPC.from_config(pipe.scheduler.config)`. On the command line settings follow the name,
`--sampler "heun:churn=40,high=50" --grid "karras:p=5"`; the names of other programs are understood too,
`--sampler "DPM++ 2M Karras"`.

*order*: how the error of the deterministic part falls with the number of steps, asserted on a mixture with an exact
solution. *a step*: network evaluations.
"""


def document() -> str:
    """The whole of docs/samplers.md."""
    return "\n".join([
        _HEAD,
        "## Samplers\n",
        table([_sampler(name, spec) for name, spec in SAMPLERS.items()]),
        *_limits(SAMPLERS),
        "## Grids\n",
        table([_grid(name, spec) for name, spec in GRIDS.items()]),
        *_limits(GRIDS),
        "## Inversions\n",
        "Steps that can be undone: for `pilotage invert`, editing, and gradients at the memory of one state.\n",
        table([_inversion(name, spec) for name, spec in INVERSIONS.items()]),
        *_limits(INVERSIONS),
    ])  # fmt: skip


def _sampler(name: str, spec: Spec) -> dict[str, str]:
    return {
        "name": f"`{name}`",
        "what it does": spec.summary,
        "order": str(spec.load()().order),
        "a step": spec.cost,
        "settings": settings_of(spec),
        "deterministic at": off_at(spec),
        "source": spec.paper,
    }


def _grid(name: str, spec: Spec) -> dict[str, str]:
    settings = {key: value for key, value in spec.defaults.items() if key not in ("schedule", "steps", "inner")}
    shown = ", ".join(key if value is ... else f"{key}={value}" for key, value in settings.items())
    return {"name": f"`{name}`", "what it does": spec.summary, "settings": shown, "source": spec.paper}


def _inversion(name: str, spec: Spec) -> dict[str, str]:
    return {
        "name": f"`{name}`",
        "what it does": spec.summary,
        "a step": spec.cost,
        "settings": settings_of(spec),
        "source": spec.paper,
    }


def _limits(registry: dict[str, Spec]) -> list[str]:
    return [f"### {name}\n\n{limits_of(spec)}\n" for name, spec in registry.items() if spec.limits]


if __name__ == "__main__":
    PLACE.write_text(document(), encoding="utf-8")
