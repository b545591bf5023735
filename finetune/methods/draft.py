"""DRaFT and DRaFT-K: AlignProp with a K that is fixed. Clark et al. 2023, arXiv 2309.17400."""

from __future__ import annotations

from dataclasses import dataclass

from .alignprop import AlignProp


@dataclass(frozen=True, kw_only=True)
class DRaFT(AlignProp):
    """The gradient of the whole run, by any method of `samplers.adjoint`."""

    truncation: int | str | None = "none"


@dataclass(frozen=True, kw_only=True)
class DRaFTK(AlignProp):
    """truncation: K, the last steps that are differentiated; 1 sees the last denoised estimate alone."""

    truncation: int | str | None = 1
