"""The steps of policy gradients: densities against torch's, means and stds against diffusers', marginals of the flow
SDEs, records against what is computed again."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import diffusers as D
import pytest
import torch
from finetune_toys import FLOW, VP, ToyLearner
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from pilotage import samplers
from pilotage.errors import UsageError
from pilotage.finetune.flow_sde import DanceGRPOSampler, FlowGRPOSampler
from pilotage.finetune.gaussian_steps import log_prob, log_ratio, step_kl
from pilotage.finetune.method import Sampling
from pilotage.finetune.methods.registry import make_method
from pilotage.finetune.trajectory import Policy, make_policy, record
from pilotage.samplers import Denoiser, NetworkDenoiser, NoiseSchedule, SeededNoise
from pilotage.samplers.prediction import FLOW_PREDICTION, Prediction
from pilotage.samplers.schedule import Level, RectifiedFlow
from pilotage.training.learner import Learner

SDES = [FlowGRPOSampler(0.7), FlowGRPOSampler(1.0), DanceGRPOSampler(0.3)]


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


# -- Gaussians ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_densities_are_those_of_torch(reduction: str) -> None:
    after, mean, old = (drawn(3, 2, 4, seed=seed) for seed in range(3))
    density = Normal(mean, 0.3).log_prob(after)
    wanted = density.mean((1, 2)) if reduction == "mean" else density.sum((1, 2))
    torch.testing.assert_close(log_prob(after, mean, 0.3, reduction), wanted, rtol=1e-13, atol=0)
    apart = log_prob(after, mean, 0.3, reduction) - log_prob(after, old, 0.3, reduction)
    torch.testing.assert_close(log_ratio(after, mean, old, 0.3, reduction), apart, rtol=1e-12, atol=1e-12)
    with pytest.raises(UsageError, match="reduction"):
        log_prob(after, mean, 0.3, "max")


def test_the_ratio_keeps_its_digits_in_float32() -> None:
    """Of a latent with 65536 numbers; the difference of two float32 densities would be wrong in the second digit."""
    mean = drawn(1, 65536)
    old, after = mean + 1e-5 * drawn(1, 65536, seed=1), mean + 0.05 * drawn(1, 65536, seed=2)
    half = [t.float() for t in (after, mean, old)]
    exact = [t.double() for t in half]
    found, wanted = log_ratio(*half, 0.05, "sum"), log_ratio(*exact, 0.05, "sum")
    naive = log_prob(half[0], half[1], 0.05, "sum") - log_prob(half[0], half[2], 0.05, "sum")
    assert abs(float(found - wanted)) < 1e-5 < abs(float(naive - wanted))
    assert float(log_ratio(half[0], half[1], half[1], 0.05, "sum")) == 0


def test_divergences_are_exact_or_as_the_code_has_them() -> None:
    mean, other, std, span = drawn(3, 2, 4), drawn(3, 2, 4, seed=1), 0.3, 0.1
    exact = step_kl(mean, other, std, span)
    torch.testing.assert_close(exact, kl_divergence(Normal(mean, std), Normal(other, std)).sum((1, 2)))
    diffusion = std / math.sqrt(span)  # s of std = s sqrt(|dt|)
    code = ((mean - other) ** 2).mean((1, 2)) / (2 * diffusion**2)
    torch.testing.assert_close(step_kl(mean, other, std, span, "code"), code)
    torch.testing.assert_close(exact, code * 8 / span)
    with pytest.raises(UsageError, match="kl_form"):
        step_kl(mean, other, std, span, "nats")


# -- steps -------------------------------------------------------------------------------------------------------------


class NetworkLearner(Learner):
    """A network of diffusers' kind on the schedule of a diffusers scheduler."""

    def __init__(self, network: Any, schedule: NoiseSchedule, shape: tuple[int, ...], kind: str = "epsilon"):
        self.network, self.schedule, self.shape, self.kind = network, schedule, shape, kind
        self.parameters = []

    def denoiser(self, prompts: Sequence[str], guidance: str = "none") -> Denoiser:
        return NetworkDenoiser(self.network, self.schedule, self.kind)

    def decode(self, latents: Tensor) -> Tensor:
        return latents

    def base(self) -> Any:
        raise NotImplementedError


def network(x: Tensor, t: Any) -> Tensor:
    return torch.tanh(x.flip(-1) + 0.3 * x) + 0.1 * torch.sin(torch.as_tensor(t).flatten()[0].double() / 150)


@pytest.mark.parametrize("eta", [1.0, 0.6])
@pytest.mark.parametrize("last_alpha_is_one", [True, False])
def test_ddim_means_and_stds_are_those_of_diffusers(eta: float, last_alpha_is_one: bool) -> None:
    """At every step that has noise. Where diffusers' last step keeps the noise of index 0 ours ends at clean data."""
    stock = D.DDIMScheduler(
        1000, 0.00085, 0.012, "scaled_linear", clip_sample=False, set_alpha_to_one=last_alpha_is_one,
        timestep_spacing="trailing",
    )  # fmt: skip
    stock.set_timesteps(20)
    learner = NetworkLearner(network, NoiseSchedule.from_scheduler(stock), (3, 4, 4))
    policy = make_policy(learner, f"ddim:eta={eta}", "trailing", 20)
    for step, t in enumerate(stock.timesteps):
        x = drawn(2, 3, 4, 4, seed=step)
        told, zeros = network(x, t), torch.zeros_like(x)
        mean = stock.step(told, int(t), x, eta=eta, variance_noise=zeros, return_dict=False)[0]
        std = float(
            (stock.step(told, int(t), x, eta=eta, variance_noise=zeros + 1, return_dict=False)[0] - mean).mean()
        )
        if step < 19:
            assert policy.std(step) == pytest.approx(std, rel=1e-4)
            torch.testing.assert_close(policy.mean(policy.denoiser(["", ""]), x, step), mean, rtol=0, atol=2e-5)
        else:
            assert policy.std(step) == 0 and (std == 0) == last_alpha_is_one


@pytest.mark.parametrize("times", [(1.0, 0.9), (0.6, 0.5), (0.3, 0.05)])
def test_steps_of_the_flow_sdes(times: tuple[float, float]) -> None:
    """The formulas of both papers' codes, in x and the velocity u."""
    (t, then), x, u = times, drawn(2, 3), drawn(2, 3, seed=1)
    level, goal = Level(1000 * t, 1 - t, t), Level(1000 * then, 1 - then, then)
    dt = then - t

    def step(sampler: Any) -> tuple[Tensor, float]:
        policy = Policy(ToyLearner(FLOW), sampler, (level, goal))
        return policy.mean(lambda x, level, condition=None: Prediction(x, level, u, FLOW_PREDICTION), x, 0), policy.std(
            0
        )

    mean, std = step(FlowGRPOSampler(0.7))
    s = 0.7 * math.sqrt(t / (1 - (then if t == 1 else t)))
    if t < 1:
        torch.testing.assert_close(mean, x * (1 + s**2 * dt / (2 * t)) + u * (1 + s**2 * (1 - t) / (2 * t)) * dt)
    assert std == pytest.approx(s * math.sqrt(-dt))

    mean, std = step(DanceGRPOSampler(0.3))
    clean = x - t * u
    score = -(x - (1 - t) * clean) / t**2
    torch.testing.assert_close(mean, x + dt * u - 0.5 * 0.3**2 * score * dt)
    assert std == pytest.approx(0.3 * math.sqrt(-dt))


class ExactNormal:
    """N(0, 1/4) data on any schedule."""

    def __init__(self, schedule: NoiseSchedule):
        self.schedule = schedule

    def __call__(self, x: Tensor, level: Level, condition: Any = None) -> Prediction:
        power = level.alpha**2 / 4 + level.sigma**2
        clean = x * level.alpha / 4 / power
        noise = x * level.sigma / power
        return Prediction(x, level, noise - clean, FLOW_PREDICTION) if self.flow else _of_noise(x, level, noise)

    @property
    def flow(self) -> bool:
        return isinstance(self.schedule, RectifiedFlow)


def _of_noise(x: Tensor, level: Level, noise: Tensor) -> Prediction:
    return Prediction(x, level, noise, samplers.prediction.EPSILON)


def variance(sampler: Any, schedule: NoiseSchedule, steps: int) -> float:
    """Of the end of a run, exactly: with Gaussian data each step is linear, so two numbers are carried, not samples."""
    levels = ToyLearner(schedule).levels("flow", steps)
    policy = Policy(ToyLearner(schedule), sampler, levels)
    spread = levels[0].alpha ** 2 / 4 + levels[0].sigma ** 2
    for step in range(steps):
        slope = float(policy.mean(ExactNormal(schedule), torch.ones(1, 1, dtype=torch.float64), step))
        spread = slope**2 * spread + policy.std(step) ** 2
    return spread


@pytest.mark.parametrize("sampler", SDES, ids=str)
@pytest.mark.parametrize("schedule", [FLOW, VP], ids=["flow", "vp"])
def test_marginals_of_the_flow_sdes(sampler: Any, schedule: NoiseSchedule) -> None:
    """The variance of the data, 1/4, comes out: within 2 % at 200 steps, within 0.2 % at 6400."""
    assert variance(sampler, schedule, 200) == pytest.approx(0.25, rel=0.02)
    assert variance(sampler, schedule, 6400) == pytest.approx(0.25, rel=0.002)


def test_variances_with_few_steps() -> None:
    """Of N(0, 1/4) at 10 and 40 steps of the flow grid."""
    wanted = {0.7: (0.230, 0.247), 1.0: (0.244, 0.248)}
    for scale, values in wanted.items():
        found = [variance(FlowGRPOSampler(scale), FLOW, steps) for steps in (10, 40)]
        assert found == pytest.approx(values, abs=1.5e-3)
    found = [variance(DanceGRPOSampler(0.3), FLOW, steps) for steps in (10, 40)]
    assert found == pytest.approx((0.194, 0.236), abs=1.5e-3)


# -- records -----------------------------------------------------------------------------------------------------------

PROMPTS = ["a", "bb", "ccc", "dddd", "eeeee"]
SEEDS = ["1", "2", "2:1", "4", "5"]
WAYS = [("ddim:eta=1", VP), ("ddim:eta=0.5", FLOW), ("ddpm", VP), (FlowGRPOSampler(), FLOW), (DanceGRPOSampler(), VP)]


@pytest.mark.parametrize(("sampler", "schedule"), WAYS, ids=lambda way: str(way)[:30])
@pytest.mark.parametrize("guidance", ["none", "cfg:scale=3", "cfg++:scale=0.6"])
def test_records_are_runs_and_can_be_asked_again(sampler: Any, schedule: NoiseSchedule, guidance: str) -> None:
    learner = ToyLearner(schedule, size=3).disturb()
    policy = make_policy(learner, sampler, "trailing", 6, guidance)
    start = learner.start(SEEDS, policy.levels)
    run = record(policy, start, PROMPTS, SEEDS, rows=2)
    whole = samplers.sample(
        learner.denoiser(PROMPTS, guidance), start, sampler=policy.sampler, grid=policy.levels, noise=SeededNoise(SEEDS)
    )
    torch.testing.assert_close(run.end, whole, rtol=1e-13, atol=1e-13)
    assert run.drawn == list(range(5)) and len(run) == 5 and not run.x.requires_grad
    for step in run.drawn:
        again = run.log_prob_now(step, [4, 0, 2], "sum")
        assert again.requires_grad
        torch.testing.assert_close(again.detach(), run.log_prob(step, [4, 0, 2], "sum"), rtol=1e-12, atol=1e-12)
        ratio = run.log_ratio(step, [4, 0, 2], run.mean_now(step, [4, 0, 2]), "sum")
        assert float(ratio.detach().abs().max()) < 1e-12


def test_a_row_of_a_record_is_that_row_alone() -> None:
    learner = ToyLearner(size=3).disturb()
    policy = make_policy(learner, "ddim:eta=1", "trailing", 6)
    start = learner.start(SEEDS, policy.levels)
    run = record(policy, start, PROMPTS, SEEDS, rows=64)
    alone = record(policy, start[2:3], PROMPTS[2:3], SEEDS[2:3], rows=1)
    torch.testing.assert_close(run.x[:, 2:3], alone.x, rtol=1e-13, atol=1e-13)


def test_a_run_in_two_records() -> None:
    learner = ToyLearner(size=3).disturb()
    policy = make_policy(learner, "ddim:eta=1", "trailing", 6)
    start = learner.start(SEEDS, policy.levels)
    whole = record(policy, start, PROMPTS, SEEDS, rows=64)
    first = record(policy, start, PROMPTS, SEEDS, rows=64, stop=2)
    second = record(policy, first.end, PROMPTS, SEEDS, rows=64, start=2)
    assert torch.equal(torch.cat([first.x, second.x[1:]]), whole.x) and second.drawn == [2, 3, 4]
    torch.testing.assert_close(second.log_prob(3, [1]), whole.log_prob(3, [1]), rtol=0, atol=0)
    none = record(policy, start, PROMPTS, SEEDS, rows=64, stop=0)
    assert torch.equal(none.end, start) and none.drawn == []


def test_gradients_of_log_densities() -> None:
    """Against finite differences of a run's density in one parameter."""
    learner = ToyLearner(size=3).disturb()
    policy = make_policy(learner, "ddim:eta=1", "trailing", 4, "cfg:scale=2")
    run = record(policy, learner.start(SEEDS, policy.levels), PROMPTS, SEEDS, rows=64)
    bias = learner.residual.bias

    def whole() -> Tensor:
        return torch.stack([run.log_prob_now(step, range(5), "sum").sum() for step in run.drawn]).sum()

    (gradient,) = torch.autograd.grad(whole(), [bias])
    with torch.no_grad():
        bias[1] += 1e-4
        above = float(whole())
        bias[1] -= 2e-4
        below = float(whole())
    assert float(gradient[1]) == pytest.approx((above - below) / 2e-4, rel=1e-6)


@pytest.mark.parametrize(
    ("sampler", "steps", "guidance", "says"),
    [
        ("dpmpp-2m", 6, "none", "single Gaussian"),
        ("heun", 6, "none", "single Gaussian"),
        ("ddim", 6, "none", "takes no noise"),
        ("ddim:eta=1", 1, "none", "takes no noise"),
    ],
)
def test_samplers_that_are_refused(sampler: str, steps: int, guidance: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        make_policy(ToyLearner(), sampler, "trailing", steps, guidance)


def test_rules_that_look_back_are_refused() -> None:
    learner = ToyLearner()
    policy = make_policy(learner, "ddim:eta=1", "trailing", 4, "apg:scale=3,momentum=-0.5")
    with pytest.raises(UsageError, match="remembers"):
        record(policy, learner.start(SEEDS, policy.levels), PROMPTS, SEEDS, rows=8)


def test_a_flow_without_noise_is_refused() -> None:
    with pytest.raises(UsageError, match="above 0"):
        FlowGRPOSampler(0.0)


@pytest.mark.parametrize("method", ["ddpo", "b2-diffurl", "flow-grpo", "dance-grpo"])
def test_a_rule_that_remembers_is_refused_before_anything_is_drawn(method: str) -> None:
    how = Sampling("ddim:eta=1", "trailing", 4, "apg:scale=3")
    with pytest.raises(UsageError, match="remembers"):
        make_method(method).check(ToyLearner(), how)
    make_method(method).check(ToyLearner(), Sampling("ddim:eta=1", "trailing", 4, "cfg:scale=3"))
