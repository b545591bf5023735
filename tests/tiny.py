"""One tiny pipeline of each kind that `attach` distinguishes; many tests run over all of them.

`CASES` maps a pipeline class name to a builder of a `Case`: the pipeline, the arguments of a call with guidance on, and
those that switch guidance off. Every other pipeline class with a row stands in `tiny_unets.py` and its siblings.
"""

from __future__ import annotations

from collections.abc import Callable

import tiny_transformers
import tiny_unets
from tiny_parts import TWO_PROMPTS, Case, ddim, run, stable_diffusion, unet
from tiny_transformers import dit, flux, stable_diffusion_3, z_image
from tiny_unets import image_to_image, stable_diffusion_xl, text_to_image

__all__ = [
    "CASES",
    "TWO_PROMPTS",
    "Case",
    "ddim",
    "dit",
    "flux",
    "image_to_image",
    "run",
    "stable_diffusion",
    "stable_diffusion_3",
    "stable_diffusion_xl",
    "text_to_image",
    "unet",
    "z_image",
]

KINDS = (
    "StableDiffusionPipeline",
    "StableDiffusionImg2ImgPipeline",
    "StableDiffusionInpaintPipeline",
    "StableDiffusionInstructPix2PixPipeline",
    "StableDiffusionControlNetPipeline",
    "StableDiffusionXLPipeline",
    "DiTPipeline",
    "StableDiffusion3Pipeline",
    "FluxPipeline",
    "ZImagePipeline",
)
CASES: dict[str, Callable[[], Case]] = {name: {**tiny_unets.CASES, **tiny_transformers.CASES}[name] for name in KINDS}
