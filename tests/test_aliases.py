"""Samplers and grids by the names they have elsewhere give what the diffusers recipe for that name gives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers as D
import pytest
import torch
from generation_tools import pilotage
from stock_schedulers import SD
from torch import Tensor

from pilotage.errors import UsageError
from pilotage.generation.scheduling import scheduler_for
from pilotage.generation.spec import RunSpec
from pilotage.samplers.aliases import GRID_ALIASES, SAMPLER_ALIASES, resolved, resolved_grid
from pilotage.samplers.grids import parse_grid
from pilotage.samplers.stock import keeps_scaled

TRAILING = dict(SD, timestep_spacing="trailing")
LEADING = dict(SD, timestep_spacing="leading", steps_offset=1)
LINSPACE = dict(SD, timestep_spacing="linspace")
KARRAS, EXPONENTIAL, BETA = ({f"use_{kind}_sigmas": True} for kind in ("karras", "exponential", "beta"))
NOISE = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))


class Tiny(torch.nn.Module):
    """Two convolutions that see the time."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.first, self.last = torch.nn.Conv2d(5, 12, 3, padding=1), torch.nn.Conv2d(12, 4, 3, padding=1)

    def forward(self, x: Tensor, t: float) -> Tensor:
        time = torch.full_like(x[:, :1], t / 1000)
        return x + self.last(torch.tanh(self.first(torch.cat([x, time], 1))))  # noise, mostly


NETWORK = Tiny()


@torch.no_grad()
def latents(scheduler: Any, steps: int, told: list[float] | None = None, end: bool = True) -> Tensor:
    """What a pipeline does with a scheduler, from the same noise. told: the times that the network is told, instead of
    the scheduler's. end: with the last step; without it, x in units of x_0."""
    scheduler.set_timesteps(steps)
    x = NOISE * scheduler.init_noise_sigma
    scaled = keeps_scaled(scheduler)
    if scaled:  # stock starts its "linspace" and "trailing" at max(sigmas); the same x_t as ours is sqrt(max^2 + 1)
        x = NOISE * (float(scheduler.sigmas[0]) ** 2 + 1) ** 0.5
    generators = [torch.Generator().manual_seed(s) for s in (1, 2)]
    takes = scheduler.step.__code__.co_varnames
    calls = list(zip(scheduler.timesteps, told or scheduler.timesteps.tolist(), strict=True))
    for t, time in calls if end else calls[:-1]:
        output = NETWORK(scheduler.scale_model_input(x, t), time)
        more = {"generator": generators} if "generator" in takes else {}
        x = scheduler.step(output, t, x, **more, return_dict=False)[0]
    if scaled or end:
        return x
    return x * (1 + float(scheduler.sigmas[len(calls) - 1]) ** 2) ** 0.5


def ours(name: str, config: dict[str, Any]) -> Any:
    spec = RunSpec(prompts="a star", sampler=name)
    return scheduler_for(spec, D.DDIMScheduler(**config, clip_sample=False))


def relative(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm())


# name, the model's own config, and the recipe of the diffusers documentation
Recipe = tuple[str, dict[str, Any], Callable[[], Any], dict[str, Any]]
EULER, ANCESTRAL, DPM = D.EulerDiscreteScheduler, D.EulerAncestralDiscreteScheduler, D.DPMSolverMultistepScheduler
WHOLE = {"whole": True}
RECIPES: list[Recipe] = [
    ("Euler", TRAILING, lambda: EULER(**TRAILING), {}),
    ("Euler", LINSPACE, lambda: EULER(**LINSPACE), {}),
    ("Euler Karras", TRAILING, lambda: EULER(**LINSPACE, **KARRAS), {}),
    ("Euler Exponential", TRAILING, lambda: EULER(**LINSPACE, **EXPONENTIAL), {}),
    ("Euler Beta", TRAILING, lambda: EULER(**LINSPACE, **BETA), {}),
    ("Euler Normal", TRAILING, lambda: EULER(**LINSPACE), {}),
    ("Euler SGM Uniform", LEADING, lambda: EULER(**TRAILING), {}),
    ("Euler Simple", LEADING, lambda: EULER(**TRAILING), {}),
    ("Euler a", TRAILING, lambda: ANCESTRAL(**TRAILING), {}),
    ("euler_ancestral", TRAILING, lambda: ANCESTRAL(**TRAILING), {}),
    ("Heun", TRAILING, lambda: D.HeunDiscreteScheduler(**TRAILING), {}),
    ("Heun Karras", TRAILING, lambda: D.HeunDiscreteScheduler(**LINSPACE, **KARRAS), {}),
    ("DPM2", TRAILING, lambda: D.KDPM2DiscreteScheduler(**TRAILING), {}),
    ("dpm_2", LINSPACE, lambda: D.KDPM2DiscreteScheduler(**LINSPACE), {}),
    ("DPM2 a", TRAILING, lambda: D.KDPM2AncestralDiscreteScheduler(**TRAILING), {}),
    ("DDIM", TRAILING, lambda: D.DDIMScheduler(**TRAILING, clip_sample=False), {"steps": 10}),
    ("DDIM DDIM Uniform", LEADING, lambda: D.DDIMScheduler(**LEADING, clip_sample=False), {"steps": 20}),
    ("DPM++ 2M", TRAILING, lambda: DPM(**TRAILING), {}),
    ("dpmpp_2m", TRAILING, lambda: DPM(**TRAILING), {}),
    # these tell the network whole times
    ("DPM2 Karras", TRAILING, lambda: D.KDPM2DiscreteScheduler(**LINSPACE, **KARRAS), WHOLE),
    ("DPM2 a Karras", TRAILING, lambda: D.KDPM2AncestralDiscreteScheduler(**LINSPACE, **KARRAS), WHOLE),
    ("DPM++ 2M Karras", TRAILING, lambda: DPM(**TRAILING, **KARRAS), WHOLE),
    ("DPM++ 2M Exponential", TRAILING, lambda: DPM(**TRAILING, **EXPONENTIAL), WHOLE),
    ("DPM++ 2M SDE", TRAILING, lambda: DPM(**TRAILING, algorithm_type="sde-dpmsolver++"), {}),
    (
        "DPM++ 2M SDE Karras",
        TRAILING,
        lambda: DPM(**TRAILING, **KARRAS, algorithm_type="sde-dpmsolver++"),
        WHOLE,
    ),
    ("UniPC", TRAILING, lambda: D.UniPCMultistepScheduler(**TRAILING), {}),
    # compared before the last step: stock LMS keeps its order there, and stock DEIS does not go to clean data
    ("DEIS", TRAILING, lambda: D.DEISMultistepScheduler(**TRAILING, solver_order=3), {"steps": 20, "end": False}),
    ("LMS", TRAILING, lambda: D.LMSDiscreteScheduler(**TRAILING), {"end": False}),
    ("LMS Karras", TRAILING, lambda: D.LMSDiscreteScheduler(**LINSPACE, **KARRAS), {"end": False}),
    ("DDPM", TRAILING, lambda: D.DDPMScheduler(**TRAILING, clip_sample=False), {"steps": 10}),
]


@pytest.mark.parametrize(
    ("name", "model", "recipe", "how"), RECIPES, ids=[f"{r[0]}-{i}" for i, r in enumerate(RECIPES)]
)
def test_the_same_latents_as_the_recipe(name: str, model: Any, recipe: Any, how: dict[str, Any]) -> None:
    steps, end = how.get("steps", 12), how.get("end", True)
    stock, mine = recipe(), ours(name, model)
    expected = latents(stock, steps, end=end)
    told = stock.timesteps.tolist() if "whole" in how else None
    assert relative(latents(mine, steps, told, end), expected) < 2e-4
    if "whole" in how:  # the known difference: our network is told the time between the nodes
        assert max(abs(a - b) for a, b in zip(stock.timesteps.tolist(), mine.timesteps.tolist())) < 1.001
        assert 1e-6 < relative(latents(mine, steps), expected) < 5e-3
    if not end:
        assert 1e-5 < relative(latents(mine, steps), latents(recipe(), steps)) < 0.1


def test_ddims_stride_is_the_known_difference() -> None:
    """Stock DDIM steps by T // N; ours to the next time of the list. They part where N does not divide T."""
    recipe = D.DDIMScheduler(**TRAILING, clip_sample=False)
    assert relative(latents(ours("DDIM", TRAILING), 10), latents(recipe, 10)) < 2e-5
    assert 1e-5 < relative(latents(ours("DDIM", TRAILING), 30), latents(recipe, 30)) < 0.05


def test_dpmpp_sde_is_the_one_with_noise() -> None:
    """The table of names in diffusers' documentation has DPMSolverSinglestepScheduler for it, which takes none; the
    method of that name elsewhere is DPMSolverSDEScheduler's (compared, with its noise, in test_samplers_stochastic)."""
    mine = ours("DPM++ SDE Karras", TRAILING)
    stock = D.DPMSolverSDEScheduler(**LINSPACE, **KARRAS)
    for scheduler in (mine, stock):
        scheduler.set_timesteps(12)
    assert mine.sampler.stochastic and (mine.sampler.eta, mine.sampler.r) == (1.0, 0.5)
    assert torch.allclose(mine.sigmas[:-1:2], stock.sigmas[:-1:2], rtol=1e-4)
    assert torch.allclose(mine.timesteps[1::2].double(), stock.timesteps[1::2].double(), atol=0.01)


def test_names_are_read_whatever_their_case() -> None:
    assert resolved("dpm++ 2m karras") == ("dpmpp-2m", "karras")
    assert resolved("DPM++ 2M SDE Exponential") == ("sde-dpmpp-2m", "exponential")
    assert resolved("dpmpp_2m sgm_uniform") == ("dpmpp-2m", "trailing")
    assert resolved("DPM++ 2M SDE Karras:eta=0.5") == ("sde-dpmpp-2m:eta=0.5", "karras")
    assert resolved("DPM2 a Karras") == ("dpm2-ancestral", "karras")
    assert resolved("dpmpp_2s_ancestral") == ("dpmpp-2s-ancestral", None)
    assert resolved("DPM++ SDE") == resolved("dpmpp_sde") == ("sde-dpmpp-2s", None)
    assert resolved("dpmpp-2m") is None and resolved("nothing of it") is None
    assert resolved_grid("SGM Uniform") == "trailing"


def test_every_alias_names_what_there_is() -> None:
    for alias in GRID_ALIASES:
        parse_grid(alias.line)
    for alias in SAMPLER_ALIASES:
        assert RunSpec(prompts="a", sampler=alias.web).sampler == alias.line
        assert not alias.comfy or RunSpec(prompts="a", sampler=alias.comfy).sampler == alias.line


def test_a_spec_keeps_our_words() -> None:
    spec = RunSpec(prompts="a star", sampler="DPM++ 2M Karras")
    assert (spec.sampler, spec.grid) == ("dpmpp-2m", "karras")
    assert spec == RunSpec(**spec.plain())
    assert RunSpec(prompts="a star", sampler="DPM++ 2M Karras", grid="beta").grid == "beta"
    assert spec.changed(sampler="Euler a").grid == "karras"
    assert RunSpec(prompts="a star").changed(sampler="Euler Exponential").grid == "exponential"
    assert RunSpec(prompts="a star", grid="sgm_uniform + shift:by=2").grid == "trailing + shift:by=2"
    with pytest.raises(UsageError, match=r"unknown sampler 'DPM\+\+ 2M Karas': did you mean DPM\+\+ 2M Karras"):
        RunSpec(prompts="a star", sampler="DPM++ 2M Karas")
    with pytest.raises(UsageError, match=r"did you mean .*dpmpp-2m"):
        RunSpec(prompts="a star", sampler="dpmp-2m")
    with pytest.raises(UsageError, match="unknown grid 'karas': did you mean karras"):
        RunSpec(prompts="a star", grid="karas")


def test_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert pilotage("generate", "a star", "--sampler", "DPM++ 2M Karras", "--dry-run") == 0
    assert "sampler: dpmpp-2m\ngrid: karras\n" in capsys.readouterr().out
    line = ["--sampler", "Euler a", "--grid", "karras + ends:high=10"]
    assert pilotage("generate", "a star", *line, "--dry-run") == 0
    assert "sampler: euler-ancestral\ngrid: karras + ends:high=10\n" in capsys.readouterr().out
    assert pilotage("list", "samplers") == 0
    assert "DPM++ 2M SDE" in capsys.readouterr().out
    assert pilotage("list", "grids") == 0
    assert "+ stretch" in capsys.readouterr().out
