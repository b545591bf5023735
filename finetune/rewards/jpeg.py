"""The size of a picture as JPEG: a differentiable stand-in, and the real one (a reward of DDPO, 2305.13301)."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from functools import partial

import torch
from PIL import Image
from torch import Tensor, nn

from ...errors import UsageError
from .reward import Reward
from .sight import shown

# The quantisation tables that the JPEG standard gives as examples (ITU-T T.81, annex K.1), row by row.
LUMA_TABLE = (
    *(16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55),
    *(14, 13, 16, 24, 40, 57, 69, 56, 14, 17, 22, 29, 51, 87, 80, 62),
    *(18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92),
    *(49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98, 112, 100, 103, 99),
)
CHROMA_TABLE = (
    *(17, 18, 24, 47, 99, 99, 99, 99, 18, 21, 26, 66, 99, 99, 99, 99),
    *(24, 26, 56, 99, 99, 99, 99, 99, 47, 66, 99, 99, 99, 99, 99, 99),
    *(99,) * 32,
)
TO_YCBCR = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))  # of JFIF


def jpeg(sign: float = -1.0, quality: int = 95, device: torch.device | str = "cpu") -> Reward:
    """sign times the sum of log2(1 + |c|) over the quantised DCT coefficients c, per pixel: differentiable.

    YCbCr, chroma halved, 8x8 DCT, divided by the quality's tables, softly rounded. The constant terms count by their
    differences from block to block, as they are coded. sign -1: small files are good (compressibility), 1: large ones.
    """
    _check(sign, quality)
    tables = [torch.tensor(table_of(base, quality), device=device) for base in (LUMA_TABLE, CHROMA_TABLE)]
    return Reward(
        f"jpeg:sign={sign:g}",
        partial(_coded, float(sign), tables),
        range="0..8 bits a pixel times the sign",
        preprocessing=f"cut to [0, 1], YCbCr, quality {quality}",
    )


def jpeg_kilobytes(sign: float = -1.0, quality: int = 95, device: torch.device | str = "cpu") -> Reward:
    """sign times the size of the picture's JPEG file in kB (1000 bytes). Not differentiable."""
    _check(sign, quality)
    return Reward(
        f"jpeg-kilobytes:sign={sign:g}",
        partial(_written, float(sign), quality),
        differentiable=False,
        range="20..200 kB at 512x512, times the sign",
        preprocessing=f"cut to [0, 1], bytes, Pillow's JPEG at quality {quality}",
    )


def _check(sign: float, quality: int) -> None:
    if sign not in (-1, 1):
        raise UsageError(f"sign {sign} is neither -1 (small files) nor 1 (large files); weigh it with 0.3 * jpeg")
    if not 1 <= quality <= 100:
        raise UsageError(f"quality {quality} is not within 1..100; 95 is that of DDPO")


def _written(sign: float, quality: int, pictures: Tensor, prompts: Sequence[str]) -> Tensor:
    sizes = []
    for picture in shown(pictures).detach().mul(255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy():
        file = io.BytesIO()
        Image.fromarray(picture).save(file, "JPEG", quality=quality)
        sizes.append(len(file.getvalue()) / 1000)
    return sign * torch.tensor(sizes, device=pictures.device)


# -- the stand-in -----------------------------------------------------------------------------------------------------


def table_of(base: Sequence[int], quality: int) -> list[list[float]]:
    """A table of 8x8 at a quality, as libjpeg scales it: floor((base s + 50) / 100) within 1..255, with
    s = 5000 / quality below 50, else 200 - 2 quality."""
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    scaled = [float(min(255, max(1, (value * scale + 50) // 100))) for value in base]
    return [scaled[8 * row : 8 * row + 8] for row in range(8)]


def _coded(sign: float, tables: Sequence[Tensor], pictures: Tensor, prompts: Sequence[str]) -> Tensor:
    height, width = pictures.shape[-2:]
    values = _padded(shown(pictures)) * 255
    luma, blue, red = torch.einsum("oc,bchw->obhw", values.new_tensor(TO_YCBCR), values).unbind()
    planes = [(luma - 128, tables[0])]
    planes += [(nn.functional.avg_pool2d(plane[:, None], 2)[:, 0], tables[1]) for plane in (blue, red)]
    bits = torch.stack([_bits(plane, table.to(plane)) for plane, table in planes]).sum(0)
    return sign * bits / (height * width)


def _padded(pictures: Tensor) -> Tensor:
    """The last row and column repeated up to multiples of 16: whole blocks, in the halved chroma too."""
    height, width = pictures.shape[-2:]
    return nn.functional.pad(pictures, (0, -width % 16, 0, -height % 16), mode="replicate")


def _bits(plane: Tensor, table: Tensor) -> Tensor:
    """(B, H, W) about 0 -> (B,): the sum of log2(1 + |c|) over its coefficients."""
    blocks = plane.unflatten(1, (-1, 8)).unflatten(3, (-1, 8)).permute(0, 1, 3, 2, 4).flatten(1, 2)
    basis = cosines().to(plane)
    coefficients = soft_round(basis @ blocks @ basis.T / table)
    first = nn.functional.pad(coefficients[:, :, 0, 0], (1, 0)).diff(dim=1)
    return _log_size(coefficients.flatten(2)[:, :, 1:]).flatten(1).sum(1) + _log_size(first).sum(1)


def _log_size(coefficients: Tensor) -> Tensor:
    return torch.log2(1 + coefficients.abs())


def soft_round(values: Tensor) -> Tensor:
    """x - sin(2 pi x) / (2 pi): near the nearest whole number, with a gradient."""
    return values - torch.sin(2 * math.pi * values) / (2 * math.pi)


def cosines() -> Tensor:
    """The orthonormal DCT-II of 8 values, float64 (8, 8), a frequency a row."""
    at, frequency = torch.arange(8, dtype=torch.float64), torch.arange(8, dtype=torch.float64)[:, None]
    rows = torch.cos((2 * at + 1) * frequency * math.pi / 16) / 2
    rows[0] /= math.sqrt(2)
    return rows
