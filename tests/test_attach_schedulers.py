"""The step seam under every scheduler: parity, the law of CFG++, per-picture noise."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import diffusers as D
import pytest
import tiny
import torch
from attach_tools import rows_seen

import pilotage
from pilotage import guidance, samplers
from pilotage.generation.scheduling import scheduler_class
from pilotage.grammar import name_and_settings
from pilotage.guidance.rule import Ask, Context, Guide, Point, Rule
from pilotage.samplers.noise import SeededNoise
from pilotage.samplers.schedule import Level, from_scheduler
from pilotage.samplers.stock import calls_of, keeps_scaled

CFG = guidance.CFG(5.0)

# On the epsilon pipeline; by class and what its config adds. `eta` goes to the pipeline.
STOCK: dict[str, tuple[Any, dict[str, Any], dict[str, Any]]] = {
    "ddim": (D.DDIMScheduler, {}, {}),
    "ddim-eta": (D.DDIMScheduler, {}, {"eta": 1.0}),
    "ddpm": (D.DDPMScheduler, {}, {}),
    "pndm": (D.PNDMScheduler, {"skip_prk_steps": True}, {}),
    "pndm-runge-kutta": (D.PNDMScheduler, {"skip_prk_steps": False}, {}),
    "euler": (D.EulerDiscreteScheduler, {}, {}),
    "euler-ancestral": (D.EulerAncestralDiscreteScheduler, {}, {}),
    "heun": (D.HeunDiscreteScheduler, {}, {}),
    "kdpm2": (D.KDPM2DiscreteScheduler, {}, {}),
    "kdpm2-ancestral": (D.KDPM2AncestralDiscreteScheduler, {}, {}),
    "lms": (D.LMSDiscreteScheduler, {}, {}),
    "dpm-multistep": (D.DPMSolverMultistepScheduler, {}, {}),
    "dpm-multistep-3": (D.DPMSolverMultistepScheduler, {"solver_order": 3, "use_karras_sigmas": True}, {}),
    "dpm-sde": (D.DPMSolverMultistepScheduler, {"algorithm_type": "sde-dpmsolver++"}, {}),
    "dpm-singlestep": (D.DPMSolverSinglestepScheduler, {}, {}),
    "unipc": (D.UniPCMultistepScheduler, {}, {}),
    "deis": (D.DEISMultistepScheduler, {}, {}),
    "sa": (D.SASolverScheduler, {}, {}),
    "lcm": (D.LCMScheduler, {}, {}),
    "tcd": (D.TCDScheduler, {}, {"eta": 0.5}),
    "edm-euler": (D.EDMEulerScheduler, {}, {}),
    "own-ddim": (samplers.DDIM, {}, {}),
    "own-ddim-eta": (samplers.DDIM, {}, {"eta": 1.0}),
    "own-euler": (samplers.Euler, {}, {}),
    "own-euler-ancestral": (samplers.EulerAncestral, {}, {}),
    "own-heun": (samplers.Heun, {}, {}),
    "own-dpmpp-2m": (samplers.DPMPP2M, {}, {}),
    "own-sde-dpmpp-2m": (samplers.SDEDPMPP2M, {}, {}),
}
FLOWS = {
    "flow-euler": (D.FlowMatchEulerDiscreteScheduler, {}, {}),
    "flow-heun": (D.FlowMatchHeunDiscreteScheduler, {}, {}),
    "flow-unipc": (D.UniPCMultistepScheduler, {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}, {}),
    "own-flow-euler": (samplers.Euler, {}, {}),
    "own-flow-dpmpp-2m": (samplers.DPMPP2M, {}, {}),
    "own-flow-heun": (samplers.Heun, {}, {}),
}
NOISY = ["ddim-eta", "ddpm", "euler-ancestral", "kdpm2-ancestral", "dpm-sde", "sa", "lcm", "tcd",
         "own-ddim-eta", "own-euler-ancestral", "own-sde-dpmpp-2m"]  # fmt: skip


def case_with(name: str) -> tuple[tiny.Case, dict[str, Any]]:
    """A tiny pipeline with this scheduler, and what its call needs."""
    case = tiny.CASES["StableDiffusion3Pipeline" if name in FLOWS else "StableDiffusionPipeline"]()
    cls, config, settings = {**STOCK, **FLOWS}[name]
    old = {} if name == "edm-euler" else dict(case.pipe.scheduler.config)
    case.pipe.scheduler = cls.from_config({**old, **config}) if old else cls()
    if name == "edm-euler":  # its time is log(sigma) / 4, made for other networks; the arithmetic is what counts here
        case.call["guidance_scale"] = 5.0
    return case, settings


@pytest.mark.parametrize("name", [*STOCK, *FLOWS])
def test_cfg_equals_stock_and_rules_run_once_a_step(name: str) -> None:
    case, settings = case_with(name)
    stock, off = tiny.run(case, 5, **settings), tiny.run(case, 5, **settings, **case.off)
    assert (stock - off).abs().max() > 1e-3
    with pilotage.attach(case.pipe, CFG) as run:
        assert torch.equal(tiny.run(case, 5, **settings), stock)
    calls = calls_of(case.pipe.scheduler)
    assert run.evaluations == {"cond": 2 * len(calls), "uncond": 2 * len(calls)}
    assert len(run.steps) == calls[-1].step + 1
    with pilotage.attach(case.pipe, "none") as run:
        assert torch.equal(tiny.run(case, 5, **settings), off)
    with pilotage.attach(case.pipe, "cfg:scale=5 + interval + schedule:shape=constant"):  # nothing that moves x
        assert torch.equal(tiny.run(case, 5, **settings), stock)


@pytest.mark.parametrize("name", [*STOCK, *FLOWS])
def test_cfgpp_at_zero_is_unconditional_and_finite_above(name: str) -> None:
    """Against an attached rule that returns the unconditional prediction."""
    case, settings = case_with(name)
    with pilotage.attach(case.pipe, Uncond()):
        plain = tiny.run(case, 5, **settings)
    with pilotage.attach(case.pipe, "cfg++:lam=0") as run:
        assert torch.equal(tiny.run(case, 5, **settings), plain)
    assert set(run.evaluations) == {"uncond"}
    with pilotage.attach(case.pipe, "cfg++:lam=0.5") as run:
        moved = tiny.run(case, 5, **settings)
    assert moved.isfinite().all() and (moved - plain).abs().max() > 1e-2
    assert run.evaluations["cond"] == run.evaluations["uncond"]


@dataclass(frozen=True)
class Uncond(Rule):
    passes: ClassVar[int] = 0
    needs: ClassVar[tuple[str, ...]] = ("cond", "uncond")

    def guide(self, ctx: Context) -> Guide:
        (u,) = yield (Ask("uncond"),)
        return u


# -- explicit loops ---------------------------------------------------------------------------------------------------


def branches(case: tiny.Case) -> Callable[[torch.Tensor, Level], tuple[torch.Tensor, torch.Tensor]]:
    """(D_c, D_n) in float64 at x (2, 4, 8, 8) and a level, from the pipeline's network."""
    text = torch.cat(case.pipe.encode_prompt(tiny.TWO_PROMPTS, "cpu", 1, True)[::-1])

    def denoised(x: torch.Tensor, level: Level) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.no_grad():
            noise = case.pipe.unet(torch.cat([x, x]).float(), level.time, text)[0].double()
        u, c = ((x - level.sigma * e) / level.alpha for e in noise.chunk(2))
        return c, u

    return denoised


def explicit(case: tiny.Case, levels: list[Level], lam: Callable[[Level, Level], float], method: str) -> torch.Tensor:
    """CFG++ in z = x / alpha and rho: Euler, or DPM-Solver++ 2M as the official SDXL file has it."""
    denoised = branches(case)
    x = torch.stack([torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(s)) for s in (1, 2)]).double()
    scheduler = case.pipe.scheduler
    z = x * float(scheduler.init_noise_sigma) if keeps_scaled(scheduler) else x / levels[0].alpha
    before, h_before = None, 0.0
    for a, b in zip(levels, levels[1:], strict=False):
        c, u = denoised(z * a.alpha, a)
        shift = lam(a, b) * (c - u)
        if method == "euler" or before is None or b.sigma == 0:
            z = u + shift + b.rho * (z - u) / a.rho
        else:
            h = math.log(a.rho / b.rho)
            z = math.exp(-h) * z - math.expm1(-h) * (u + (u - before) * h / (2 * h_before)) + shift
        if b.sigma > 0:
            before, h_before = u, math.log(a.rho / b.rho)
    return z * levels[-1].alpha


def levels_of(case: tiny.Case, steps: int) -> list[Level]:
    """Starts of the steps and the end of the last, as the scheduler itself tells them."""
    case.pipe.scheduler.set_timesteps(steps)
    calls = calls_of(case.pipe.scheduler)
    return [*(call.level for call in calls), calls[-1].goal]


LOOPS = [("ddim", "euler"), ("euler", "euler"), ("dpm-multistep", "2m"), ("own-ddim", "euler"), ("own-euler", "euler"),
         ("own-dpmpp-2m", "2m")]  # fmt: skip


@pytest.mark.parametrize(("name", "method"), LOOPS)
@pytest.mark.parametrize("line", ["cfg++:lam=0.6", "cfg++:lam=1", "cfg++:scale=4"])
def test_cfgpp_follows_the_explicit_loop(name: str, method: str, line: str) -> None:
    case, _ = case_with(name)
    with pilotage.attach(case.pipe, line):
        ours = tiny.run(case, 6)
    rule: Any = guidance.parse(line)

    def lam(a: Level, b: Level) -> float:
        return rule.lam if rule.lam is not None else rule.scale * (1 - b.rho / a.rho)

    wanted = explicit(case, levels_of(case, 6), lam, method)
    if keeps_scaled(case.pipe.scheduler):
        wanted = wanted / levels_of(case, 6)[-1].alpha
    assert (ours.double() - wanted).abs().max() < 1e-4  # latents of size 15


@pytest.mark.parametrize("name", ["ddim", "euler", "own-ddim", "own-euler"])
def test_cfgpp_by_scale_is_cfg_on_first_order_schedulers(name: str) -> None:
    case, _ = case_with(name)
    with pilotage.attach(case.pipe, "cfg++:scale=5"):
        ours = tiny.run(case, 6)
    assert (ours - tiny.run(case, 6)).abs().max() < 1e-4


# -- correctors -------------------------------------------------------------------------------------------------------


def corrections(scheduler: Any, case: tiny.Case, rule: Any) -> tuple[int, torch.Tensor]:
    """How often a corrector ran in six steps, and the result."""
    name = "multistep_uni_c_bh_update" if "UniPC" in type(scheduler).__name__ else "stochastic_adams_moulton_update"
    stock, seen = getattr(scheduler, name), []

    def counted(*args: Any, **kwargs: Any) -> Any:
        seen.append(1)
        return stock(*args, **kwargs)

    setattr(scheduler, name, counted)
    try:
        with pilotage.attach(case.pipe, rule):
            result = tiny.run(case, 6)
    finally:
        delattr(scheduler, name)
    return len(seen), result


@pytest.mark.parametrize("name", ["unipc", "sa"])
def test_correctors_rest_where_the_rule_moved_the_sample(name: str) -> None:
    """They rebuild it from their history, which would take the shift back."""
    case, _ = case_with(name)
    scheduler = case.pipe.scheduler
    assert corrections(scheduler, case, "cfg:scale=5")[0] == 5
    count, shifted = corrections(scheduler, case, "cfg++:lam=0.6")
    assert count == 0
    window = "cfg++:lam=0.6 + interval:low=2,high=3,unit=step"
    assert corrections(scheduler, case, window)[0] == 3  # neither at the shifted step nor after it
    assert (shifted - corrections(scheduler, case, "cfg++:lam=0")[1]).abs().max() > 0.5


@dataclass(frozen=True)
class Halved(Rule):
    """Moves x at the end of each outer step, and notes where it stood."""

    seen: list[tuple[int, float, float]]
    passes: ClassVar[int] = 0

    def guide(self, ctx: Context) -> Guide:
        (c,) = yield (Ask(),)
        return c

    def after(self, ctx: Context, x: torch.Tensor) -> torch.Tensor:
        self.seen.append((ctx.step, ctx.level.rho, float(x.std())))
        return x / 2


@pytest.mark.parametrize("name", ["ddim", "euler", "heun", "own-heun", "pndm", "flow-euler", "unipc"])
def test_after_is_called_once_an_outer_step(name: str) -> None:
    case, settings = case_with(name)
    rule = Halved([])
    with pilotage.attach(case.pipe, rule) as run:
        ours = tiny.run(case, 5, **settings)
    calls = calls_of(case.pipe.scheduler)
    assert [step for step, *_ in rule.seen] == list(range(calls[-1].step + 1)) == [s["step"] for s in run.steps]
    assert [rho for _, rho, _ in rule.seen] == [call.goal.rho for call in calls if call.last]
    if not keeps_scaled(case.pipe.scheduler):  # latents of the last step, halved
        assert float(ours.std()) == pytest.approx(rule.seen[-1][2] / 2, rel=1e-5)
    assert (ours - tiny.run(case, 5, **settings, **case.off)).abs().max() > 0.1


# -- per-picture noise ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NOISY)
def test_a_picture_does_not_depend_on_its_batch(name: str) -> None:
    """Bitwise with equal rows per call; the seeds decide, not the pipeline's generators."""
    case, settings = case_with(name)
    prompts = ["a red star", "two blue rings", "a moon"]

    def pictures(which: list[int], other: int = 0) -> torch.Tensor:
        noise = SeededNoise(which)
        latents = noise.initial((4, 8, 8))
        given = {**case.call, **settings, "prompt": [prompts[i] for i in which], "latents": latents}
        with pilotage.attach(case.pipe, CFG, seeds=which, rows_per_call=6):
            return case.pipe(**given, num_inference_steps=5, return_dict=False,
                             generator=torch.Generator().manual_seed(other))[0]  # fmt: skip

    whole = pictures([0, 1, 2])
    for which in ([0], [2, 1], [1, 1]):
        assert torch.equal(pictures(which, other=7), whole[which])
    assert (pictures([0, 0])[0] - pictures([0, 1])[1]).abs().max() > 1e-2


MORE = ["heun:churn=3", "unipc:order=3", "dpmpp-3m:start=single", "er-sde:order=2", "restart:low=1,high=3"]
# langevin makes 100 evaluations a level; six steps have no level for the default restart
OWN = [name for name in [*samplers.SAMPLERS, *MORE] if name not in ("langevin", "restart")]
RULE_LINES = ["apg:scale=6", "cfg++:lam=0.6", "cfg:scale=5 + adaptive:threshold=0.99 + rescale"]


@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize("line", RULE_LINES)
def test_our_loop_and_our_schedulers_agree_under_every_rule(name: str, line: str) -> None:
    """The same rule through `Guided` and `samplers.sample`, and through a pipeline; the laws of inconsistent
    predictions, of correctors and of legs that start higher are kept twice, and must come to the same."""
    case = tiny.text_to_image()
    word, settings = name_and_settings(name)
    stock = {**case.pipe.scheduler.config, "timestep_spacing": "trailing"}
    case.pipe.scheduler = scheduler = scheduler_class(word).from_config(stock, settings=settings)
    noise = SeededNoise([3, 4])
    x = noise.initial((4, 8, 8))
    with pilotage.attach(case.pipe, line, seeds=[3, 4]) as run, rows_seen(case.pipe.unet) as seen:
        given = {**case.call, "latents": x, "num_inference_steps": 6}
        ours = case.pipe(**given, return_dict=False)[0]
    text = case.pipe.encode_prompt(tiny.TWO_PROMPTS, "cpu", 1, True)
    conditions = {k: {"encoder_hidden_states": v} for k, v in zip(("cond", "uncond"), text, strict=False)}
    net = samplers.NetworkDenoiser(case.pipe.unet, from_scheduler(scheduler), "epsilon")
    made = guidance.Guided(net, guidance.parse(line), conditions)
    with torch.no_grad():
        loop = samplers.sample(made, x, sampler=scheduler.sampler, grid=scheduler.levels, steps=6, noise=noise)
    assert made.evaluations == run.evaluations and sum(seen) == sum(run.evaluations.values())
    assert (loop - ours).abs().max() < 2e-4 * max(1.0, float(loop.abs().max()))  # rows are batched in another order
    for a, b in zip(made.steps, run.steps, strict=True):
        assert a["rho"] == pytest.approx(b["rho"], rel=1e-6) and set(a) == set(b)


def test_noise_of_own_and_stock_ancestral_is_drawn_by_picture() -> None:
    """Without seeds the pipeline's own generators are left alone."""
    case, _ = case_with("euler-ancestral")
    stock = tiny.run(case, 5)
    with pilotage.attach(case.pipe, CFG):
        assert torch.equal(tiny.run(case, 5), stock)
    with pilotage.attach(case.pipe, CFG, seeds=[1, 2]):
        assert (tiny.run(case, 5) - stock).abs().max() > 1e-2


@dataclass(frozen=True)
class SamePoint(Rule):
    """Asks for its own point by hand."""

    apart: list[float]
    passes: ClassVar[int] = 0

    def guide(self, ctx: Context) -> Guide:
        c, again = yield Ask(), Ask(at=Point(ctx.x.clone(), ctx.level))
        self.apart.append(float((c.denoised - again.denoised).abs().max() / c.denoised.abs().max()))
        return c


@pytest.mark.parametrize("name", ["edm-euler", "euler", "own-heun", "kdpm2", "flow-heun"])
def test_points_are_told_in_x_whatever_the_network_is_given(name: str) -> None:
    """EDM schedulers hand it c_in x, second stages stand at levels of their own."""
    case, settings = case_with(name)
    rule = SamePoint([])
    with pilotage.attach(case.pipe, rule):
        tiny.run(case, 4, **settings)
    assert len(rule.apart) >= 4 and max(rule.apart) < 1e-4


# -- image to image ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ddim", "euler", "heun", "dpm-multistep", "pndm", "own-dpmpp-2m", "own-heun"])
def test_runs_that_start_in_the_middle(name: str) -> None:
    """Image-to-image: the levels of the record are those of the steps that were taken."""
    case = tiny.image_to_image()
    cls, config, _ = STOCK[name]
    case.pipe.scheduler = cls.from_config({**case.pipe.scheduler.config, **config})
    stock = tiny.run(case, 8, strength=0.5)
    with pilotage.attach(case.pipe, CFG) as run:
        assert torch.equal(tiny.run(case, 8, strength=0.5), stock)
    calls = calls_of(case.pipe.scheduler)
    taken = run.evaluations["cond"] // 2
    assert taken < len(calls)
    assert [s["rho"] for s in run.steps] == [c.level.rho for c in calls[len(calls) - taken :] if c.stage == 0]
    with pilotage.attach(case.pipe, "apg:scale=5 + interval:low=0.5,high=2"):
        assert tiny.run(case, 8, strength=0.5).isfinite().all()
