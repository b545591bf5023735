"""What a reward's network sees of a picture. All in torch, differentiable, in the pictures' own precision."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from ...errors import UsageError
from ...evaluation.features.clip import DEVIATION, MEAN
from ...evaluation.features.resize import centre_square

Three = tuple[float, float, float]


def shown(pictures: Tensor) -> Tensor:
    """Pictures (B, 3, H, W) as they will be saved: within [0, 1]. What was cut off has no gradient."""
    if pictures.dim() != 4 or pictures.shape[1] != 3:
        raise UsageError(f"pictures are (B, 3, H, W), not {tuple(pictures.shape)}; decode latents before a reward")
    if not pictures.is_floating_point():
        kind = str(pictures.dtype).removeprefix("torch.")
        raise UsageError(f"pictures are floats on the scale of [0, 1], not {kind}; divide bytes by 255")
    return pictures.clamp(0, 1)


@dataclass(frozen=True)
class Sight:
    """Antialiased bicubic to side x side, then (x - mean) / deviation.

    fit "crop": the shorter edge is resized and the centre cut out, as CLIP's processor does. "pad": the longer edge is
    resized and the rest is black, as HPSv2's code does. On square pictures they are the same.
    """

    side: int = 224
    fit: str = "crop"
    mean: Three = MEAN
    deviation: Three = DEVIATION

    def __call__(self, pictures: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, 3, side, side), each channel less its mean, over its deviation."""
        values = self.fitted(shown(pictures))
        mean, deviation = (values.new_tensor(of)[:, None, None] for of in (self.mean, self.deviation))
        return (values - mean) / deviation

    def fitted(self, pictures: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> (B, 3, side, side) in [0, 1].

        What bicubic overshoots is cut off after each of the two passes, as Pillow's bytes cannot hold it.
        """
        height, width = pictures.shape[-2:]
        size = self._size(height, width)
        for between in ((height, size[1]), size):  # along x, then along y
            if between != tuple(pictures.shape[-2:]):
                pictures = _bicubic(pictures, between).clamp(0, 1)
        if self.fit == "crop":
            return centre_square(pictures, self.side)
        down, right = self.side - size[0], self.side - size[1]
        return nn.functional.pad(pictures, (right // 2, right - right // 2, down // 2, down - down // 2))

    def _size(self, height: int, width: int) -> tuple[int, int]:
        if self.fit == "crop":
            shorter = min(height, width)
            return self.side * height // shorter, self.side * width // shorter
        longer = max(height, width)
        return max(1, round(self.side * height / longer)), max(1, round(self.side * width / longer))

    @property
    def said(self) -> str:
        """In words, for `Reward.preprocessing`."""
        how = "shorter edge, centre" if self.fit == "crop" else "longer edge, black beside"
        return f"cut to [0, 1], antialiased bicubic to {self.side} ({how}), mean and deviation of the channels"


def _bicubic(pictures: Tensor, size: tuple[int, int]) -> Tensor:
    return nn.functional.interpolate(pictures, size, mode="bicubic", antialias=True, align_corners=False)
