"""The ways to distil, by name."""

from __future__ import annotations

from typing import Any

from ...registry import Spec, make
from ..method import DistillMethod

# Cost of an update for one picture: F an evaluation of the network, B its backward pass, R the teacher's rule (2F for
# classifier-free guidance), m the middle block's share of F, c the steps of the helpers.
METHODS: dict[str, Spec] = {
    "f-distill": Spec(
        "distill.methods.matching:FDistill",
        "one step; any f-divergence of teacher and student, by a learnt ratio",
        "Xu et al. 2025, 2502.15681",
        "2F + B + R + 2m + c (2F + B + 2m)",
    ),
    "dmd2": Spec(
        "distill.methods.matching:DMD2",
        "one step; reverse KL with an adversarial term on the fake's features",
        "Yin et al. 2024, 2405.14867",
        "2F + B + R + 2m + c (2F + B + 2m)",
    ),
    "dmd": Spec(
        "distill.methods.matching:DMD",
        "one step; reverse KL and regression on the teacher's pictures of known noise",
        "Yin et al. 2023, 2311.18828",
        "3F + 2B + R + c (2F + B)",
    ),
    "vsd": Spec(
        "distill.methods.matching:VSD",
        "one step; reverse KL alone, without data",
        "Wang et al. 2023, 2305.16213",
        "2F + B + R + c (2F + B)",
    ),
    "swiftbrush": Spec(
        "distill.methods.matching:SwiftBrush",
        "one step; reverse KL, teacher and fake guided alike, without data",
        "Nguyen and Tran 2023, 2312.05239",
        "F + B + 2R + c (2F + B)",
    ),
    "pg-sb": Spec(
        "distill.methods.matching:PGSB",
        "the same with a random scale of the guidance",
        "Nguyen et al. 2024, 2412.02687",
        "F + B + 2R + c (2F + B)",
    ),
    "guidance": Spec(
        "distill.methods.guidance:GuidanceDistillation",
        "many steps of one evaluation; says what the guided teacher says, of any scale or of one rule",
        "Meng et al. 2022, 2210.03142",
        "R + F + B; on trajectories T R + K (F + B)",
    ),
    "lcm": Spec(
        "distill.methods.lcm:LCM",
        "1 to 8 steps; all points of the guided teacher's run say one picture",
        "Luo et al. 2023, 2310.04378",
        "R + 2F + B",
    ),
    "ucgm-t": Spec(
        "distill.methods.ucgm_t:UCGMT",
        "one to many steps by one ratio; guidance or self-boosting learnt in",
        "Sun et al. 2025, 2505.07447",
        "R + 3F + B; 2F + B at consistency 0 with zeta",
    ),
    "reflow": Spec(
        "distill.methods.reflow:Reflow",
        "straight runs, or one step by regression, from the teacher's pairs",
        "Liu et al. 2022, 2209.03003",
        "F + B",
    ),
}


def make_method(method: str | DistillMethod, **settings: Any) -> DistillMethod:
    """A method by name, with settings here or in the line ("f-distill:divergence=forward-kl"), or the given one."""
    if isinstance(method, DistillMethod):
        return method
    made: DistillMethod = make("distill", METHODS, method, "distillation method", **settings)
    return made
