"""Guidance of InstructPix2Pix with two scales: Brooks et al. 2022, arXiv 2211.09800, eq. 3."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .rule import Ask, Context, Guide, Rule
from .scale import Scale, is_off


@dataclass(frozen=True)
class ImageCFG(Rule):
    """uncond + scale (cond - image) + image_scale (image - uncond): text and picture are steered apart.

    Both scales have 1 = off. With equal scales it is CFG.
    """

    scale: Scale = 7.5
    image_scale: Scale = 1.5

    passes: ClassVar[int] = 6
    needs: ClassVar[tuple[str, ...]] = ("cond", "image", "uncond")

    def guide(self, ctx: Context) -> Guide:
        ctx.log(scale=self.scale)
        if is_off(self.scale) and is_off(self.image_scale):
            (cond,) = yield (Ask(),)
            return cond
        cond, image, uncond = yield Ask(), Ask("image"), Ask("uncond")
        text_part = ctx.column(self.scale) * (cond.native - image.native)
        image_part = ctx.column(self.image_scale) * (image.native - uncond.native)
        return cond.like(uncond.native + text_part + image_part)
