"""The ways to fine-tune on a reward, by name."""

from __future__ import annotations

from typing import Any

from ...registry import Spec, make
from ..method import Method

# Cost of an update for one picture of T steps: F an evaluation of the network, B its backward pass.
METHODS: dict[str, Spec] = {
    "alignprop": Spec(
        "finetune.methods.alignprop:AlignProp",
        "through the sampler, the last K steps with a random K",
        "Prabhudesai et al. 2023, 2310.03739",
        "T F + K (F + B)",
    ),
    "draft": Spec(
        "finetune.methods.draft:DRaFT",
        "through the whole run, by any method of samplers.adjoint",
        "Clark et al. 2023, 2309.17400",
        "T (2F + B)",
    ),
    "draft-k": Spec(
        "finetune.methods.draft:DRaFTK",
        "through the last K steps",
        "Clark et al. 2023, 2309.17400",
        "T F + K (F + B)",
    ),
    "draft-lv": Spec(
        "finetune.methods.draft_lv:DRaFTLV",
        "through the last step, from n noises",
        "Clark et al. 2023, 2309.17400",
        "(T + n) F + n B",
    ),
    "refl": Spec(
        "finetune.methods.refl:ReFL",
        "through the denoised estimate at a random late step",
        "Xu et al. 2023, 2304.05977",
        "up to T F + B",
    ),
    "ddpo": Spec(
        "finetune.methods.ddpo:DDPO",
        "policy gradient with clipped ratios and advantages per prompt; any reward",
        "Black et al. 2023, 2305.13301",
        "T F + T (F + B) an inner epoch",
    ),
    "b2-diffurl": Spec(
        "finetune.methods.b2_diffurl:B2DiffuRL",
        "policy gradient on the last steps first, best against worst branch of a prefix",
        "Hu et al. 2025, 2503.11240",
        "below T F + T (F + B) an inner epoch",
    ),
    "fpo": Spec(
        "finetune.methods.fpo:FPO",
        "policy gradient whose ratio is that of denoising losses; any sampler",
        cost="T F + N (2F + B) for N times",
    ),
    "flow-grpo": Spec(
        "finetune.methods.flow_grpo:FlowGRPO",
        "policy gradient in groups of one prompt, with a KL to the base",
        "Liu et al. 2025, 2505.05470",
        "T F + T (2F + B)",
    ),
    "dance-grpo": Spec(
        "finetune.methods.flow_grpo:DanceGRPO",
        "the same with constant noise, one start a group and part of the steps",
        "Xue et al. 2025, 2505.07818",
        "T F + .6 T (F + B)",
    ),
}


def make_method(method: str | Method, **settings: Any) -> Method:
    """A method by name, with settings here or in the line ("draft-k:truncation=2"), or the given one."""
    if isinstance(method, Method):
        return method
    made: Method = make("finetune", METHODS, method, "fine-tuning method", **settings)
    return made
