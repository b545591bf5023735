"""Which pipelines of the installed diffusers can be steered: `python -m pilotage.guidance.pipelines.coverage`.

The classes are read from the sources, not imported: some need packages that are not here. `docs/pipelines.md` is the
output, and a test compares the two.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import diffusers

from .adapter import Adapter
from .adapters import ADAPTERS, REFUSED
from .transformer_rows import UNPROVEN as UNPROVEN_TRANSFORMERS
from .unet_rows import UNPROVEN as UNPROVEN_UNETS
from .video_rows import UNPROVEN as UNPROVEN_VIDEOS

UNPROVEN: dict[str, str] = {**UNPROVEN_UNETS, **UNPROVEN_TRANSFORMERS, **UNPROVEN_VIDEOS}

_SPRINT = (
    "guidance-distilled, its scale is an input of the network; the pipeline converts x and the prediction between two "
    "scalings, which no field of a row says yet"
)

# Pipelines with a setting for guidance that have no negative branch: why.
WITHOUT_BRANCH: dict[str, str] = {
    "SanaSprintPipeline": _SPRINT,
    "SanaSprintImg2ImgPipeline": _SPRINT,
    "LTX2DFRPipeline": "distilled to few steps, calls its network once a step; its guidance is by keyframes",
}


@dataclass(frozen=True)
class Found:
    """A pipeline class as its source has it. settings: the arguments of its call that are about guidance."""

    name: str
    bases: tuple[str, ...]
    settings: tuple[str, ...]
    deprecated: bool


_CLASS = re.compile(r"^class (\w+)\(([^)]*)\):", re.MULTILINE)
_CALL = re.compile(r"    def __call__\((.*?)\)(?: ->[^\n]*)?:\n", re.DOTALL)
_SETTING = re.compile(r"\b(?!control)(\w*(?:guidance|cfg)\w*)\s*[:=]")


@lru_cache(maxsize=1)
def pipelines() -> dict[str, Found]:
    """Every pipeline class of the installed diffusers, by name."""
    root = Path(diffusers.__file__).parent / "pipelines"
    classes = {found.name: found for path in sorted(root.rglob("pipeline_*.py")) for found in _classes(path)}
    return {name: found for name, found in sorted(classes.items()) if "DiffusionPipeline" in _ancestors(name, classes)}


def _classes(path: Path) -> Iterator[Found]:
    if "onnx" in path.name or "flax" in path.name:  # other runtimes
        return
    source = path.read_text(encoding="utf-8")
    heads = list(_CLASS.finditer(source))
    for head, end in zip(heads, [*(head.start() for head in heads[1:]), len(source)], strict=False):
        bases = tuple(re.findall(r"\w+", head[2]))
        call = _CALL.search(source, head.end(), end)
        settings = tuple(_SETTING.findall(call[1])) if call else ()
        deprecated = "deprecated" in path.parts or "DeprecatedPipelineMixin" in bases
        yield Found(head[1], bases, settings, deprecated)


def _ancestors(name: str, classes: dict[str, Found]) -> set[str]:
    bases = classes[name].bases if name in classes else ()
    return set(bases).union(*(_ancestors(base, classes) for base in bases))


def status(found: Found) -> str:
    """ "steered", "refused", "no row yet", "deprecated", "no negative branch", "no guidance", or "unknown"."""
    if found.name in ADAPTERS:
        return "steered"
    if found.name in REFUSED:
        return "refused"
    if found.name in UNPROVEN:
        return "no row yet"
    if found.deprecated:
        return "deprecated"
    if found.name in WITHOUT_BRANCH:
        return "no negative branch"
    return "unknown" if found.settings else "no guidance"


def markdown() -> str:
    """The page: counts, then one table a status."""
    groups: dict[str, list[Found]] = {}
    for found in pipelines().values():
        groups.setdefault(status(found), []).append(found)
    lines = [
        f"# Pipelines of diffusers {diffusers.__version__}",
        "",
        "Made by `python -m pilotage.guidance.pipelines.coverage > docs/pipelines.md`. Every steered class has a tiny "
        "pipeline of",
        "its own in `tests/`, on which CFG through `attach` equals the class's own guidance, and a rule that needs no "
        "negative branch",
        "computes only the conditional rows. A class of yours that inherits from one of these is steered likewise.",
        "",
        "| | classes |",
        "|---|---|",
    ]
    explained = {
        "steered": "steered: `attach` works, tested",
        "refused": "refused: cannot be steered, the error says what to do instead",
        "no row yet": "no row yet: does guidance itself, and the table says what is missing",
        "no negative branch": "no negative branch: there is no CFG to replace",
        "no guidance": "no guidance at all",
        "deprecated": "deprecated by diffusers",
        "unknown": "not looked at",
    }
    lines += [f"| {text} | {len(groups[key])} |" for key, text in explained.items() if key in groups]
    lines += ["", "## Steered", "", "| pipeline | layout | branches | pass | notes |", "|---|---|---|---|---|"]
    lines += [_steered(found.name, ADAPTERS[found.name]) for found in groups.get("steered", [])]
    for title, key, reasons in (
        ("Refused", "refused", REFUSED),
        ("No row yet", "no row yet", UNPROVEN),
        ("No negative branch", "no negative branch", WITHOUT_BRANCH),
    ):
        lines += ["", f"## {title}", "", "| pipeline | why |", "|---|---|"]
        lines += [f"| {found.name} | {reasons[found.name]} |" for found in groups.get(key, [])]
    lines += [
        "",
        "Rules that perturb the network (PAG, SEG, autoguidance) need no negative branch; such a class needs a row all "
        "the same,",
        'with `branches=("cond",)`, as the latent consistency models have.',
    ]
    for title, key in (("No guidance", "no guidance"), ("Deprecated", "deprecated"), ("Not looked at", "unknown")):
        if names := [found.name for found in groups.get(key, [])]:
            lines += ["", f"## {title}", "", ", ".join(names) + "."]
    return "\n".join(lines) + "\n"


def _steered(name: str, row: Adapter) -> str:
    on = "nothing" if not row.on_settings else row.on.replace("its value has no effect", "any").replace("|", "/")
    return f"| {name} | {row.layout} | {', '.join(row.branches)} | {on} | {row.notes} |"


if __name__ == "__main__":
    print(markdown(), end="")
