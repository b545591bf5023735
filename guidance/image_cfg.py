"""Guidance of InstructPix2Pix with two scales: Brooks et al. 2022, arXiv 2211.09800, eq. 3."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .rule import Ask, Context, Guide, Rule


@dataclass(frozen=True)
class ImageCFG(Rule):
    """uncond + scale (cond - image) + image_scale (image - uncond): text and picture are steered apart.

    Both scales have 1 = off. With equal scales it is CFG.
    """

    scale: float = 7.5
    image_scale: float = 1.5

    passes: ClassVar[int] = 6
    needs: ClassVar[tuple[str, ...]] = ("cond", "image", "uncond")

    def guide(self, ctx: Context) -> Guide:
        ctx.log(scale=self.scale)
        if self.scale == self.image_scale == 1:
            (cond,) = yield (Ask(),)
            return cond
        cond, image, uncond = yield Ask(), Ask("image"), Ask("uncond")
        text_part = self.scale * (cond.native - image.native)
        image_part = self.image_scale * (image.native - uncond.native)
        return cond.like(uncond.native + text_part + image_part)
