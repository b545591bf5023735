"""The rules and modifiers that ship, by the names of the command line."""

from __future__ import annotations

from ..registry import Spec
from .apg import APG
from .attention.nag import NAG
from .attention.nasa import NASA
from .attention.pag import PAG
from .attention.sag import SAG
from .attention.seg import SEG
from .attention.slg import SLG
from .attention.tpg import TPG
from .autoguidance import Autoguidance
from .cfg import CFG
from .cfg_mp import CFGMP
from .cfg_zero import CFGZero
from .cfgpp import CFGPP
from .composable import Composable
from .fdg import FDG
from .feedback import FeedbackGuidance
from .gfcg import GFCGReconstruction
from .gradient.classifier import ClassifierGuidance
from .gradient.dps import DPS
from .gradient.elucd import EluCD
from .gradient.freedom import FreeDoM
from .gradient.greedy import Greedy
from .gradient.lgd import LGD
from .gradient.mpgd import MPGD
from .gradient.tfg import TFG
from .gradient.ugd import UGD
from .image_cfg import ImageCFG
from .mambo import MamboG
from .modifiers.adaptive import Adaptive
from .modifiers.cads import CADS
from .modifiers.higs import HiGS
from .modifiers.icg import ICG
from .modifiers.interval import Interval
from .modifiers.linear import LinearAG
from .modifiers.rescale import Rescale
from .modifiers.schedule import WeightSchedule
from .modifiers.threshold import DynamicThreshold
from .perp_neg import PerpNeg
from .rectified import RectifiedCFGPP
from .rule import Unguided
from .sega import SEGA
from .tcfg import TCFG

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
    "cfg-zero": Spec(
        CFGZero,
        "CFG for flow models: the null scaled to fit, and a first step that stands still",
        "Fan et al. 2025, 2503.18886",
        "2M, 0 in the zero steps",
        ("uncond",),
        {"scale": 1.0, "zero_steps": 0},
        "velocity",
        "Zero steps act at every scale, need a flow model and at least 20 steps (least_steps); zero_steps=0 is the "
        "scaled null alone.",
    ),
    "tcfg": Spec(
        TCFG,
        "tangential damping: CFG with the null's own direction removed",
        "Kwon et al. 2025, 2503.18137",
        "2M",
        ("uncond",),
        {"scale": 1.0},
        "velocity",
        "On the velocity of a flow model, else on the noise. One knob: the scale.",
    ),
    "fdg": Spec(
        FDG,
        "frequency-decoupled guidance: a scale for fine detail, a lower one for the rest",
        "Sadat et al. 2025, 2506.19713",
        "2M",
        ("uncond",),
        {"scale": 1.0, "low_scale": 1.0},
        "denoised",
        "The paper's scale and low_scale: SD 2.1 and SD3 7, 3; SDXL 10, 5; DiT-XL 2, 1. Needs pictures, not packed "
        "tokens (Flux).",
    ),
    "mambo-g": Spec(
        MamboG,
        "CFG with a scale that falls where the branches are far apart",
        "Zhu et al. 2025, 2508.03442",
        "2M",
        ("uncond",),
        {"scale": 1.0},
        "native",
        "For velocity models; the damping depends on what the network predicts. damping=0 is CFG.",
    ),
    "feedback": Spec(
        FeedbackGuidance,
        "CFG whose scale follows an estimate of how well the condition is met",
        "Koulischer et al. 2025, 2506.06085",
        "2M",
        ("uncond",),
        {"prior": 1.0},
        "any",
        "prior=1 is off. Derived for stochastic samplers of one evaluation a step.",
    ),
    "perp-neg": Spec(
        PerpNeg,
        "negative prompts that leave the positive one alone",
        "Armandpour et al. 2023, 2304.04968",
        "2M + 1 a negative",
        ("uncond",),
        {"scale": 1.0, "negatives": ""},
        "any",
        "negatives='blur:1.5 hands' are the conditions prompt:blur and prompt:hands; uncond must be the empty prompt.",
    ),
    "composable": Spec(
        Composable,
        "several prompts with weights, below 0 for not",
        "Liu et al. 2022, 2206.01714",
        "2M + 1 a prompt",
        ("uncond",),
        {"scale": 1.0, "prompts": ""},
        "any",
        "prompts='hat:5 rain:-2' are the conditions prompt:hat and prompt:rain. Positive weights add up to one large "
        "scale.",
    ),
    "sega": Spec(
        SEGA,
        "semantic guidance: concepts that move only the part they are about",
        "Brack et al. 2023, 2301.12247",
        "2M + 1 a concept",
        ("uncond",),
        {"scale": 1.0, "concepts": ""},
        "noise",
        "concepts='smile:5 glasses:-5' are the conditions prompt:smile and prompt:glasses. One warm-up for all.",
    ),
    "rectified-cfg++": Spec(
        RectifiedCFGPP,
        "flow models: the correction is looked up half a step ahead",
        "Saini et al. 2025, 2510.07631",
        "3M",
        ("uncond",),
        {"weight": 0.0},
        "velocity",
        "Flow models only, Euler steps. Experimental: the value of growth is not confirmed.",
    ),
    "cfg-mp": Spec(
        CFGMP,
        "flow models: x moves between the two flows before each noisy step",
        "Cai et al. 2026, 2601.21892",
        "2M + 2M an iteration",
        ("uncond",),
        {"scale": 1.0, "iterations": 0},
        "velocity",
        "Flow models only. Experimental: independent tests found no gain at equal evaluations.",
    ),
    "threshold": Spec(
        DynamicThreshold,
        "modifier: hold the clean estimate within its own quantile",
        "Saharia et al. 2022, 2205.11487",
        "as the rule",
        off={"percentile": 0.0},
        space="denoised",
        notes="For pixel models; on latents with mimic_scale, a lower scale whose range is kept.",
    ),
    "higs": Spec(
        HiGS,
        "modifier: push the clean estimate away from the average of the earlier ones",
        "Sadat et al. 2025, 2509.22300",
        "as the rule",
        off={"weight": 0.0},
        space="denoised",
        notes="Experimental: settings belong to a model. Doubles what multistep solvers and momentum do.",
    ),
    "cads": Spec(
        CADS,
        "modifier: noise on the conditioning early in the run, for variety",
        "Sadat et al. 2024, 2310.17347",
        "as the rule",
        off={"noise": 0.0},
        space="conditioning",
        notes="lost must lie below 1 for the first steps to lose the condition. Whether the paper noises the null "
        "branch is not confirmed (apply_to).",
    ),
    "icg": Spec(
        ICG,
        "modifier: an unrelated condition in the place of the null branch",
        "Sadat et al. 2025, 2407.02687",
        "as the rule",
        off={"draw": "off"},
        space="any",
        notes="For models without a null branch. Experimental: that the draw is new at each step is not confirmed.",
    ),
    "linear": Spec(
        LinearAG,
        "modifier: estimate the null prediction from the earlier ones on every other step",
        "Castillo et al. 2023, 2312.12487",
        "1.25M on average",
        off={"file": ""},
        space="noise",
        notes="Needs coefficients fitted for the model, sampler, steps, scale and null prompt (LinearFit). "
        "Experimental: scalar coefficients are our reading.",
    ),
    "gfcg-reconstruction": Spec(
        GFCGReconstruction,
        "gradient-free classifier guidance, our reconstruction: the rival class in the null's place",
        "after Shenoy et al. 2026, 2411.15393 (abstract only)",
        "2M + a classifier",
        off={"scale": 1.0},
        space="any",
        notes="The formulas are ours. The classifier is given in Python; form=autoguidance costs as much as that does.",
    ),
    "classifier": Spec(
        ClassifierGuidance,
        "modifier: the gradient of a noise-aware classifier, added to the score",
        "Dhariwal & Nichol 2021, 2105.05233",
        "+ 1 classifier gradient",
        off={"weight": 0.0},
        space="noise",
        notes="classifier=guide,target=star is the embedded model's; any other is given in Python.",
    ),
    "elucd": Spec(
        EluCD,
        "modifier: the gradient of an ordinary classifier of clean pictures",
        "Ma et al. 2024, 2310.11311",
        "+ 1 classifier gradient",
        off={"weight": 0.0},
        space="denoised",
        notes="The classifier is given in Python, smoothed first. form=ancestral, edm or score.",
    ),
    "dps": Spec(
        DPS,
        "modifier: diffusion posterior sampling, a loss through the denoiser",
        "Chung et al. 2023, 2209.14687",
        "as the rule + its backward pass",
        off={"weight": 0.0},
        space="denoised",
        notes="loss=colour,target=red works in a line; masks, measurements, rewards are given in Python.",
    ),
    "lgd": Spec(
        LGD,
        "modifier: dps with a loss smoothed by noise",
        "Song et al. 2023 (ICML)",
        "as the rule + its backward pass, samples x the loss",
        off={"weight": 0.0},
        space="denoised",
    ),
    "freedom": Spec(
        FreeDoM,
        "modifier: a loss through the denoiser, with time travel",
        "Yu et al. 2023, 2303.09833",
        "(as the rule + its backward pass) x repeats",
        off={"weight": 0.0},
        space="denoised",
        notes="repeats=1 is without time travel.",
    ),
    "ugd": Spec(
        UGD,
        "modifier: universal guidance, a loss forward into the score and backward from the clean estimate",
        "Bansal et al. 2023, 2302.07121",
        "(as the rule + its backward pass) x repeats",
        off={"weight": 0.0, "backward": 0.0},
        space="noise",
    ),
    "mpgd": Spec(
        MPGD,
        "modifier: a loss of the clean estimate, not through the denoiser, the noise kept",
        "He et al. 2024, 2311.16424",
        "as the rule + a gradient of the loss",
        off={"weight": 0.0},
        space="denoised",
        notes="The cheapest of the family. Without the paper's autoencoder projection.",
    ),
    "tfg": Spec(
        TFG,
        "modifier: training-free guidance, dps, lgd, freedom and mpgd in one",
        "Ye et al. 2024, 2409.15761",
        "(as the rule + its backward pass) x repeats",
        off={"rho": 0.0, "mu": 0.0},
        space="denoised",
    ),
    "greedy": Spec(
        Greedy,
        "modifier: a loss through k solver steps to data, between dps and end to end",
        "Blasingame & Liu 2025, 2502.08006",
        "(k x the rule + its backward pass) x rounds + 1M; midpoint 2 k",
        off={"weight": 0.0},
        space="denoised",
        notes="k=1 with euler has the gradient of dps; midpoint is the recommended upgrade.",
    ),
    "pag": Spec(
        PAG,
        "perturbed-attention guidance: away from the network with identity self-attention",
        "Ahn et al. 2024, 2403.17377",
        "2M, 3M with cfg",
        off={"weight": 0.0},
        space="any",
        notes="Structure without a negative branch; alone it is branch guidance with scale 1 + weight. UNets, DiT, "
        "PixArt, SD3 and Flux.",
    ),
    "seg": Spec(
        SEG,
        "smoothed energy guidance: away from the network with blurred queries",
        "Hong 2024, 2408.00760",
        "2M, 3M with cfg",
        off={"weight": 0.0},
        space="any",
        notes="sigma=0 leaves the queries alone, inf replaces them by their mean. Gentler than pag.",
    ),
    "slg": Spec(
        SLG,
        "skip-layer guidance: away from the network with blocks left out (STG: skip=attention)",
        "Hyung et al. 2024, 2411.18664; Stability AI 2024",
        "2M, 3M with cfg",
        off={"weight": 0.0},
        space="any",
        notes="SD3.5-Medium guides only early: + interval:low=0.01,high=0.2,unit=fraction. Overexposes at large "
        "weights; pair with rescale.",
    ),
    "tpg": Spec(
        TPG,
        "token perturbation guidance: away from the network with shuffled picture tokens",
        "Rajabi et al. 2025, 2506.10036",
        "2M, 3M with cfg",
        off={"weight": 0.0},
        space="any",
        notes="The permutations depend on seed and step alone. The default blocks of a transformer are ours.",
    ),
    "sag": Spec(
        SAG,
        "modifier: self-attention guidance, away from x blurred where attention goes",
        "Hong et al. 2022, 2210.00939",
        "2M, 3M with cfg",
        off={"weight": 0.0},
        space="denoised",
        notes="Latents (B, C, H, W) only. Its null branch is uncond where the rule asks for it, else cond.",
    ),
    "nag": Spec(
        NAG,
        "normalized attention guidance: a negative prompt inside the attention",
        "Chen et al. 2025, 2505.21179",
        "1M with negative= embeddings, else 2M; more in joint attention, whose blocks run twice",
        off={"scale": 1.0},
        space="attention",
        notes="For distilled and few-step models. Without embeddings (Python: negative=) the negative prompt is that "
        "of the branch uncond.",
    ),
    "nasa": Spec(
        NASA,
        "negative-away steer attention: a negative prompt subtracted inside the cross-attention",
        "Nguyen et al. 2024, 2412.02687",
        "1M with negative= embeddings, else 2M",
        off={"weight": 0.0},
        space="attention",
        notes="For one- and few-step models. An empty negative prompt is not nothing: switch it off instead.",
    ),
}
