"""Gradients through sampling: against autograd of the plain loop, finite differences and closed forms."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any

import guidance_toys as toys
import pytest
import torch
from exact import level_of_lam, smooth_grid
from gradient_problem import SHIFT, START, Given, Shifted, exact_gradients, loss, runge_kutta
from torch import Tensor, nn
from torchdiffeq import odeint_adjoint

from pilotage import guidance, samplers
from pilotage.errors import UsageError
from pilotage.guidance.modifiers.adaptive import Adaptive
from pilotage.samplers import SAMPLERS, SeededNoise, adjoint
from pilotage.samplers.adjoint.automatic import chosen
from pilotage.samplers.adjoint.checkpoint import Checkpoint
from pilotage.samplers.adjoint.full import Full
from pilotage.samplers.adjoint.reversible import Reversible
from pilotage.samplers.adjoint.sample import chain_of
from pilotage.samplers.adjoint.segments import Segments, shares
from pilotage.samplers.adjoint.tensors import bytes_of
from pilotage.samplers.ddim import DDIMSampler
from pilotage.samplers.denoiser import NetworkDenoiser
from pilotage.samplers.prediction import SAMPLE, Prediction
from pilotage.samplers.sampler import State, finish
from pilotage.samplers.schedule import Level, LinearVP, RectifiedFlow

VP, FLOW = LinearVP(), RectifiedFlow()
NOISE = SeededNoise([1, 2, 3])
EXACT = ("checkpoint", "segments", "segments:width=2", "discrete")
UNDONE = ("bdia", "o-belm", "edict", "mccallum-foster", "mccallum-foster:base=euler", "reversible-heun")


def gradients(method: str, sampler: Any = "ddim", steps: int = 8, **settings: Any) -> tuple[Tensor, ...]:
    """In x, z and theta of the gradient problem."""
    denoiser, x, z = Shifted(), START.clone().requires_grad_(), SHIFT.clone().requires_grad_()
    end = adjoint.sample(
        denoiser,
        x,
        method=method,
        sampler=sampler,
        **{"grid": smooth_grid("vp", steps), "condition": {"z": z}, "noise": NOISE, **settings},
    )
    return torch.autograd.grad(loss(end).sum(), (x, z, denoiser.theta))


def relative(found: Any, wanted: Any) -> list[float]:
    return [float((a - b).norm() / b.norm()) for a, b in zip(found, wanted, strict=True)]


# -- exact methods ----------------------------------------------------------------------------------------------------


SHORT = {"langevin": "langevin:repeats=2"}


@pytest.mark.parametrize("sampler", sorted({*SAMPLERS, "ddim:eta=0.7"}))
def test_exact_methods_are_autograd_through_the_loop(sampler: str) -> None:
    """Of every sampler: histories, stages and levels between the grid's are part of the state."""
    sampler = SHORT.get(sampler, sampler)
    wanted = gradients("full", sampler)
    for method in EXACT:
        assert max(relative(gradients(method, sampler), wanted)) < 1e-12, method


@pytest.mark.parametrize("sampler", UNDONE)
def test_reversible_steps(sampler: str) -> None:
    wanted = gradients("full", sampler)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for method in (*EXACT, "reversible"):
            assert max(relative(gradients(method, sampler), wanted)) < 1e-11, method


@pytest.mark.parametrize(
    ("method", "sampler"),
    [*((method, "dpmpp-2m") for method in EXACT), ("discrete", "ddim:eta=1"), ("reversible", "o-belm")],
)
def test_finite_differences(method: str, sampler: str) -> None:
    found, h = gradients(method, sampler), 1e-5
    directions = [toys.normal(*t.shape, seed=seed) for seed, t in enumerate(found)]
    ends = []
    for sign in (1, -1):
        denoiser, moves = Shifted(), [sign * h * d for d in directions]
        with torch.no_grad():
            denoiser.theta += moves[2]
            end = adjoint.sample(
                denoiser,
                START + moves[0],
                method=method,
                sampler=sampler,
                grid=smooth_grid("vp", 8),
                condition={"z": SHIFT + moves[1]},
                noise=NOISE,
            )
        ends.append(loss(end).sum())
    slope = (ends[0] - ends[1]) / (2 * h)
    assert float(slope - sum((g * d).sum() for g, d in zip(found, directions, strict=True))) == pytest.approx(
        0, abs=1e-6 * float(slope.abs())
    )


@pytest.mark.parametrize("method", [*EXACT, "adjoint-deis", "continuous"])
def test_pure_noise_and_clean_data_are_finite(method: str) -> None:
    """From alpha = 0 to sigma = 0 on rectified flow."""

    def found(how: str) -> tuple[Tensor, ...]:
        denoiser, x, z = Shifted(), START.clone().requires_grad_(), SHIFT.clone().requires_grad_()
        denoiser.schedule = FLOW
        end = adjoint.sample(denoiser, x, method=how, sampler="heun", grid="flow", steps=24, condition={"z": z})
        return torch.autograd.grad(loss(end).sum(), (x, z, denoiser.theta), allow_unused=True)

    wanted, made = found("full"), found(method)
    assert all(t.isfinite().all() for t in made)
    errors = relative(made, wanted)
    if method == "adjoint-deis":  # its first-order steps across the largest rho are far too long for the gradient in x
        errors = errors[1:]
    assert max(errors) < (1e-12 if method in EXACT else 0.2)


def test_gaussian_data_in_closed_form() -> None:
    """dL/dx_T = M (x_0 - y), dL/dmu = (I - alpha_T M)(x_0 - y) and dL/dl_k of the exact flow, which Heun's method comes
    to as 1 / steps^2."""
    basis = torch.linalg.qr(toys.normal(2, 2, seed=3)).Q
    mean, spread = torch.tensor([0.4, -0.7]).double(), torch.tensor([0.5, 0.08]).double()
    first, y = VP.level_of_rho(12.0), torch.tensor([0.3, 0.8]).double()

    class Bell(nn.Module):
        schedule = VP

        def __init__(self) -> None:
            super().__init__()
            self.mean, self.spread = nn.Parameter(mean.clone()), nn.Parameter(spread.clone())

        def forward(self, x: Tensor, level: Level, condition: Any = None) -> Any:
            gain = level.alpha * self.spread / (level.alpha**2 * self.spread + level.sigma**2)
            apart = ((x - level.alpha * self.mean) @ basis) * gain
            return Prediction(x, level, self.mean + apart @ basis.T, SAMPLE)

    power = first.alpha**2 * spread + first.sigma**2
    matrix = basis @ (spread / power).sqrt().diag() @ basis.T
    end = mean + (START - first.alpha * mean) @ matrix
    left = (end - y) @ basis
    wanted = (
        (end - y) @ matrix,
        ((end - y) @ (torch.eye(2) - first.alpha * matrix)).sum(0),
        (left * ((START - first.alpha * mean) @ basis) * first.sigma**2 / (2 * spread.sqrt() * power**1.5)).sum(0),
    )
    errors = {}
    for method in ("checkpoint", "discrete", "continuous:solver=heun"):
        for steps in (40, 80):
            model, x = Bell(), START.clone().requires_grad_()
            shares_ = torch.linspace(0, 1, steps, dtype=torch.float64)
            rhos = (12.0 ** (1 / 4) * (1 - shares_) + 0.002 ** (1 / 4) * shares_) ** 4
            levels = (*VP.levels_of_rho(rhos), VP.clean)
            out = adjoint.sample(model, x, method=method, sampler="heun", grid=levels)
            found = torch.autograd.grad(((out - y).square() / 2).sum(), (x, model.mean, model.spread))
            errors[method, steps] = max(relative(found, wanted))
        assert errors[method, 80] < 2e-3 and errors[method, 40] / errors[method, 80] > 3, errors


# -- near methods: the measured table ---------------------------------------------------------------------------------

STEPS = (20, 40, 80, 160)
CONTINUOUS = {  # relative errors of dL/dx_T against the flow's exact gradient, by the states they have
    ("adjoint-deis:order=1", "exact"): (0.57, 0.29, 0.15, 0.073),
    ("adjoint-deis:order=2", "exact"): (0.26, 0.059, 0.014, 0.0034),
    ("adjoint-deis:order=2", "dpmpp-2m"): (0.32, 0.075, 0.018, 0.0043),
    ("adjoint-deis:order=2", "ddim"): (0.89, 0.31, 0.13, 0.061),
}
OF_THE_SAMPLER = {  # against the discrete gradient of DDIM
    ("adjoint-deis:order=1", "ddim"): (0.46, 0.24, 0.12, 0.063),
    ("adjoint-deis:order=2", "ddim"): (0.38, 0.11, 0.039, 0.015),
}


@cache
def exact_states(steps: int) -> Given:
    between = max(2, 160 // steps)
    lams = [level.lam for level in smooth_grid("vp", steps)]
    fine = [a + (b - a) * i / between for a, b in pairwise(lams) for i in range(between)]
    with torch.no_grad():
        return Given(runge_kutta(Shifted(), START, SHIFT, [*fine, lams[-1]])[::between])


@pytest.mark.parametrize(("method", "states"), CONTINUOUS)
def test_adjoint_deis_comes_to_the_gradient_of_the_flow(method: str, states: str) -> None:
    """With exact states its orders are 1 and 2; with DDIM's, order 2 is of first order, too."""
    wanted, found = exact_gradients(), {}
    for steps in STEPS:
        sampler = exact_states(steps) if states == "exact" else states
        found[steps] = relative(gradients(method, sampler, steps), wanted)
        assert found[steps][0] == pytest.approx(CONTINUOUS[method, states][STEPS.index(steps)], rel=0.05)
    order = 2 if "2" in method and states != "ddim" else 1
    for one in range(3):  # x, z and theta alike
        assert math.log2(found[80][one] / found[160][one]) == pytest.approx(order, abs=0.2)


@pytest.mark.parametrize(("method", "states"), OF_THE_SAMPLER)
def test_adjoint_deis_is_not_the_gradient_of_the_sampler(method: str, states: str) -> None:
    for steps, wanted in zip(STEPS, OF_THE_SAMPLER[method, states], strict=True):
        error = relative(gradients(method, states, steps), gradients("discrete", states, steps))
        assert error[0] == pytest.approx(wanted, rel=0.05)


def even(steps: int) -> tuple[Level, ...]:
    """Equal steps of lam."""
    return tuple(level_of_lam("vp", -2.5 + 5 * i / steps) for i in range(steps + 1))


def test_at_twenty_even_steps_the_direction_is_right_and_the_length_is_not() -> None:
    wanted = gradients("discrete", "ddim", grid=even(20))[0]
    for order, error, cosine in ((1, 0.32, 0.994), (2, 0.22, 1.000)):
        found = gradients(f"adjoint-deis:order={order}", "ddim", grid=even(20))[0]
        assert relative([found], [wanted])[0] == pytest.approx(error, abs=0.006)
        assert float((found * wanted).sum() / found.norm() / wanted.norm()) == pytest.approx(cosine, abs=6e-4)


def test_adjoint_deis_on_a_coarser_grid_and_with_states_solved_for_again() -> None:
    wanted = exact_gradients()[0]
    error = {
        how: relative([gradients(f"adjoint-deis:order=2{how}", "dpmpp-2m", 80)[0]], [wanted])[0]
        for how in ("", ",nodes=40", ",nodes=20", ",states=resolved")
    }
    assert error[""] < error[",nodes=40"] < error[",nodes=20"] < 0.5
    assert error[",nodes=40"] == pytest.approx(0.059, rel=0.3), "that of 40 nodes with good states"
    assert error[",states=resolved"] < 0.2
    with pytest.raises(UsageError, match="more than the 80 steps"):
        gradients("adjoint-deis:nodes=81", "ddim", 80)


def test_adjoint_deis_along_a_path_of_the_sde() -> None:
    """Twice the drift. The reference is the gradient of a fine path; V along it is not smooth, so order 2 is better,
    but not of second order for long."""
    rows, fine = 12, 480
    paths = SeededNoise([f"{s}" for s in range(3 * rows)])
    start, levels = START.repeat(rows, 1), even(fine)

    def found(method: str, sampler: Any, grid: Any) -> Tensor:
        x = start.clone().requires_grad_()
        end = adjoint.sample(
            Shifted(), x, method=method, sampler=sampler, grid=grid, condition={"z": SHIFT}, noise=paths, parameters=()
        )
        return torch.autograd.grad(loss(end).sum(), x)[0]

    wanted = found("discrete", "ddim:eta=1", levels)
    chain = chain_of(Shifted(), "ddim:eta=1", levels, {"z": SHIFT}, paths, ())
    state, states = chain.begin(start), [start]
    with torch.no_grad():
        while not chain.done(state):
            state = chain.step(state)
            states.append(state.x)

    for order, wanted_errors in ((1, (0.63, 0.37, 0.20)), (2, (0.21, 0.044, 0.012))):
        errors = []
        for steps in (40, 80, 160):
            every = fine // steps
            made = found(f"adjoint-deis:order={order}", along_path(states[::every]), levels[::every])
            errors.append(float(((made - wanted).norm(dim=1) / wanted.norm(dim=1)).median()))
        assert errors == pytest.approx(wanted_errors, rel=0.3), (order, errors)


def along_path(states: list[Tensor]) -> Any:
    """A sampler of the reverse SDE that goes through given states."""

    @dataclass(frozen=True)
    class Path(DDIMSampler):
        eta: float = 1.0

        def advance(self, state: State, prediction: Any, noise: Any) -> State:
            return finish(state, states[state.step + 1])

    return Path()


def test_the_continuous_adjoint_comes_to_the_gradient_of_the_flow() -> None:
    wanted = exact_gradients()
    for line, order in (("solver=midpoint", 2), ("solver=heun,form=data", 2), ("solver=heun,states=resolved", 2)):
        errors = [max(relative(gradients(f"continuous:{line}", exact_states(n), n), wanted)) for n in (80, 160)]
        assert math.log2(errors[0] / errors[1]) > order - 0.4, (line, errors)
    sharp = relative(gradients("continuous:solver=rk4", exact_states(40), 40), wanted)
    assert max(sharp) < 3e-3


class ProbabilityFlow(torch.nn.Module):
    """du/drho = noise, u = x / alpha, with z and theta as parameters, for torchdiffeq."""

    def __init__(self) -> None:
        super().__init__()
        self.denoiser, self.z = Shifted(), torch.nn.Parameter(SHIFT.clone())
        self.theta = torch.nn.Parameter(self.denoiser.theta.detach().clone())
        self.denoiser.theta = self.theta

    def forward(self, rho: Tensor, u: Tensor) -> Tensor:
        level = self.denoiser.schedule.level_of_rho(float(rho.detach()))
        return self.denoiser(level.alpha * u, level, {"z": self.z}).noise


def test_the_flow_and_its_adjoint_are_those_of_torchdiffeq() -> None:
    """Its adaptive solver, and its continuous adjoint by the same equations, against our steps and gradients."""
    levels, flow, x = smooth_grid("vp", 40), ProbabilityFlow(), START.clone().requires_grad_()
    ends = torch.tensor([levels[0].rho, levels[-1].rho], dtype=torch.float64)
    solved = odeint_adjoint(flow, x / levels[0].alpha, ends, rtol=1e-9, atol=1e-9, method="dopri5")[-1]
    end = solved * levels[-1].alpha
    wanted = torch.autograd.grad(loss(end).sum(), (x, flow.z, flow.theta))
    assert max(relative(exact_gradients(), wanted)) < 1e-6
    assert max(relative(gradients("continuous:solver=rk4", exact_states(40), 40), wanted)) < 3e-3
    with torch.no_grad():
        fine = adjoint.sample(
            Shifted(),
            START,
            method="full",
            sampler="heun",
            grid=smooth_grid("vp", 640),
            condition={"z": SHIFT},
            noise=NOISE,
        )
    assert relative([fine], [end.detach()])[0] < 1e-4
    errors = [max(relative(gradients("discrete", "heun", n), wanted)) for n in (80, 160)]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(2, abs=0.4), (
        "the gradient of fine steps is that of the flow"
    )


# -- what a run costs -------------------------------------------------------------------------------------------------


def counted(method: str, sampler: str, steps: int) -> tuple[int, int, int]:
    """Evaluations of the forward pass, of both, and backward passes of the network."""
    denoiser, x = Shifted(), START.clone().requires_grad_(not method.startswith("truncated"))
    end = adjoint.sample(
        denoiser, x, method=method, sampler=sampler, grid=smooth_grid("vp", steps), condition={"z": SHIFT}
    )
    forward = denoiser.calls
    loss(end).sum().backward()
    return forward, denoiser.calls, denoiser.backs


@pytest.mark.parametrize("n", [16, 20])
def test_evaluations_are_those_of_the_table(n: int) -> None:
    """N F + ... of the complexity table. Segments save one evaluation a part, for the last step of a part is only made
    once again."""
    assert counted("full", "ddim", n) == (n, n, n)
    assert counted("checkpoint", "ddim", n) == (n, 2 * n, n)
    assert counted("discrete", "ddim", n) == counted("discrete", "dpmpp-2m", n) == (n, 2 * n, n)
    assert counted("segments", "ddim", n) == (n, 3 * n - len(shares(n, math.ceil(math.sqrt(n)))), n)
    recursive = counted("segments:width=2", "ddim", n)
    assert recursive[::2] == (n, n) and recursive[1] <= n * (1 + math.ceil(math.log2(n)))
    assert counted("truncated:last=3", "ddim", n) == (n, n, 3)
    assert counted("truncated:last=3,remember=steps", "ddim", n) == (n, n + 3, 3)
    assert counted("adjoint-deis", "ddim", n) == (n, 2 * n, n)
    assert counted("adjoint-deis:states=resolved", "ddim", n) == (n, 2 * n, n)
    assert counted("adjoint-deis:nodes=8", "ddim", n) == (n, n + 8, 8)
    assert counted("continuous:solver=rk4", "ddim", n) == (n, 5 * n, 4 * n)
    assert counted("reversible", "bdia", n) == counted("reversible", "o-belm", n) == (n, 2 * n, n)
    assert counted("reversible", "edict", n) == (2 * n, 6 * n, 2 * n)


def held(method: str, sampler: str, steps: int) -> int:
    """Bytes that autograd holds between the passes."""
    kept: list[Tensor] = []

    def pack(t: Tensor) -> Tensor:
        kept.append(t)
        return t

    x = START.clone().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        adjoint.sample(
            Shifted(), x, method=method, sampler=sampler, grid=smooth_grid("vp", steps), condition={"z": SHIFT}
        )
    return bytes_of(kept)


def test_what_is_held_between_the_passes() -> None:
    state, lengths = bytes_of([START]), (5, 20, 50, 200)
    full, steps, sections, undone = (
        [held(method, sampler, n) for n in lengths]
        for method, sampler in (("full", "bdia"), ("checkpoint", "ddim"), ("segments", "ddim"), ("reversible", "bdia"))
    )
    assert full[2] > 9.5 * full[0] and full[0] > 5 * 10 * state, "every activation"
    assert steps == [n * state for n in lengths], "one state a step"
    assert sections == [len(shares(n, math.isqrt(n - 1) + 1)) * state for n in lengths], "one state a part"
    assert undone[2] <= 1.1 * undone[0] and undone == [undone[0]] * 4, "the same for any number of steps"
    theta = 3 * 8
    assert [held("discrete", "ddim", n) for n in lengths] == [n * state + theta for n in lengths]


# -- guided denoisers -------------------------------------------------------------------------------------------------


class Bent:
    """A network whose answer is not affine in x; counts the rows of its calls."""

    schedule = VP

    def __init__(self) -> None:
        self.calls: list[int] = []

    def __call__(self, x: Tensor, level: Level, condition: Any = None) -> Prediction:
        self.calls.append(len(x))
        return Prediction(x, level, torch.tanh(level.alpha * x + level.sigma * condition) + 0.1 * x.sin(), SAMPLE)


def guided(rule: guidance.Rule) -> guidance.Guided:
    return guidance.Guided(Bent(), rule, toys.conditions(3, 2, 2))


def with_memory() -> guidance.Guided:
    """Rows that drop out one by one, and momentum."""
    return guided(Adaptive(threshold=0.9, space="denoised", inner=guidance.APG(3.0, norm_threshold=2.0, momentum=-0.5)))


def guided_gradient(
    made: guidance.Guided, method: str, sampler: str, steps: int = 7, **settings: Any
) -> tuple[Tensor, Tensor]:
    x = toys.normal(3, 2, 2, seed=5).requires_grad_()
    end = adjoint.sample(made, x, method=method, sampler=sampler, grid=smooth_grid("vp", steps), **settings)
    return torch.autograd.grad(end.flatten(1).sin().sum(), x)[0], end.detach()


@pytest.mark.parametrize("sampler", ["ddim", "dpmpp-2m", "heun"])
def test_decisions_of_a_rule_are_replayed(sampler: str) -> None:
    """The rows that adaptive guidance evaluates, and APG's momentum, come out of the stored state; the run's record
    stays that of the forward pass."""
    made = with_memory()
    wanted, end = guided_gradient(made, "full", sampler)
    plain = [list(made.networks["main"].calls), dict(made.evaluations), len(made.steps)]
    assert len(set(plain[0])) > 1, "some rows dropped out on the way"
    for method in EXACT:
        made = with_memory()
        found, same = guided_gradient(made, method, sampler)
        assert (found - wanted).abs().max() < 1e-12 * wanted.abs().max() and torch.equal(same, end), method
        calls = made.networks["main"].calls
        assert calls[: len(plain[0])] == plain[0] and [dict(made.evaluations), len(made.steps)] == plain[1:]
        if method in ("checkpoint", "discrete") and sampler != "heun":
            assert calls[len(plain[0]) :] == plain[0][::-1], "the same rows, last step first"
    x, h = toys.normal(3, 2, 2, seed=5), 1e-5
    direction = toys.normal(3, 2, 2, seed=6)
    ends = [
        samplers.sample(with_memory(), x + s * h * direction, sampler=sampler, grid=smooth_grid("vp", 7))
        for s in (1, -1)
    ]
    slope = (ends[0].sin().sum() - ends[1].sin().sum()) / (2 * h)
    assert float(slope) == pytest.approx(float((wanted * direction).sum()), rel=1e-6)


def test_what_memory_does_to_the_other_methods() -> None:
    made = with_memory()
    found, end = guided_gradient(made, "adjoint-deis", "ddim", steps=60)
    wanted, same = guided_gradient(with_memory(), "discrete", "ddim", steps=60)
    assert (
        torch.equal(end, same)
        and found.isfinite().all()
        and torch.cosine_similarity(found.flatten(), wanted.flatten(), 0) > 0.8
    )
    for line, words in (("adjoint-deis:states=resolved", "cached"), ("continuous:states=resolved", "cached")):
        with pytest.raises(UsageError, match=words):
            guided_gradient(with_memory(), line, "ddim")
    with pytest.raises(UsageError, match="without memory"):
        guided_gradient(with_memory(), "reversible", "bdia")
    calm = guided(guidance.CFG(3.0))
    wanted, _ = guided_gradient(calm, "full", "bdia")
    found, _ = guided_gradient(calm, "reversible", "bdia")
    assert (found - wanted).abs().max() < 1e-12 * wanted.abs().max()


def test_inconsistent_predictions() -> None:
    """CFG++ moves x beside the flow: exact methods follow, continuous ones say that they cannot."""

    def made() -> guidance.Guided:
        return guided(guidance.CFGPP(0.6))

    wanted, _ = guided_gradient(made(), "full", "dpmpp-2m")
    for method in EXACT:
        found, _ = guided_gradient(made(), method, "dpmpp-2m")
        assert (found - wanted).abs().max() < 1e-12 * wanted.abs().max()
    for method in ("adjoint-deis", "continuous"):
        with pytest.raises(UsageError, match="beside the flow"):
            guided_gradient(made(), method, "dpmpp-2m")


# -- rows, precision, parameters --------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [*EXACT, "adjoint-deis:order=2", "continuous", "reversible"])
def test_rows_are_alone(method: str) -> None:
    sampler = "bdia" if method == "reversible" else "dpmpp-2m"
    together = gradients(method, sampler)[0]
    for row in range(3):
        x = START[row : row + 1].clone().requires_grad_()
        end = adjoint.sample(
            Shifted(), x, method=method, sampler=sampler, grid=smooth_grid("vp", 8), condition={"z": SHIFT}
        )
        (alone,) = torch.autograd.grad(loss(end).sum(), x)
        assert (alone - together[row]).abs().max() < 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("method", [*EXACT, "adjoint-deis", "continuous", "reversible"])
def test_lower_precision(method: str, dtype: torch.dtype) -> None:
    """Half precision runs in float32 and gives its gradient back in half."""
    sampler = "bdia" if method == "reversible" else "ddim"
    rounded = START.to(dtype)

    def found(x: Tensor) -> Tensor:
        end = adjoint.sample(
            Shifted(), x.requires_grad_(), method=method, sampler=sampler, grid=smooth_grid("vp", 20), parameters=()
        )
        assert end.dtype == (torch.float64 if x.dtype == torch.float64 else torch.float32)
        return torch.autograd.grad(loss(end).sum(), x)[0]

    made, wanted = found(rounded.clone()), found(rounded.double())
    assert made.dtype == dtype
    assert relative([made.double()], [wanted])[0] < (1e-4 if dtype == torch.float32 else 1e-2)


class Small(nn.Module):
    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.first, self.last, self.drop = nn.Linear(3, 16), nn.Linear(16, 2), nn.Dropout(dropout)
        toys_ = torch.Generator().manual_seed(0)
        for p in self.parameters():
            p.data = 0.5 * torch.randn(p.shape, generator=toys_)

    def forward(self, x: Tensor, time: Tensor, condition: Tensor | None = None) -> Tensor:
        shift = 0.0 if condition is None else condition.mean()
        return self.last(self.drop(torch.tanh(self.first(torch.cat([x + shift, time[:, None] / 1000], 1)))))


def trained(method: str, network: Any, **settings: Any) -> None:
    sampler = "o-belm" if method == "reversible" else "dpmpp-2m"
    denoiser = NetworkDenoiser(network, VP, "v_prediction")
    end = adjoint.sample(denoiser, START.float(), method=method, sampler=sampler, steps=6, **settings)
    end.square().sum().backward()


@pytest.mark.parametrize("method", [*EXACT, "reversible"])
def test_parameters_are_found(method: str) -> None:
    """In the denoiser, behind a closure, in a container; conditions that come out of a network lead on into it."""
    sampler = "full"
    grads = {}
    for how in (sampler, method):
        network, encoder = Small(), nn.Linear(2, 2, bias=False)
        encoder.weight.data = torch.eye(2)
        denoiser = NetworkDenoiser(behind_a_closure(network), VP, "v_prediction")
        condition = {"condition": encoder(torch.ones(3, 2))}
        end = adjoint.sample(
            denoiser,
            START.float(),
            method=how,
            sampler="bdia" if method == "reversible" else "dpmpp-2m",
            grid=smooth_grid("vp", 8),
            condition=condition,
        )
        end.square().sum().backward()
        grads[how] = [p.grad for p in (*network.parameters(), *encoder.parameters())]
    for found, wanted in zip(grads[method], grads["full"], strict=True):
        assert found is not None and (found - wanted).abs().max() <= 1e-4 * wanted.abs().max()


def behind_a_closure(network: nn.Module) -> Any:
    held = {"networks": [network]}
    return lambda x, time, **condition: held["networks"][0](x, time, **condition)


HIDDEN = Small()


def test_a_parameter_that_is_not_found_is_an_error() -> None:
    def network(x: Tensor, time: Tensor) -> Tensor:
        return HIDDEN(x, time)

    denoiser = NetworkDenoiser(network, VP, "v_prediction")
    end = adjoint.sample(denoiser, START.float().requires_grad_(), method="discrete", sampler="ddim", steps=4)
    with pytest.raises(UsageError, match="was not found in the denoiser"):
        end.sum().backward()
    HIDDEN.zero_grad()
    trained("discrete", network, parameters=HIDDEN.parameters())
    found = HIDDEN.first.weight.grad
    assert found is not None
    HIDDEN.zero_grad()
    trained("checkpoint", network)
    assert (found - HIDDEN.first.weight.grad).abs().max() < 1e-5 * found.abs().max()


def test_dropout_is_replayed_by_checkpoints_and_refused_by_sweeps() -> None:
    network = Small(0.3)
    with pytest.raises(UsageError, match="dropout"):
        trained("discrete", network)
    found = {}
    for method in ("full", "checkpoint", "segments"):
        network.zero_grad()
        torch.manual_seed(0)
        trained(method, network)
        found[method] = network.first.weight.grad
    for method in ("checkpoint", "segments"):
        assert torch.allclose(found[method], found["full"], rtol=1e-5)
    network.eval()
    trained("discrete", network)


def test_a_parameter_changed_between_the_passes_is_an_error() -> None:
    for method in ("discrete", "reversible"):
        denoiser = NetworkDenoiser(Small(), VP, "v_prediction")
        end = adjoint.sample(
            denoiser, START.float(), method=method, sampler="o-belm" if method == "reversible" else "ddim", steps=4
        )
        with torch.no_grad():
            denoiser.network.first.weight += 1
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            end.sum().backward()


# -- truncation -------------------------------------------------------------------------------------------------------


def test_the_last_steps_alone() -> None:
    wanted = gradients("full")
    for settings in ("last=8", "last=8,remember=steps", "last=99"):
        assert max(relative(gradients(f"truncated:{settings}"), wanted)) < 1e-12
    with pytest.raises(UsageError, match="gradient in x is zero"):
        gradients("truncated")
    denoiser = Shifted()
    levels = smooth_grid("vp", 8)
    end = adjoint.sample(denoiser, START, method="truncated", sampler="ddim", grid=levels, last=2)
    (found,) = torch.autograd.grad(loss(end).sum(), denoiser.theta)
    with torch.no_grad():
        steps = [step.x for step in samplers.iterate(denoiser, START, sampler="ddim", grid=levels)]
    rest = samplers.sample(denoiser, steps[5], sampler="ddim", grid=levels[6:])
    (by_hand,) = torch.autograd.grad(loss(rest).sum(), denoiser.theta)
    assert (found - by_hand).abs().max() < 1e-14


def test_draft_lv_is_the_mean_of_last_steps() -> None:
    denoiser, levels = Shifted(), (*smooth_grid("vp", 8), VP.clean)
    losses, end = adjoint.draft_lv(
        denoiser, START, loss, noise=NOISE, draws=3, sampler="heun", grid=levels, condition={"z": SHIFT}
    )
    (found,) = torch.autograd.grad(losses.sum(), denoiser.theta)
    plain = samplers.sample(denoiser, START, sampler="heun", grid=levels, condition={"z": SHIFT})
    assert torch.equal(end, plain.detach()) and losses.shape == (3,)
    total, last = 0.0, levels[-2]
    for i in range(3):
        lifted = last.alpha * end + last.sigma * NOISE.draw("draft-lv", i, end)
        total = total + loss(denoiser(lifted, last, {"z": SHIFT}).denoised) / 3
    assert (losses - total).abs().max() < 1e-14
    assert (found - torch.autograd.grad(total.sum(), denoiser.theta)[0]).abs().max() < 1e-14
    for bad in ({"noise": None}, {"noise": NOISE, "draws": 0}):
        with pytest.raises(UsageError, match="draft-lv needs"):
            adjoint.draft_lv(denoiser, START, loss, grid=levels, **bad)


def test_more_draws_have_less_variance() -> None:
    denoiser, levels = Shifted(), smooth_grid("vp", 6)

    def spread(draws: int) -> float:
        found = []
        for seed in range(60):
            noise = SeededNoise([f"{seed * 3 + row}" for row in range(3)])
            losses, _ = adjoint.draft_lv(denoiser, START, loss, noise=noise, draws=draws, grid=levels)
            found.append(torch.autograd.grad(losses.sum(), denoiser.theta)[0])
        return float(torch.stack(found).var(0).sum())

    assert spread(1) / spread(4) == pytest.approx(4, rel=0.5)


# -- greedy -----------------------------------------------------------------------------------------------------------


def test_predict_clean_goes_from_the_posterior_to_the_end_of_the_run() -> None:
    denoiser, level = Shifted(), level_of_lam("vp", -1.0)

    def gradient(steps: int, **settings: Any) -> Tensor:
        x = START.clone().requires_grad_()
        end = adjoint.predict_clean(denoiser, x, level, solve_steps=steps, **settings)
        return torch.autograd.grad(loss(end).sum(), x)[0]

    x = START.clone().requires_grad_()
    (greedy,) = torch.autograd.grad(loss(denoiser(x, level).denoised).sum(), x)
    assert torch.equal(gradient(0), greedy) and (gradient(1) - greedy).abs().max() < 1e-14
    far = gradient(128, sampler="heun", method="full")
    apart = [relative([gradient(k)], [far])[0] for k in (0, 12, 48)]
    assert all(b < 0.6 * a for a, b in pairwise(apart)), apart
    assert (gradient(16, method="full") - gradient(16, method="discrete")).abs().max() < 1e-13
    with pytest.raises(UsageError, match="must not be negative"):
        gradient(-1)


# -- reversible gate, choice, refusals --------------------------------------------------------------------------------


def test_a_run_that_cannot_be_undone_is_stored() -> None:
    """EDICT amplifies rounding by p^-2 a step."""
    x = START.float().requires_grad_()

    def found(method: str) -> Tensor:
        end = adjoint.sample(Shifted(), x, method=method, sampler="edict:p=0.6", grid=smooth_grid("vp", 30))
        return torch.autograd.grad(loss(end).sum(), x)[0]

    wanted = found("checkpoint")
    with pytest.warns(UserWarning, match="EDICT could not be undone within 0.0001"):
        made = found("reversible")
    assert relative([made], [wanted])[0] < 1e-5
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert relative([found("reversible:tolerance=1e9")], [wanted])[0] > 1e-3, "what the gate is for"


def test_the_method_is_chosen_by_the_room_there_is() -> None:
    levels = smooth_grid("vp", 64)
    state = 3 * bytes_of([START])

    def choice(sampler: str, states: float, grid: Any = levels) -> Any:
        return chosen(chain_of(Shifted(), sampler, grid), START, free=4 * states * state)[0]

    assert choice("ddim", 1e9, levels[-2:]) == Full()
    assert choice("ddim", 64) == Checkpoint() and choice("bdia", 64) == Checkpoint()
    assert choice("ddim", 63) == Segments() and choice("bdia", 63) == Reversible()
    assert choice("ddim", 15) == Segments(width=2) and choice("naive", 63) == Segments()
    record = adjoint.Record()
    wanted = gradients("full", "ddim")
    assert max(relative(gradients("auto", "ddim", record=record), wanted)) < 1e-12
    assert record.method == Checkpoint() and "all fit" in record.reason


def test_without_gradients_it_is_the_plain_run() -> None:
    plain = samplers.sample(Shifted(), START, sampler="ddim", grid=smooth_grid("vp", 5))
    for method in adjoint.METHODS:
        sampler = "bdia" if method == "reversible" else "ddim"
        for mode in (torch.no_grad, torch.inference_mode):
            with mode():
                end = adjoint.sample(Shifted(), START, method=method, sampler=sampler, grid=smooth_grid("vp", 5))
            assert not end.requires_grad and (sampler == "bdia" or torch.equal(end, plain.detach()))


def test_what_is_refused() -> None:
    for settings, words in (
        ({"method": "checkpoints"}, "did you mean checkpoint"),
        ({"method": "adjoint-deis", "ordr": 2}, "did you mean order"),
        ({"method": "adjoint-deis:order=3"}, "1 or 2"),
        ({"method": "continuous:form=nose"}, "did you mean noise"),
        ({"method": "continuous", "sampler": "ddim:eta=1"}, "adds noise"),
        ({"method": "adjoint-deis:states=resolved", "sampler": "ddim:eta=1"}, "adds noise"),
        ({"method": "reversible", "sampler": "ddim"}, "cannot be undone"),
        ({"method": "reversible", "sampler": "naive"}, "cannot be undone"),
        ({"method": "adjoint-deis", "sampler": "bdia"}, "for reversible steps"),
        ({"method": "segments:width=1"}, "cuts nothing"),
        ({"method": "truncated:last=0"}, "at least one"),
        ({"method": "auto", "last": 1}, "setting of one method"),
        ({"sampler": "ddim:eta=1", "noise": None}, "is stochastic"),
    ):
        with pytest.raises(UsageError, match=words):
            gradients(**{"method": "checkpoint", **settings})
