"""Our samplers as diffusers schedulers: in unmodified pipelines they do what the stock ones do on the same grid."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers as D
import numpy as np
import pytest
import tiny
import torch
from stock_schedulers import FLOWS, MULTISTEP, SCALED, SD, STOCK, TABLES, ZERO_SNR
from torch import Tensor

from pilotage import samplers
from pilotage.errors import UsageError
from pilotage.samplers import diffusers_schedulers
from pilotage.samplers.diffusers_schedulers import PilotageScheduler
from pilotage.samplers.stock import keeps_scaled

CLASSES: dict[Any, type[PilotageScheduler]] = {
    cls.sampler_class: cls
    for cls in vars(diffusers_schedulers).values()
    if isinstance(cls, type) and issubclass(cls, PilotageScheduler) and hasattr(cls, "sampler_class")
}
LOOP_ONLY = {"langevin"}  # its levels are the model's own, from which no pipeline starts
LONGER = {"restart", "predictor-corrector"}  # more entries than the grid has steps: no whole number of them a step
OURS = {name: CLASSES[spec.load()] for name, spec in samplers.SAMPLERS.items() if name not in LOOP_ONLY | LONGER}
X = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))


def network(x: Tensor, t: Any) -> Tensor:
    """Stands for a network: smooth in x, and it looks at the time."""
    return torch.tanh(x.flip(-1) + 0.3 * x.roll(1, 1)) + 0.1 * torch.sin(torch.as_tensor(float(t)) / 150)


def drive(scheduler: Any, x: Tensor = X, seeds: tuple[int, ...] = (1, 2), start: int = 0, **keywords: Any) -> Tensor:
    """The loop of a pipeline from unit noise (or from `x` at entry `start`), in units of x."""
    scaled = keeps_scaled(scheduler)
    if scaled:
        x = x * (float(scheduler.sigmas[start]) ** 2 + 1) ** 0.5
    generators = [torch.Generator().manual_seed(s) for s in seeds]
    names = scheduler.step.__code__.co_varnames
    for t in scheduler.timesteps[start:]:
        output = network(scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x, t)
        more = {"generator": generators} if "generator" in names else {}
        x = scheduler.step(output, t, x, **more, **keywords, return_dict=False)[0]
    return x


def is_stochastic(cls: Any) -> bool:
    return cls(**SD).sampler.stochastic


def test_every_sampler_has_its_class() -> None:
    wanted = {spec.load() for name, spec in samplers.SAMPLERS.items() if name not in LOOP_ONLY}
    assert wanted == set(CLASSES) and len(wanted) == len(OURS) + len(LONGER)
    for cls in CLASSES.values():
        assert getattr(samplers, cls.__name__) is cls and cls.__module__ == "pilotage.samplers.diffusers_schedulers"


def relative(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm())


# -- the same steps as stock -------------------------------------------------------------------------------------------

PREDICTIONS = ["epsilon", "v_prediction", "sample"]


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("steps", [1, 5, 20])
def test_ddim(steps: int, spacing: str, prediction: str) -> None:
    settings = dict(SD, timestep_spacing=spacing, steps_offset=1, prediction_type=prediction)
    stock, ours = D.DDIMScheduler(**settings, clip_sample=False), samplers.DDIM(**settings)
    for eta in (0.0, 0.7):
        for s in (stock, ours):
            s.set_timesteps(steps)
        # stock "leading" times at N = 1 .. 20 are one stride apart, so both step along the same list
        assert stock.timesteps.tolist() == ours.timesteps.tolist()
        if spacing == "leading":  # stock ends one stride below its last time, which is below the table
            assert int(stock.timesteps[-1]) - 1000 // steps < 0
        assert relative(drive(ours, eta=eta), drive(stock, eta=eta)) < 2e-5


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize(
    ("ours", "stock"),
    [
        (samplers.Euler, D.EulerDiscreteScheduler),
        (samplers.EulerAncestral, D.EulerAncestralDiscreteScheduler),
        (samplers.Heun, D.HeunDiscreteScheduler),
    ],
)
@pytest.mark.parametrize("steps", [2, 6, 20])
def test_the_euler_family(ours: Any, stock: Any, steps: int, prediction: str) -> None:
    settings = dict(SD, timestep_spacing="trailing", prediction_type=prediction)
    a, b = ours(**settings), stock(**settings)
    for s in (a, b):
        s.set_timesteps(steps)
    assert a.timesteps.tolist() == b.timesteps.tolist()
    assert torch.allclose(a.sigmas, b.sigmas, rtol=1e-4)
    assert relative(drive(a), drive(b)) < 1e-4


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize(
    ("ours", "stock"),
    [
        (samplers.DPM2, D.KDPM2DiscreteScheduler),
        (samplers.DPM2Ancestral, D.KDPM2AncestralDiscreteScheduler),
    ],
)
@pytest.mark.parametrize("steps", [2, 6, 20])
def test_dpm2(ours: Any, stock: Any, steps: int, prediction: str) -> None:
    settings = dict(SD, timestep_spacing="trailing", prediction_type=prediction)
    a, b = ours(**settings), stock(**settings)
    for s in (a, b):
        s.set_timesteps(steps)
    assert len(a.timesteps) == 2 * steps - 1
    assert torch.allclose(a.timesteps.double(), b.timesteps.double(), atol=1e-3)  # halfway ones, too
    assert torch.allclose(a.sigmas[:-1:2], b.sigmas[: 2 * steps : 2], rtol=1e-5)
    if stock is D.KDPM2DiscreteScheduler:  # the ancestral one lists its halfway levels in another place
        assert torch.allclose(a.sigmas[1:-1:2], b.sigmas_interpol[1 : 2 * steps - 1 : 2], rtol=1e-5)
    assert relative(drive(a), drive(b)) < 2e-6


@pytest.mark.parametrize("kind", ["use_karras_sigmas", "use_exponential_sigmas"])
def test_euler_on_the_other_grids(kind: str) -> None:
    a, b = samplers.Euler(**SD, **{kind: True}), D.EulerDiscreteScheduler(**SD, **{kind: True})
    for s in (a, b):
        s.set_timesteps(12)
    assert relative(drive(a), drive(b)) < 2e-4


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("steps", [2, 6, 20])
@pytest.mark.parametrize("stochastic", [False, True])
def test_dpmpp_2m(steps: int, prediction: str, stochastic: bool) -> None:
    settings = dict(SD, prediction_type=prediction)
    ours = (samplers.SDEDPMPP2M if stochastic else samplers.DPMPP2M)(**settings)
    kind = "sde-dpmsolver++" if stochastic else "dpmsolver++"
    stock = D.DPMSolverMultistepScheduler(**settings, algorithm_type=kind)
    stock.set_timesteps(steps)
    ours.set_timesteps(timesteps=stock.timesteps.tolist())
    assert torch.allclose(ours.sigmas, stock.sigmas, rtol=1e-4)
    assert relative(drive(ours), drive(stock)) < 3e-5


@pytest.mark.parametrize("steps", [5, 20])
def test_dpmpp_2m_with_zero_terminal_snr(steps: int) -> None:
    ours, stock = samplers.DPMPP2M(**ZERO_SNR), D.DPMSolverMultistepScheduler(**ZERO_SNR)
    for s in (ours, stock):
        s.set_timesteps(steps)
    assert ours.levels[0].alpha == 0 and float(stock.sigmas[0]) == pytest.approx(4096, rel=1e-3)
    assert relative(drive(ours), drive(stock)) < 2e-2  # pure noise against nearly pure noise
    stock.set_timesteps(steps)
    ours.set_timesteps(sigmas=stock.sigmas.tolist())  # the same first level
    assert relative(drive(ours), drive(stock)) < 2e-4


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_euler_heun_and_2m(shift: float) -> None:
    sigmas = np.linspace(1.0, 1 / 12, 12)
    stock = D.FlowMatchEulerDiscreteScheduler(shift=shift)
    for cls in (samplers.Euler, samplers.DDIM):
        ours = cls.from_config(stock.config)
        for s in (stock, ours):
            s.set_timesteps(sigmas=sigmas)
        assert torch.allclose(ours.timesteps, stock.timesteps, rtol=1e-6)
        assert torch.allclose(ours.sigmas, stock.sigmas, rtol=1e-6)
        assert relative(drive(ours), drive(stock)) < 1e-5

    config = dict(use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=shift)
    stock = D.DPMSolverMultistepScheduler(**config)
    stock.set_timesteps(12)
    ours = samplers.DPMPP2M.from_config(stock.config)
    assert ours.config.shift == shift
    ours.set_timesteps(sigmas=(lambda t: t / (shift + (1 - shift) * t))(stock.sigmas.double()).tolist())
    stock.timesteps = ours.timesteps  # stock truncates them to whole numbers
    assert relative(drive(ours), drive(stock)) < 1e-4


# -- configs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*TABLES, *MULTISTEP, *SCALED, *FLOWS])
@pytest.mark.parametrize("cls", [samplers.DPMPP2M, samplers.Heun])
def test_from_config_of_every_stock_scheduler(name: str, cls: Any) -> None:
    stock = STOCK[name]()
    if name == "flow-euler-inverted":
        with pytest.raises(UsageError, match="does not know the time of this model; keep its stock scheduler"):
            cls.from_config(stock.config)
        return
    ours = cls.from_config(stock.config)
    ours.set_timesteps(6)
    assert bool(drive(ours).isfinite().all())
    if name in FLOWS:
        assert ours.kind.name == "flow_prediction" and ours.alphas_cumprod is None
        assert ours.config.shift == stock.config.get("flow_shift", stock.config.get("shift", 1.0))
    else:
        same = torch.isclose(ours.alphas_cumprod, stock.alphas_cumprod.double(), rtol=3e-5, atol=1e-7)
        assert bool(same.all()), name
        assert ours.kind.name == stock.config.get("prediction_type", "epsilon")
    back = type(stock).from_config(ours.config)  # and back: nothing that describes the model is lost
    if name not in FLOWS:
        assert torch.equal(back.alphas_cumprod, stock.alphas_cumprod)


@pytest.mark.parametrize("cls", [D.LCMScheduler, D.TCDScheduler, D.CogVideoXDDIMScheduler, D.CogVideoXDPMScheduler])
def test_default_betas_of_another_class_are_kept(cls: Any) -> None:
    stock = cls()  # its defaults are not the defaults of DDIM
    ours = samplers.DDIM.from_config(stock.config)
    assert torch.allclose(ours.alphas_cumprod, stock.alphas_cumprod.double(), rtol=3e-5)
    assert ours.config.timestep_spacing == "trailing"
    named = cls(timestep_spacing="leading")
    named.register_to_config(timestep_spacing="leading", _use_default_values=[])
    assert samplers.DDIM.from_config(named.config).config.timestep_spacing == "leading"


@pytest.mark.parametrize("name", ["edm-euler", "edm-dpm-multistep", "cosine-dpm", "consistency", "score-sde-ve", "scm"])
def test_models_that_would_run_wrongly_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match="needs a table of betas or a flow model; keep the"):
        samplers.DPMPP2M.from_config(STOCK[name]().config)


def test_continuous_times_are_refused() -> None:
    svd = D.EulerDiscreteScheduler(**SD, timestep_type="continuous", prediction_type="v_prediction")
    with pytest.raises(UsageError, match="does not know the time"):
        samplers.Euler.from_config(svd.config)


def test_set_timesteps_says_what_it_needs() -> None:
    ours = samplers.Euler(**SD)
    with pytest.raises(UsageError, match="needs num_inference_steps, timesteps= or sigmas="):
        ours.set_timesteps()
    with pytest.raises(UsageError, match="not both"):
        ours.set_timesteps(timesteps=[1], sigmas=[1.0])
    shifting = samplers.Euler.from_config(D.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True).config)
    with pytest.raises(UsageError, match="needs mu="):
        shifting.set_timesteps(4)


@pytest.mark.parametrize("kind", ["exponential", "linear"])
def test_dynamic_shift(kind: str) -> None:
    stock = D.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, time_shift_type=kind, shift_terminal=0.05)
    ours = samplers.Euler.from_config(stock.config)
    for s in (stock, ours):
        s.set_timesteps(sigmas=np.linspace(1, 1 / 8, 8), mu=0.8)
    assert torch.allclose(ours.sigmas, stock.sigmas, rtol=1e-5, atol=1e-6)
    for s in (stock, ours):
        s.set_timesteps(8, mu=0.8)
    assert torch.allclose(ours.sigmas, stock.sigmas, rtol=1e-4, atol=1e-5)


def test_ays_sigmas_keep_their_noise_and_clip_their_time() -> None:
    table = [14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.0]
    for values in (table, np.array(table), torch.tensor(table)):
        ours = samplers.DPMPP2M(**SD)
        ours.set_timesteps(sigmas=values)
        assert torch.allclose(ours.sigmas, torch.tensor(table), rtol=1e-6)
        wanted = [999, 850, 736, 645, 545, 455, 343, 233, 124, 24]  # the table of times that goes with it
        assert float((ours.timesteps - torch.tensor(wanted)).abs().max()) < 1.0


def test_a_named_grid_is_used_on_flow_models_even_where_the_pipeline_passes_sigmas() -> None:
    config = D.FlowMatchEulerDiscreteScheduler(shift=3.0).config
    named = samplers.Euler.from_config(config, grid="karras")
    named.set_timesteps(sigmas=np.linspace(1.0, 0.1, 10))
    expected = samplers.make_grid("karras", named.schedule, 10)
    assert named.levels == expected
    shifted = samplers.Euler.from_config(config, grid="flow")
    shifted.set_timesteps(10)
    assert shifted.levels == samplers.make_grid("flow", named.schedule, 10, shift=3.0)


# -- where pipelines begin ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", OURS.values())
@pytest.mark.parametrize("flow", [False, True])
def test_beginning_inside_the_list(cls: Any, flow: bool) -> None:
    ours = cls.from_config(D.FlowMatchEulerDiscreteScheduler().config) if flow else cls(**SD)
    ours.set_timesteps(6)
    start = 2 * ours.order
    levels = ours.levels[2:]

    ours.set_begin_index(start)
    x = ours.add_noise(torch.ones(2, 4, 8, 8), X, ours.timesteps[start : start + 1])
    assert torch.allclose(x, levels[0].alpha + levels[0].sigma * X, atol=1e-6)
    told = drive(ours, x, start=start)

    ours.set_timesteps(6)
    assert ours.begin_index is None and ours.step_index is None
    found = drive(ours, x, start=start)  # by the time, where no index was set
    assert torch.equal(told, found)

    alone = cls.from_config(ours.config)
    alone._use(levels, "cpu")
    assert torch.equal(drive(alone, x), found)


def test_add_noise_takes_any_time_and_one_a_row() -> None:
    ours, stock = samplers.Heun(**SD), D.DDIMScheduler(**SD)
    ours.set_timesteps(5)
    x0, times = torch.randn(3, 4, 2, 2), torch.tensor([0, 617, 999])
    noise = torch.randn(3, 4, 2, 2)
    assert torch.allclose(ours.add_noise(x0, noise, times), stock.add_noise(x0, noise, times), atol=1e-5)
    half = ours.add_noise(x0.half(), noise.half(), times)
    assert half.dtype == torch.float16
    flow, stock_flow = (
        samplers.Heun.from_config(D.FlowMatchEulerDiscreteScheduler().config),
        D.FlowMatchEulerDiscreteScheduler(),
    )
    for s in (flow, stock_flow):
        s.set_timesteps(sigmas=np.linspace(1, 0.2, 5))
    t = stock_flow.timesteps[2]
    assert torch.allclose(flow.scale_noise(x0, t, noise), stock_flow.scale_noise(x0, t[None], noise), atol=1e-6)


# -- randomness, precision, state --------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", OURS.values())
def test_a_row_has_its_own_generator(cls: Any) -> None:
    ours = cls(**SD)
    settings = {"eta": 1.0} if cls is samplers.DDIM else {}

    def run(x: Tensor, seeds: tuple[int, ...]) -> Tensor:
        ours.set_timesteps(5)
        return drive(ours, x, seeds, **settings)

    together = run(X, (5, 6))
    assert torch.allclose(together[:1], run(X[:1], (5,)), atol=1e-6)
    assert torch.allclose(together[1:], run(X[1:], (6,)), atol=1e-6)
    assert torch.equal(together, run(X, (5, 6)))  # no state is left between runs
    stochastic = is_stochastic(cls) or cls is samplers.DDIM
    assert torch.equal(together, run(X, (7, 8))) != stochastic


def test_eta_of_ddim_does_not_stay() -> None:
    ours = samplers.DDIM(**SD)

    def run(**keywords: float) -> Tensor:
        ours.set_timesteps(5)
        return drive(ours, **keywords)

    plain, noisy = run(), run(eta=0.8)
    assert torch.equal(run(eta=0.0), plain) and not torch.equal(noisy, plain)
    fixed = samplers.DDIM(**SD, eta=0.8)
    fixed.set_timesteps(5)
    assert torch.equal(drive(fixed, eta=0.0), noisy)  # pipelines always pass eta=0.0; the config's value holds


@pytest.mark.parametrize("name", ["ddim", "dpmpp-2m", "dpmpp-3m", "heun"])
def test_what_the_pipeline_does_to_x_between_steps_counts(name: str) -> None:
    # inpainting with a four-channel network pastes the noised picture outside the mask after every step
    stock, more = {
        "ddim": (D.DDIMScheduler, {"clip_sample": False}),
        "dpmpp-2m": (D.DPMSolverMultistepScheduler, {}),
        "dpmpp-3m": (D.DPMSolverMultistepScheduler, {"solver_order": 3, "lower_order_final": False}),
        "heun": (D.HeunDiscreteScheduler, {}),
    }[name]
    ours = {"settings": {"third_order": "reference"}} if name == "dpmpp-3m" else {}
    mask, ends = (torch.arange(8) < 4).float(), []
    for s in (OURS[name](**SD, **ours, timestep_spacing="trailing"), stock(**SD, **more, timestep_spacing="trailing")):
        s.set_timesteps(5)
        x = X * (float(s.sigmas[0]) ** 2 + 1) ** 0.5 if keeps_scaled(s) else X
        for i, t in enumerate(s.timesteps):
            x = s.step(network(s.scale_model_input(x, t), t), t, x, return_dict=False)[0]
            if i + 1 < len(s.timesteps) and (name != "heun" or i % 2 == 1):
                x = x * mask + s.add_noise(X.flip(0), X, s.timesteps[i + 1 : i + 2]) * (1 - mask)
        ends.append(x)
    assert relative(*ends) < 2e-4


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("cls", OURS.values())
def test_precision(cls: Any, dtype: torch.dtype) -> None:
    # a straight-line network, so that only the sampler rounds
    def run(x: Tensor) -> Tensor:
        ours = cls(**SD)
        ours.set_timesteps(8)
        generator = torch.Generator().manual_seed(0)
        for t in ours.timesteps:
            x = ours.step(0.9 * x, t, x, **({} if cls is samplers.DDIM else {"generator": generator}))[0]
        return x

    low = run(X.to(dtype))
    assert low.dtype == dtype
    if is_stochastic(cls) and dtype == torch.float64:
        return  # float64 noise is another draw
    tolerance = {torch.float16: 3e-3, torch.bfloat16: 3e-2, torch.float64: 2e-6}[dtype]
    assert relative(low, run(X)) < tolerance


@pytest.mark.parametrize("cls", OURS.values())
def test_steps_pass_gradients(cls: Any) -> None:
    ours = cls(**SD)
    ours.set_timesteps(4)
    x = X.clone().requires_grad_()
    (slope,) = torch.autograd.grad(drive(ours, x).square().sum(), x)
    assert bool(slope.isfinite().all()) and float(slope.abs().max()) > 0


def test_output_forms() -> None:
    ours = samplers.Euler(**SD)
    for form in (True, False):
        ours.set_timesteps(2)
        out = ours.step(X, ours.timesteps[0], X, return_dict=form)
        assert isinstance(out[0], Tensor) and (isinstance(out, tuple) != form)
    assert ours.step_index == 1 and len(ours) == 1000 and ours.init_noise_sigma == 1.0
    assert (samplers.Heun(**SD).order, samplers.Euler(**SD).order) == (2, 1)


# -- in pipelines ------------------------------------------------------------------------------------------------------

STOCK_TWINS = [  # the same method, run by stock on the same list of levels
    ("ddim", samplers.DDIM, D.DDIMScheduler, dict(timestep_spacing="trailing", clip_sample=False)),
    # from "trailing" they would start at sigma_T noise, 0.2 % less than unit noise
    ("euler", samplers.Euler, D.EulerDiscreteScheduler, dict(timestep_spacing="leading")),
    ("heun", samplers.Heun, D.HeunDiscreteScheduler, dict(timestep_spacing="leading")),
    ("dpmpp-2m", samplers.DPMPP2M, D.DPMSolverMultistepScheduler, dict(timestep_spacing="trailing")),
    ("unipc", samplers.UniPC, D.UniPCMultistepScheduler, dict(timestep_spacing="trailing")),
]
VP_CASES = [name for name, build in tiny.CASES.items() if "Pipeline" in name and name not in (
    "StableDiffusion3Pipeline", "FluxPipeline", "ZImagePipeline")]  # fmt: skip
FLOW_CASES = ["StableDiffusion3Pipeline", "FluxPipeline", "ZImagePipeline"]
EVERYWHERE = ("ddim", "euler-ancestral", "heun", "dpmpp-2m", "sde-dpmpp-2m", "unipc")  # one of each kind of class
RUNS = [
    (case_name, name)
    for case_name in [*VP_CASES, *FLOW_CASES]
    for name in OURS
    if name in EVERYWHERE or case_name == "FluxPipeline"  # and below in an image-to-image pipeline
]


@pytest.mark.parametrize(("name", "ours", "stock", "settings"), STOCK_TWINS, ids=[t[0] for t in STOCK_TWINS])
@pytest.mark.parametrize("case_name", VP_CASES)
def test_pipelines_agree_with_stock(case_name: str, name: str, ours: Any, stock: Any, settings: dict) -> None:
    if case_name == "DiTPipeline" and name in ("euler", "heun"):
        pytest.skip("the pipeline ignores init_noise_sigma: stock's x / alpha starts 14 times too small there")
    case = tiny.CASES[case_name]()
    steps = 4 if "Img2Img" not in case_name else 8  # both a whole number of strides: DDIM keeps to its list
    pictures = []
    for cls in (stock, ours):
        case.pipe.scheduler = cls(**SD, **{k: v for k, v in settings.items() if cls is stock or k != "clip_sample"})
        pictures.append(tiny.run(case, steps))
    assert bool(pictures[1].isfinite().all())
    assert relative(pictures[1], pictures[0]) < 5e-4, case_name


@pytest.mark.parametrize("cls", [samplers.Euler, samplers.DDIM])
@pytest.mark.parametrize("case_name", FLOW_CASES)
def test_flow_pipelines_agree_with_stock(case_name: str, cls: Any) -> None:
    case = tiny.CASES[case_name]()
    passes_sigmas = case_name == "FluxPipeline"
    stock = case.pipe.scheduler
    if not passes_sigmas:  # stock shifts its smallest level twice; with shift 1 there is nothing to shift
        stock = D.FlowMatchEulerDiscreteScheduler(shift=1.0)
        case.pipe.scheduler = stock
    before = tiny.run(case)
    case.pipe.scheduler = cls.from_config(stock.config)
    assert relative(tiny.run(case), before) < 1e-4


@pytest.mark.parametrize(("case_name", "name"), RUNS)
def test_every_class_runs_in_pipelines(case_name: str, name: str) -> None:
    case = tiny.CASES[case_name]()
    case.pipe.scheduler = OURS[name].from_config(case.pipe.scheduler.config)
    pictures = []
    for _ in range(2):
        torch.manual_seed(0)  # some pipelines hand no generator to the scheduler
        pictures.append(tiny.run(case, 3))
    assert bool(pictures[0].isfinite().all())
    assert torch.equal(*pictures)


@pytest.mark.parametrize("name", OURS)
def test_a_pipeline_is_saved_and_loaded_with_it(name: str, tmp_path: Path) -> None:
    case = tiny.CASES["StableDiffusionPipeline"]()
    case.pipe.scheduler = OURS[name].from_config(case.pipe.scheduler.config, grid="karras")
    before = tiny.run(case, 3)
    case.pipe.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["scheduler"] == ["pilotage.samplers.diffusers_schedulers", OURS[name].__name__]
    case.pipe = D.StableDiffusionPipeline.from_pretrained(tmp_path, safety_checker=None)
    case.pipe.set_progress_bar_config(disable=True)
    assert type(case.pipe.scheduler) is OURS[name] and case.pipe.scheduler.config.grid == "karras"
    assert torch.equal(tiny.run(case, 3), before)


def test_sigmas_and_timesteps_of_a_pipeline_call() -> None:
    case = tiny.CASES["StableDiffusionPipeline"]()
    case.pipe.scheduler = samplers.DPMPP2M(**SD)
    seen: list[float] = []
    keep = dict(callback_on_step_end=lambda pipe, i, t, values: seen.append(float(t)) or values)
    tiny.run(case, None, timesteps=[900, 500, 100], **keep)  # type: ignore[arg-type]
    assert seen == [900, 500, 100]
    seen.clear()
    tiny.run(case, None, sigmas=[14.6, 2.0, 0.2, 0.0], **keep)  # type: ignore[arg-type]
    assert len(seen) == 3 and seen == sorted(seen, reverse=True)


@pytest.mark.parametrize(
    ("name", "strength"), [*((name, 0.3) for name in OURS), *((name, s) for name in EVERYWHERE for s in (0.8, 1.0))]
)
def test_strength(name: str, strength: float) -> None:
    case = tiny.CASES["StableDiffusionImg2ImgPipeline"]()
    case.pipe.scheduler = OURS[name].from_config(case.pipe.scheduler.config)
    calls = []
    hook = case.pipe.unet.register_forward_pre_hook(lambda *a, **k: calls.append(1))
    tiny.run(case, 10, strength=strength)
    hook.remove()
    steps = int(10 * strength)
    assert len(calls) == case.pipe.scheduler.order * (steps - 1) + 1  # the step to clean data needs one
