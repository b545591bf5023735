"""pilotage rank"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from ..finetune.ranking import Ranking


def rank(
    prompt: Annotated[str, typer.Argument(help="What to draw.")],
    reward: Annotated[str | None, typer.Option(help="A reward ranks, such as adherence.")] = None,
    terminal: Annotated[
        bool, typer.Option("--terminal", help="You rank: numbered pictures in a file, the order typed.")
    ] = False,
    page: Annotated[bool, typer.Option("--page", help="You rank: on a page that only this machine can open.")] = False,
    rounds: Annotated[int, typer.Option(help="Rounds; each asks for an order and then for the best of a few.")] = 10,
    seed: Annotated[int, typer.Option(help="Of the picture to start from.")] = 0,
    negative: Annotated[str, typer.Option(help="What should not be there, for rules that look away from it.")] = "",
    guidance: Annotated[str, typer.Option("--guidance", "-g", help="The rule.")] = "cfg:scale=3",
    sampler: Annotated[str, typer.Option(help="One of `pilotage list samplers` that takes no noise.")] = "dpmpp-2m",
    grid: Annotated[str, typer.Option(help="One of `pilotage list grids`.")] = "exponential",
    steps: Annotated[int, typer.Option(help="Steps of the sampler.")] = 25,
    width: Annotated[int | None, typer.Option(help="In pixels; the model's own size without it.")] = None,
    height: Annotated[int | None, typer.Option(help="In pixels.")] = None,
    candidates: Annotated[int, typer.Option("--candidates", "-m", help="Pictures to order in a round.")] = 6,
    named: Annotated[
        int | None, typer.Option("--named", "-k", help="How many to name, best first; all of them.")
    ] = None,
    mu: Annotated[
        float, typer.Option(help="How far candidates are from the kept one; larger when all look alike.")
    ] = 0.1,
    eta: Annotated[float, typer.Option(help="The longest step of a search.")] = 1.0,
    model: Annotated[str, typer.Option(help="embedded, a folder, or a hub id such as owner/name.")] = "embedded",
    rows: Annotated[int, typer.Option(help="Pictures made together.")] = 8,
    device: Annotated[str, typer.Option(help="auto, cpu, mps, cuda or cuda:1.")] = "auto",
    allow_download: Annotated[
        bool, typer.Option("--allow-download", help="Fetch the model from the hub if need be.")
    ] = False,
    port: Annotated[int, typer.Option(help="Of the page; a free one without it.")] = 0,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="The folder; below runs/ without it.")] = None,
) -> None:
    """Improve one picture by saying which of a few is better.

    No training and no gradients: the latent that the picture starts from moves towards what is ranked higher. The same
    command again goes on where it was interrupted.

      pilotage rank "a red fish on navy" --page

      pilotage rank "a red fish on navy" --reward adherence --rounds 20
    """
    from ..errors import UsageError
    from ..finetune.ranking import Drawing, RankSGD, Wish, drawer_of, first_latent
    from ..finetune.ranking import rank as run
    from ..finetune.ranking.files import default_folder, read_state
    from ..generation.models import load

    if (reward is not None) + terminal + page != 1:
        raise UsageError("say who ranks: give one of --reward, --terminal and --page")
    drawing = Drawing(prompt, negative, guidance, sampler, grid, steps, width, height)
    method = RankSGD(m=candidates, k=candidates if named is None else named, mu=mu, eta=eta)
    wish = Wish(drawing, method, seed, reward or "a person", model)
    folder = output or default_folder(wish)
    read_state(folder, wish)  # refuse another ranking's folder before the model is loaded
    with _ranker(reward, terminal, folder, port, device) as ranker:
        pipe = load(model, device=device, allow_download=allow_download)
        found = run(drawer_of(pipe, drawing, rows), first_latent(pipe, drawing, seed), wish, folder, ranker, rounds)
    _say(found, folder)


def _ranker(reward: str | None, terminal: bool, folder: Path, port: int, device: str) -> Any:
    """Whoever ranks, as a context."""
    from contextlib import nullcontext

    from ..finetune.ranking import ByReward, InTerminal, OnPage

    if reward is not None:
        from ..finetune.rewards.opening import open_rewards
        from ..generation.models import device_named

        return nullcontext(ByReward(open_rewards(reward, device_named(device))))
    if terminal:
        return nullcontext(InTerminal(folder))
    page = OnPage(port)
    print(f"rank at {page.address}", flush=True)
    return page


def _say(found: Ranking, folder: Path) -> None:
    first, last, moves = found.way[0], found.way[-1], len(found.way) - 1
    gain = (
        f", reward {first.score:.4g} -> {last.score:.4g}" if first.score is not None and last.score is not None else ""
    )
    print(
        f"{found.state.round} round{'s' * (found.state.round != 1)}, "
        f"{found.drawn} picture{'s' * (found.drawn != 1)} drawn, "
        f"{moves} move{'s' * (moves != 1)}{gain}"
    )
    print(f"picture.png, latent.safetensors, sheet.png in {folder}")
