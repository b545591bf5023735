"""UCGM-T against its formulas in the notation of its source, against closed forms, and on a ring."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from distill_learners import (
    FLOW,
    VP,
    ExactLearner,
    Mlp,
    ToyLearner,
    by_prompt,
    column,
    context,
    distilled,
    exact_roles,
    gaussian,
    gradients,
    guided_by,
    of_gaussian,
    told_of,
    total_loss,
    toy_roles,
)
from tiny_parts import stable_diffusion
from torch import Tensor

from pilotage.distill.method import Pictures
from pilotage.distill.methods.ucgm_t import UCGMT, level_at
from pilotage.distill.roles import Roles
from pilotage.distill.times import Times
from pilotage.errors import UsageError
from pilotage.evaluation.metrics.riesz import energy_distance
from pilotage.samplers import make_sampler, sample
from pilotage.samplers.diffusers_schedulers import UCGM
from pilotage.samplers.flow_ancestral import flow_time
from pilotage.samplers.incomplete_beta import beta_quantile
from pilotage.samplers.noise import SeededNoise, derived_seed
from pilotage.samplers.prediction import FLOW_PREDICTION, Prediction
from pilotage.samplers.schedule import Level, NoiseSchedule, stable_diffusion_schedule

BOTH = pytest.mark.parametrize("schedule", [VP, FLOW], ids=["vp", "flow"])


# -- the source's notation: x_t = alpha z + gamma x, F = a z + g x, d = alpha g - gamma a; linear --------------------


def inverse(x_t: Tensor, F: Tensor, t: float) -> tuple[Tensor, Tensor]:
    """(xhat, zhat)."""
    alpha, gamma, a, g = t, 1 - t, 1.0, -1.0
    d = alpha * g - gamma * a
    return (alpha * F - a * x_t) / d, (g * x_t - gamma * F) / d


def root_loss(F: Tensor, target: Tensor, method: UCGMT, t: float) -> Tensor:
    loss = ((F - target).square().flatten(1).mean(1) + method.c**2).sqrt() - method.c
    if method.cosine:
        loss = loss + 1 - torch.nn.functional.cosine_similarity(F.flatten(1), target.flatten(1))
    return (loss * (math.cos(1.57 * t) if method.weighted else 1)).mean()


def one_level(method: UCGMT, ctx: Any) -> tuple[Pictures, Tensor, float]:
    """The pictures, noise and time of an update with one level."""
    (group,) = ctx.groups(Times(strata=1), ctx.total, "ucgm")
    some = ctx.data(0)
    return some, ctx.noise(some, "level").double(), beta_quantile(group.share, method.a, method.b)


# -- the change of variables -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", [VP, FLOW, stable_diffusion_schedule()], ids=["vp", "flow", "table"])
def test_levels_by_the_linear_time(schedule: NoiseSchedule) -> None:
    for t in (0.1, 0.35, 0.5, 0.9):
        assert flow_time(level_at(schedule, t)) == pytest.approx(t, abs=1e-9)
    highest = flow_time(schedule.level(schedule.T))
    for t in (highest, (1 + highest) / 2, 1.0):
        assert flow_time(level_at(schedule, t)) == pytest.approx(highest, abs=1e-9)
    assert flow_time(level_at(schedule, 0.0)) > 0


@BOTH
def test_the_inverse_of_the_target_is_data_and_noise(schedule: NoiseSchedule) -> None:
    x, z = torch.randn(2, 3, 2, 1, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    t = 0.3
    for found, wanted in zip(inverse(t * z + (1 - t) * x, z - x, t), (x, z), strict=True):
        torch.testing.assert_close(found, wanted)
    level = level_at(schedule, t)
    native = z - x if schedule is FLOW else z
    said = Prediction(level.alpha * x + level.sigma * z, level, native, ToyLearner(schedule).kind)
    torch.testing.assert_close(said.denoised, x)
    torch.testing.assert_close(said.noise - said.denoised, z - x)


class Linearised(torch.nn.Module):
    """A network of another path as one of the linear one: F of x / (alpha + sigma)."""

    def __init__(self, learner: ToyLearner):
        super().__init__()
        self.learner, self.network = learner, learner.network

    def forward(self, x: Tensor, time: Tensor, told: Tensor) -> Tensor:
        level = level_at(self.learner.schedule, float(time[0].double()) / 1000)
        x = x * (level.alpha + level.sigma)
        native = self.learner.network(x, torch.full((len(x),), level.time), told)
        said = Prediction(x, level, native, self.learner.kind)
        return said.noise - said.denoised


@pytest.mark.parametrize("consistency", [0.0, 0.7, 1.0])
def test_another_path_has_the_loss_of_the_linear_one(consistency: float) -> None:
    roles = toy_roles(VP)
    method = UCGMT(consistency=consistency, zeta=2.0 if consistency else 0.0)
    linear = Roles(ExactLearner(FLOW), ToyLearner(FLOW, network=Linearised(roles.student)))  # type: ignore[arg-type]
    losses = [total_loss(method, context(r, "none", 8, of_gaussian)) for r in (roles, linear)]
    assert losses[0] == pytest.approx(losses[1], rel=2e-4)  # times are told in float32, and differences divided by 2e


# -- the loss --------------------------------------------------------------------------------------------------------


def test_at_ratio_0_it_is_flow_matching_but_for_the_root() -> None:
    """The gradient of a row is that of its mean squared error over twice its root."""
    roles, method = toy_roles(FLOW), UCGMT(consistency=0.0, zeta=0.0, c=0.0, weighted=False, strata=1, a=1.0)
    ctx = context(roles, batch=5, clean=of_gaussian)
    found = gradients(method, ctx)
    some, z, t = one_level(method, ctx)
    F = roles.student.denoiser(some.prompts)(t * z + (1 - t) * some.clean, FLOW.level(t)).native  # type: ignore[operator]
    errors = (F - (z - some.clean)).square().flatten(1).mean(1)  # type: ignore[operator]
    wanted = torch.autograd.grad((errors / (2 * errors.detach().sqrt())).mean(), roles.student.parameters)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("consistency", [0.5, 1.0])
@pytest.mark.parametrize("update", range(3))
def test_few_steps_by_hand(consistency: float, update: int) -> None:
    roles = toy_roles(FLOW)
    further: dict[str, Any] = {1: dict(cosine=True), 2: dict(weighted=False, a=9.0)}.get(update, {})
    method = UCGMT(consistency=consistency, zeta=2.0, strata=1, **further)
    ctx = context(roles, "cfg:scale=9", 5, of_gaussian, update=update)
    some, z, t = one_level(method, ctx)
    assert some.clean is not None and (t > 0.75) == (update == 2)
    told, x, e = told_of(some.prompts), some.clean, 0.005

    def F(x: Tensor, t: float) -> Tensor:
        return roles.student.network(x, torch.full((len(x),), 1000 * t), told)  # type: ignore[attr-defined]

    x_t = t * z + (1 - t) * x
    taught = by_prompt(x_t, FLOW.level(t), column(told))
    noise = (x_t - (1 - t) * taught) / t
    share = 2.0 if t < 0.75 else 0.5
    x, z = x + share * (taught - x), z + share * (noise - z)
    picture = lambda r: inverse(r * z + (1 - r) * x, F(r * z + (1 - r) * x, r), r)[0]  # noqa: E731
    if consistency == 1:
        low, high = max(t - e, FLOW.t_min), min(t + e, 1.0)
    else:
        low, high = t / 2, t
    delta = (picture(high) - picture(low)) / (high - low)
    target = F(x_t, t) + t * 4 / math.sin(1.57 * t) * delta.clamp(-1, 1)
    wanted = root_loss(F(x_t, t), target.detach(), method, t)
    assert total_loss(method, ctx) == pytest.approx(float(wanted.detach()), rel=1e-3)  # times told in float32
    expected = torch.autograd.grad(wanted, roles.student.parameters)
    for one, other in zip(gradients(method, ctx), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=5e-3, atol=5e-5)


@pytest.mark.parametrize("zeta, share", [(0.4, 0.4), (1.0, 0.0), (2.5, 0.6)])
@pytest.mark.parametrize("update", range(4))
def test_self_boosting_by_hand(zeta: float, share: float, update: int) -> None:
    roles = toy_roles(FLOW)
    roles.target = ToyLearner(FLOW, seed=5)
    method = UCGMT(consistency=0.0, zeta=zeta, strata=1, dropout=0.4, c=0.1, a=9.0 if update == 3 else 0.5)
    held = [p.detach().clone() for p in roles.target.parameters]
    ctx = context(roles, batch=6, clean=of_gaussian, update=update, state={"target": {"weights": held, "steps": 3}})
    some, z, t = one_level(method, ctx)
    assert some.clean is not None and (t > 0.75) == (update == 3)
    out = method.left_out(some)
    told = told_of(["" if gone else prompt for prompt, gone in zip(some.prompts, out, strict=True)])
    x_t, x = t * z + (1 - t) * some.clean, some.clean
    time = torch.full((6,), 1000 * t)
    F = roles.student.network(x_t, time, told)  # type: ignore[attr-defined]
    known = inverse(x_t, F, t)
    null = inverse(x_t, roles.target.network(x_t, time, 0 * told), t)
    pair = []
    for true, cond, without in zip((x, z), known, null, strict=True):
        star = true + share * (cond - without) if t < 0.75 else (true + cond) / 2
        star[out] = ((true + without) / 2)[out]
        pair.append(star)
    torch.testing.assert_close(t * pair[1] + (1 - t) * pair[0], x_t)  # x_t stays where it is
    wanted = root_loss(F, (pair[1] - pair[0]).detach(), method, t)
    assert total_loss(method, ctx) == pytest.approx(float(wanted.detach()), rel=1e-6)


def test_prompts_are_left_out_at_their_rate_by_their_own_seeds() -> None:
    method = UCGMT(consistency=0.0, zeta=0.5)
    some = Pictures(["a"] * 4000, [str(derived_seed(i)) for i in range(4000)])
    out = method.left_out(some)
    assert abs(sum(out) / 4000 - 0.1) < 4 * (0.09 / 4000) ** 0.5 and method.left_out(some.of(range(40))) == out[:40]
    assert not any(UCGMT().left_out(some)) and not any(UCGMT(consistency=0.0, zeta=0.0).left_out(some))


def test_the_average_is_ramped_up() -> None:
    roles = toy_roles(FLOW, hidden=8)
    roles.target = roles.student.twin()  # type: ignore[attr-defined]
    state = distilled(UCGMT(consistency=0.0, zeta=0.5), roles, 1, clean=of_gaussian)
    assert all(torch.equal(a, b) for a, b in zip(roles.student.parameters, roles.target.parameters, strict=True))
    before = [p.detach().clone() for p in roles.target.parameters]
    distilled(UCGMT(consistency=0.0, zeta=0.5), roles, 2, first=1, clean=of_gaussian, state=state)
    for old, now, held in zip(before, roles.student.parameters, roles.target.parameters, strict=True):
        torch.testing.assert_close(held.detach(), old / 11 + now.detach() * 10 / 11)


# -- closed forms ----------------------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("method", [UCGMT(zeta=0.0, c=0.0), UCGMT(consistency=0.5, zeta=0.0, c=0.0), UCGMT(zeta=2.0)],
                         ids=["1", "half", "enhanced"])  # fmt: skip
def test_one_picture_alone_has_nothing_to_learn(schedule: NoiseSchedule, method: UCGMT) -> None:
    """Its denoiser says it everywhere, which is consistent: Delta = 0, and the gradient is 0, not nan."""
    point = lambda x, level, told, w=None: 0 * x + 0.7  # noqa: E731
    teacher = ExactLearner(schedule, denoised=point)
    roles, network = exact_roles(schedule, point)
    roles.teacher = teacher
    ctx = context(roles, "none", 16, lambda some: torch.full((len(some), 2, 1, 1), 0.7, dtype=torch.float64))
    (gradient,) = gradients(method, ctx)
    assert total_loss(method, ctx) < 1e-4 and bool(gradient.isfinite().all())
    with torch.no_grad():
        network.nudge += 0.3
    assert total_loss(method, ctx) > 1e-2


@BOTH
def test_at_ratio_0_with_a_rule_the_optimum_is_the_guided_denoiser(schedule: NoiseSchedule) -> None:
    roles, network = exact_roles(schedule, guided_by(3.0))
    method = UCGMT(consistency=0.0, c=0.0)
    ctx = context(roles, "cfg:scale=3", 16, of_gaussian)
    assert total_loss(method, ctx) < 1e-4
    with torch.no_grad():
        network.nudge += 0.1
    assert total_loss(method, ctx) > 1e-2


@BOTH
def test_the_consistency_function_of_a_gaussian_is_left_as_it_is(schedule: NoiseSchedule) -> None:
    def end_of_flow(x: Tensor, level: Level, told: Tensor, _: Any) -> Tensor:
        return told + 0.5 * (x - level.alpha * told) / (level.alpha**2 * 0.25 + level.sigma**2) ** 0.5

    method = UCGMT(c=0.0, b=2.0)
    exact, network = exact_roles(schedule, end_of_flow)
    ctx = context(exact, "none", 64, of_gaussian)
    assert total_loss(method, ctx) < 2e-3  # of the finite difference, and of times in float32
    network.answer = lambda x, level, told, w: gaussian(told, 0.5, x, level)
    assert total_loss(method, ctx) > 0.1


# -- how it is drawn -------------------------------------------------------------------------------------------------


def test_samplers_and_schedulers() -> None:
    stock = stable_diffusion().scheduler
    assert type(UCGMT().scheduler(stock)).__name__ == "LCMScheduler"
    assert type(UCGMT(stochasticity=0.0).scheduler(stock)).__name__ == "DDIMScheduler"
    own = UCGMT(stochasticity=0.0, extrapolation=0.5, steps=30)
    assert isinstance(own.scheduler(stock), UCGM) and own.scheduler(stock).sampler == make_sampler(own.sampler)
    roles, some = toy_roles(FLOW), Pictures(["a star"] * 2, ["3", "4"])
    levels = UCGMT().levels(roles.student)
    x, noise = roles.student.start(some.seeds, levels), SeededNoise(list(some.seeds))
    with torch.no_grad():
        by_lcm = sample(roles.student.denoiser(some.prompts), x, sampler="lcm", grid=levels, noise=noise)
        torch.testing.assert_close(UCGMT().sample(roles.student, some, rows=2), by_lcm)


def test_a_flow_s_scheduler_adds_fresh_noise() -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler

    made = UCGMT().scheduler(FlowMatchEulerDiscreteScheduler())
    assert made.config.stochastic_sampling
    made.set_timesteps(sigmas=[1.0, 0.5])
    x, V = torch.randn(2, 1, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    after = made.step(V, made.timesteps[0], x, generator=torch.Generator().manual_seed(1)).prev_sample
    fresh = (after - 0.5 * (x - V)) / 0.5
    again = made.step(V, made.timesteps[1], after).prev_sample
    torch.testing.assert_close(again, after - 0.5 * V)
    assert not UCGMT(stochasticity=0.0).scheduler(made).config.stochastic_sampling and fresh.abs().max() < 5


def test_settings_that_are_none() -> None:
    for wrong in (dict(consistency=1.1), dict(zeta=-1.0), dict(dropout=1.0), dict(c=-1.0), dict(steps=0),
                  dict(stochasticity=2.0), dict(a=0.0), dict(strata=0)):  # fmt: skip
        with pytest.raises(UsageError):
            UCGMT(**wrong)  # type: ignore[arg-type]
    assert UCGMT(consistency=0.0, zeta=0.5).roles == ("student", "target") and UCGMT().roles == ("student",)


# -- the ring --------------------------------------------------------------------------------------------------------


def ring(modes: Tensor, noise: Tensor) -> Tensor:
    """(N, 2, 1, 1): eight modes on a circle of radius 2, each of std 0.1."""
    angles = modes.double() * math.pi / 4
    return (2 * torch.stack([angles.cos(), angles.sin()], 1) + 0.1 * noise)[:, :, None, None]


def of_ring(some: Pictures) -> Tensor:
    modes = torch.tensor([derived_seed(seed, "mode") % 8 for seed in some.seeds])
    unit = SeededNoise(list(some.seeds)).draw("ring", 0, torch.empty(len(some), 2, dtype=torch.float64))
    return ring(modes, unit)


def flow_matched(updates: int) -> ToyLearner:
    """A student that has learnt the ring's flow, a level a row."""
    student = ToyLearner(FLOW, hidden=64)
    network, told = student.network, told_of([""])
    assert isinstance(network, Mlp) and student.kind is FLOW_PREDICTION
    generator = torch.Generator().manual_seed(1)
    optimiser = torch.optim.Adam(student.parameters, lr=2e-3)
    slowing = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, updates)
    for _ in range(updates):
        x = ring(torch.randint(8, (256,), generator=generator), torch.randn(256, 2, generator=generator).double())
        z = torch.randn(x.shape, generator=generator).double()
        t = torch.rand(256, generator=generator).double()
        x_t = t[:, None, None, None] * z + (1 - t[:, None, None, None]) * x
        loss = (network(x_t, 1000 * t, told) - (z - x)).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        slowing.step()
    return student


def distance_to_ring(student: ToyLearner, sampler: str, steps: int) -> float:
    count = 1000
    some = Pictures([""] * count, [str(i) for i in range(count)])
    generator = torch.Generator().manual_seed(7)
    data = ring(torch.randint(8, (count,), generator=generator), torch.randn(count, 2, generator=generator).double())
    levels = student.levels("trailing", steps)
    with torch.no_grad():
        x = sample(student.denoiser(some.prompts), student.start(some.seeds, levels), sampler=sampler, grid=levels,
                   noise=SeededNoise(list(some.seeds)))  # fmt: skip
    return energy_distance(real=data.flatten(1), generated=x.flatten(1)).value


def test_two_steps_of_a_ring() -> None:
    """The full form is benchmarks/distill_ucgm_ring.py."""
    student, method = flow_matched(800), UCGMT(zeta=0.0)
    euler, stochastic = distance_to_ring(student, "ddim", 2), distance_to_ring(student, method.sampler, 2)
    optimiser = torch.optim.RAdam(student.parameters, lr=2e-3)
    roles = Roles(ExactLearner(FLOW), student)
    for update in range(100):
        for part in method.update(context(roles, batch=128, clean=of_ring, update=update, prompts=("",))):
            part.loss.backward()
            if part.steps:
                torch.nn.utils.clip_grad_norm_(student.parameters, 0.1)
                optimiser.step()
                optimiser.zero_grad()
    learnt = distance_to_ring(student, method.sampler, 2)
    assert euler > 0.2 and stochastic > 0.15
    assert learnt < 0.07 and learnt < stochastic / 3, (euler, stochastic, learnt)
