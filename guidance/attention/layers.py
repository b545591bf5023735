"""Which layers of a diffusers network a perturbation touches, and how a line of text names them.

`layers` is a list separated by "|". A piece is a number or a range, `3`, `7-9`, counted over all candidates; the same
after d, m or u, counted over the down path, the middle or the up path of a UNet, `d6-23`, `m0`; or else a regular
expression, searched in the module's dotted name, `mid_block`, `transformer_blocks.1$`. Empty: the rule's default.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from ...errors import UsageError

Site = tuple[str, nn.Module]
Default = Callable[[Sequence[Site]], Sequence[Site]]

# Classes whose tokens we know: pictures alone, or text and pictures in a known order. Others are refused.
KNOWN = (
    "UNet2DConditionModel", "UNet2DModel", "DiTTransformer2DModel", "PixArtTransformer2DModel", "Transformer2DModel",
    "SD3Transformer2DModel", "FluxTransformer2DModel",
)  # fmt: skip

_NUMBERED = re.compile(r"([dmu]?)(\d+)(?:-[dmu]?(\d+))?")
_PATHS = {"d": "down_blocks.", "m": "mid_block.", "u": "up_blocks."}


def unwrapped(network: Any) -> Any:
    """What is in a denoiser, a compiled module or a peft model."""
    inner = network
    for _ in range(8):
        if hasattr(inner, "_orig_mod"):
            inner = inner._orig_mod
        elif hasattr(inner, "get_base_model"):  # peft
            inner = inner.get_base_model()
        elif not isinstance(inner, nn.Module) and hasattr(inner, "network"):  # NetworkDenoiser
            inner = inner.network
    return inner


def module_of(network: Any) -> nn.Module:
    """The diffusers module in a denoiser, a compiled module, a peft model or a module around it."""
    inner = unwrapped(network)
    if not isinstance(inner, nn.Module):
        raise UsageError(
            f"a {type(network).__name__} has no attention layers to perturb; the rules of the attention family need a "
            "diffusers UNet or transformer"
        )
    if _is_known(inner):
        return inner
    if type(inner).__module__.startswith("diffusers."):
        raise UsageError(
            f"the attention rules do not know {type(inner).__name__} (where its text tokens stand); they know "
            f"{', '.join(KNOWN)}"
        )
    return next((module for module in inner.modules() if _is_known(module)), inner)


def _is_known(module: nn.Module) -> bool:
    return any(cls.__name__ in KNOWN for cls in type(module).__mro__)


def attentions(root: nn.Module, cross: bool = False) -> list[Site]:
    """The self-attention layers (joint ones included), or the cross-attention layers."""
    return [
        (name, module)
        for name, module in root.named_modules()
        if hasattr(module, "to_q") and hasattr(module, "processor") and is_cross(module) == cross
    ]


def is_cross(attention: Any) -> bool:
    return bool(getattr(attention, "is_cross_attention", False))


def is_joint(attention: Any) -> bool:
    """Do text and picture tokens attend to each other in it?"""
    return getattr(attention, "added_kv_proj_dim", None) is not None


def blocks(root: nn.Module) -> list[Site]:
    """The transformer blocks: what holds an attention layer of its own and a feed-forward, residual around them."""
    holders = (
        (name, module)
        for name, module in root.named_modules()
        if any(hasattr(child, "to_q") and hasattr(child, "processor") for child in module.children())
    )
    return [(name, module) for name, module in holders if type(module).__name__.endswith("Block")]


def groups(sites: Sequence[Site]) -> list[list[Site]]:
    """The sites by transformer block: an SD3.5 block has two attentions, which are counted, and chosen, as one."""
    found: dict[str, list[Site]] = {}
    for name, module in sites:
        block = name.rpartition(".")[0] if hasattr(module, "to_q") else name
        found.setdefault(block, []).append((name, module))
    return list(found.values())


def spread(several: Sequence[Sequence[Site]]) -> list[Site]:
    return [site for group in several for site in group]


def middle(sites: Sequence[Site]) -> Sequence[Site]:
    """The middle block of a UNet, the middle layer of a transformer."""
    every = groups(sites)
    return on_path(sites, "m") or every[len(every) // 2]


def share(first: float, last: float) -> Default:
    """The sites between these shares of all of them, both ends included; at least one."""

    def pick(sites: Sequence[Site]) -> Sequence[Site]:
        every = groups(sites)
        low, high = (min(round(share * len(every)), len(every) - 1) for share in (first, last))
        return spread(every[low : high + 1])

    return pick


def on_path(sites: Sequence[Site], path: str) -> list[Site]:
    """The sites on the down ("d"), middle ("m") or up ("u") path of a UNet; all of them for "" ."""
    return [site for site in sites if not path or re.search(rf"(^|\.){_PATHS[path]}", site[0] + ".")]


def chosen(sites: Sequence[Site], layers: str, default: Default, root: nn.Module) -> list[Site]:
    """The sites that `layers` names, in the network's order."""
    if not sites:
        raise UsageError(f"{type(root).__name__} has no layer of the kind that this rule perturbs")
    if not layers:
        return list(default(sites))
    names: set[str] = set()
    for piece in layers.split("|"):
        found = [site[0] for site in _named(sites, piece.strip())]
        if not found:
            known = ", ".join(name for name, _ in sites[:4])
            raise UsageError(f"no layer of this {type(root).__name__} matches {piece.strip()!r}; it has {known}, ...")
        names.update(found)
    return [site for site in sites if site[0] in names]


def _named(sites: Sequence[Site], piece: str) -> Sequence[Site]:
    if numbered := _NUMBERED.fullmatch(piece):
        path, first, last = numbered.groups()
        return spread(groups(on_path(sites, path))[int(first) : int(last or first) + 1])
    try:
        pattern = re.compile(piece)
    except re.error as error:
        raise UsageError(f"cannot read the layers {piece!r}: {error}; write for example mid_block or 7-9") from None
    return [site for site in sites if piece and pattern.search(site[0])]
