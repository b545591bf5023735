"""The folder of a ranking: its state after each answer, and what has come of it.

state.safetensors    everything that the next answer needs
answers.jsonl        what was answered, one JSON object a line
way/NNN.png          the picture that was kept from round NNN on
picture.png          the one that is kept now, with its recipe inside
latent.safetensors   its latent: `pipe(..., latents=load_file(...)["latents"])`
sheet.png            the way from the first to the last
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image, PngImagePlugin
from torch import Tensor

from ...documents import plain_json
from ...errors import UsageError
from ...storage import append_line, disk_errors, make_folder, whole
from ...version import __version__
from .drawing import Drawing
from .question import Answer
from .rank_sgd import EXPLORE, SEARCH, RankSGD, RankState
from .sheets import images_of, sheet_of

STATE, ANSWERS, WAY, PICTURE, LATENT, SHEET = (
    "state.safetensors", "answers.jsonl", "way", "picture.png", "latent.safetensors", "sheet.png",
)  # fmt: skip
KEY = "pilotage-ranking"  # of the text inside picture.png
FORMAT = 1


@dataclass(frozen=True)
class Wish:
    """What makes a ranking what it is. by: who ranks, "a person" or the line of a reward. seed: of the first latent
    and of all perturbations."""

    drawing: Drawing
    method: RankSGD = field(default_factory=RankSGD)
    seed: int = 0
    by: str = "a person"
    model: str = "embedded"

    def plain(self) -> dict[str, Any]:
        """As JSON has it, without nesting."""
        found = asdict(self)
        return {**found.pop("drawing"), **found.pop("method"), **found}


@dataclass(frozen=True, eq=False)
class Stop:
    """A place on the way: the latent kept since this round. score: its reward, where one ranks and has seen it."""

    latent: Tensor
    round: int
    score: float | None = None


@dataclass(frozen=True, eq=False)
class Ranking:
    """state: of the method. way: the latents kept so far, the first first. drawn: pictures made so far."""

    state: RankState
    way: tuple[Stop, ...]
    drawn: int


def default_folder(wish: Wish) -> Path:
    """runs/rank-<words of the prompt>-<hash of the wish>: the same command finds the same folder."""
    words = re.sub(r"[^a-z0-9]+", "-", wish.drawing.prompt.lower()).strip("-")[:40].strip("-")
    digest = hashlib.sha256(json.dumps(wish.plain(), sort_keys=True).encode()).hexdigest()[:8]
    return Path("runs") / "-".join(part for part in ("rank", words, digest) if part)


def begin(folder: Path, wish: Wish, ranking: Ranking, first: Tensor) -> None:
    """The folder of a new ranking. first: (1, 3, H, W), the picture it starts from."""
    make_folder(folder)
    make_folder(folder / WAY)
    keep_picture(folder, 0, first)
    write_state(folder, wish, ranking)
    write_results(folder, wish, ranking)


def write_state(folder: Path, wish: Wish, ranking: Ranking) -> None:
    from safetensors.torch import save_file

    state = ranking.state
    tensors = {"x": state.x, "G": state.G, "candidates": state.candidates}
    tensors["way"] = torch.stack([stop.latent for stop in ranking.way])
    numbers = {
        **{name: getattr(state, name) for name in ("tau", "mode", "round", "seed")},
        "way": [(stop.round, stop.score) for stop in ranking.way],
        "drawn": ranking.drawn,
    }
    text = {"ranking": json.dumps({"format": FORMAT, "wish": wish.plain(), "numbers": numbers})}
    with disk_errors(folder), whole(folder / STATE) as part:
        save_file({name: value.cpu().clone().contiguous() for name, value in tensors.items()}, part, text)


def read_state(folder: Path, wish: Wish) -> Ranking | None:
    """What was saved; None where nothing was. Raises UsageError for the state of another wish, and a damaged one."""
    path = folder / STATE
    if not path.is_file():
        return None
    tensors, saved = _opened(path)
    if not isinstance(saved, dict) or saved.get("format") != FORMAT:
        raise UsageError(f"{path} was written by another version of pilotage; choose another output")
    try:
        saved_wish, numbers = dict(saved["wish"]), dict(saved["numbers"])
        way = tuple(Stop(x, *_stop(*facts)) for x, facts in zip(tensors.pop("way"), numbers.pop("way"), strict=True))
        drawn = _count(numbers.pop("drawn"))
        state = RankState(**tensors, **_numbers(**numbers))
    except (KeyError, TypeError, ValueError):
        raise UsageError(f"{path} is damaged and cannot be resumed; choose another output") from None
    _refuse_another(folder, saved_wish, wish.plain())
    return Ranking(state, way, drawn)


def _numbers(*, mode: str, round: int, seed: int, tau: int) -> dict[str, Any]:
    if mode not in (EXPLORE, SEARCH):
        raise ValueError(mode)
    return {"mode": mode, "round": _count(round), "seed": int(seed), "tau": _count(tau)}


def _stop(round: int, score: float | None) -> tuple[int, float | None]:
    return _count(round), score if score is None else float(score)


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**63:
        raise ValueError(f"{value} is no count")
    return value


def _opened(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            told: dict[str, Any] = plain_json((file.metadata() or {})["ranking"])
            return {name: file.get_tensor(name) for name in file.keys()}, told  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, KeyError):
        raise UsageError(f"{path} is damaged and cannot be resumed; choose another output") from None


def _refuse_another(folder: Path, saved: dict[str, Any], wanted: dict[str, Any]) -> None:
    names = dict.fromkeys((*saved, *wanted))
    other = [f"{n}={saved.get(n)!r} there" for n in names if saved.get(n) != wanted.get(n)]
    if other:
        raise UsageError(f"{folder} holds another ranking ({', '.join(other)}); choose another output")


def note_answer(folder: Path, ranking: Ranking, answer: Answer) -> None:
    """A line of the answers. ranking: before the answer. Orders are those that people see, from 1."""
    told: dict[str, Any] = {"round": ranking.state.round, "mode": ranking.state.mode}
    told["order"] = [i + 1 for i in answer.order]
    if answer.scores:
        told["scores"] = list(answer.scores)
    with disk_errors(folder):
        append_line(folder / ANSWERS, json.dumps(told))


def keep_picture(folder: Path, round: int, picture: Tensor) -> None:
    with disk_errors(folder), whole(folder / WAY / f"{round:03d}.png") as part:
        images_of(picture)[0].save(part, format="PNG")


def write_results(folder: Path, wish: Wish, ranking: Ranking) -> None:
    """picture.png, latent.safetensors and sheet.png of what is kept now."""
    from safetensors.torch import save_file

    images = [Image.open(folder / WAY / f"{stop.round:03d}.png") for stop in ranking.way]
    recipe = json.dumps(_recipe(wish, ranking))
    info = PngImagePlugin.PngInfo()
    info.add_text(KEY, recipe)
    with disk_errors(folder):
        with whole(folder / PICTURE) as part:
            images[-1].save(part, format="PNG", pnginfo=info)
        with whole(folder / LATENT) as part:
            save_file({"latents": ranking.state.x[None].cpu().clone().contiguous()}, part, {"recipe": recipe})
        with whole(folder / SHEET) as part:
            sheet_of(images, [_label(stop) for stop in ranking.way]).save(part, format="PNG")


def _recipe(wish: Wish, ranking: Ranking) -> dict[str, Any]:
    """Nothing in it depends on the clock."""
    rounds = {"rounds": ranking.state.round, "moves": len(ranking.way) - 1, "pictures": ranking.drawn}
    return {"format": FORMAT, "wish": wish.plain(), **rounds, "latents": LATENT, "pilotage": __version__}


def _label(stop: Stop) -> str:
    where = f"round {stop.round}" if stop.round else "start"
    return where if stop.score is None else f"{where}: {stop.score:.3g}"
