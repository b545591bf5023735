"""The names that samplers and grids have in the web UI of AUTOMATIC1111 and in ComfyUI, in our words.

    resolved("DPM++ 2M SDE Karras")      # ("sde-dpmpp-2m", "karras")
    resolved("euler_ancestral")          # ("euler-ancestral", None): the grid of the model

A name is that of a sampler, with that of a grid behind it or not. Case, blanks and underscores do not matter.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ..errors import UsageError, nearest
from ..grammar import pieces_of
from ..registry import everything
from .grids import GRIDS
from .registry import SAMPLERS


@dataclass(frozen=True)
class Alias:
    """web: its name in the web UI; comfy: in ComfyUI ("" where it has none). line: the sampler or the grid in our
    words."""

    web: str
    comfy: str
    line: str


SAMPLER_ALIASES = (
    Alias("Euler", "euler", "euler"),
    Alias("Euler a", "euler_ancestral", "euler-ancestral"),
    Alias("Heun", "heun", "heun"),
    Alias("DPM2", "dpm_2", "dpm2"),
    Alias("DPM2 a", "dpm_2_ancestral", "dpm2-ancestral"),
    Alias("LMS", "lms", "lms"),
    Alias("PLMS", "", "plms"),
    Alias("DPM++ 2S a", "dpmpp_2s_ancestral", "dpmpp-2s-ancestral"),
    # k-diffusion's sample_dpmpp_sde, which takes noise; diffusers' own list of names has the noiseless
    # DPMSolverSinglestepScheduler here, and the method itself under DPMSolverSDEScheduler
    Alias("DPM++ SDE", "dpmpp_sde", "sde-dpmpp-2s"),
    Alias("DPM++ 2M", "dpmpp_2m", "dpmpp-2m"),
    Alias("DPM++ 2M SDE", "dpmpp_2m_sde", "sde-dpmpp-2m"),
    Alias("DPM++ 3M SDE", "dpmpp_3m_sde", "sde-dpmpp-3m"),
    Alias("DDIM", "ddim", "ddim"),
    Alias("DDPM", "ddpm", "ddpm"),
    Alias("UniPC", "uni_pc", "unipc"),
    Alias("DEIS", "deis", "deis"),
    Alias("ER SDE", "er_sde", "er-sde"),
    Alias("LCM", "lcm", "lcm"),
    Alias("Restart", "", "restart"),
)
GRID_ALIASES = (
    Alias("Karras", "karras", "karras"),
    Alias("Exponential", "exponential", "exponential"),
    Alias("Polyexponential", "", "polyexponential"),
    Alias("SGM Uniform", "sgm_uniform", "trailing"),
    Alias("Simple", "simple", "trailing"),
    Alias("Normal", "normal", "linspace"),
    Alias("DDIM Uniform", "ddim_uniform", "leading"),
    Alias("Beta", "beta", "beta"),
)


def resolved(name: str) -> tuple[str, str | None] | None:
    """The sampler line and the grid line of a name from elsewhere; None where the name is not one of these, or is one
    of ours already. The grid is None where the name has none. Settings behind a colon stay: "DPM++ 2M SDE:eta=0.5"."""
    plain, colon, settings = name.partition(":")
    if plain in everything("samplers", SAMPLERS):
        return None
    words = _plain(plain)
    for sampler in SAMPLER_ALIASES:
        for spelled in _spellings(sampler):
            if words == spelled:
                return sampler.line + colon + settings, None
            if words.startswith(spelled + " ") and (grid := resolved_grid(words.removeprefix(spelled + " "))):
                return sampler.line + colon + settings, grid
    return None


def resolved_grid(name: str) -> str | None:
    """The grid line of a name from elsewhere; None where it is not one of these."""
    words = _plain(name)
    return next((grid.line for grid in GRID_ALIASES if words in _spellings(grid)), None)


def in_our_words(line: str) -> str:
    """A grid line whose first piece may be a name from elsewhere: "sgm_uniform + shift:by=3"."""
    first, *rest = pieces_of(line)
    if first.partition(":")[0] in everything("grids", GRIDS):
        return line
    return " + ".join((resolved_grid(first) or first, *rest))


def refuse_unknown(name: str) -> None:
    """UsageError for a sampler that nobody has, with the nearest names of ours and of elsewhere."""
    plain = name.partition(":")[0].strip()
    ours = everything("samplers", SAMPLERS)
    if plain in ours or plain == "stock" or resolved(plain):
        return
    lower = {
        n.lower(): n for n in (*_every_web_name(), *(alias.comfy for alias in SAMPLER_ALIASES if alias.comfy), *ours)
    }
    raise UsageError(f"unknown sampler {plain!r}: {_cased(nearest(plain.lower(), lower), lower)}")


def sampler_rows() -> list[list[str]]:
    """(name in the web UI, in ComfyUI, our sampler) for a table."""
    return [[alias.web, alias.comfy, alias.line] for alias in SAMPLER_ALIASES]


def grid_rows() -> list[list[str]]:
    """(name in the web UI, in ComfyUI, our grid), for a table."""
    return [[alias.web, alias.comfy, alias.line] for alias in GRID_ALIASES]


def _every_web_name() -> Iterable[str]:
    for alias in SAMPLER_ALIASES:
        yield alias.web
        yield from (f"{alias.web} {grid.web}" for grid in GRID_ALIASES)


def _spellings(alias: Alias) -> set[str]:
    return {_plain(word) for word in (alias.web, alias.comfy) if word}


def _plain(name: str) -> str:
    return " ".join(name.lower().replace("_", " ").split())


def _cased(told: str, names: dict[str, str]) -> str:
    """The same message with the names as they are written elsewhere."""
    _, mark, rest = told.partition("did you mean ")
    if not mark:
        return told
    return mark + ", ".join(names[word] for word in rest.removesuffix("?").split(", ")) + "?"
