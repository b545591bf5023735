"""Guidance: rules that turn denoisers into a denoiser, and the door to diffusers pipelines."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .apg import APG
    from .attention.nag import NAG
    from .attention.nasa import NASA
    from .attention.pag import PAG
    from .attention.s2 import S2
    from .attention.sag import SAG
    from .attention.seg import SEG
    from .attention.slg import SLG
    from .attention.tpg import TPG
    from .attention.tsg import TSG
    from .autoguidance import Autoguidance
    from .calibrate import calibrate_adaptive, calibrate_apg
    from .cfg import CFG
    from .cfg_mp import CFGMP
    from .cfg_zero import CFGZero
    from .cfgpp import CFGPP
    from .composable import Composable
    from .compose import Sum, compose
    from .explanation import explain
    from .fdg import FDG
    from .feedback import FeedbackGuidance
    from .fitting import fit_linear
    from .frame_cfg import FrameCFG
    from .gfcg import GFCGReconstruction
    from .gradient.classifier import ClassifierGuidance
    from .gradient.dps import DPS
    from .gradient.elucd import EluCD
    from .gradient.freedom import FreeDoM
    from .gradient.greedy import Greedy
    from .gradient.lgd import LGD
    from .gradient.mpgd import MPGD
    from .gradient.ppap import PPAP, train_experts
    from .gradient.tfg import TFG
    from .gradient.ugd import UGD
    from .grammar import make, parse, spell
    from .guided import Guided
    from .image_cfg import ImageCFG
    from .mambo import MamboG
    from .modifiers.adaptive import Adaptive
    from .modifiers.cads import CADS
    from .modifiers.higs import HiGS
    from .modifiers.icg import ICG
    from .modifiers.interval import Interval
    from .modifiers.linear import LinearAG, LinearCoefficients, LinearFit, Watch
    from .modifiers.reflect import Reflect
    from .modifiers.rescale import Rescale
    from .modifiers.schedule import WeightSchedule
    from .modifiers.sliding_window import SlidingWindow
    from .modifiers.threshold import DynamicThreshold
    from .perp_neg import PerpNeg
    from .pipelines import attach
    from .pipelines.guiders import as_guider
    from .policy import StepPolicy
    from .rectified import RectifiedCFGPP
    from .registry import RULES
    from .rule import Ask, Context, Modifier, Point, Rule, Unguided, changed, together
    from .sega import SEGA
    from .tcfg import TCFG
    from .weak_copy import quantised

_WHERE = {
    "APG": "apg",
    "Autoguidance": "autoguidance",
    "calibrate_adaptive": "calibrate",
    "calibrate_apg": "calibrate",
    "CFG": "cfg",
    "CFGPP": "cfgpp",
    "Sum": "compose",
    "compose": "compose",
    "explain": "explanation",
    "make": "grammar",
    "parse": "grammar",
    "spell": "grammar",
    "Guided": "guided",
    "ImageCFG": "image_cfg",
    "Adaptive": "modifiers.adaptive",
    "Interval": "modifiers.interval",
    "Rescale": "modifiers.rescale",
    "WeightSchedule": "modifiers.schedule",
    "CADS": "modifiers.cads",
    "CFGMP": "cfg_mp",
    "CFGZero": "cfg_zero",
    "Composable": "composable",
    "DynamicThreshold": "modifiers.threshold",
    "FDG": "fdg",
    "FeedbackGuidance": "feedback",
    "FrameCFG": "frame_cfg",
    "fit_linear": "fitting",
    "HiGS": "modifiers.higs",
    "ICG": "modifiers.icg",
    "LinearAG": "modifiers.linear",
    "LinearCoefficients": "modifiers.linear",
    "LinearFit": "modifiers.linear",
    "MamboG": "mambo",
    "PerpNeg": "perp_neg",
    "quantised": "weak_copy",
    "RectifiedCFGPP": "rectified",
    "Reflect": "modifiers.reflect",
    "S2": "attention.s2",
    "SEGA": "sega",
    "SlidingWindow": "modifiers.sliding_window",
    "StepPolicy": "policy",
    "TCFG": "tcfg",
    "Watch": "modifiers.linear",
    "ClassifierGuidance": "gradient.classifier",
    "DPS": "gradient.dps",
    "EluCD": "gradient.elucd",
    "FreeDoM": "gradient.freedom",
    "GFCGReconstruction": "gfcg",
    "Greedy": "gradient.greedy",
    "LGD": "gradient.lgd",
    "MPGD": "gradient.mpgd",
    "PPAP": "gradient.ppap",
    "train_experts": "gradient.ppap",
    "TFG": "gradient.tfg",
    "UGD": "gradient.ugd",
    "NAG": "attention.nag",
    "NASA": "attention.nasa",
    "PAG": "attention.pag",
    "SAG": "attention.sag",
    "SEG": "attention.seg",
    "SLG": "attention.slg",
    "TPG": "attention.tpg",
    "TSG": "attention.tsg",
    "as_guider": "pipelines.guiders",
    "attach": "pipelines",
    "RULES": "registry",
    "Ask": "rule",
    "Context": "rule",
    "Modifier": "rule",
    "Point": "rule",
    "Rule": "rule",
    "Unguided": "rule",
    "changed": "rule",
    "together": "rule",
}
__all__ = sorted(_WHERE)


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(importlib.import_module(f".{_WHERE[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
