"""Guidance scales: what a number means in each source, how a network is told one, and a network that can be told.

    D_w = D_null + w (D_cond - D_null)        w, the toolkit's scale; 1 is no guidance

Sources differ by one: Meng et al. (arXiv 2210.03142) and the training script of latent consistency models count from
cond + w' (cond - null), so that w = 1 + w'. (The help text of that script says otherwise than its code.)
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UsageError, nearest
from ..grammar import name_and_settings, pieces_of, spelled
from ..guidance.registry import RULES
from ..guidance.rule import Modifier
from ..registry import lookup
from ..samplers.denoiser import Denoiser
from ..training.learner import Learner

OFFSETS = {  # w = offset + the source's number
    "toolkit": 0.0,
    "diffusers": 0.0,  # guidance_scale, also of pipelines that embed it
    "dmd2": 0.0,
    "swiftbrush": 0.0,
    "snoopi": 0.0,
    "fastgen": 0.0,  # cond + (w - 1) (cond - null)
    "meng": 1.0,  # (1 + w') cond - w' null
    "lcm-script": 1.0,  # cond + w' (cond - null)
    "embedded": 1.0,  # what the sinusoids are of, before they are multiplied by 1000
}


def toolkit_scale(scale: float, source: str) -> float:
    """The toolkit's w of a source's number. source: a name of `OFFSETS`, else UsageError."""
    return scale + _offset(source)


def source_scale(w: float, source: str) -> float:
    """A source's number of the toolkit's w."""
    return w - _offset(source)


def _offset(source: str) -> float:
    if source not in OFFSETS:
        raise UsageError(f"no scale convention {source!r} is known: {nearest(source, OFFSETS)}")
    return OFFSETS[source]


def with_scale(line: str, w: float) -> str:
    """A guidance line whose first rule that has a scale has this one. UsageError where none has: there is nothing to
    vary."""
    pieces = pieces_of(line)
    for place, piece in enumerate(pieces):
        name, settings = name_and_settings(piece)
        spec = lookup("guidance", RULES, name, "guidance rule")
        if "scale" in spec.defaults and not issubclass(spec.load(), Modifier):
            return " + ".join([*pieces[:place], spelled(name, {**settings, "scale": float(w)}), *pieces[place + 1 :]])
    raise UsageError(f"no rule of {line!r} has a scale that could be varied; take one that has, such as cfg:scale=5")


def drawn_scale(low: float, high: float, seed: int, share: float, strata: int) -> float:
    """A scale in [low, high], uniform, for the level that was drawn at `share` (`times.Group`) of `strata` levels:
    every part of the range comes in every batch, and which level has which part is random."""
    place = min(int(share * strata), strata - 1)
    generator = torch.Generator().manual_seed(seed)
    parts, inside = torch.randperm(strata, generator=generator), torch.rand(strata, generator=generator)
    return low + (high - low) * float(parts[place] + inside[place]) / strata


# -- told to the network ---------------------------------------------------------------------------------------------


def scale_embedding(scales: Sequence[float], width: int = 256) -> Tensor:
    """(B, width) float32 of B toolkit scales: sines, then cosines of 1000 (w - 1) times `width`/2 frequencies from 1
    down to 1e-4 in equal ratios; a zero at the end of an odd width.

    Diffusers' `get_guidance_scale_embedding` of w - 1 to the bit: at such angles a frequency's last bit is seen.
    """
    told = torch.tensor([source_scale(w, "embedded") for w in scales]) * 1000.0
    half = width // 2
    step = torch.tensor(10000.0).log() / (half - 1)
    angles = told[:, None] * torch.exp(torch.arange(half, dtype=torch.float32) * -step)
    return nn.functional.pad(torch.cat([angles.sin(), angles.cos()], dim=1), (0, width % 2))


def scale_conditioned(unet: Any, width: int = 256) -> Any:
    """A copy of a diffusers UNet that takes `timestep_cond` (B, width), an embedded scale, as well.

    The new layer's weights are zero, so that nothing changes at first. UsageError for a network that cannot be told.
    """
    time = getattr(unet, "time_embedding", None)
    if time is None or not hasattr(time, "cond_proj") or not hasattr(time, "linear_1"):
        raise UsageError(f"{type(unet).__name__} has no time embedding that takes a scale; give a UNet2DConditionModel")
    if time.cond_proj is not None:
        raise UsageError("this network takes a scale already; use it as it is")
    made = copy.deepcopy(unet)
    like = made.time_embedding.linear_1.weight
    layer = nn.utils.skip_init(nn.Linear, width, like.shape[1], bias=False, device=like.device, dtype=like.dtype)
    nn.init.zeros_(layer.weight)
    made.time_embedding.cond_proj = layer
    made.register_to_config(time_cond_proj_dim=width)
    return made


def scale_width(learner: Learner) -> int:
    """How wide the embedding is that this learner's network takes. UsageError where it takes none."""
    width = getattr(getattr(getattr(learner, "network", None), "config", None), "time_cond_proj_dim", None)
    if width is None:
        raise UsageError(
            "this student's network takes no scale: open it with distill.scales.scale_conditioned, or learn one scale "
            "alone, with guidance:fixed=true or lcm without scale_conditioned"
        )
    return int(width)


def told_scale(learner: Learner, prompts: Sequence[str], w: float) -> Denoiser:
    """The learner's denoiser, its network told the toolkit's scale w: one evaluation, no second branch."""
    embedded = scale_embedding([w] * len(prompts), scale_width(learner)).to(learner.device)
    further: dict[str, Any] = {"told": {"timestep_cond": embedded}}
    return learner.denoiser(prompts, **further)
