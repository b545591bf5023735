"""Steps that can be undone: orders, round trips and rounding on the reference mixture, guidance, and real pipelines."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import guidance_toys as toys
import pytest
import tiny_parts
import tiny_unets
import torch
from exact import FIRST, LAST, PATHS, START, exact_u, mixture, smooth_grid
from torch import Tensor

from pilotage import guidance, samplers
from pilotage.errors import UsageError
from pilotage.guidance.pipelines.denoiser import condition_of, denoiser_of
from pilotage.samplers.denoiser import ExactDenoiser
from pilotage.samplers.grids import make_grid
from pilotage.samplers.inversion import (
    INVERSIONS,
    Carried,
    FixedPoint,
    ReversibleStep,
    edit,
    forward,
    invert,
    make_inversion,
)
from pilotage.samplers.inversion.editing import last_steps
from pilotage.samplers.inversion.fixed_point import shares
from pilotage.samplers.noise import SeededNoise
from pilotage.samplers.prediction import EPSILON, FLOW_PREDICTION, V_PREDICTION, Prediction
from pilotage.samplers.schedule import Level, RectifiedFlow, stable_diffusion_schedule
from pilotage.zoo import toy

EXACT = [name for name, spec in INVERSIONS.items() if spec.load().exact]
APPROXIMATE = [name for name in INVERSIONS if name not in EXACT]
paths = pytest.mark.parametrize("path", PATHS)


def start_of(path: str) -> Tensor:
    return torch.tensor([START[path]], dtype=torch.float64)


def run(path: str, method: str, steps: int) -> tuple[ReversibleStep, Carried, tuple[Level, ...]]:
    """The mixture's run from `start_of`."""
    levels, how = smooth_grid(path, steps), make_inversion(method)
    return how, forward(mixture(path), start_of(path), levels, method=how), levels


def apart(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm(dim=1).max())


def round_trip(path: str, method: str, steps: int) -> float:
    """From x_T to data and back, from all that is carried."""
    how, state, levels = run(path, method, steps)
    back = invert(mixture(path), state, levels, method=how)
    return apart(how.noise(back), start_of(path))


def truth(path: str, levels: tuple[Level, ...], rows: Tensor) -> Tensor:
    ends = [exact_u(tuple((row / levels[0].alpha).tolist()), LAST) for row in rows]
    return torch.stack(ends) * levels[-1].alpha


def solver_error(path: str, method: str, steps: int) -> float:
    how, state, levels = run(path, method, steps)
    return apart(how.end(state), truth(path, levels, start_of(path))) / levels[-1].alpha


# -- against the exact flow -------------------------------------------------------------------------------------------


@paths
@pytest.mark.parametrize(
    ("method", "steps", "order"),
    [
        ("naive", 40, 1.0), ("edict", 160, 1.0), ("bdia", 40, 2.0), ("bdia:g=0.5", 160, 1.0), ("o-belm", 40, 2.0),
        ("mccallum-foster", 40, 2.0), ("mccallum-foster:z=0.9", 40, 2.0), ("reversible-heun", 40, 2.0),
    ],
)  # fmt: skip
def test_methods_converge_to_the_flow_at_their_order(path: str, method: str, steps: int, order: float) -> None:
    slope = math.log2(solver_error(path, method, steps) / solver_error(path, method, 2 * steps))
    assert abs(slope - order) < 0.08, f"{method} on {path}: slope {slope:.3f}"
    assert make_inversion(method).order == order


def test_the_coupling_of_eulers_method_is_of_first_order() -> None:
    slope = math.log2(
        solver_error("vp", "mccallum-foster:base=euler", 40) / solver_error("vp", "mccallum-foster:base=euler", 80)
    )
    assert 0.9 < slope < 1.6
    assert make_inversion("mccallum-foster:base=euler").order == 1


@pytest.mark.parametrize("path", PATHS)
def test_each_variable_where_it_is_tame(path: str) -> None:
    """Coupled copies in u and rho throughout are several times worse in 20 steps: 1.3e-2 and 7.9e-3 (measured)."""
    assert solver_error(path, "mccallum-foster", 20) < 1.5e-3
    assert solver_error(path, "reversible-heun", 20) < 3e-3
    slopes = [leg.weights.slope for leg in run(path, "reversible-heun", 20)[1].legs]
    assert slopes == sorted(slopes) and set(slopes) == {"denoised", "noise"}


@pytest.mark.parametrize("method", ["o-belm", "mccallum-foster", "mccallum-foster:base=euler", "reversible-heun"])
def test_the_path_does_not_matter(method: str) -> None:
    """In x / alpha over rho all paths are one ODE. (EDICT asks about x of the next level at this one's time, BDIA adds
    x of two levels, and a naive inversion begins at the x of another level: those three depend on the path.)"""
    ends = []
    for path in PATHS:
        levels, how = smooth_grid(path, 20), make_inversion(method)
        begin = start_of("vp") / smooth_grid("vp", 20)[0].alpha * levels[0].alpha
        state = forward(mixture(path), begin, levels, method=how)
        back = invert(mixture(path), state, levels, method=how)
        ends.append(torch.cat([how.end(state) / levels[-1].alpha, how.noise(back) / levels[0].alpha]))
    assert apart(ends[0], ends[1]) < 1e-10 and apart(ends[0], ends[2]) < 1e-10


# -- there and back ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "figures"),
    [
        ("naive", {20: 4.9e-2, 40: 2.7e-2, 80: 1.4e-2}),
        ("fixed-point:iterations=1", {20: 9.5e-3}),
        ("fixed-point:iterations=3", {20: 5.7e-4}),
        ("fixed-point:iterations=10", {20: 7e-8}),
    ],
)
def test_round_trips_of_ddim_inversion(method: str, figures: dict[int, float]) -> None:
    for steps, figure in figures.items():
        assert round_trip("vp", method, steps) == pytest.approx(figure, rel=0.03)


@pytest.mark.parametrize(("path", "k"), [("vp", 0), ("vp", 1), ("vp", 2), ("vp", 3), ("ve", 1), ("flow", 2)])
def test_each_fixed_point_iteration_adds_an_order(path: str, k: int) -> None:
    method = f"fixed-point:iterations={k}"
    slope = math.log2(round_trip(path, method, 80) / round_trip(path, method, 160))
    assert abs(slope - (k + 1)) < 0.15, f"slope {slope:.3f}"


@paths
@pytest.mark.parametrize(
    ("method", "limit"),
    [
        ("edict", 1e-13), ("bdia", 1e-14), ("o-belm", 1e-12), ("mccallum-foster", 1e-12),
        ("mccallum-foster:base=euler", 1e-12), ("reversible-heun", 1e-13),
    ],
)  # fmt: skip
def test_exact_methods_undo_their_steps_to_rounding(path: str, method: str, limit: float) -> None:
    scale = float(start_of(path).norm(dim=1).max())
    assert round_trip(path, method, 20) < limit * scale
    assert round_trip(path, method, 40) < 10 * limit * scale


@paths
@pytest.mark.parametrize("method", EXACT)
def test_a_picture_comes_back_from_all_that_its_inversion_carries(path: str, method: str) -> None:
    how, levels = make_inversion(method), smooth_grid(path, 30)
    picture = truth(path, levels, start_of(path))
    carried = invert(mixture(path), picture, levels, method=how)
    assert apart(how.end(forward(mixture(path), carried, levels, method=how)), picture) < 1e-12


def test_edict_amplifies_rounding_by_its_power() -> None:
    """p^(-2N): a small error of one copy of the end is this much larger at the start, 18 in 20 steps, 1.4e3 in 50."""
    for steps, figure in ((20, 18.2), (50, 1.4e3), (100, 2e6)):
        assert 0.93 ** (-2 * steps) == pytest.approx(figure, rel=0.03)
        how, levels = make_inversion("edict"), smooth_grid("vp", steps)
        still = Still()
        state = forward(still, start_of("vp"), levels, method=how)
        x, y = state.tensors
        moved = invert(still, state.now(x, y + 1e-6), levels, method=how)
        gap = (moved.tensors[0] - moved.tensors[1]).abs().max() / 1e-6
        growth = float(gap) * levels[-1].alpha / levels[0].alpha
        assert growth == pytest.approx(0.93 ** (-2 * steps), rel=0.02)


def test_bdia_below_one_loses_what_it_holds() -> None:
    assert round_trip("vp", "bdia:g=0.5", 20) < 1e-9
    assert 1e-7 < round_trip("vp", "bdia:g=0.5", 40) < 1e-2
    assert round_trip("vp", "bdia:g=0.5", 80) > 1


class Still:
    """A network that always sees no noise: what remains of a step is what the method does with its copies."""

    schedule = PATHS["vp"]

    def __call__(self, x: Tensor, level: Level, condition: Any = None) -> Prediction:
        return Prediction(x, level, torch.zeros_like(x), EPSILON)


@pytest.mark.parametrize("method", INVERSIONS)
def test_one_step_back_is_the_inverse_of_one_step(method: str) -> None:
    """Every state that a run passes is found again, in as many tensors; so an adjoint sweep can stand on it."""
    how, levels, world = make_inversion(method), smooth_grid("vp", 6), mixture("vp")
    states = [how.begin(start_of("vp"), levels, world.schedule)]
    for i in range(6):
        states.append(how.step(world, states[-1], i))
    for i in reversed(range(6)):
        before = how.back(world, states[i + 1], i)
        assert len(before.tensors) == len(states[i].tensors)
        if how.exact:
            for found, was in zip(before.tensors, states[i].tensors, strict=True):
                assert apart(found, was) < 1e-12


@pytest.mark.parametrize("method", INVERSIONS)
def test_rows_do_not_see_each_other_and_nothing_is_drawn(method: str) -> None:
    levels, how = smooth_grid("vp", 8), make_inversion(method)
    before = torch.random.get_rng_state()
    picture = torch.tensor([[0.4, 0.2], [-0.9, 1.1], [0.1, -1.4]], dtype=torch.float64)
    together = invert(mixture("vp"), picture, levels, method=how)
    for row in range(3):
        alone = invert(mixture("vp"), picture[row : row + 1], levels, method=how)
        assert apart(how.noise(together)[row : row + 1], how.noise(alone)) < 1e-12
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("method", INVERSIONS)
def test_the_way_to_data_is_the_samplers_for_those_that_invert_ddim(method: str) -> None:
    levels = smooth_grid("vp", 7)
    how = make_inversion(method)
    end = how.end(forward(mixture("vp"), start_of("vp"), levels, method=how))
    ddim = samplers.sample(mixture("vp"), start_of("vp"), sampler="ddim", grid=levels)
    assert (apart(end, ddim) < 1e-14) == (method in APPROXIMATE)


# -- the fixed point --------------------------------------------------------------------------------------------------


def test_changes_say_whether_the_fixed_point_has_settled() -> None:
    world, levels = mixture("vp"), smooth_grid("vp", 20)
    picture = truth("vp", levels, start_of("vp"))
    largest = []
    for k in (0, 2, 8):
        carried = invert(world, picture, levels, method=FixedPoint(iterations=k))
        assert [change.shape for change in carried.changes] == [(1,)] * 20
        largest.append(max(float(change.max()) for change in carried.changes))
    assert largest[0] > 1e-2 > largest[1] > 1e-5 > largest[2]


class Steep:
    """noise(x) = slope x + rest: a step whose plain iteration contracts by -slope d / c, which may be above 1."""

    schedule = PATHS["ve"]

    def __init__(self, slopes: Tensor):
        self.slopes = slopes

    def __call__(self, x: Tensor, level: Level, condition: Any = None) -> Prediction:
        return Prediction(x, level, x * self.slopes + 0.3, EPSILON)


def test_damping_and_anderson_settle_where_the_plain_iteration_runs_away() -> None:
    levels = (Level(0.0, 1.0, 2.0), Level(0.0, 1.0, 1.0))  # d = -1, c = 1: y <- x' + slope y + 0.3
    steep = Steep(torch.tensor([[-1.6, -0.4, 0.5]], dtype=torch.float64))
    x = torch.tensor([[0.7, -1.0, 0.2], [1.5, 0.1, -0.6]], dtype=torch.float64)
    after = forward(steep, x, levels, method="naive").tensors[0]

    def left(**settings: Any) -> float:
        how = FixedPoint(iterations=30, **settings)
        return apart(how.noise(invert(steep, after, levels, method=how)), x)

    assert left() > 1e4
    assert left(damping=0.5) < 1e-4
    assert left(anderson=3) < 1e-9  # three unknowns and three earlier moves: solved
    assert left(anderson=2, damping=0.5) < 1e-6


def test_anderson_shares_are_least_squares_with_sum_one() -> None:
    moves = toys.normal(4, 3, 7, seed=5)
    found = shares(moves)
    assert found.sum(2).sub(1).abs().max() < 1e-12
    best = (found @ moves).norm(dim=2)
    for seed in range(20):
        other = found + (t := toys.normal(4, 1, 3, seed=seed)) - t.mean(2, keepdim=True)
        assert ((other @ moves).norm(dim=2) >= best - 1e-9).all()


def test_iterations_zero_is_naive() -> None:
    levels = smooth_grid("vp", 9)
    one, other = (
        invert(mixture("vp"), start_of("vp"), levels, method=m).tensors[0]
        for m in ("naive", "fixed-point:iterations=0")
    )
    assert torch.equal(one, other)


# -- pure noise and clean data ----------------------------------------------------------------------------------------


class Spoken:
    """The reference mixture as a network of some kind, at every level from pure noise on to a clean end."""

    def __init__(self, schedule: Any, kind: Any):
        self.schedule, self.kind, self.world = schedule, kind, toy.g3()

    def __call__(self, x: Tensor, level: Level, condition: Any = None) -> Prediction:
        if level.sigma > 0:
            denoised = self.world.denoised(x, level.alpha, level.sigma, condition)
            return toys.spoken(x, level, denoised, self.kind)
        near = Level(0.0, 1.0, 1e-4)  # the score of clean data, which the network of a real model extrapolates
        noise = (x - self.world.denoised(x, near.alpha, near.sigma, condition)) / near.sigma
        nx, nv = self.kind.noise(level)
        return Prediction(x, level, (noise - nx * x) / nv, self.kind)


@pytest.mark.parametrize("method", [m for m in INVERSIONS if m != "o-belm"])
def test_a_flow_from_pure_noise_to_clean_data_and_back(method: str) -> None:
    world, how = Spoken(RectifiedFlow(), FLOW_PREDICTION), make_inversion(method)
    levels = make_grid("flow", world.schedule, 64)
    assert levels[0].alpha == 0 and levels[-1].sigma == 0
    x = toys.normal(5, 2, seed=4)
    state = forward(world, x, levels, method=how)
    end = how.end(state)
    assert end.isfinite().all()
    ddim = samplers.sample(world, x, sampler="ddim", grid=levels)
    assert apart(end, ddim) < 0.15  # all of them are near the same flow
    if how.exact:
        assert apart(how.noise(invert(world, state, levels, method=how)), x) < 1e-9
    picture = invert(world, ddim, levels, method=how)
    if how.exact:
        assert apart(how.end(forward(world, picture, levels, method=how)), ddim) < 1e-9


def test_o_belm_says_that_it_needs_a_finite_start() -> None:
    world = Spoken(RectifiedFlow(), FLOW_PREDICTION)
    with pytest.raises(UsageError, match="below pure noise"):
        forward(world, torch.zeros(1, 2), make_grid("flow", world.schedule, 8), method="o-belm")


def test_what_cannot_be_asked_is_refused_in_one_line() -> None:
    world, levels, x = mixture("vp"), smooth_grid("vp", 4), start_of("vp")
    wrong: list[tuple[str, Any]] = [
        ("did you mean bdia", lambda: make_inversion("bdai")),
        ("has no setting 'h'", lambda: make_inversion("bdia:h=1")),
        ("at most 1", lambda: make_inversion("bdia:g=1.5")),
        ("at most 1", lambda: make_inversion("edict:p=0")),
        ("midpoint or euler", lambda: make_inversion("mccallum-foster:base=heun")),
        ("at most 1", lambda: make_inversion("mccallum-foster:z=0")),
        ("from 0 on", lambda: make_inversion("fixed-point:iterations=-1")),
        ("at most 1", lambda: make_inversion("fixed-point:damping=0")),
        ("fall in noise", lambda: forward(world, x, levels[::-1], method="naive")),
        ("at least two", lambda: forward(world, x, levels[:1], method="naive")),
        ("other levels", lambda: invert(world, forward(world, x, levels), smooth_grid("vp", 5))),
        ("pass schedule", lambda: make_inversion("mccallum-foster").begin(x, levels)),
        ("strength", lambda: last_steps(levels, 0.0)),
        ("strength", lambda: last_steps(levels, 1.2)),
    ]
    for message, act in wrong:
        with pytest.raises(UsageError, match=message) as caught:
            act()
        assert "\n" not in str(caught.value)


# -- guidance ---------------------------------------------------------------------------------------------------------

SD = stable_diffusion_schedule()
GUIDED_GRID = SD.levels_of_rho(torch.linspace(math.log(12), math.log(0.1), 13).exp())


def guided(line: str, shape: tuple[int, ...] = (3, 4)) -> guidance.Guided:
    return guidance.Guided(toys.Toy(V_PREDICTION, schedule=SD), guidance.parse(line), toys.conditions(*shape))


LINES = ("cfg:scale=3", "cfg++:scale=3", "cfg++:lam=0.6", "cfg:scale=3 + interval:low=0.3,high=5", "apg:momentum=0")


@pytest.mark.parametrize("line", LINES)
@pytest.mark.parametrize("method", INVERSIONS)
def test_every_method_carries_a_guided_denoiser(method: str, line: str) -> None:
    net, how, x = guided(line), make_inversion(method), toys.normal(3, 4, seed=8)
    state = forward(net, x * GUIDED_GRID[0].sigma, GUIDED_GRID, method=how)
    back = how.noise(invert(net, state, GUIDED_GRID, method=how))
    if how.exact:
        assert apart(back, x * GUIDED_GRID[0].sigma) < 1e-9
    else:
        ddim = samplers.sample(net, x * GUIDED_GRID[0].sigma, sampler="ddim", grid=GUIDED_GRID)
        assert apart(how.end(state), ddim) < 1e-12


def test_cfgpp_with_a_scale_is_cfg_in_every_method() -> None:
    """lam = scale (1 - rho'/rho) makes each DDIM step CFG's; so both invert alike, whatever the method."""
    x = toys.normal(3, 4, seed=8)
    for method in INVERSIONS:
        one, other = (
            make_inversion(method).noise(invert(guided(line), x, GUIDED_GRID, method=method))
            for line in ("cfg:scale=3", "cfg++:scale=3")
        )
        assert apart(one, other) < 1e-10


class Frozen:
    """Two branches whose noises are the same wherever they are looked at: what an inversion is exact for."""

    schedule = SD

    def __call__(self, x: Tensor, level: Level, condition: Any = None) -> Prediction:
        return Prediction(x, level, condition.expand_as(x), EPSILON)


@pytest.mark.parametrize("lam", [0.3, 0.6, 1.0])
def test_cfgpp_inverts_exactly_when_the_noises_are_frozen(lam: float) -> None:
    uncond, cond = toys.normal(3, 4, seed=1), toys.normal(3, 4, seed=2)
    net = guidance.Guided(Frozen(), guidance.CFGPP(lam=lam), {"cond": cond, "uncond": uncond})
    x = toys.normal(3, 4, seed=3)
    carried = invert(net, x, GUIDED_GRID, method="naive")
    weighted, at = torch.lerp(uncond, cond, lam), x
    for level, goal in reversed(list(pairwise(GUIDED_GRID))):  # the paper's own two lines
        clean = (at - goal.sigma * uncond) / goal.alpha
        at = level.alpha * clean + level.sigma * weighted
    assert apart(carried.tensors[0], at) < 1e-10
    again = samplers.sample(net, carried.tensors[0], sampler="ddim", grid=GUIDED_GRID)
    assert apart(again, x) < 1e-10


def test_rules_that_remember_or_move_are_refused() -> None:
    with pytest.raises(UsageError, match="remembers earlier steps"):
        forward(guided("apg:scale=5,momentum=-0.5"), toys.normal(3, 4), GUIDED_GRID)

    class Moves(guidance.CFG):
        def after(self, ctx: Any, x: Tensor) -> Tensor:
            return x * 0.9

    net = guidance.Guided(toys.Toy(schedule=SD), Moves(2.0), toys.conditions(3, 4))
    with pytest.raises(UsageError, match="moves x after each step"):
        forward(net, toys.normal(3, 4), GUIDED_GRID)


# -- editing ----------------------------------------------------------------------------------------------------------


def test_an_edit_moves_the_data_as_the_conditions_differ() -> None:
    """Data N(condition, w^2): the flow moves x and the mean together, so the edit adds the difference of the means,
    less what the finite noise of the first level still knows of the old one."""
    net = toys.Toy(V_PREDICTION, schedule=SD)
    source, target = toys.normal(3, 4, seed=1), toys.normal(3, 4, seed=2)
    x = source + 0.5 * toys.normal(3, 4, seed=5)
    levels = SD.levels_of_rho(torch.linspace(math.log(14), math.log(0.05), 200).exp())
    for method in ("o-belm", "fixed-point:iterations=10"):
        done = edit(net, x, levels, source, target, method=method)
        wanted = (target - source) * (1 - 0.5 / math.hypot(0.5, 14))
        assert (done.sample - x - levels[-1].alpha * wanted).abs().max() < 0.05
        same = edit(net, x, levels, source, source, method=method)
        assert apart(same.sample, x) < 1e-6


def test_less_strength_keeps_more_of_the_picture() -> None:
    net, source, target = toys.Toy(V_PREDICTION, schedule=SD), toys.normal(3, 4, seed=1), toys.normal(3, 4, seed=2)
    moved = [
        (edit(net, source, GUIDED_GRID, source, target, strength=s).sample - source).norm() for s in (0.2, 0.6, 1.0)
    ]
    assert 0 < moved[0] < moved[1] < moved[2]
    assert last_steps(GUIDED_GRID, 0.5) == GUIDED_GRID[-7:] and len(last_steps(GUIDED_GRID, 1e-9)) == 2


# -- pipelines --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", [tiny_unets.text_to_image, tiny_unets.stable_diffusion_xl], ids=["sd", "sdxl"])
def test_a_pipelines_denoiser_is_what_its_call_samples_from(case: Any) -> None:
    made = case()
    pipe, prompts = made.pipe, list(made.call["prompt"])
    noise = SeededNoise([1, 2]).initial((4, 8, 8))
    size = {"width": 16, "height": 16}
    call = {"prompt": prompts, "num_inference_steps": 3, "latents": noise, "output_type": "latent", **size}
    stock = pipe(**call, guidance_scale=5.0).images
    times = pipe.scheduler.timesteps.double()
    net = denoiser_of(pipe, prompts, "cfg:scale=5", size=(16, 16))
    step = pipe.scheduler.config.num_train_timesteps // 3
    levels = net.schedule.levels(times)
    last = net.schedule.level(float(times[-1]) - step) if times[-1] >= step else None
    if last is None:
        config = pipe.scheduler.config
        last = net.schedule.clean if config.set_alpha_to_one else net.schedule.level(0.0)
    ours = samplers.sample(net, noise, sampler="ddim", grid=(*levels, last))
    assert (ours - stock).abs().max() < 2e-5 * stock.abs().max()
    assert condition_of(pipe, "one")["encoder_hidden_states"].shape[0] == 1


def test_other_pipelines_are_refused_with_what_to_do() -> None:
    pipe = tiny_unets.inpaint().pipe
    with pytest.raises(UsageError, match="StableDiffusionInpaintPipeline cannot be used as a denoiser"):
        denoiser_of(pipe, "a star")
    wide = tiny_parts.stable_diffusion(network=tiny_parts.unet(9))
    with pytest.raises(UsageError, match="9 channels for 4 of latents"):
        denoiser_of(wide, "a star")


def test_half_precision_becomes_single() -> None:
    state = make_inversion("bdia").begin(torch.zeros(1, 2, dtype=torch.bfloat16), smooth_grid("vp", 4))
    assert state.tensors[0].dtype == torch.float32


def test_exact_denoisers_start_where_the_grid_does() -> None:
    assert smooth_grid("vp", 4)[0].lam == pytest.approx(FIRST)
    assert isinstance(mixture("vp"), ExactDenoiser)
