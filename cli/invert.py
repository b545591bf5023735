"""pilotage invert"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def invert(
    picture: Annotated[str, typer.Argument(help="The picture to invert.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder for what is found.")],
    prompt: Annotated[str, typer.Option(help="What the picture shows.")] = "",
    edit: Annotated[str | None, typer.Option(help="What it shall show: writes edited.png too.")] = None,
    method: Annotated[
        str, typer.Option(help='One of `pilotage list inversions`, such as "fixed-point:iterations=10,anderson=3".')
    ] = "fixed-point",
    guidance: Annotated[str, typer.Option("--guidance", "-g", help="The rule for both ways.")] = "none",
    edit_guidance: Annotated[
        str | None, typer.Option(help="Another rule for the way to the edited picture, such as cfg:scale=3.")
    ] = None,
    negative: Annotated[str, typer.Option(help="What should not be there, for rules that look away from it.")] = "",
    steps: Annotated[int, typer.Option(help="Steps each way.")] = 50,
    grid: Annotated[str, typer.Option(help="One of `pilotage list grids`.")] = "exponential",
    strength: Annotated[float, typer.Option(help="How far back an edit goes, above 0 and at most 1.")] = 1.0,
    width: Annotated[int | None, typer.Option(help="In pixels; the model's own size without it.")] = None,
    height: Annotated[int | None, typer.Option(help="In pixels.")] = None,
    model: Annotated[str, typer.Option(help="embedded, a folder, or a hub id such as owner/name.")] = "embedded",
    device: Annotated[str, typer.Option(help="auto, cpu, mps, cuda or cuda:1.")] = "auto",
    allow_download: Annotated[
        bool, typer.Option("--allow-download", help="Fetch the model from the hub if need be.")
    ] = False,
) -> None:
    """Find the noise that a picture comes from, and edit the picture by its prompt.

    pilotage invert fish.png --prompt "a red fish on navy" -o runs/fish

    pilotage invert fish.png --prompt "a red fish on navy" --edit "a green fish on navy" -o runs/fish
    """
    from ..generation.call import read_picture
    from ..generation.inversion import Wish, round_trip, write
    from ..generation.models import load
    from .console import say_notes

    read_picture(picture)  # refuse before the model is loaded
    wish = Wish(picture, prompt, edit, negative, method, guidance, edit_guidance, grid, steps, strength, width, height)
    trip = round_trip(load(model, device=device, allow_download=allow_download), wish)
    files = write(trip, output)
    if not prompt:
        say_notes(["without --prompt the picture is inverted as one of no caption"])
    if trip.last_move is not None and trip.last_move > 1e-2:
        say_notes([f"the fixed point has not settled (last move {trip.last_move:.0e}): more iterations, or anderson=3"])
    print(
        f"round trip {trip.decibels('reconstruction', 'vae'):.1f} dB PSNR, "
        f"relative latent error {trip.latent_error:.1e}; "
        f"from the noise alone {trip.decibels('alone', 'vae'):.1f} dB; "
        f"the VAE by itself {trip.decibels('vae', 'picture'):.1f} dB"
    )
    print(f"{', '.join(files)} in {output}")
