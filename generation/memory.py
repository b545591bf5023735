"""What is given for memory: where the weights wait, in what pieces the work is done. `auto` chooses from what is free.

| setting           | what it does                                                    | pictures                      |
|-------------------|-----------------------------------------------------------------|-------------------------------|
| offload model     | one part of the pipeline at a time on the device                | the same bits                 |
| offload sequential| one layer at a time on the device; slow                         | the same bits                 |
| vae_slicing       | decodes one picture at a time                                   | within the dtype's tolerance  |
| vae_tiling        | decodes large pictures in tiles, blended at the seams           | others                        |
| attention_slicing | attention head by head; for devices without efficient attention | within the dtype's tolerance  |
| compile           | the network by torch.compile                                    | within the dtype's tolerance  |
| channels_last     | convolutions with the channels innermost                        | within the dtype's tolerance  |
| quantize          | weights in fewer bits, by diffusers' configuration of that name | others                        |

Those that make other pictures belong to a run's identity.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from ..errors import UsageError

CHANGING = ("vae_tiling", "quantize")  # what makes other pictures
OFFLOADS = ("none", "model", "sequential")


def _backend(given: Any) -> Any:
    return {True: "inductor", False: None}.get(given, given) if isinstance(given, bool) else given


class Memory(BaseModel):
    """Switches for memory and speed, all passed on to diffusers and torch."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    auto: bool = Field(default=False, description="choose offload, slicing and tiling by what is free")
    offload: Literal["none", "model", "sequential"] = "none"
    vae_slicing: bool = False
    vae_tiling: bool = False
    attention_slicing: bool = False
    channels_last: bool = False
    compile: Annotated[str | None, BeforeValidator(_backend)] = Field(default=None, description="true, or a backend")
    quantize: str | None = Field(default=None, description="bitsandbytes_4bit, _8bit or torchao")

    @property
    def changing(self) -> dict[str, Any]:
        """What makes other pictures, as far as it is in use."""
        return {name: value for name in CHANGING if (value := getattr(self, name))}


def as_memory(given: Any) -> Any:
    """`auto` and `none` stand for a whole block."""
    if given in ("auto", "none", None):
        return {"auto": True} if given == "auto" else {}
    if not isinstance(given, (Mapping, Memory)):
        raise UsageError(f"memory is auto, none, or a block such as {{offload: model}}, not {given!r}")
    return given


# -- auto ------------------------------------------------------------------------------------------------------------

_SPARE = 0.9  # share of the free memory that may be planned for; the rest is the allocator's
_DECODE = 1024  # values that live while a pixel is decoded: four maps of 256 channels
_CALL = 96  # values that live in a call of the network for each pixel of a row: 64 pixels to a token, some 6000 a token


def choose(
    free: int, weights: int, largest: int, bytes_each: int, pixels: int, tile: int, pictures: int, rows: int
) -> dict[str, Any]:
    """Settings with which a run should fit, the fastest first: everything there; decoding picture by picture; in tiles;
    one part at a time; one layer at a time. The last where nothing fits; a batch that does not fit then is halved.

    free: bytes of the device. weights: of all parts; largest: of the largest one. bytes_each: of a number.
    pixels: of a picture. tile: of a tile of the autoencoder. pictures, rows: of a batch, and of a call of the network.
    What a call needs is a rough estimate from the shapes of such networks, and was measured on none.
    """
    budget = int(_SPARE * free)
    call = _CALL * pixels * rows * bytes_each
    decode = _DECODE * pixels * bytes_each
    tiled = _DECODE * min(pixels, tile) * bytes_each
    tiling = {"vae_tiling": True} if tiled < decode else {}
    candidates: list[tuple[int, dict[str, Any]]] = [
        (weights + max(call, decode * pictures), {}),
        (weights + max(call, decode), {"vae_slicing": True}),
        (weights + max(call, tiled), {"vae_slicing": True, **tiling}),
        (largest + max(call, decode), {"offload": "model", "vae_slicing": True}),
        (largest + max(call, tiled), {"offload": "model", "vae_slicing": True, **tiling}),
    ]
    last = {"offload": "sequential", "vae_slicing": True, **tiling}
    return next((settings for needed, settings in candidates if needed <= budget), last)
