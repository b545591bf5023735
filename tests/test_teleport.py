"""Teleportation is exact on Gaussians, and as good as promised on the reference mixture."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from exact import PATHS, Line, level_of_lam, mixture
from generation_tools import pilotage, tiny_folder, tiny_spec
from scipy.integrate import solve_ivp
from stock_schedulers import SD
from torch import Tensor

from pilotage import samplers
from pilotage.errors import UsageError
from pilotage.generation import generate
from pilotage.generation.metadata import read_png
from pilotage.generation.models import open_model
from pilotage.generation.scheduling import scheduler_for
from pilotage.generation.teleport_fitting import fit_teleport_of
from pilotage.samplers import SeededNoise, make_grid, sample
from pilotage.samplers.denoiser import ExactDenoiser
from pilotage.samplers.schedule import VarianceExploding, stable_diffusion_schedule
from pilotage.samplers.teleport import GaussianMap, as_prediction, relative_errors, skip_level, teleported
from pilotage.zoo import toy


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


def gaussian(size: int = 5) -> GaussianMap:
    root = normal(size, size)
    return GaussianMap.of(normal(size), root @ root.T / size)


def low_rank(size: int = 6, rank: int = 2, rest: float = 0.0) -> GaussianMap:
    basis = torch.linalg.qr(normal(size, rank)).Q
    return GaussianMap(normal(size), basis, torch.tensor([1.7, 0.4], dtype=torch.float64), rest)


def covariance(g: GaussianMap) -> Tensor:
    basis, eye = g.directions, torch.eye(g.directions.shape[0], dtype=torch.float64)
    return basis @ torch.diag(g.variances - g.rest) @ basis.T + g.rest * eye


def close(a: Tensor, b: Tensor, tolerance: float = 1e-12) -> bool:
    return float((a - b).abs().max()) < tolerance


# -- exact on Gaussians ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("made", [gaussian(), low_rank(), low_rank(rest=0.3)], ids=["full", "low", "rest"])
def test_it_is_the_ode_of_the_gaussian(path: str, made: GaussianMap) -> None:
    """Against DOP853 on du/dlam = D(u) - u, with D from the covariance itself."""
    start, goal = level_of_lam(path, -2.0), level_of_lam(path, 0.7)
    size = made.directions.shape[0]
    u = normal(1, size) * 3
    whole, eye = covariance(made), torch.eye(size, dtype=torch.float64)

    def slope(lam: float, u: object) -> object:
        at = torch.as_tensor(u, dtype=torch.float64)
        gain = whole @ torch.linalg.inv(whole + math.exp(-2 * lam) * eye)
        return (made.mean + gain @ (at - made.mean) - at).numpy()

    solved = solve_ivp(slope, (-2.0, 0.7), u[0].numpy(), method="DOP853", rtol=1e-13, atol=1e-14)
    moved = made.move(u * start.alpha, start, goal) / goal.alpha
    assert close(moved[0], torch.from_numpy(solved.y[:, -1]), 1e-11)
    back = made.move(made.move(u * start.alpha, start, goal), goal, start)
    assert close(back, u * start.alpha)


@pytest.mark.parametrize("made", [gaussian(), low_rank(), low_rank(rest=0.3)], ids=["full", "low", "rest"])
def test_the_paths_agree_and_jumps_add_up(made: GaussianMap) -> None:
    u = normal(3, made.directions.shape[0]) * 4
    ends = []
    for path in PATHS:
        a, b, c = (level_of_lam(path, lam) for lam in (-2.5, -0.5, 1.5))
        whole = made.move(u * a.alpha, a, c)
        assert close(made.move(made.move(u * a.alpha, a, b), b, c), whole)
        ends.append(whole / c.alpha)
    assert close(ends[0], ends[1]) and close(ends[0], ends[2])


def test_the_marginal_is_kept() -> None:
    """The map is affine with the Jacobian that takes one covariance to the other."""
    made, a, b = gaussian(), level_of_lam("vp", -1.0), level_of_lam("flow", 0.4)
    zero = torch.zeros(1, 5, dtype=torch.float64)
    jacobian = (made.move(torch.eye(5, dtype=torch.float64), a, b) - made.move(zero, a, b)).T
    eye, whole = torch.eye(5, dtype=torch.float64), covariance(made)
    before, after = (l.alpha**2 * whole + l.sigma**2 * eye for l in (a, b))
    assert close(jacobian @ before @ jacobian.T, after)
    assert close(made.move((a.alpha * made.mean)[None], a, b)[0], b.alpha * made.mean)


def test_the_posterior_mean_and_clean_data() -> None:
    line = Line(0.7, 0.3)
    made = GaussianMap(*(torch.tensor(v, dtype=torch.float64) for v in ([0.7], [[1.0]], [0.3])))
    for level in (level_of_lam("vp", -1.0), level_of_lam("flow", 2.0)):
        x = normal(4, 1)
        assert close(made.denoised(x, level.alpha, level.sigma), line.denoised(x, level.alpha, level.sigma))
    flat, clean = low_rank(), stable_diffusion_schedule().clean
    landed = flat.move(normal(3, 6), level_of_lam("vp", -2.0), clean) - flat.mean
    assert close(landed @ flat.directions @ flat.directions.T, landed)  # on the plane of the data


def test_a_whole_run_from_the_middle_ends_where_the_jump_does() -> None:
    made = gaussian(3)
    schedule = stable_diffusion_schedule()
    levels = make_grid("karras", schedule, 400)[:-1]
    x = normal(4, 3)
    there, rest = teleported(x, levels, made, rho=3.0)
    assert rest[0].rho <= 3.0 < levels[len(levels) - len(rest) - 1].rho
    run = sample(ExactDenoiser(made, schedule), there, sampler="dpmpp-2m", grid=rest)
    assert close(run, made.move(x, levels[0], levels[-1]), 2e-4)


def test_a_pipelines_scheduler_goes_on_where_the_jump_landed() -> None:
    """`latents=x` with a clipped grid: the scheduler takes x as it is and visits the levels that are left."""
    made, ours = gaussian(4), samplers.DPMPP2M(**SD, grid="karras + clip:high=4")
    x, rest = teleported(normal(2, 4).float(), make_grid("karras", ours.schedule, 12), made, rho=4.0)
    ours.set_timesteps(12)
    assert ours.levels == rest and ours.init_noise_sigma == 1
    expected = sample(ExactDenoiser(made, ours.schedule), x, sampler="dpmpp-2m", grid=rest)
    for t, level in zip(ours.timesteps, rest):
        denoised = made.denoised(x, level.alpha, level.sigma)
        x = ours.step((x - level.alpha * denoised) / level.sigma, t, x, return_dict=False)[0]
    assert close(x, expected, 1e-4)


def test_the_mean_of_a_condition_from_one_prediction() -> None:
    """A network with the same covariance and another mean in each row is found out by one call, guided or not."""
    made = low_rank(rest=0.3)
    means, level = normal(4, 6), level_of_lam("vp", -2.0)
    x = normal(4, 6)
    rows = [GaussianMap(m, made.directions, made.variances, made.rest) for m in means]
    told = torch.cat([row.denoised(x[i : i + 1], level.alpha, level.sigma) for i, row in enumerate(rows)])
    found = made.with_mean_of(as_prediction(x, level, told))
    assert close(found.mean, means, 1e-10)
    goal = level_of_lam("vp", 0.0)
    alone = torch.cat([row.move(x[i : i + 1], level, goal) for i, row in enumerate(rows)])
    assert close(found.move(x, level, goal), alone, 1e-10)
    null = made.denoised(x, level.alpha, level.sigma)
    guided = made.with_mean_of(as_prediction(x, level, null + 3 * (told - null)))
    assert close(guided.mean, torch.stack([made.shifted_mean(m, 3.0).mean for m in means]), 1e-9)


# -- on the mixture ----------------------------------------------------------------------------------------------------


def test_the_errors_of_the_reference_mixture() -> None:
    """The table of B.18: error at the end after the rest of the ODE is solved to rounding, over where one lands."""
    world, schedule = toy.g3(), VarianceExploding(sigma_max=80.0)
    denoiser = ExactDenoiser(world, schedule)
    made = exact_gaussian()
    x = 80 * normal(64, 2)
    top = schedule.level(80.0)

    def solved(x: Tensor, rho: float) -> Tensor:
        return sample(
            denoiser, x, sampler="heun", grid=make_grid(f"exponential + ends:low=0.01,high={rho}", schedule, 300)
        )

    whole, found = solved(x, 80.0), {}
    for rho in (40.0, 10.0, 5.0, 2.0, 1.0):
        end = solved(made.move(x, top, schedule.level(rho)), rho)
        found[rho] = float((end - whole).square().sum(1).mean().sqrt())
    wanted = {10.0: 1.6e-4, 5.0: 1.2e-3, 2.0: 1.6e-2, 1.0: 8e-2}
    assert found[40.0] < 1e-4  # below the error of Heun in 300 steps
    for rho, error in wanted.items():
        assert error / 2.5 < found[rho] < 2.5 * error, found


def exact_gaussian() -> GaussianMap:
    """The mean and covariance of the reference mixture."""
    return GaussianMap.of(toy.g3().mean(), toy.g3().covariance(), "g3")


def test_the_scan_finds_where_the_gaussian_stops_to_explain() -> None:
    denoiser, made = mixture("ve"), exact_gaussian()
    assert made.variances.sqrt().tolist() == pytest.approx([0.88, 1.04], abs=0.01)
    data = toy.g3().sample(400, torch.Generator().manual_seed(0))
    levels = VarianceExploding().levels([80.0, 40.0, 20.0, 10.0, 5.0, 2.0, 1.0, 0.5])
    errors = relative_errors(lambda x, l: denoiser(x, l).denoised, made, data, normal(400, 2), levels)
    assert errors == sorted(errors)
    picked = skip_level(errors, levels, 0.02)
    assert 2.0 <= picked.rho <= 10.0
    assert skip_level(errors, levels, 0.0) == levels[0] and skip_level(errors, levels, 9.0) == levels[-1]


# -- fits and files ----------------------------------------------------------------------------------------------------


def test_a_fit_has_the_moments_of_its_data() -> None:
    data = normal(400, 2, 3) * torch.tensor([1.0, 2.0, 0.5]) + 3
    made = GaussianMap.fit(data, model="m")
    flat = data.flatten(1)
    assert close(made.mean, data.mean(0)) and made.shape == (2, 3) and made.model == "m"
    assert close(covariance(made), torch.cov(flat.T))
    low = GaussianMap.fit(data, rank=2)
    assert len(low.variances) == 2 and low.rest == pytest.approx(float(made.variances[2:].mean()))
    assert float(torch.trace(covariance(low))) == pytest.approx(float(torch.trace(covariance(made))))
    assert GaussianMap.fit(data, rank=2, rest=False).rest == 0
    assert len(GaussianMap.fit(data[:4]).variances) == 3  # no more than the data can tell
    assert made.spread == pytest.approx(math.sqrt(float(torch.trace(torch.cov(flat.T)))))


def test_rows_do_not_see_each_other_and_float32_stays() -> None:
    made, a, b = gaussian(), level_of_lam("vp", -2.0), level_of_lam("vp", 0.0)
    x = normal(4, 5)
    assert torch.allclose(made.move(x, a, b)[2:3], made.move(x[2:3], a, b), rtol=1e-13)
    assert made.move(x.float(), a, b).dtype == torch.float32


def test_files(tmp_path: Path) -> None:
    made, path = GaussianMap.fit(normal(20, 2, 3), rank=3, model="embedded"), tmp_path / "map.safetensors"
    made.save(path)
    again = GaussianMap.load(path, "embedded")
    for name in ("mean", "directions", "variances"):
        assert torch.equal(getattr(again, name), getattr(made, name))
    assert (again.rest, again.model) == (made.rest, "embedded")
    with pytest.raises(UsageError, match="was fitted to 'embedded', not 'other'"):
        GaussianMap.load(path, "other")
    with pytest.raises(UsageError, match="cannot read"):
        GaussianMap.load(tmp_path / "none")
    (tmp_path / "text").write_text("nothing of the kind")
    with pytest.raises(UsageError, match="no safetensors file"):
        GaussianMap.load(tmp_path / "text")


def test_bad_jumps_are_refused() -> None:
    made, levels = gaussian(), make_grid("karras", stable_diffusion_schedule(), 6)
    with pytest.raises(UsageError, match="say how far"):
        teleported(normal(1, 5), levels, made)
    with pytest.raises(UsageError, match="leaves none"):
        teleported(normal(1, 5), levels, made, rho=0.001)
    with pytest.raises(UsageError, match="one of 5 numbers"):
        teleported(normal(1, 7), levels, made, first=2)
    with pytest.raises(UsageError, match="at least 2"):
        GaussianMap.fit(normal(1, 5))


# -- the command -------------------------------------------------------------------------------------------------------

GUIDANCE = "cfg:scale=3"


def spec_of(**changes: Any) -> Any:
    return tiny_spec(**{"prompts": ["a", "b"], "seeds": "0-3", "steps": 4, "guidance": GUIDANCE, **changes})


def by_hand(model: Any, prompts: list[str], levels: Any, latents: Tensor) -> Tensor:
    """The stock pipeline with its own guidance, from given latents along given levels."""
    pipe = model.pipe
    pipe.scheduler = scheduler_for(spec_of(), model.scheduler)
    pipe.scheduler.set_timesteps = lambda *given, **named: pipe.scheduler._use(levels, "cpu")
    settings = {"num_inference_steps": 4, "guidance_scale": 3.0, "width": 16, "height": 16, "output_type": "latent"}
    found: Tensor = pipe(prompt=prompts, latents=latents, **settings).images
    return found


@pytest.fixture(name="file", scope="module")
def _file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fitted by the command to the tiny pipeline, whose latents are hardly a Gaussian, and told to land further down
    than they warrant."""
    file = tmp_path_factory.mktemp("teleport") / "map.safetensors"
    flags = ["--model", tiny_folder(), "--guidance", GUIDANCE, "--steps", "4", "--width", "16", "--height", "16"]
    assert pilotage("fit-teleport", "a", "b", "--seeds", "0-3", *flags, "--file", str(file), "--tolerance", "0") == 0
    made = GaussianMap.load(file, tiny_folder())
    levels = levels_of(open_model(spec_of()))
    assert made.rule == GUIDANCE and made.landing == pytest.approx(levels[0].rho)
    replace(made, landing=levels[2].rho).save(file)
    assert GaussianMap.load(file).landing == levels[2].rho  # every bit
    return file


def levels_of(model: Any) -> Any:
    scheduler = scheduler_for(spec_of(), model.scheduler)
    scheduler.set_timesteps(4)
    return scheduler.levels


def test_the_fit_and_its_errors_are_of_what_the_spec_runs() -> None:
    model = open_model(spec_of())
    found, levels = fit_teleport_of(spec_of(), model, tolerance=1e9), levels_of(model)
    assert found.left_out == 3 and found.gaussian.landing == levels[3].rho  # the last level of all, with no limit
    everything = [(p, s) for p in ("a", "b") for s in range(4)]
    fitted = [w for i, w in enumerate(everything) if i % 4 != 3]
    noise = SeededNoise([s for _, s in fitted]).initial(found.gaussian.shape)
    latents = by_hand(model, [p for p, _ in fitted], levels, noise)
    assert close(found.gaussian.mean, latents.double().mean(0), 1e-4)

    checked = by_hand(model, ["a", "b"], levels, SeededNoise([3, 3]).initial(found.gaussian.shape))
    x = levels[1].alpha * checked + levels[1].sigma * SeededNoise([3, 3]).initial(found.gaussian.shape)
    cond, uncond = model.pipe.encode_prompt(["a", "b"], "cpu", 1, True)
    with torch.no_grad():
        c, u = (model.pipe.unet(x, levels[1].time, encoder_hidden_states=e).sample for e in (cond, uncond))
    told = (x - levels[1].sigma * (u + 3 * (c - u))) / levels[1].alpha
    away = found.gaussian.denoised(x, levels[1].alpha, levels[1].sigma) - told
    assert found.errors[1] == pytest.approx(float(away.flatten(1).norm(dim=1).mean()) / found.gaussian.spread, rel=1e-4)


def test_generate_leaves_the_first_steps_out(file: Path, tmp_path: Path) -> None:
    spec = spec_of(prompts=["a"], seeds="5-7", teleport=str(file), batch_size=2, exact=True)
    model = open_model(spec)
    samples = list(generate(spec, model=model))
    assert samples[0].evaluations == {"cond": 2, "uncond": 2}  # of four steps
    levels, made = levels_of(model), GaussianMap.load(file)
    x = made.move(SeededNoise([5, 6]).initial(made.shape), levels[0], levels[2])
    pictures = model.pipe.vae.decode(by_hand(model, ["a", "a"], levels[2:], x) / model.pipe.vae.config.scaling_factor)
    wanted = (pictures.sample.detach() / 2 + 0.5).clamp(0, 1).mul(255).round().permute(0, 2, 3, 1)
    for drawn, expected in zip(samples, wanted):
        pixels = torch.frombuffer(bytearray(drawn.image.tobytes()), dtype=torch.uint8).reshape(expected.shape)
        assert float((pixels.float() - expected).abs().max()) <= 1
    (alone,) = generate(spec.changed(seeds="6"), model=model)
    assert alone.image.tobytes() == samples[1].image.tobytes()

    folder = tmp_path / "run"
    flags = ["--model", tiny_folder(), "--guidance", GUIDANCE, "--steps", "4", "--width", "16", "--height", "16"]
    assert pilotage("generate", "a", *flags, "--seeds", "5", "--teleport", str(file), "-o", str(folder)) == 0
    record, _ = read_png(folder / "000000.png")
    assert record.spec.teleport == str(file) and record.evaluations == {"cond": 2, "uncond": 2}
    assert pilotage("rerun", str(folder / "000000.png"), "-o", str(tmp_path / "again.png"), "--trust") == 0
    assert read_png(tmp_path / "again.png")[1].tobytes() == read_png(folder / "000000.png")[1].tobytes()


def test_a_file_that_does_not_belong_is_refused(file: Path, tmp_path: Path) -> None:
    def refused(message: str, made: GaussianMap | None = None, **changes: Any) -> None:
        path = tmp_path / "other.safetensors"
        (made or GaussianMap.load(file)).save(path)
        with pytest.raises(UsageError, match=message):
            generate(spec_of(teleport=str(path), **changes))

    fitted = GaussianMap.load(file)
    refused("was fitted to 'another', not", replace(fitted, model="another"))
    refused("guidance 'cfg:scale=3', not 'cfg:scale=4'; fit it again", guidance="cfg:scale=4")
    refused("was fitted for height 16, not 32", height=32)
    refused("does not say where to land", replace(fitted, landing=None))
    refused("lands at rho = 1000, where this grid begins", replace(fitted, landing=1000.0))
    refused("leaves no step of this grid", replace(fitted, landing=1e-6))
    refused("leave image out, and the stock sampler", sampler="stock")
    refused("leave image out", image="there.png")
    with pytest.raises(UsageError, match="cannot read the Gaussian map"):
        generate(spec_of(teleport=str(tmp_path / "none.safetensors")))
    with pytest.raises(UsageError, match="4 pictures are too few"):
        fit_teleport_of(spec_of(prompts=["a"]), open_model(spec_of()))
    for changes in ({"sampler": "stock"}, {"teleport": str(file)}):
        with pytest.raises(UsageError, match="whole runs of one of our samplers"):
            fit_teleport_of(spec_of(**changes), open_model(spec_of()))


def test_the_command_says_what_was_not_seen(capsys: pytest.CaptureFixture[str]) -> None:
    assert pilotage("fit-teleport", "--help") == 0
    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "On the embedded model such a saving was not seen" in said
    assert pilotage("fit-teleport", "a", "-o", "somewhere") == 2
    assert "makes no run folder" in capsys.readouterr().err
