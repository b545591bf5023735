"""A picture of one's own: to the noise that gives it back, and to another picture under a new prompt."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from ..errors import UsageError
from ..guidance.grammar import parse
from ..guidance.pipelines.denoiser import denoiser_of
from ..guidance.pipelines.model import KNOWN
from ..samplers.grids import make_grid
from ..samplers.inversion import Carried, ReversibleStep, forward, invert, make_inversion
from ..samplers.inversion.editing import last_steps
from ..storage import disk_errors, make_folder, whole
from .call import read_picture
from .latents import decoded, encoded
from .sheet import GAP, INK, MARGIN, PAPER, font, shown


@dataclass(frozen=True)
class Wish:
    """What is wanted of a picture.

    prompt: what it shows. edit: what it shall show; nothing is edited without it. guidance: a rule for both ways;
    edit_guidance: another for the way to the edited picture. strength: share of the steps that an edit goes back.
    width, height: the picture is brought to; the model's own without them.
    """

    picture: str
    prompt: str = ""
    edit: str | None = None
    negative: str = ""
    method: str = "fixed-point"
    guidance: str = "none"
    edit_guidance: str | None = None
    grid: str = "exponential"
    steps: int = 50
    strength: float = 1.0
    width: int | None = None
    height: int | None = None


@dataclass(frozen=True, eq=False)
class RoundTrip:
    """Latents (1, C, h, w) and pictures (1, 3, H, W) in [0, 1]. carried: what the inversion found. back: the latents
    sampled from it; alone: from its noise without the rest; edited: under the new prompt."""

    wish: Wish
    method: ReversibleStep
    original: Tensor
    latents: Tensor
    carried: Carried
    back: Tensor
    alone: Tensor
    edited: Tensor | None
    pictures: dict[str, Tensor]

    @property
    def noise(self) -> Tensor:
        return self.method.noise(self.carried)

    @property
    def latent_error(self) -> float:
        return float((self.back - self.latents).norm() / self.latents.norm())

    @property
    def last_move(self) -> float | None:
        """The largest last move of the fixed-point iterations against x; None for closed forms."""
        return max((float(change.max()) for change in self.carried.changes), default=None)

    def decibels(self, one: str, other: str) -> float:
        """PSNR of one picture against another."""
        square = float((self.pictures[one] - self.pictures[other]).square().mean())
        return -10 * float(torch.log10(torch.tensor(square))) if square > 0 else float("inf")


def round_trip(pipe: Any, wish: Wish) -> RoundTrip:
    """Encode, invert, sample again, and edit where that is wanted. Raises UsageError before the first network call for
    what cannot work."""
    method, rule = make_inversion(wish.method), parse(wish.guidance)
    other = parse(wish.edit_guidance) if wish.edit_guidance else rule
    size = size_of(pipe, wish.width, wish.height)
    denoiser = denoiser_of(pipe, wish.prompt, rule, negative=wish.negative, size=size)
    draws = None
    if wish.edit is not None:
        draws = denoiser_of(pipe, wish.edit, other, negative=wish.negative, size=size)
    levels = make_grid(wish.grid, denoiser.schedule, wish.steps)
    last_steps(levels, wish.strength)  # refuses a share that is none
    original = _picture(wish, size)
    with torch.no_grad():
        latents = encoded(pipe, original)
        carried = invert(denoiser, latents, levels, method=method)
        back = method.end(forward(denoiser, carried, levels, method=method))
        alone = method.end(forward(denoiser, method.noise(carried), levels, method=method))
        edited = None
        if draws is not None:
            part = last_steps(levels, wish.strength)
            begun = carried if part == levels else invert(denoiser, latents, part, method=method)
            edited = method.end(forward(draws, begun, part, method=method))
    named = {"vae": latents, "reconstruction": back, "alone": alone, "edited": edited}
    pictures = {name: decoded(pipe, value).cpu() for name, value in named.items() if value is not None}
    return RoundTrip(wish, method, original, latents, carried, back, alone, edited, {"picture": original} | pictures)


def size_of(pipe: Any, width: int | None, height: int | None) -> tuple[int, int]:
    """(width, height) of its pictures: whole numbers of latents, and the model's own where none is given. UsageError
    for pipelines whose latents are not those of Stable Diffusion."""
    if not any(cls.__name__ in KNOWN for cls in type(pipe).__mro__):
        raise UsageError(f"{type(pipe).__name__} cannot be inverted or ranked with: only {', '.join(KNOWN)} can")
    own = getattr(getattr(getattr(pipe, "unet", None), "config", None), "sample_size", None)
    if own is None and not (width and height):
        raise UsageError(f"{type(pipe).__name__} does not say its size; give --width and --height")
    grain = pipe.vae_scale_factor
    size = tuple(int(given or own * grain) for given in (width, height))
    if any(side % grain or side <= 0 for side in size):
        raise UsageError(f"width and height must be multiples of {grain}, not {size[0]} and {size[1]}")
    return size[0], size[1]


def _picture(wish: Wish, size: tuple[int, int]) -> Tensor:
    picture = read_picture(wish.picture).convert("RGB")
    if picture.size != size:
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    flat = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    return flat.reshape(1, size[1], size[0], 3).permute(0, 3, 1, 2).float() / 255


# -- files ------------------------------------------------------------------------------------------------------------


def write(trip: RoundTrip, folder: Path) -> list[str]:
    """reconstruction.png, edited.png, sheet.png and noise.safetensors; their names."""
    make_folder(folder)
    made = [name for name in ("reconstruction", "edited") if name in trip.pictures]
    images = {f"{name}.png": image_of(trip.pictures[name]) for name in made}
    images["sheet.png"] = sheet_of(trip)
    with disk_errors(folder):
        for name, image in images.items():
            with whole(folder / name) as part:
                image.save(part, format="PNG")
        with whole(folder / "noise.safetensors") as part:
            _save_noise(trip, part)
    return [*images, "noise.safetensors"]


def _save_noise(trip: RoundTrip, path: Path) -> None:
    """`noise`, and where more is carried, all of it as `carried.0`, `carried.1`, ...; the wish as metadata."""
    from safetensors.torch import save_file

    tensors = {"noise": trip.noise, **{f"carried.{i}": t for i, t in enumerate(trip.carried.tensors)}}
    wish = {name: value for name, value in vars(trip.wish).items() if value is not None}
    save_file({k: t.float().cpu().clone().contiguous() for k, t in tensors.items()}, path, {"wish": json.dumps(wish)})


def image_of(picture: Tensor) -> Image.Image:
    """The first of (B, 3, H, W) in [0, 1]."""
    flat = (picture[0] * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous()
    return Image.frombytes("RGB", (flat.shape[1], flat.shape[0]), bytes(flat.flatten().tolist()))


def sheet_of(trip: RoundTrip) -> Image.Image:
    """The pictures side by side, each with what it is above it."""
    labels = {"picture": "picture", "vae": "through the VAE", "reconstruction": "reconstruction", "edited": "edited"}
    kept = [name for name in labels if name in trip.pictures]
    tiles = [shown(image_of(trip.pictures[name])) for name in kept]
    width, height = max(tile.width for tile in tiles) + GAP, tiles[0].height
    sheet = Image.new("RGB", (2 * MARGIN + len(tiles) * width - GAP, 2 * MARGIN + 24 + height), PAPER)
    draw = ImageDraw.Draw(sheet)
    for column, (name, tile) in enumerate(zip(kept, tiles, strict=True)):
        x = MARGIN + column * width
        draw.text((x, MARGIN), labels[name], INK, font(13))
        sheet.paste(tile, (x, MARGIN + 24))
    return sheet
