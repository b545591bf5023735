"""Optimisers of whole runs, on worlds whose optimum is known in closed form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import guidance_toys as toys
import pytest
import torch
from exact import Line
from torch import Tensor, nn

from pilotage import guidance, samplers
from pilotage.errors import UsageError
from pilotage.guidance.gradient.losses import Reward, Together
from pilotage.guidance.optimise import DOODL, OPTIMISERS, DFlow, FlowGrad, Optimiser, Problem, ReNO, make_optimiser
from pilotage.guidance.optimise.driver import norm_penalty
from pilotage.guidance.optimise.flowgrad import flow_spans
from pilotage.guidance.optimise.lbfgs import minimise
from pilotage.guidance.optimise.problem import Look
from pilotage.samplers.denoiser import ExactDenoiser
from pilotage.samplers.noise import SeededNoise
from pilotage.samplers.prediction import SAMPLE, Prediction
from pilotage.samplers.schedule import Level, LinearVP, NoiseSchedule, RectifiedFlow, VarianceExploding
from pilotage.zoo.toy import Gaussian, g3

FLOW, VP = RectifiedFlow(), LinearVP()
AIM = torch.tensor([[1.5, -0.5], [-1.0, 0.8], [0.2, 2.0]], dtype=torch.float64)
NOISE = toys.normal(3, 2, seed=3)
MEAN, VARIANCE = 0.4, 0.3
EVERY: list[Optimiser] = [DFlow(iterations=4), DOODL(iterations=4), ReNO(iterations=4, clip=0), FlowGrad(iterations=4)]


def square(z: Tensor) -> Tensor:
    """|z - aim|^2 / 2."""
    return 0.5 * (z - AIM[: len(z)].to(z)).square().sum(1)


def towards(aim: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda z: 0.5 * (z - aim).square().sum(1)


def line(schedule: NoiseSchedule = FLOW) -> ExactDenoiser:
    """Isotropic Gaussian data: every flow of it is a scaling about its mean."""
    return ExactDenoiser(Line(MEAN, VARIANCE), schedule)


def one_step(schedule: NoiseSchedule = FLOW, rho: float = 2.0) -> tuple[Level, Level]:
    """The grid of a one-step model; at pure noise an exact denoiser would say the mean whatever x is."""
    return schedule.level_of_rho(rho), schedule.clean


def ellipse(schedule: NoiseSchedule = FLOW) -> ExactDenoiser:
    return ExactDenoiser(Gaussian([0.4, -0.2], [[0.5, 0.2], [0.2, 0.15]]), schedule)


def affine(problem: Problem) -> tuple[Tensor, Tensor]:
    """end = A x + b of a run whose denoiser is affine."""
    ends = problem.run(torch.cat([torch.zeros(1, 2), torch.eye(2)]).double())
    return (ends[1:] - ends[:1]).T, ends[0]


# -- the run as a function --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", ["ddim", "dpmpp-2m", "heun"])
def test_the_gradient_is_that_of_samplers_sample(sampler: str) -> None:
    """With memory in the rule and history in the sampler; checkpoints change no bit of it, only the calls."""
    counts = {}
    grads = {}
    for remember in ("steps", "all"):
        made = toys.guided(guidance.APG(3.0, momentum=-0.5), schedule=FLOW)
        x = toys.normal(3, 4, 4, seed=5)
        problem = Problem(made, lambda z: z.flatten(1).sin().sum(1), sampler=sampler, steps=5, remember=remember)
        look = problem.look(x, problem.run)
        counts[remember] = len(made.networks["main"].calls)
        grads[remember] = look.gradient
        assert not look.sample.requires_grad and not look.gradient.requires_grad
    leaf = x.clone().requires_grad_()
    end = samplers.sample(made, leaf, sampler=sampler, grid="karras", steps=5)
    (wanted,) = torch.autograd.grad(end.flatten(1).sin().sum(), leaf)
    assert torch.equal(look.sample, end.detach())
    assert torch.equal(grads["steps"], wanted) and torch.equal(grads["all"], wanted)
    assert counts["steps"] == 2 * counts["all"]


def test_checkpoints_hold_one_x_a_step() -> None:
    """What is saved for the way back does not grow with the network's activations."""

    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.layers = nn.Sequential(nn.Linear(2, 512), nn.SiLU(), nn.Linear(512, 2)).double().requires_grad_(False)

        def __call__(self, x: Tensor, level: Level, condition: Any = None) -> Prediction:
            return Prediction(x, level, self.layers(x), SAMPLE)

        schedule = FLOW

    def held(remember: str, steps: int) -> int:
        sizes: list[int] = []
        problem = Problem(Wide(), square, steps=steps, grid="flow", remember=remember)
        leaf = NOISE.clone().requires_grad_()

        def pack(t: Tensor) -> Tensor:
            sizes.append(t.numel())
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            problem.run(leaf)
        return sum(sizes)

    assert held("all", 8) > 8 * 3 * 512
    assert held("steps", 8) < 8 * 10 * NOISE.numel()


@pytest.mark.parametrize("sampler", ["edict", "bdia"])
def test_steps_that_can_be_undone_keep_nothing(sampler: str) -> None:
    """DOODL as in its paper: the gradient of EDICT's steps, in the memory of one."""
    found = {}
    for remember in ("all", "steps", "nothing"):
        problem = Problem(ellipse(VP), square, sampler=sampler, steps=6, remember=remember)
        found[remember] = problem.look(NOISE, problem.run).gradient
    for remember in ("steps", "nothing"):
        assert (found[remember] - found["all"]).abs().max() < 1e-11 * found["all"].abs().max()
    best = DOODL(iterations=5).optimise(problem, NOISE)
    assert (best.loss < best.history[0]).all()


def test_stochastic_runs_are_functions_of_their_seeds() -> None:
    problem = Problem(ellipse(VP), square, sampler="sde-dpmpp-2m", steps=6, noise=SeededNoise([1, 2, 3]))
    look = problem.look(NOISE, problem.run)
    assert torch.equal(look.sample, problem.run(NOISE))
    h = 1e-6
    for j in range(2):
        moved = torch.zeros_like(NOISE)
        moved[:, j] = h
        slope = (problem.losses(problem.run(NOISE + moved)) - problem.losses(problem.run(NOISE - moved))) / (2 * h)
        assert (slope - look.gradient[:, j]).abs().max() < 1e-7
    found = DFlow(iterations=16).optimise(problem, NOISE)
    assert (found.loss < 1e-15).all()


# -- what all optimisers share ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimiser", EVERY, ids=lambda o: type(o).__name__)
def test_no_iteration_is_the_plain_run(optimiser: Optimiser) -> None:
    problem = Problem(ellipse(), square, steps=5, grid="flow")
    found = type(optimiser)(iterations=0).optimise(problem, NOISE)
    plain = samplers.sample(ellipse(), NOISE, sampler="ddim", grid="flow", steps=5)
    assert torch.equal(found.sample, plain) and torch.equal(found.noise, NOISE) and found.runs == 1
    assert torch.equal(found.loss, square(plain)) and found.history.shape == (1, 3)


@pytest.mark.parametrize("optimiser", EVERY, ids=lambda o: type(o).__name__)
def test_the_best_of_each_row_is_kept_and_rows_are_alone(optimiser: Optimiser) -> None:
    """On a mixture, where descent is not convex."""
    denoiser = ExactDenoiser(g3(), FLOW)
    heard: list[int] = []
    problem = Problem(denoiser, square, steps=4, grid="flow")
    found = optimiser.optimise(problem, NOISE, told=lambda i, loss: heard.append(i))
    assert found.history.shape[1] == 3 and heard == list(range(len(found.history)))
    assert (found.best_so_far.diff(dim=0) <= 0).all() and torch.equal(found.best_so_far[-1], found.loss)
    assert (found.loss < found.history[0]).all()
    if found.controls is None:
        assert torch.equal(problem.run(found.noise), found.sample)
    assert (square(found.sample) - found.loss).abs().max() < 1e-12
    for row in range(3):
        one = slice(row, row + 1)
        alone = optimiser.optimise(Problem(denoiser, towards(AIM[one]), steps=4, grid="flow"), NOISE[one])
        assert (alone.sample - found.sample[one]).abs().max() < 1e-9


@pytest.mark.parametrize("optimiser", EVERY, ids=lambda o: type(o).__name__)
def test_modes_outside_do_not_matter(optimiser: Optimiser) -> None:
    problem = Problem(ellipse(), square, steps=3, grid="flow")
    wanted = optimiser.optimise(problem, NOISE)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            found = optimiser.optimise(problem, NOISE)
        assert torch.equal(found.sample, wanted.sample) and not found.noise.requires_grad


def test_losses_with_pictures_and_names() -> None:
    def decode(z: Tensor) -> Tensor:
        return (0.5 + 0.5 * z).clamp(0, 1)[:, :, None, None].expand(-1, -1, 4, 4)

    denoiser = ExactDenoiser(Gaussian([0.0, 0.0, 0.0], torch.eye(3).tolist()), FLOW)
    x = 0.3 * toys.normal(2, 3, seed=8)
    problem = Problem(denoiser, "colour", "red", steps=4, grid="flow", decode=decode)
    found = DFlow(iterations=12).optimise(problem, x)
    red = torch.tensor([224, 50, 52], dtype=torch.float64) / 255
    assert found.picture is not None and (found.picture.mean((2, 3)) - red).abs().max() < 1e-3
    rewards = Together((2.0, Reward(lambda z: -towards(red)(z), pictures=False)), (1.0, square_of_norm))
    assert ReNO(5, clip=0).optimise(Problem(denoiser, rewards, grid=one_step()), x).picture is None


def square_of_norm(z: Tensor) -> Tensor:
    return z.square().sum(1)


def test_a_loss_that_is_not_finite_is_never_the_best() -> None:
    """It falls towards a wall behind which there is nothing."""

    def broken(z: Tensor) -> Tensor:
        return torch.where(z[:, 0] > 0.6, torch.nan, (z[:, 0] - 2).square())

    problem = Problem(line(), broken, grid=one_step())
    x = torch.tensor([[-0.5, 0.0], [0.1, 1.0]], dtype=torch.float64)
    found = ReNO(30, clip=0, rate=0.3, regulariser=0.0).optimise(problem, x)
    assert found.history.isnan().any() and found.loss.isfinite().all() and found.sample.isfinite().all()
    assert (found.loss < found.history[0]).all()
    search = DFlow(10).optimise(problem, x)  # steps back, never through
    assert search.history.isfinite().all() and (search.loss < found.history[0]).all()


# -- D-Flow -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", [FLOW, VP, VarianceExploding()], ids=["flow", "vp", "ve"])
def test_dflow_reaches_the_optimum_of_a_gaussian(schedule: NoiseSchedule) -> None:
    problem = Problem(ellipse(schedule), square, steps=6)
    x = NOISE * problem.levels[0].sigma
    found = DFlow(iterations=11).optimise(problem, x)  # later ones search below what float64 can tell apart
    matrix, offset = affine(problem)
    optimum = torch.linalg.solve(matrix, (AIM - offset).T).T
    assert (found.loss < 1e-15).all()
    assert (found.noise - optimum).abs().max() < 1e-5 * optimum.abs().max()
    assert (found.history.diff(dim=0) <= 0).all(), "no step of L-BFGS may make it worse"
    assert found.runs == len(found.history), "every step is taken at its full length"


def test_dflow_on_the_exact_flow_of_a_gaussian() -> None:
    """Along the exact flow x - alpha m scales by the ratio of deviations, so the optimum needs no solver; a sampler of
    second order comes to it as 1 / steps^2."""
    first, last = VP.level_of_rho(8.0), VP.level_of_rho(0.05)
    ratio = ((first.alpha**2 * VARIANCE + first.sigma**2) / (last.alpha**2 * VARIANCE + last.sigma**2)) ** 0.5
    optimum = first.alpha * MEAN + ratio * (AIM - last.alpha * MEAN)
    apart = []
    for steps in (12, 24):
        shares = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
        grid = VP.levels_of_rho([8.0 * (0.05 / 8.0) ** float(share) for share in shares])
        found = DFlow(iterations=10).optimise(Problem(line(VP), square, sampler="heun", grid=tuple(grid)), NOISE)
        assert (found.loss < 1e-15).all()
        apart.append(float((found.noise - optimum).abs().max()))
    assert apart[0] / apart[1] > 3.5 and apart[1] < 0.01 * float(optimum.abs().max())


def test_the_penalty_is_least_at_the_norm_of_noise_and_dflow_stops_where_its_slope_ends() -> None:
    problem = Problem(ellipse(VarianceExploding()), square, steps=6)
    sigma = problem.levels[0].sigma
    penalty = norm_penalty(1.0, problem)
    assert penalty is not None and norm_penalty(0.0, problem) is None
    d = 50
    x = toys.normal(2, d, seed=1)
    x = (x / x.norm(dim=1, keepdim=True) * (d - 1) ** 0.5 * sigma).requires_grad_()
    (slope,) = torch.autograd.grad(penalty(x).sum(), x)
    assert slope.abs().max() < 1e-12
    assert (penalty(1.1 * x) > penalty(x)).all() and (penalty(0.9 * x) > penalty(x)).all()
    found = DFlow(iterations=40, regulariser=0.3).optimise(problem, NOISE * sigma)
    look = problem.look(found.noise, problem.run, norm_penalty(0.3, problem))
    free = DFlow(iterations=40).optimise(problem, NOISE * sigma)
    assert look.gradient is not None and (look.gradient * sigma).abs().max() < 1e-5
    assert (found.loss > free.loss).all() and (found.history[-1] == look.value).all()
    assert (found.noise.norm(dim=1) / sigma - 1).abs().max() < (free.noise.norm(dim=1) / sigma - 1).abs().max()


def rosenbrock(at: Tensor) -> Look:
    with torch.enable_grad():
        leaf = at.detach().clone().requires_grad_()
        value = (1 - leaf[:, 0]) ** 2 + 100 * (leaf[:, 1] - leaf[:, 0] ** 2) ** 2
        (gradient,) = torch.autograd.grad(value.sum(), leaf)
    return Look(value.detach(), value.detach(), at, gradient)


def test_lbfgs_goes_through_a_bent_valley_each_row_by_itself() -> None:
    start = torch.tensor([[-1.2, 1.0], [0.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
    first = torch.full((3,), 0.5, dtype=torch.float64)
    looks = list(minimise(rosenbrock, start, iterations=60, memory=8, trials=20, first=first))
    values = torch.stack([look.value for _, look in looks])
    assert (values.diff(dim=0) <= 0).all()
    assert (looks[-1][0] - 1).abs().max() < 1e-6
    for row in range(3):
        one = slice(row, row + 1)
        alone = list(minimise(rosenbrock, start[one], iterations=60, memory=8, trials=20, first=first[one]))
        shared = min(len(alone), len(looks))
        for (a, _), (b, _) in zip(alone[:shared], looks[:shared], strict=True):
            assert (a - b[one]).abs().max() < 1e-9


def test_lbfgs_takes_newton_steps_on_a_quadratic() -> None:
    """With exact second differences, d pairs span the space: d + a few iterations end at rounding."""
    generator = torch.Generator().manual_seed(4)
    root = torch.randn(2, 6, 6, generator=generator, dtype=torch.float64)
    matrix = root @ root.mT + 0.5 * torch.eye(6)
    aim = torch.randn(2, 6, generator=generator, dtype=torch.float64)

    def look_of(at: Tensor) -> Look:
        apart = at - aim
        pushed = torch.einsum("bij,bj->bi", matrix, apart)
        value = 0.5 * (apart * pushed).sum(1)
        return Look(value, value, at, pushed)

    one = torch.ones(2, dtype=torch.float64)
    looks = list(minimise(look_of, torch.zeros(2, 6).double(), iterations=30, memory=10, trials=20, first=one))
    assert (looks[-1][0] - aim).abs().max() < 1e-6


# -- DOODL ------------------------------------------------------------------------------------------------------------


def test_doodl_finds_the_optimum_on_the_sphere() -> None:
    """end = a x + b with a number a: the best x of norm R points at aim - b. One row starts on the far side."""
    problem = Problem(line(VP), square, steps=6)
    found = DOODL(iterations=120, rate=0.2).optimise(problem, NOISE)
    radius = NOISE.norm(dim=1, keepdim=True)
    assert (found.noise.norm(dim=1, keepdim=True) - radius).abs().max() < 1e-12
    matrix, offset = affine(problem)
    aim = AIM - offset
    optimum = radius * aim / aim.norm(dim=1, keepdim=True)
    assert (found.noise - optimum).abs().max() < 1e-3
    assert (found.loss - square(optimum @ matrix.T + offset)).max() < 1e-6


def test_doodl_steps_have_one_length_whatever_the_size_of_the_loss() -> None:
    ends = []
    for size in (1.0, 1e6):
        problem = Problem(line(VP), lambda z, size=size: size * square(z), steps=3)
        found = DOODL(iterations=3, momentum=0.0, project=0).optimise(problem, NOISE)
        ends.append(found.noise)
    assert (ends[0] - ends[1]).abs().max() < 1e-9
    first = DOODL(iterations=1, rate=0.05, project=0).optimise(Problem(line(VP), square, steps=3), NOISE)
    assert torch.allclose((first.noise - NOISE).norm(dim=1), 0.05 * NOISE.norm(dim=1))


# -- ReNO -------------------------------------------------------------------------------------------------------------


def test_reno_is_nesterov_of_torch_with_its_clip() -> None:
    problem = Problem(ellipse(), lambda z: 4 * towards(AIM[:1])(z), grid=one_step())
    rule = ReNO(iterations=12, rate=0.7, clip=0.1, regulariser=0.05)
    found = rule.optimise(problem, NOISE[:1])
    x = NOISE[:1].clone().requires_grad_()
    method = torch.optim.SGD([x], lr=0.7, momentum=0.9, nesterov=True)
    losses = []
    for _ in range(13):
        method.zero_grad()
        loss = problem.losses(problem.run(x))
        losses.append(loss.detach())
        size = x.square().sum() / problem.levels[0].sigma ** 2
        (loss.sum() + 0.05 * (size / 2 - (2 - 1) * size.sqrt().log())).backward()
        assert x.grad is not None
        x.grad *= min(1.0, 0.1 / float(x.grad.norm()))
        method.step()
    assert (torch.stack(losses) - found.history).abs().max() < 1e-12


def test_the_regulariser_keeps_the_norm_of_noise() -> None:
    d = 64
    denoiser = ExactDenoiser(Gaussian(torch.zeros(d).double(), torch.eye(d).tolist()), VP)
    problem = Problem(denoiser, lambda z: -z.sum(1), grid=one_step(VP))
    sigma = problem.levels[0].sigma
    x = toys.normal(4, d, seed=2)
    norms = {}
    for regulariser in (0.0, 1.0):
        found = ReNO(iterations=80, rate=0.1, clip=0.0, regulariser=regulariser).optimise(problem, x)
        norms[regulariser] = found.noise.norm(dim=1) / sigma
    assert (norms[0.0] > 3 * d**0.5).all()
    assert (norms[1.0] < 1.6 * d**0.5).all()
    flat = Problem(denoiser, lambda z: 0 * z.sum(1), grid=one_step(VP))
    looks: list[Tensor] = []
    rule = ReNO(iterations=60, rate=0.1, clip=0.0, regulariser=1.0)
    at, kept = 3 * x, None
    for _ in range(60):
        gradient = flat.look(at, flat.run, rule.penalty(flat)).gradient
        assert gradient is not None
        at, kept = rule.move(at, gradient, kept, x)
        looks.append(at)
    assert (looks[-1].norm(dim=1) / sigma - (d - 1) ** 0.5).abs().max() < 1e-2


# -- FlowGrad ---------------------------------------------------------------------------------------------------------


def adjoints(problem: Problem) -> tuple[Tensor, Tensor]:
    """How far the end moves for a unit of each control on an isotropic line, and the steps' flow times."""
    spans = torch.tensor(flow_spans(problem), dtype=torch.float64)
    unit = torch.ones(1, 2, dtype=torch.float64)
    plain = problem.run(torch.zeros(1, 2, dtype=torch.float64))
    reach = [
        (problem.run(torch.zeros(1, 2, dtype=torch.float64), lambda i, x, k=k: x + unit if i == k else x) - plain)[0, 0]
        for k in range(len(spans))
    ]
    sizes = [level.alpha + level.sigma for level in problem.levels[1:]]
    return torch.stack(reach) * torch.tensor(sizes, dtype=torch.float64), spans


@pytest.mark.parametrize("schedule", [FLOW, VP], ids=["flow", "vp"])
def test_flowgrad_reaches_the_optimal_controls_of_a_line(schedule: NoiseSchedule) -> None:
    """u_i = - B_i r / weight with r = r_0 / (1 + sum h_i B_i^2 / weight)."""
    weight = 0.4
    problem = Problem(line(schedule), square, steps=6)
    found = FlowGrad(iterations=120, rate=0.6, weight=weight).optimise(problem, NOISE)
    reach, spans = adjoints(problem)
    residual = (problem.run(NOISE) - AIM) / (1 + (spans * reach**2).sum() / weight)
    wanted = -reach[None, :, None] * residual[:, None] / weight
    assert found.controls is not None and torch.equal(found.noise, NOISE)
    assert (found.controls - wanted).abs().max() < 1e-6
    assert (found.loss - square(AIM + residual)).abs().max() < 1e-6
    assert (found.history.diff(dim=0) < 1e-12).all()


def test_flowgrad_moves_alike_whatever_the_number_of_steps() -> None:
    ends = []
    for steps in (20, 80):
        problem = Problem(line(), square, sampler="heun", grid="flow", steps=steps)
        ends.append(FlowGrad(iterations=3, rate=0.3).optimise(problem, NOISE).sample)
    assert (ends[0] - ends[1]).abs().max() < 0.03
    assert (ends[0] - samplers.sample(line(), NOISE, sampler="heun", grid="flow", steps=20)).abs().min() > 0.1


# -- names and refusals -----------------------------------------------------------------------------------------------


def test_the_registry_and_what_is_refused() -> None:
    for name, spec in OPTIMISERS.items():
        made = make_optimiser(name, **spec.off)
        assert isinstance(made, Optimiser) and made.iterations == 0 and set(spec.off) <= set(spec.defaults)
    problem = Problem(line(), square, steps=2, grid="flow")
    for bad, words in (
        (lambda: make_optimiser("dflow"), "did you mean d-flow"),
        (lambda: make_optimiser("reno", rat=1.0), "did you mean rate"),
        (lambda: DFlow(iterations=-1), "whole number from 0 on"),
        (lambda: DFlow(memory=0), "at least 1"),
        (lambda: ReNO(clip=-1.0), "must not be negative"),
        (lambda: FlowGrad(weight=float("nan")), "must not be negative"),
        (lambda: Problem(line(), ""), "needs a loss"),
        (lambda: Problem(line(), square, remember="none"), "steps, all or nothing"),
        (lambda: DFlow(2).optimise(Problem(line(), square, remember="nothing"), NOISE), "cannot be undone"),
        (lambda: FlowGrad(2).optimise(Problem(line(), square, sampler="bdia"), NOISE), "controls between"),
        (lambda: Problem(line(), "colour", "red", grid="flow").losses(NOISE), "pass decode="),
        (lambda: DFlow(2).optimise(Problem(line(), lambda z: z.mean(), grid="flow"), NOISE), "one number a row"),
        (lambda: DFlow(2).optimise(Problem(line(), lambda z: z.detach().sum(1), grid="flow"), NOISE), "no gradient"),
    ):
        with pytest.raises(UsageError, match=words):
            bad()
    assert DFlow(1).optimise(problem, NOISE).controls is None
