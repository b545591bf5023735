"""The metrics by the names of the command line. `cls` is the pure function, `measure` what a report makes of it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ...errors import UsageError
from ...grammar import name_and_settings
from ...registry import Spec, check_settings, lookup


@dataclass(frozen=True)
class MetricSpec(Spec):
    """A metric. needs: what it cannot do without, of "real", "features", "captions" (that a judge understands),
    "texts" (any captions), "train" and "test".

    higher_is_better: None where nearness to the value of real pictures is what counts. measure: a lazy "module:name" of
    a function (evidence: `measures.evidence.Evidence`, name, **settings) -> results; without it
    `cls(*, real=features, generated=features, ..., **settings)` is called, see `measures.of_function`. features: the
    name of the only features that it is defined on, "" for any.
    """

    higher_is_better: bool | None = None
    measure: Any = None
    features: str = ""

    def load_measure(self) -> Any:
        """The measuring function, or None."""
        return Spec(self.measure, "").load() if self.measure else None


_BALLS = "evaluation.metrics.prdc:prdc"
_COLOUR = "evaluation.metrics.colour:colour_statistics"
_SETS = ("real", "features")
_ALL_SETS = ("generated", "real", "train", "test")

_FRECHET = "evaluation.metrics.frechet:frechet_distance"
_FRECHET_MEASURE = "evaluation.measures.frechet:frechet"
_KERNEL = "evaluation.metrics.kernel_distance:kernel_distance"
_HEUSEL, _BINKOWSKI = "Heusel et al. 2017, 1706.08500", "Binkowski et al. 2018, 1801.01401"
_CHONG, _NAEEM = "Chong & Forsyth 2020, 1911.07023", "Naeem et al. 2020, 2002.09797"
_KYNKAANNIEMI, _SADAT = "Kynkaanniemi et al. 2019, 1904.06991", "Sadat et al. 2024, 2410.02416"

METRICS: dict[str, MetricSpec] = {
    "frechet": MetricSpec(
        _FRECHET,
        "Frechet distance of features taken as Gaussians",
        _HEUSEL,
        "N D^2 + D^3",
        _SETS,
        higher_is_better=False,
        measure=_FRECHET_MEASURE,
        notes="FID on Inception features only; here fd_<features>. Biased by about 1/N: never compare different N.",
    ),
    "fid": MetricSpec(
        _FRECHET,
        "Frechet Inception distance, by the preset of the features",
        _HEUSEL,
        "a pass of Inception, N D^2 + D^3",
        _SETS,
        higher_is_better=False,
        measure="evaluation.measures.frechet:fid",
        features="inception",
        notes="FID-50k is 50,000 generated pictures against the whole reference. Refused below 2,049 pictures.",
    ),
    "fd-dinov2": MetricSpec(
        _FRECHET,
        "Frechet distance of DINOv2 features",
        "Stein et al. 2023, 2306.04675",
        "a pass of DINOv2, N D^2 + D^3",
        _SETS,
        higher_is_better=False,
        measure=_FRECHET_MEASURE,
        features="dinov2",
        notes="Sees what Inception does not; 20 to 300 is usual. Not on the scale of FID.",
    ),
    "frechet-infinity": MetricSpec(
        "evaluation.metrics.frechet_infinity:frechet_infinity",
        "Frechet distance without its bias: the limit of many pictures, by a line in 1/N",
        _CHONG,
        "0.6 x 15 N D^2 + 15 D^3",
        _SETS,
        higher_is_better=False,
        measure="evaluation.measures.frechet:infinity",
    ),
    "fid-infinity": MetricSpec(
        "evaluation.metrics.frechet_infinity:frechet_infinity",
        "the same of Inception features",
        _CHONG,
        "a pass of Inception, 0.6 x 15 N D^2 + 15 D^3",
        _SETS,
        higher_is_better=False,
        measure="evaluation.measures.frechet:infinity",
        features="inception",
    ),
    "kernel-distance": MetricSpec(
        _KERNEL,
        "squared MMD with the kernel (x.y/D + 1)^3, all pairs; no bias, so it serves few pictures",
        _BINKOWSKI,
        "(N + M)^2 D",
        higher_is_better=False,
        notes="Called KID on Inception features only. May be negative.",
    ),
    "kid": MetricSpec(
        _KERNEL,
        "kernel Inception distance; papers print 1000 times it, over subsets (estimator=subsets)",
        _BINKOWSKI,
        "a pass of Inception, (N + M)^2 D",
        higher_is_better=False,
        features="inception",
    ),
    "energy": MetricSpec(
        "evaluation.metrics.riesz:energy_distance",
        "energy distance over all pairs: zero for equal distributions only, no bias, serves few pictures",
        "Szekely & Rizzo 2013, J. Stat. Plan. Inference 143, 1249",
        "(N + M)^2 D",
        higher_is_better=False,
    ),
    "sliced-energy": MetricSpec(
        "evaluation.metrics.sliced_energy:sliced_energy_distance",
        "the same by 1024 one-dimensional slices and a sort each, for many pictures",
        "Hertrich et al. 2023, 2305.11463",
        "1024 (N + M) (D + log N)",
        higher_is_better=False,
    ),
    "cmmd": MetricSpec(
        "evaluation.metrics.cmmd:cmmd",
        "1000 MMD^2 of CLIP directions; almost the distance of their means alone",
        "Jayasumana et al. 2023, 2401.09603",
        "a pass of CLIP, (N + M)^2 D",
        higher_is_better=False,
        features="clip",
    ),
    "sid": MetricSpec(
        "evaluation.metrics.sid:sid",
        "signed distance: above 0 too spread out, below 0 too concentrated",
        "Asokan & Seelamantula 2023, 2305.07613",
        "2048 (N + M) (2 D + 245)",
        _SETS,
        measure="evaluation.measures.signed:sid",
        notes="Neither a metric nor symmetric. order=-1, -3, -5 look ever closer to the real centre.",
    ),
    "precision": MetricSpec(
        _BALLS,
        "share of generated points near real ones",
        _KYNKAANNIEMI,
        "2 N^2 D",
        _SETS,
        higher_is_better=True,
        measure="evaluation.measures.balls:precision",
        notes="Falls with the number of features and depends on N: read it beside its null value.",
    ),
    "recall": MetricSpec(
        _BALLS,
        "share of real points near generated ones",
        _KYNKAANNIEMI,
        "2 N^2 D",
        _SETS,
        higher_is_better=True,
        measure="evaluation.measures.balls:recall",
    ),
    "density": MetricSpec(
        _BALLS,
        "real balls that hold a generated point, over k; 1 is right, more is over-concentration",
        _NAEEM,
        "1.5 N^2 D",
        _SETS,
        higher_is_better=True,
        measure="evaluation.measures.balls:density",
        notes="Expected to be exactly 1 for equal distributions; not bounded by it.",
    ),
    "coverage": MetricSpec(
        _BALLS,
        "share of real points whose ball holds a generated one",
        _NAEEM,
        "1.5 N^2 D",
        _SETS,
        higher_is_better=True,
        measure="evaluation.measures.balls:coverage",
        notes="The null value is exact for any N, M, k and dimension.",
    ),
    "clipped-density": MetricSpec(
        "evaluation.metrics.clipped_balls:clipped_balls",
        "density with every contribution bounded: no hub and no outlier makes it",
        "after Salvy et al. 2025, 2507.01761; the calibration is ours",
        "1.5 N^2 D",
        _SETS,
        higher_is_better=True,
        measure="evaluation.measures.balls:clipped_density",
    ),
    "clipped-coverage": MetricSpec(
        "evaluation.metrics.clipped_balls:clipped_balls",
        "coverage with every contribution bounded, read as a share of good pictures",
        "after Salvy et al. 2025, 2507.01761; the calibration is ours",
        "1.5 N^2 D",
        _SETS,
        higher_is_better=True,
        measure="evaluation.measures.balls:clipped_coverage",
    ),
    "realism": MetricSpec(
        "evaluation.metrics.realism:realism",
        "share of generated pictures that lie deep in the ball of a real one",
        _KYNKAANNIEMI,
        "1.5 N^2 D",
        _SETS,
        higher_is_better=True,
        measure="evaluation.measures.balls:realism",
    ),
    "vendi": MetricSpec(
        "evaluation.metrics.vendi:vendi",
        "how many entirely different pictures the set is worth; noise is diverse too",
        "Friedman & Dieng 2022, 2210.02410",
        "N D min(N, D)",
        ("features",),
        measure="evaluation.measures.diversity:vendi",
        notes="Grows with N: read it beside that of as many real pictures.",
    ),
    "inception-score": MetricSpec(
        "evaluation.metrics.inception_score:inception_score",
        "each picture surely of one class, together of many; blind to copies and to all but ImageNet",
        "Salimans et al. 2016, 1606.03498",
        "a pass of Inception",
        ("features",),
        higher_is_better=True,
        measure="evaluation.measures.diversity:inception_score",
        features="inception",
    ),
    "ratio-divergence": MetricSpec(
        "evaluation.metrics.ratio_divergence:ratio_divergence",
        "KL, total variation, Hellinger or Renyi divergence by whose neighbours the neighbours are",
        "Noshad et al. 2017, 1702.05222",
        "3 M (N + M) 16",
        higher_is_better=False,
        notes="Biased, after PCA to 16: a relative number, to be read beside its null value.",
    ),
    "authenticity": MetricSpec(
        "evaluation.metrics.authenticity:authenticity",
        "percent of generated pictures that are no nearer to a training picture than its fellows are (AuthPct)",
        "Alaa et al. 2022, 2102.08921; Stein et al. 2023, 2306.04675",
        "1.5 N^2 D",
        ("features", "train"),
        higher_is_better=True,
        measure="evaluation.measures.memorisation:authenticity",
    ),
    "copying": MetricSpec(
        "evaluation.metrics.copying_test:copying_test",
        "C_T: well below 0, generated pictures are nearer to training pictures than test pictures are",
        "Meehan et al. 2020, 2004.05675",
        "N (M + L) 64",
        ("features", "train", "test"),
        measure="evaluation.measures.memorisation:copying",
        notes="Needs train and test pictures. Well above 0 is underfitting.",
    ),
    "mifid": MetricSpec(
        "evaluation.metrics.memorisation_fid:memorisation_fid",
        "Frechet distance, divided by the cosine distance to training pictures where that is below 0.1",
        "Bai et al. 2021, 2106.03062",
        "N M D",
        ("features", "train"),
        higher_is_better=False,
        measure="evaluation.measures.memorisation:mifid",
        features="inception",
        notes="From generated to training pictures; direction=real is what torchmetrics computes.",
    ),
    "network-divergence": MetricSpec(
        "evaluation.metrics.network_divergence:network_divergence",
        "a critic trained afresh on features: 0 as real pictures, 1 as copies of training pictures",
        "Gulrajani et al. 2019, 2001.03653",
        "9 trainings of a small critic",
        ("features", "train", "test"),
        higher_is_better=False,
        measure="evaluation.measures.memorisation:network_divergence",
        notes="Minutes. In no suite.",
    ),
    "strangers": MetricSpec(
        "evaluation.metrics.strangers:strangers",
        "AUROC of generated against real pictures by score norms of a model; 0.5 cannot be told apart",
        "Mahmood et al. 2021, 2010.13132",
        "10 evaluations of the model a picture",
        features="score-norms",
        notes="Fitted to half of the real pictures. Below 0.5 is too clean.",
    ),
    "adherence": MetricSpec(
        "evaluation.metrics.adherence:adherence",
        "share of pictures that show all that their caption states, and by attribute",
        "after Ghosh et al. 2023, 2310.11513",
        "one pass of a classifier",
        ("captions",),
        higher_is_better=True,
        measure="evaluation.measures.alignment:adherence",
        notes="The judge must not be the classifier that guided.",
    ),
    "classifier-precision": MetricSpec(
        "evaluation.metrics.classifier_precision:classifier_precision",
        "how often what the judge sees was asked for, averaged over the classes that it sees",
        "after Liang et al. 2024, 2411.15393; the average is our reading",
        "one pass of a classifier",
        ("captions",),
        higher_is_better=True,
        measure="evaluation.measures.alignment:classifier_precision",
        notes="Not the precision of neighbours. The judge must not be the classifier that guided.",
    ),
    "clip-score": MetricSpec(
        "evaluation.metrics.clip_score:clip_score",
        "mean cosine of pictures and their captions in CLIP's space; guidance always raises it",
        "Hessel et al. 2021, 2104.08718",
        "a pass of CLIP",
        ("features", "texts"),
        higher_is_better=True,
        measure="evaluation.measures.alignment:clip_score",
        features="clip",
        notes="Numbers of two CLIP models differ. Read it beside a distance from real pictures, never alone.",
    ),
    "saturation": MetricSpec(
        _COLOUR,
        "mean HSV saturation",
        _SADAT,
        "one pass over the pixels",
        measure="evaluation.measures.colour:colour",
    ),
    "contrast": MetricSpec(
        _COLOUR,
        "mean deviation of the luma",
        _SADAT,
        "one pass over the pixels",
        measure="evaluation.measures.colour:colour",
    ),
    "clipped": MetricSpec(
        _COLOUR,
        "share of pixels with a channel at 0 or 255",
        "",
        "one pass over the pixels",
        measure="evaluation.measures.colour:colour",
    ),
}

_PRDC, _PIXELS = ("precision", "recall", "density", "coverage"), ("saturation", "contrast", "clipped")
_QUICK = ("frechet", "kernel-distance", "energy", *_PRDC, "adherence", *_PIXELS)
_STANDARD = (*_QUICK, "fid", "fd-dinov2", "inception-score", "clip-score", "authenticity")
_FURTHER = ("fid-infinity", "kid", "cmmd", "sid", "vendi", "copying", "strangers")
GROUPS = {
    "prdc": _PRDC,
    "colour": _PIXELS,
    "quick": _QUICK,
    "standard": _STANDARD,
    "full": (*_STANDARD, *_FURTHER),
}
DEFAULT = "quick"
SUITES = ("quick", "standard", "full")  # of these, what cannot be measured is left out with the reason


@dataclass(frozen=True)
class Wanted:
    """A metric as it was asked for. name: what its results are called. space: the features, "" for the first ones."""

    name: str
    spec: Spec
    settings: Mapping[str, Any] = field(default_factory=dict)
    space: str = ""

    @property
    def needs(self) -> tuple[str, ...]:
        """What it cannot do without. A mere function of features needs the sets that it asks for."""
        if getattr(self.spec, "measure", None):
            return self.spec.needs
        from ..measures.of_function import sets_of

        return ("features", *(which for which in sets_of(self.spec) if which != "generated"), *self.spec.needs)

    def measuring(self) -> Callable[..., Any]:
        """(evidence, name, **settings) -> results."""
        own: Callable[..., Any] | None = self.spec.load_measure() if isinstance(self.spec, MetricSpec) else None
        if own:
            return own
        from ..measures.of_function import measure_of

        return measure_of(self.spec)


def lines_of(text: str) -> list[str]:
    """The metrics of "frechet,kid:estimator=subsets,subsets=50,prdc": what has = and no : belongs to the one before."""
    lines: list[str] = []
    for part in text.split(","):
        if lines and "=" in part and ":" not in part:
            lines[-1] += f",{part.strip()}"
        elif part.strip():
            lines.append(part.strip())
    return lines


def chosen(lines: Iterable[str] | None) -> list[Wanted]:
    """The metrics of names, lines with settings ("kid:estimator=subsets,features=inception") and groups, in order.

    The default ones without any. A metric that is asked for in several ways is called by its lines. Errors: unknown
    names and settings.
    """
    asked = [one for line in ((DEFAULT,) if lines is None else lines) for one in GROUPS.get(line, (line,))]
    asked = list(dict.fromkeys(asked))
    names = [line.partition(":")[0].strip() for line in asked]
    return [_wanted(line, alone=names.count(name) == 1) for line, name in zip(asked, names, strict=True)]


def _wanted(line: str, alone: bool) -> Wanted:
    """alone: no other line asks for the same metric, so that its name says enough."""
    name, settings = name_and_settings(line)
    spec = lookup("metrics", METRICS, name, "metric")
    space = str(settings.pop("features", "") or getattr(spec, "features", ""))
    only = getattr(spec, "features", "")
    if only and space != only:
        raise UsageError(f"{name} is defined on the features {only}, not {space}; leave features= away")
    if settings:
        check_settings(name, settings, settings_of(spec))
    return Wanted(name if alone else line, spec, settings, space)


def settings_of(spec: Spec) -> dict[str, Any]:
    """The settings of a metric with their defaults."""
    own = spec.load_measure() if isinstance(spec, MetricSpec) else None
    parameters = inspect.signature(own or spec.load()).parameters.values()
    apart = ("evidence", "name", *_ALL_SETS)
    return {p.name: p.default for p in parameters if p.kind != p.VAR_KEYWORD and p.name not in apart}
