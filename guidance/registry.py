"""The rules and modifiers that ship, by the names of the command line."""

from __future__ import annotations

from ..registry import Spec
from .apg import APG
from .autoguidance import Autoguidance
from .cfg import CFG
from .cfgpp import CFGPP
from .image_cfg import ImageCFG
from .modifiers.adaptive import Adaptive
from .modifiers.interval import Interval
from .modifiers.rescale import Rescale
from .modifiers.schedule import WeightSchedule
from .rule import Unguided

RULES: dict[str, Spec] = {
    "none": Spec(
        Unguided,
        "the conditional prediction as it is",
        cost="1M",
        space="any",
        notes="One evaluation a step. The base that every other rule is measured against.",
    ),
    "cfg": Spec(
        CFG,
        "classifier-free guidance: uncond + scale (cond - uncond)",
        "Ho & Salimans 2022, 2207.12598",
        "2M",
        ("uncond",),
        {"scale": 1.0},
        "any",
        "More adherence and less diversity as the scale grows; saturation and stains when it is too high.",
    ),
    "apg": Spec(
        APG,
        "adaptive projected guidance: CFG without the part that saturates",
        "Sadat et al. 2024, 2410.02416",
        "2M",
        ("uncond",),
        {"scale": 1.0},
        "denoised",
        "Bears higher scales than CFG. eta=1, norm_threshold=0, momentum=0 is CFG. norm_threshold belongs to a model "
        "and a size; 0 switches it off.",
    ),
    "cfg++": Spec(
        CFGPP,
        "guide the clean estimate, re-noise with the null noise",
        "Chung et al. 2024, 2406.08070",
        "2M",
        ("uncond",),
        {"lam": 0.0},
        "denoised and noise",
        "lam=0 is unconditional; at fixed lam the strength grows with the number of steps, scale= does not.",
    ),
    "autoguidance": Spec(
        Autoguidance,
        "guide a model with a weaker version of itself",
        "Karras et al. 2024, 2406.02507",
        "1M + 1 of the weak network",
        ("weak",),
        {"scale": 1.0},
        "any",
        "Raises quality and keeps variety: both networks see the same condition. Needs a second network.",
    ),
    "image-cfg": Spec(
        ImageCFG,
        "InstructPix2Pix: separate scales for text and picture",
        "Brooks et al. 2022, 2211.09800",
        "3M",
        ("image", "uncond"),
        {"scale": 1.0, "image_scale": 1.0},
        "any",
        "For pipelines with three branches. Equal scales are CFG.",
    ),
    "adaptive": Spec(
        Adaptive,
        "modifier: each row drops its second branch once the two agree",
        "Castillo et al. 2023, 2312.12487",
        "2M, then 1M",
        ("uncond",),
        {"threshold": 2.0},
        "noise",
        "threshold above 1 never drops. The right threshold belongs to a model; calibrate it.",
    ),
    "interval": Spec(
        Interval,
        "modifier: guide only in a window of noise levels",
        "Kynkäänniemi et al. 2024, 2404.07724",
        "1M outside the window",
        off={"low": 0.0, "high": float("inf")},
        space="any",
        notes="low < rho <= high. unit=step or unit=fraction count steps instead and move with their number.",
    ),
    "rescale": Spec(
        Rescale,
        "modifier: give the guided prediction the deviation of the conditional one",
        "Lin et al. 2023, 2305.08891",
        "as the rule",
        off={"phi": 0.0},
        space="declared",
        notes="phi=0 is off, 1 matches fully and looks flat.",
    ),
    "schedule": Spec(
        WeightSchedule,
        "modifier: vary the scale over the run",
        "Wang et al. 2024, 2404.13040",
        "as the rule",
        off={"shape": "constant"},
        space="any",
        notes="Rising shapes (linear, cosine) are the recommended ones.",
    ),
}
