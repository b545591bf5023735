"""Resizing before a network, by presets. Distances of two presets are never comparable, however alike they look.

A preset says kernel, sample centres, low-pass filter, rounding to bytes and cropping. That a wrong resize shifts FID by
more than papers improve it is shown by Parmar et al. 2022, 2104.11222.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ...errors import UsageError, nearest

CHUNK = 8  # pictures resized at once, so that large ones are not all held as floats


@dataclass(frozen=True)
class Resize:
    """From bytes of any size to float32 values in 0..255 of one size.

    centres "half-pixel": src = (dst + 1/2) in/out - 1/2. "corner": src = dst in/out, as TensorFlow 1 had it.
    rounding "bytes" is Pillow's on 8 bits, after each of its two passes. clip: to 0..255, which bicubic overshoots.
    crop "before": the centre square, then the resize; "after": the shorter edge is resized, then the centre cut out.
    """

    kernel: str  # "bicubic" or "bilinear"
    antialias: bool  # the kernel widens when pictures shrink
    centres: str = "half-pixel"
    rounding: str = "none"
    clip: bool = False
    crop: str = "none"

    def fields(self, side: int) -> dict[str, Any]:
        """The part of a preprocessing identity that is the resize."""
        return {
            "resize": self.kernel,
            "size": side,
            "antialias": self.antialias,
            "centres": self.centres,
            "rounding": self.rounding,
            "clip": [0, 255] if self.clip else "none",
            "crop": self.crop,
        }

    def __call__(self, pictures: Tensor, side: int) -> Tensor:
        """uint8 (N, 3, H, W) -> float32 (N, 3, side, side), values on the scale of 0..255."""
        return torch.cat([self._resized(part, side) for part in pictures.split(CHUNK)])

    def _resized(self, pictures: Tensor, side: int) -> Tensor:
        if self.crop == "before":
            pictures = centre_square(pictures, min(pictures.shape[-2:]))
        if self.rounding == "bytes":
            resized = _by_pillow(pictures, self._target(pictures, side))
            return centre_square(resized, side).float()
        if self.centres == "corner":
            return bilinear_of_corners(pictures.float(), side)
        size = self._target(pictures, side)
        wide = nn.functional.interpolate(
            pictures.float(), size, mode=self.kernel, antialias=self.antialias, align_corners=False
        )
        resized = centre_square(wide, side)
        return resized.clamp(0, 255) if self.clip else resized

    def _target(self, pictures: Tensor, side: int) -> tuple[int, int]:
        """(height, width) that the resize makes."""
        if self.crop != "after":
            return side, side
        height, width = pictures.shape[-2:]
        shorter = min(height, width)
        return side * height // shorter, side * width // shorter


PRESETS = {
    "clean": Resize("bicubic", True, clip=True),  # clean-fid, mode clean
    "legacy-tf": Resize("bilinear", False, centres="corner"),  # the first FID, torch-fidelity, guided-diffusion, EDM
    "legacy-torch": Resize("bilinear", False),  # pytorch-fid, clean-fid legacy_pytorch
    "torchmetrics-aa": Resize("bilinear", True),  # torchmetrics 1.9, antialias=True
    "dgm-eval": Resize("bicubic", True, rounding="bytes"),  # dgm-eval: Pillow on 8 bits
    "edm2": Resize("bicubic", True),  # EDM2's FD-DINOv2
    "cmmd-ref": Resize("bicubic", False),  # what the PyTorch port of CMMD does with arrays, a = -0.75
    "cmmd-files": Resize("bicubic", True, rounding="bytes", crop="before"),  # what CMMD's programs do with a folder
    "clip": Resize("bicubic", True, rounding="bytes", crop="after"),  # CLIP's own image processor
}


def preset_named(name: str, known: tuple[str, ...]) -> Resize:
    """One of the presets that a network knows."""
    if name not in known:
        raise UsageError(f"unknown preset {name!r}: {nearest(str(name), known)}")
    return PRESETS[name]


def bilinear_of_corners(pictures: Tensor, side: int) -> Tensor:
    """TensorFlow 1's bilinear with align_corners=False: float32 (N, C, H, W) -> (N, C, side, side).

    src = dst in/out in float32; value = low + (high - low) frac(src), along x, then along y. The last pixel repeats.
    """
    top, bottom, down = _corners(pictures.shape[-2], side, pictures.device)
    left, right, along = _corners(pictures.shape[-1], side, pictures.device)
    a, b = pictures[..., left], pictures[..., right]
    across = a + (b - a) * along
    upper, lower = across[..., top, :], across[..., bottom, :]
    return upper + (lower - upper) * down[:, None]


def _corners(inputs: int, outputs: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """(indices below, indices above, fraction), each (outputs,)."""
    scale = torch.tensor(inputs, dtype=torch.float32) / torch.tensor(outputs, dtype=torch.float32)
    source = torch.arange(outputs, dtype=torch.float32, device=device) * scale.to(device)
    below = source.long().clamp(max=inputs - 1)
    return below, (below + 1).clamp(max=inputs - 1), source - below


def centre_square(pictures: Tensor, side: int) -> Tensor:
    """The middle (N, C, side, side); what cannot be halved is cut off more at the bottom and on the right."""
    top, left = (pictures.shape[-2] - side) // 2, (pictures.shape[-1] - side) // 2
    return pictures[..., top : top + side, left : left + side]


def _by_pillow(pictures: Tensor, size: tuple[int, int]) -> Tensor:
    """uint8 (N, 3, H, W) -> uint8 (N, 3, height, width), bicubic."""
    height, width = size
    images = [Image.fromarray(array) for array in pictures.permute(0, 2, 3, 1).contiguous().cpu().numpy()]
    resized = np.stack([np.asarray(image.resize((width, height), Image.Resampling.BICUBIC)) for image in images])
    return torch.from_numpy(resized).permute(0, 3, 1, 2).to(pictures.device)
