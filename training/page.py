"""The page of a training run, and that of several: no scripts, nothing from elsewhere, the same bytes for the same
files."""

from __future__ import annotations

import base64
import functools
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup
from PIL import Image, UnidentifiedImageError

from ..errors import UsageError
from ..storage import disk_errors, write_text
from .curves import COLOURS, WINDOW, Curve, Points, chart, noisy, reaches, smoothed
from .history import History, read_history

PAGE = "index.html"
LARGEST = 1400  # the longest side of a sheet on the page
BETWEEN = 6  # sheets shown between the first and the last
NOTICES = 20

# What a number says and where it stands; others come after these, by name. "*" stands for any name.
KNOWN = {
    "reward": "mean over the pictures that an update learns from",
    "held_out/reward": "the reward that is trained on, on held-out prompts and always the same seeds",
    "judge/*": "a judge that is not trained on, on held-out prompts",
    "held_out/coverage": "share of the teacher's pictures that have one of the student's near them",
    "held_out/recall": "share of the teacher's pictures inside of the student's neighbourhoods",
    "held_out/precision": "share of the student's pictures inside of the teacher's neighbourhoods",
    "held_out/density": "how many of the teacher's neighbourhoods hold a picture of the student; their own: 1",
    "held_out/distance": "Frechet distance of student and teacher, in features",
    "held_out/diversity": "distance of pictures of one prompt",
    "diversity": "distance of pictures of one prompt",
    "kl": "how far the model has gone from the one before training",
    "lora_norm": "size of what was learnt",
    "held_out/clamped": "share of pixel values outside of what can be shown; it should stay near its start",
    "clamped": "share of pixel values outside of what can be shown; it should stay near its start",
    "held_out/*": "on held-out prompts and always the same seeds",
    "loss": "what an update lowers",
    "fake_error": "what the model of the student's own pictures gets wrong; a jump says that it lags behind",
    "head_right": "how often real and made are told apart; .5 is not at all",
    "effective": "share of a batch that the weights of the divergence leave; low is noisy",
    "ratio": "mean density ratio before clipping; 1 for a good discriminator",
    "pull": "size of the gradient at the student's pictures",
}

OF_TEACHER = " of the teacher"  # ends the name of what a curve is compared with
SPELT = {"kl": "KL", "lora_norm": "LoRA norm"}


@dataclass(frozen=True)
class Panel:
    """A drawing and how to read it. keys: (class of a colour, name) of its curves, where there are several."""

    title: str
    reading: str
    drawing: Markup
    keys: tuple[tuple[str, str], ...] = ()


def write_page(folder: str | Path) -> Path:
    """Write index.html in a run's folder, from its log.jsonl, run.yaml and sheets; what is missing is left out.

    Raises UsageError where there is no log.
    """
    path = Path(folder) / PAGE
    write_text(path, render(read_history(folder), Path(folder).resolve().name))
    return path


def write_comparison(runs: Mapping[str, str | Path], path: str | Path) -> Path:
    """Write a page of several runs, {name: folder}: their rewards against the pictures that they sampled.

    path: an .html file, or a folder for index.html. Raises UsageError for no runs and for a folder without a log.
    """
    if not runs:
        raise UsageError("there is no run to compare; give {name: folder}")
    target = Path(path) if Path(path).suffix == ".html" else Path(path) / PAGE
    text = render_comparison({name: read_history(folder) for name, folder in runs.items()})
    with disk_errors(target.parent):
        target.parent.mkdir(parents=True, exist_ok=True)
    write_text(target, text)
    return target


def render(run: History, title: str) -> str:
    """The page of one run as text; everything that a user gave is escaped."""
    hidden = max(0, len(run.notices) - NOTICES)
    return _filled(
        title=title,
        facts=_facts(run),
        notices=run.notices[-NOTICES:],
        hidden=hidden,
        heading="Curves",
        panels=[panel for name in _drawn(run) if (panel := _panel(run, name)).drawing],
        changes=_changes(run),
        sheets=_sheets(run),
        specs=[("The settings", run.spec)] if run.spec else [],
    )


def render_comparison(runs: Mapping[str, History]) -> str:
    """The page of several runs as text."""
    names = [name for name in ordered(_shared(runs)) if name == "reward" or "/" in name]
    specs = [(name, run.spec) for name, run in runs.items() if run.spec]
    return _filled(
        title=f"{len(runs)} training runs",
        facts=[f"{name}: {fact}" for name, run in runs.items() for fact in _facts(run)[:1]],
        heading="Against pictures sampled",
        panels=[panel for name in names if (panel := _compared(runs, name)).drawing],
        race=_race(runs),
        specs=specs,
    )


def ordered(names: Sequence[str]) -> list[str]:
    """Names of series as the page has them: those that are known first."""
    ranks = {pattern: rank for rank, pattern in enumerate(KNOWN)}
    return sorted(names, key=lambda name: (ranks.get(_known(name), len(ranks)), name))


def _known(name: str) -> str:
    """Its entry of KNOWN: its own, or that of its group."""
    return name if name in KNOWN else f"{name.partition('/')[0]}/*"


def _filled(**content: Any) -> str:
    return str(_template().render(**content))


@functools.cache
def _template() -> Any:
    """Compiled once: that takes longer than to fill it."""
    import jinja2

    return jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
        Path(__file__).with_name("page.html.j2").read_text(encoding="utf-8")
    )


# -- one run ----------------------------------------------------------------------------------------------------------


def _facts(run: History) -> list[str]:
    pictures, seconds = run.last("pictures"), run.last("seconds")
    updates = run.lines[-1]["update"]
    facts = [f"{updates} update{'s' * (updates != 1)}"]
    if pictures is not None:
        facts[0] += f", {pictures:.0f} pictures sampled"
    facts += [f"{name} {run.settings[name]}" for name in ("method", "reward", "model") if run.settings.get(name)]
    return [*facts, *([_time(seconds)] if seconds else [])]


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _title(name: str) -> str:
    """ "held_out/reward" as "reward, held out"; "judge/adherence" as "adherence, judge"."""
    group, _, part = name.partition("/")
    told = (SPELT.get(word, word.replace("_", " ")) for word in (part, group) if word)
    return ", ".join(told)


def _panel(run: History, name: str) -> Panel:
    points = run.series(name)
    mark, meaning = _mark(run, name, points)
    drawing = chart([Curve(_title(name), points)], "update", _title(name), mark=mark)
    return Panel(_title(name), "; ".join(filter(None, [_reading(name, noisy(points)), meaning])), drawing)


def _drawn(run: History) -> list[str]:
    """The series that are curves of their own."""
    return [name for name in ordered(run.names) if not name.endswith(OF_TEACHER)]


def _mark(run: History, name: str, points: Points) -> tuple[float | None, str]:
    """What a dashed line is drawn at, and what it means: what the teacher reaches, or where a run stops."""
    theirs = run.series(name + OF_TEACHER)
    if theirs:
        return theirs[-1][1], "the dashed line is the teacher"
    limit = run.diversity_limit if name.endswith("diversity") else None
    if not points or not limit:
        return None, ""
    return limit * points[0][1], f"the dashed line is {limit:.0%} of the first, below which a run stops"


def _reading(name: str, smooth: bool) -> str:
    told = [KNOWN.get(_known(name), ""), f"bold: the mean of the last {WINDOW}" if smooth else ""]
    return "; ".join(filter(None, told))


def _changes(run: History) -> list[tuple[str, str, str, str]]:
    """(name, before, after, greatest) of what is measured on held-out prompts."""
    found = []
    for name in [name for name in _drawn(run) if "/" in name]:
        values = [value for _, value in run.series(name)]
        if len(values) > 1:
            found.append((_title(name), f"{values[0]:.4g}", f"{values[-1]:.4g}", f"{max(values):.4g}"))
    return found


def _sheets(run: History) -> dict[str, Any]:
    """The first and the last, and some of those between; a sheet that cannot be read is left out."""
    updates = sorted(run.sheets)
    inner = updates[1:-1]
    chosen = [inner[i * len(inner) // min(BETWEEN, len(inner))] for i in range(min(BETWEEN, len(inner)))]
    told = {update: _as_data(run.sheets[update]) for update in {*updates[:1], *updates[-1:], *chosen}}
    tiles = [(_when(update), told[update]) for update in sorted(told) if told[update]]
    beside = "; the student's on the left, the teacher's on the right" if run.kind == "distill" else ""
    return {"ends": tiles[:1] + tiles[1:][-1:], "between": tiles[1:-1], "beside": beside}


def _when(update: int) -> str:
    return f"after {update} update{'s' * (update != 1)}" if update else "before training"


def _as_data(path: Path) -> str:
    """A sheet as a JPEG to look at, a data URI; nothing where it is no picture."""
    held = io.BytesIO()
    try:
        with Image.open(path, formats=("PNG",)) as opened:
            image = opened.convert("RGB")
    except (OSError, SyntaxError, ValueError, UnidentifiedImageError, Image.DecompressionBombError):
        return ""
    image.thumbnail((LARGEST, LARGEST), Image.Resampling.LANCZOS)
    image.save(held, format="JPEG", quality=88)
    return f"data:image/jpeg;base64,{base64.b64encode(held.getvalue()).decode()}"


# -- several runs -----------------------------------------------------------------------------------------------------


def _shared(runs: Mapping[str, History]) -> list[str]:
    """Names of series that every run has."""
    first, *others = runs.values()
    return [name for name in first.names if all(name in other.names for other in others)]


def _compared(runs: Mapping[str, History], name: str) -> Panel:
    """One series of all runs against pictures sampled."""
    curves = [Curve(label, run.series(name, "pictures")) for label, run in runs.items()]
    keys = tuple((f"c{number % COLOURS}", label) for number, label in enumerate(runs))
    drawing = chart(curves, "pictures sampled", _title(name), log_x=True, mark=_base(curves))
    reading = _reading(name, any(noisy(curve.points) for curve in curves))
    if _base(curves) is not None:
        reading += "; the dashed line is the model before training"
    return Panel(_title(name), reading, drawing, keys)


def _base(curves: Sequence[Curve]) -> float | None:
    """The value before the first picture was sampled, where all runs have the same."""
    first = [curve.points[0] for curve in curves if curve.points]
    values = [y for x, y in first if x == 0]
    same = len(values) == len(curves) and max(values) - min(values) <= 1e-6 * max(1e-12, *map(abs, values))
    return values[0] if same else None


def _race(runs: Mapping[str, History]) -> dict[str, Any] | None:
    """How many pictures each run took to the best of each: on held-out prompts where all runs have that, else the
    trailing mean of the training reward."""
    names = _shared(runs)
    name = next((wanted for wanted in ("held_out/reward", "reward") if wanted in names), None)
    if name is None or len(runs) < 2:
        return None
    told = {label: run.series(name, "pictures") for label, run in runs.items()}
    if name == "reward":
        told = {label: smoothed(points) for label, points in told.items()}
    if not all(told.values()):
        return None
    best = {label: max(y for _, y in points) for label, points in told.items()}
    rows = [(label, f"{best[label]:.4g}", [_cell(points, told[other], best[other]) for other in told])
            for label, points in told.items()]  # fmt: skip
    what = "the held-out reward" if name != "reward" else f"the mean training reward of {WINDOW} updates"
    return {"what": what, "names": list(told), "rows": rows}


def _cell(points: Points, theirs: Points, level: float) -> tuple[str, str]:
    """(pictures until the level, how many times fewer or more than the run whose best it is)."""
    ours, own = reaches(points, level), reaches(theirs, level)
    if ours is None:
        return "not reached", ""
    if own is None or ours == own or not ours or not own:
        return f"{ours:.0f}", ""
    return f"{ours:.0f}", f"{own / ours:.3g}x fewer" if own > ours else f"{ours / own:.3g}x more"
