"""docs/metrics.md from the registry and from what `benchmarks/metric_sensitivity.py` measured.

`python -m pilotage.evaluation.table` writes it, a test sees that it is up to date.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from ..markdown import table
from .features.resize import PRESETS
from .metrics.prdc import SETTINGS
from .metrics.registry import METRICS, MetricSpec, chosen
from .results import WAYS
from .sensitivity import NULLS, PLAIN, SEEN, Sensitivity, read

ROOT = Path(__file__).resolve().parent.parent
PLACE = ROOT / "docs" / "metrics.md"
TEMPLATE = ROOT / "benchmarks" / "metrics_guide.md.j2"
COUNT = 1000  # pictures of each set of the page

# The columns of the tables, by what is wrong.
GROUPS = {
    "Damaged pictures": ("blur 0.5", "blur 1", "blur 2", "noise 8", "noise 24", "JPEG 30"),
    "Colour": ("saturation 0.5", "saturation 1.5", "saturation 3", "contrast 0.7"),
    "What is missing, or too much": (
        *("half the shapes", "half the colours", "collapse", "collapse, noisy", "concentration"),
        "outliers 5 %",
    ),
    "Copies and captions": ("copies", "copies, noisy", "half copies", "wrong captions"),
}
SPACES = ("embedded", "random", "pixels")
COMPARED = ("frechet", "kernel-distance", "energy", "precision", "recall", "density", "coverage")
# Metrics of features that need weights, and the same of any features.
ALIKE = {"fid": "frechet", "fd-dinov2": "frechet", "fid-infinity": "frechet-infinity", "kid": "kernel-distance"}
# Whose numbers the presets of a resize give.
_USED_BY = {
    "clean": "clean-fid, mode clean; ours",
    "legacy-tf": "the first FID, torch-fidelity, guided-diffusion, EDM",
    "legacy-torch": "pytorch-fid, clean-fid legacy_pytorch",
    "torchmetrics-aa": "torchmetrics 1.9",
    "dgm-eval": "FD-DINOv2 of dgm-eval",
    "edm2": "FD-DINOv2 of EDM2",
    "cmmd-ref": "CMMD of arrays",
    "cmmd-files": "CMMD of a folder",
    "clip": "CLIP's own image processor",
}
# What a report cannot be asked here, since these were not measured, or have no null value of their own.
_BESIDE = "what real pictures have"
_NULLS = {
    **dict.fromkeys(("vendi", "inception-score", "saturation", "contrast", "clipped"), _BESIDE),
    **dict.fromkeys(("adherence", "classifier-precision", "clip-score"), f"{_BESIDE}: the ceiling"),
    "authenticity": "that of test pictures",
    "copying": "0, deviation about 1",
    "mifid": "that of test pictures",
    "cmmd": "expected of equal distributions",
    "network-divergence": "0 of real pictures, 1 of copies",
}
_INTERVALS = {
    **dict.fromkeys(("fid", "fd-dinov2", "mifid"), "none"),
    "inception-score": "over splits",
    "clip-score": "normal 95 %, over pairs",
    "cmmd": "normal 95 %, jackknife of both sets, one row at a time",
    "network-divergence": "normal 95 %, over seeds of critics and rows",
}


def document() -> str:
    """The whole of docs/metrics.md."""
    import jinja2

    template = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined).from_string(
        TEMPLATE.read_text(encoding="utf-8")
    )
    found = Sensitivity.of(read(), COUNT)
    text: str = template.render(
        groups=seen_by_group(found),
        spaces=_by_space(found),
        metrics=table([_cells(name, spec, found) for name, spec in METRICS.items()]),
        resizes=_resizes(),
        balls=_ball_settings(),
        unmeasured=_unmeasured(found),
        value=lambda metric, condition: found.values[metric][condition],
        null=lambda metric: found.null(metric)[0],
        z=lambda metric, condition: found.z(metric, condition),
        nulls=NULLS,
        seen=SEEN,
        plain=PLAIN,
        count=COUNT,
        weights=found.weights,
    )
    return text.rstrip() + "\n"


def seen_by_group(found: Sensitivity) -> dict[str, str]:
    """The tables of the embedded space by group of conditions."""
    return {name: _seen_by(found, conditions) for name, conditions in GROUPS.items()}


def _seen_by(found: Sensitivity, conditions: Iterable[str]) -> str:
    """What each metric makes of some conditions in the embedded space: its mark, and how many null deviations."""
    rows = []
    for metric in found.values:
        if "features=" in metric:
            continue
        mean, deviation = found.null(metric)
        row = {"metric": _called(metric), "null": f"{mean:.4g} ± {deviation:.2g}"}
        rows.append(row | {condition: _cell(found, metric, condition) for condition in conditions})
    order = list(METRICS)
    return table(sorted(rows, key=lambda row: order.index(_base(row["metric"].strip("`").split("`")[0]))))


def _called(metric: str) -> str:
    note = {"mifid": ", its formula", "strangers": ", its own features"}.get(metric, "")
    return f"`{metric}`{note}"


def _cell(found: Sensitivity, metric: str, condition: str) -> str:
    mark = found.mark(metric, condition, _spec(metric).higher_is_better)
    z = abs(found.z(metric, condition))
    return f"{mark} {z:.0f}" if mark and z < 1000 else f"{mark} >999" if mark else ""


def _by_space(found: Sensitivity) -> str:
    """The marks of the metrics that know any features, in each of the spaces."""
    rows = []
    for condition in (one for group in GROUPS.values() for one in group if one != "wrong captions"):
        row = {"": condition}
        for metric in COMPARED:
            named = [metric, *(f"{metric}:features={space}" for space in SPACES[1:])]
            marks = [found.mark(name, condition, _spec(metric).higher_is_better) or "·" for name in named]
            row[metric] = " / ".join(marks)
        rows.append(row)
    return table(rows)


def _cells(name: str, spec: MetricSpec, found: Sensitivity) -> dict[str, str]:
    """One row of the reference, by the heads of its columns."""
    kinds = {_base(metric): kind for metric, kind in found.kinds.items()}
    null, interval = kinds.get(name) or kinds.get(ALIKE.get(name, ""), ("", ""))
    features = f"features {spec.features}" if spec.features else "features"
    needs = [features if need == "features" else need for need in chosen([name])[0].needs]
    return {
        "name": f"`{name}`",
        "what it says": spec.summary,
        "better": WAYS[spec.higher_is_better][1],
        "null": _NULLS.get(name) or null.split(",")[0],
        "interval": _INTERVALS.get(name) or re.split("[:;]", interval)[0],
        "cost": spec.cost,
        "needs": ", ".join(needs) or "pictures alone",
        "paper": spec.paper,
        "notes": spec.notes,
    }


def _unmeasured(found: Sensitivity) -> str:
    """Metrics that are not in the tables, each with the one that is the same of any features."""
    measured = {_base(metric) for metric in found.values}
    left = {name: f"`{name}`" + (f" (as `{ALIKE[name]}`)" if name in ALIKE else "") for name in METRICS}
    weights = [left[name] for name, spec in METRICS.items() if name not in measured and spec.features]
    others = [left[name] for name, spec in METRICS.items() if name not in measured and not spec.features]
    said = f"Not here: {', '.join(weights)}, whose networks need weights that do not ship with us"
    return said + (f"; {', '.join(others)}, not measured on this page." if others else ".")


def _resizes() -> str:
    """The presets of a resize, those of FID first."""
    rows = []
    for name, one in PRESETS.items():
        says = {key: value for key, value in one.fields(0).items() if key != "size"}
        rows.append({"preset": f"`{name}`", "numbers of": _USED_BY[name]})
        rows[-1] |= {
            key: "yes" if value is True else "" if value in (False, "none") else str(value)
            for key, value in says.items()
        }
    return table(rows)


def _ball_settings() -> str:
    """The published protocols of precision and recall."""
    rows = []
    for name, one in SETTINGS.items():
        ball = "in" if one.closed else "out"
        rows.append({"setting": f"`{name}`", "k": str(one.k), "on the ball": ball, "features": one.features})
        rows[-1]["source"] = one.source
    return table(rows)


def _spec(metric: str) -> MetricSpec:
    return METRICS[_base(metric)]


def _base(metric: str) -> str:
    """Its name without settings and parts."""
    return re.split("[:/]", metric)[0]


if __name__ == "__main__":
    PLACE.write_text(document(), encoding="utf-8")
    print(PLACE)
