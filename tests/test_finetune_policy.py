"""Policy gradients: estimators against closed forms, what the losses leave flat, and what the methods are made of."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from finetune_toys import FLOW, NOISY, PLAIN, VP, ToyLearner, context, gradients, near, of, train
from torch import Tensor

from pilotage.errors import UsageError
from pilotage.finetune.advantages import forget, group_advantages, prompt_keys, prompt_scores, remember, varied
from pilotage.finetune.gaussian_steps import log_prob
from pilotage.finetune.method import Method, Sampling
from pilotage.finetune.methods.alignprop import AlignProp
from pilotage.finetune.methods.b2_diffurl import B2DiffuRL
from pilotage.finetune.methods.ddpo import DDPO
from pilotage.finetune.methods.flow_grpo import DanceGRPO, FlowGRPO
from pilotage.finetune.methods.fpo import FPO
from pilotage.finetune.policy_gradient import PolicyGradient, clipped, members
from pilotage.finetune.trajectory import make_policy, record

SHORT = replace(NOISY, steps=5)
ONCE = dict(inner_steps=1, inner_epochs=1)
WAYS: list[PolicyGradient] = [
    DDPO(**ONCE, least=2),
    B2DiffuRL(**ONCE, branches=3, first=0.6, upper=0.0, lower=0.0),
    FPO(**ONCE, pairs=3, least=2),
    FlowGRPO(**ONCE, group=4, kl=0.0),
    DanceGRPO(**ONCE, group=4),
]
every_method = pytest.mark.parametrize("method", WAYS, ids=lambda method: type(method).__name__)


def largest(tensors: list[Tensor]) -> float:
    return max(float(tensor.abs().max()) for tensor in tensors)


def equal(found: list[Tensor], wanted: list[Tensor], tolerance: float = 1e-12) -> None:
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def logged() -> tuple[dict[str, float], Callable[..., None]]:
    numbers: dict[str, float] = {}
    return numbers, lambda **told: numbers.update(told)


# -- estimators --------------------------------------------------------------------------------------------------------


def test_the_gradient_of_a_gaussian_mean_is_one() -> None:
    """R(x) = x under N(m, s): d E[R] / dm = 1, whatever the baseline, within the standard error of the draws."""
    m, s, count = torch.tensor(0.7, dtype=torch.float64, requires_grad=True), 0.8, 400_000
    x = 0.7 + s * torch.randn(count, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    old = log_prob(x, m.detach().expand(count, 1), s, "sum")
    for baseline in (0.0, 0.7, -3.0):
        ratio = (log_prob(x, m.expand(count, 1), s, "sum") - old).exp()
        loss = clipped(ratio, x[:, 0] - baseline, 0.2).mean()
        (gradient,) = torch.autograd.grad(loss, [m])
        each = (x[:, 0] - baseline) * (x[:, 0] - 0.7) / s**2
        error = float(each.std() / count**0.5)
        assert error < 0.02 and abs(-float(gradient) - 1) < 4 * error


def test_the_gradient_of_a_run_is_the_reparameterised_one() -> None:
    """Both estimates of d E[R(x_0)] / d bias agree within their errors, without what the last step's prediction does,
    which has no density."""
    learner = ToyLearner(size=1, width=4).disturb(0.3)
    bias, steps, count = learner.residual.bias, 4, 2048
    policy = make_policy(learner, "ddim:eta=1", "trailing", steps)
    scores, paths = [], []
    for batch in range(12):
        seeds = [str(count * batch + i) for i in range(count)]
        prompts = ["a"] * count
        run = record(policy, learner.start(seeds, policy.levels), prompts, seeds, rows=count)
        rewards = run.end.flatten() ** 2
        advantages = rewards - rewards.mean()
        densities = sum(run.log_prob_now(step, range(count), "sum") for step in run.drawn)
        scores.append(torch.autograd.grad((advantages * densities).mean(), [bias])[0])
        x, denoiser = run.x[0], policy.denoiser(prompts)
        for step in run.drawn:  # the same noises, in the graph
            noise = (run.x[step + 1] - run.means[step]) / policy.std(step)
            x = policy.mean(denoiser, x, step) + policy.std(step) * noise
        with torch.no_grad():
            slope = (policy.mean(denoiser, x + 1e-5, steps - 1) - policy.mean(denoiser, x - 1e-5, steps - 1)) / 2e-5
        end = run.end + slope * (x - x.detach())
        paths.append(torch.autograd.grad((end.flatten() ** 2).mean(), [bias])[0])
    policy_gradient, path = torch.stack(scores), torch.stack(paths)
    error = float((policy_gradient - path).std() / 12**0.5)
    apart = abs(float(policy_gradient.mean() - path.mean()))
    assert apart < 4 * error < 0.1 * abs(float(path.mean()))


def test_one_step_of_ddpo_is_reinforce() -> None:
    """With one inner epoch and one step the gradient is -mean(A grad log p), summed by hand."""
    learner = ToyLearner(size=3).disturb()
    method = DDPO(clip=0.2, reduction="sum", inner_steps=1, least=100, buffer=100)
    found = gradients(method, context(learner, near(1.0), 6, SHORT))
    ctx = context(learner, near(1.0), 6, SHORT)
    policy = make_policy(learner, "ddim:eta=1", "trailing", 5)
    run = record(policy, learner.start(ctx.seeds, policy.levels), ctx.prompts, ctx.seeds, rows=64)
    rewards = ctx.reward(run.end, ctx.prompts).double()
    advantages = (rewards - rewards.mean()) / (rewards.std(correction=0) + 1e-6)
    densities = torch.stack([run.log_prob_now(step, range(6), "sum") for step in run.drawn])
    equal(found, list(torch.autograd.grad(-(advantages * densities).mean(), learner.parameters)))


def test_a_mean_is_a_sum_divided_by_the_numbers_of_a_latent() -> None:
    learner = ToyLearner(size=5).disturb()
    mean, total = (
        gradients(
            DDPO(inner_steps=1, least=100, buffer=100, reduction=reduction), context(learner, near(1.0), 6, SHORT)
        )
        for reduction in ("mean", "sum")
    )
    equal(total, [5 * gradient for gradient in mean])


# -- the clip ----------------------------------------------------------------------------------------------------------


def test_where_the_clipped_ratio_is_flat() -> None:
    """A > 0 above 1 + e and A < 0 below 1 - e have no gradient; by hand elsewhere."""
    ratio = torch.tensor([1.3, 0.7, 1.3, 0.7, 1.0, 1.0, 1.1], dtype=torch.float64, requires_grad=True)
    gains = torch.tensor([2.0, 2.0, -2.0, -2.0, 2.0, 0.0, -3.0], dtype=torch.float64)
    losses = clipped(ratio, gains, 0.2)
    torch.testing.assert_close(losses.detach(), torch.tensor([-2.4, -1.4, 2.6, 1.6, -2.0, 0.0, 3.3]).double())
    (gradient,) = torch.autograd.grad(losses.sum(), [ratio])
    assert gradient.tolist() == [0.0, -2.0, 2.0, 0.0, -2.0, 0.0, 3.0]


def test_advantages_are_clamped() -> None:
    """One of 100 rewards stands out by ten standard deviations; it counts five."""
    learner = ToyLearner(size=2).disturb()
    odd = of(lambda x: (torch.arange(len(x)) == 0).double())
    wide, narrow = (
        gradients(
            DDPO(inner_steps=1, clamp=clamp, least=200, buffer=200, reduction="sum"),
            context(learner, odd, 100, SHORT, rows=200),
        )
        for clamp in (1e9, 5.0)
    )
    assert largest([a - b for a, b in zip(wide, narrow)]) > 0.1 * largest(wide)
    again = gradients(
        DDPO(inner_steps=1, clamp=9.9498, least=200, buffer=200, reduction="sum"),
        context(learner, odd, 100, SHORT, rows=200),
    )
    equal(again, wide, 1e-4)


# -- invariants of all -------------------------------------------------------------------------------------------------


@every_method
def test_the_first_ratio_is_one(method: PolicyGradient) -> None:
    """Also where other rows go through the network together than when the pictures were made."""
    numbers, log = logged()
    learner = ToyLearner(size=3).disturb()
    gradients(method, context(learner, near(1.0), 6, SHORT, rows=4, log=log))
    assert numbers["ratio_off"] < 1e-12 and numbers["clipped"] == 0


@every_method
def test_equal_rewards_teach_nothing(method: PolicyGradient) -> None:
    learner = ToyLearner(size=3).disturb()
    ctx = context(learner, of(lambda x: torch.full((len(x),), 0.1)), 6, SHORT)
    for part in method.update(ctx):
        part.loss.backward()
    assert largest([torch.zeros(1) if p.grad is None else p.grad for p in learner.parameters]) == 0


@every_method
def test_how_many_go_together_changes_nothing(method: PolicyGradient) -> None:
    """Accumulation counts pictures times steps: the optimiser sees one gradient, whatever the pieces."""
    learner = ToyLearner(size=3).disturb()
    alone, few, many = (gradients(method, context(learner, near(1.0), 6, SHORT, rows=rows)) for rows in (1, 4, 64))
    assert largest(many) > 0
    equal(alone, many)
    equal(few, many)


@every_method
def test_a_shift_of_the_reward_changes_nothing(method: PolicyGradient) -> None:
    learner = ToyLearner(size=3).disturb()
    wanted = gradients(method, context(learner, of(lambda x: x[:, 0]), 6, SHORT))
    equal(gradients(method, context(learner, of(lambda x: x[:, 0] + 2.0), 6, SHORT)), wanted, 1e-4)


@every_method
@pytest.mark.parametrize("schedule", [VP, FLOW], ids=["vp", "flow"])
def test_rewards_rise(method: PolicyGradient, schedule: Any) -> None:
    rewards: list[float] = []

    def log(**told: float) -> None:
        if "reward" in told:
            rewards.append(told["reward"])

    train(method, ToyLearner(schedule), 50, 0.01, count=16, sampling=SHORT, log=log, rows=200)
    assert sum(rewards[-3:]) / 3 > 0.4 * sum(rewards[:2]) / 2  # the shortfall is less than half of what it was


@every_method
def test_a_resume_is_bitwise(method: PolicyGradient) -> None:
    """Four updates at once, and two, a file, and two more. Two inner epochs of two steps, so all draws are there."""
    method = replace(method, inner_epochs=2, inner_steps=2)

    def run(learner: ToyLearner, updates: range, state: dict[str, Any], adam: dict[str, Any] | None) -> Any:
        optimiser = torch.optim.Adam(learner.parameters, lr=0.01)
        if adam:
            optimiser.load_state_dict(adam)
        for update in updates:
            ctx = context(learner, near(1.0), 6, SHORT, update=update, updates=4, state=state, run_seed=3)
            for part in method.update(ctx):
                part.loss.backward()
                if part.steps:
                    optimiser.step()
                    optimiser.zero_grad()
        return optimiser.state_dict()

    whole, halves, state = ToyLearner(size=3), ToyLearner(size=3), {}
    run(whole, range(4), {}, None)
    adam = run(halves, range(2), state, None)
    run(halves, range(2, 4), json.loads(json.dumps(state)), adam)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters, halves.parameters))
    assert not torch.equal(whole.residual.bias, ToyLearner(size=3).residual.bias)


class Processes:
    """Two updates at the same time that see each other's numbers through `gather`."""

    def __init__(self) -> None:
        self.barrier, self.values = threading.Barrier(2, timeout=20), {}

    def gather(self, rank: int) -> Callable[[Tensor], Tensor]:
        def gathered(values: Tensor) -> Tensor:
            self.values[rank] = values
            self.barrier.wait()
            both = torch.cat([self.values[0], self.values[1]])
            self.barrier.wait()
            return both

        return gathered


@every_method
def test_two_processes_are_one(method: PolicyGradient) -> None:
    """The mean of their gradients is the gradient of one process with all pictures; also where one process has fewer
    pictures to learn from."""
    reward = of(lambda x: x[:, 0].clamp(min=0))  # many rewards are equal
    learners = [ToyLearner(size=3).disturb() for _ in range(3)]
    wanted = gradients(method, context(learners[2], reward, 8, SHORT))
    processes, steps, found = Processes(), {}, {}

    def run(rank: int) -> None:
        ctx = context(learners[rank], reward, 8, SHORT, gather=processes.gather(rank))
        half = slice(4 * rank, 4 * rank + 4)
        ctx = replace(ctx, prompts=ctx.prompts[half], seeds=ctx.seeds[half])
        steps[rank] = 0
        for part in method.update(ctx):
            part.loss.backward()
            steps[rank] += part.steps
        found[rank] = [p.grad for p in learners[rank].parameters]

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert steps == {0: 1, 1: 1}
    equal([(a + b) / 2 for a, b in zip(found[0], found[1])], wanted)


@every_method
def test_bad_settings_are_refused(method: PolicyGradient) -> None:
    for settings in ({"clip": 0.0}, {"clamp": -1.0}, {"inner_epochs": 0}, {"inner_steps": 0}):
        with pytest.raises(UsageError):
            replace(method, **settings)


# -- the divergence ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["exact", "code"])
def test_the_divergence_is_zero_at_the_start_and_holds_later(form: str) -> None:
    numbers, log = logged()
    fresh = ToyLearner(size=3)
    free, held = (
        gradients(FlowGRPO(inner_steps=1, group=4, kl=kl, kl_form=form), context(fresh, near(1.0), 3, SHORT, log=log))
        for kl in (0.0, 1.0)
    )
    assert numbers["kl"] == 0
    equal(free, held)
    moved = ToyLearner(size=3).disturb()
    still = of(lambda x: x[:, 0] * 1e-9)
    gradients(FlowGRPO(inner_steps=1, group=4, kl=1.0, kl_form=form), context(moved, still, 3, SHORT, log=log))
    assert numbers["kl"] > 0


def test_the_divergence_against_its_closed_form() -> None:
    """Of a bias: the means of a step differ by |noise weight| bias in every state, so the KL is known."""
    learner = ToyLearner(FLOW, size=3)
    with torch.no_grad():
        learner.residual.bias += 0.2
    numbers, log = logged()
    gradients(FlowGRPO(inner_steps=1, group=4, kl=0.5, kl_form="exact"), context(learner, near(1.0), 3, SHORT, log=log))
    policy = make_policy(learner, FlowGRPO(group=4).sde(), "trailing", 5)
    told = []
    for step in range(4):
        level, (a, b, std) = policy.legs[step].level, policy.legs[step].weights
        moved = 0.2 * (b * level.alpha - a * level.sigma)  # the velocity moves by 0.2
        told.append(3 * moved**2 / (2 * std**2))
    assert numbers["kl"] == pytest.approx(sum(told) / 4, rel=1e-9)


# -- advantages --------------------------------------------------------------------------------------------------------


def test_group_advantages() -> None:
    rewards = torch.tensor([1.0, 2.0, 3.0, 5.0, 5.0, 5.0, -1.0, 0.0, 4.0])
    for spread in ("batch", "group"):
        found = group_advantages(rewards, 3, spread, 1e-4)
        assert found.reshape(3, 3).sum(1).abs().max() < 1e-12 and found[3:6].tolist() == [0.0, 0.0, 0.0]
        order = torch.tensor([2, 0, 1, 5, 4, 3, 6, 8, 7])
        assert torch.equal(group_advantages(rewards[order], 3, spread, 1e-4), found[order])
    batch, group = (group_advantages(rewards, 3, spread, 0.0) for spread in ("batch", "group"))
    torch.testing.assert_close(batch[:3], torch.tensor([-1.0, 0.0, 1.0]).double() / rewards.double().std(correction=0))
    torch.testing.assert_close(group[:3], torch.tensor([-1.5, 0.0, 1.5]).double().sign() * 1.5**0.5)
    assert varied(rewards, 3).tolist() == [True] * 3 + [False] * 3 + [True] * 3
    with pytest.raises(UsageError, match="batch"):
        group_advantages(rewards, 3, "run")


def test_scores_of_prompts() -> None:
    """A prompt with enough rewards has its own statistics, another those of the batch."""
    keys, rewards = prompt_keys(["a", "a", "b"]), torch.tensor([1.0, 3.0, 7.0])
    history: dict[str, Any] = {}
    remember(history, keys, rewards, 0)
    remember(history, prompt_keys(["a", "c"]), torch.tensor([5.0, 9.0]), 1)
    found = prompt_scores(history, keys, rewards, rewards, least=3)
    everyone = rewards.double()
    rest = (7 - everyone.mean()) / everyone.std(correction=0)
    torch.testing.assert_close(
        found, torch.stack([-torch.tensor(1.5).double().sqrt(), rest * 0, rest]), atol=1e-5, rtol=0
    )
    forget(history, newest=2)
    assert [pair[1] for pair in history[str(int(keys[0]))]] == [3.0, 5.0]
    forget(history, since=1)
    assert sorted(len(kept) for kept in history.values()) == [1, 1] and str(int(keys[2])) not in history
    remember(history, keys[:1], torch.tensor([float("nan")]), 2)
    assert json.loads(json.dumps(history)) == history


def test_the_buffer_of_ddpo() -> None:
    state = train(DDPO(buffer=5, least=4), ToyLearner(), 4, count=6, sampling=SHORT)
    assert sorted(map(len, state["rewards"].values())) == [5, 5]
    assert [pair[0] for pair in next(iter(state["rewards"].values()))] == [2.0, 2.0, 3.0, 3.0, 3.0]
    with pytest.raises(UsageError, match="never holds"):
        DDPO(buffer=4, least=5)


# -- B2-DiffuRL --------------------------------------------------------------------------------------------------------


def test_branches_share_the_split_bitwise_and_nothing_after() -> None:
    learner = ToyLearner(size=3).disturb()
    method = B2DiffuRL(branches=3, first=0.6)
    ctx = context(learner, near(1.0), 4, SHORT, rows=5)
    run = method.branched(ctx, make_policy(learner, "ddim:eta=1", "trailing", 5))
    groups = run.x.reshape(len(run.x), 4, 3, -1)
    assert run.start == 2 and len(run.x) == 4 and method.pictures(4) == len(run) == 12
    assert torch.equal(groups[0, :, 1], groups[0, :, 0]) and torch.equal(groups[0, :, 2], groups[0, :, 0])
    assert float((groups[1:, :, 1:] - groups[1:, :, :1]).abs().amin()) > 1e-6
    assert len(set(run.seeds)) == 12 and list(run.seeds[::3]) == list(ctx.seeds)


def test_without_branches_it_is_ddpo() -> None:
    """S = T, one branch, no thresholds: the same parameters after three updates, bitwise."""
    ddpo = DDPO(clip=0.1, inner_epochs=2, inner_steps=2, least=5, buffer=10_000)
    b2 = B2DiffuRL(branches=1, first=1.0, upper=None, lower=None, least=5, history=10_000)
    learners = [ToyLearner(size=3) for _ in range(2)]
    for method, learner in zip((ddpo, b2), learners):
        train(method, learner, 3, count=6, sampling=SHORT, reward=near(1.0))
    assert all(torch.equal(a, b) for a, b in zip(learners[0].parameters, learners[1].parameters))
    assert not torch.equal(learners[0].residual.bias, ToyLearner(size=3).residual.bias)


def test_the_trained_steps_grow_from_14_to_20() -> None:
    grown = [B2DiffuRL().trained(20, stage, 100) for stage in range(100)]
    assert grown == [14 + stage * 7 // 100 for stage in range(100)] and (grown[0], grown[-1]) == (14, 20)
    assert B2DiffuRL(stages=10).trained(20, 50, 100) == 20


def test_which_branches_are_kept() -> None:
    method = B2DiffuRL(branches=3)
    scores = torch.tensor([[0.5, 0.4, -0.5], [0.4, 0.0, -0.51], [-2.0, -1.0, -0.9], [0.1, 0.2, 0.3], [0.9, 0.9, 0.7]])
    assert method.chosen(scores.flatten()) == [0, 5, 6, 12]
    assert replace(method, upper=None, lower=None).chosen(scores.flatten()) == list(range(15))
    with pytest.raises(UsageError, match="both thresholds"):
        B2DiffuRL(upper=None)


def test_fewer_than_two_kept_pictures_teach_nothing() -> None:
    numbers, log = logged()
    method = B2DiffuRL(branches=2, upper=50.0, lower=-50.0)
    assert list(method.update(context(ToyLearner(), near(1.0), 4, SHORT, log=log))) == []
    assert numbers["kept"] == 0 and numbers["trained_steps"] == 4


def test_what_shared_steps_save() -> None:
    """14 of 20 steps in 5 branches: 6 + 70 evaluations for five pictures instead of 100."""
    learner = ToyLearner()
    method = B2DiffuRL(upper=99.0, lower=-99.0)
    list(method.update(context(learner, near(1.0), 2, replace(NOISY, steps=20))))
    assert learner.residual.calls == 2 * (6 + 5 * 14)


# -- FPO ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("space", ["noise", "velocity"])
@pytest.mark.parametrize("schedule", [VP, FLOW], ids=["vp", "flow"])
def test_losses_of_fpo_by_hand(space: str, schedule: Any) -> None:
    """With the exact prediction for N(0, 1/4): noise (x / power) sigma, clean (x / power) alpha / 4."""
    learner = ToyLearner(schedule, size=2)
    method, ctx = FPO(space=space, pairs=2), context(learner, count=2)
    levels = learner.levels("trailing", 4)
    clean = torch.tensor([[0.5, -0.2], [0.1, 0.9]], dtype=torch.float64).reshape(2, 2, 1, 1)
    found = method.losses(ctx, clean, levels, torch.tensor([[1, 3], [2, 2]]), [1, 0])
    from pilotage.samplers import SeededNoise

    for row, pair, level in ((0, 0, levels[1]), (0, 1, levels[3]), (1, 0, levels[2]), (1, 1, levels[2])):
        eps = SeededNoise([ctx.seeds[row]]).draw("fpo noise", pair, clean[:1])[0]
        x = level.alpha * clean[row] + level.sigma * eps
        power = level.alpha**2 / 4 + level.sigma**2
        noise, denoised = x * level.sigma / power, x * level.alpha / 4 / power
        error = noise - eps if space == "noise" else (noise - denoised) - (eps - clean[row])
        assert float(found[1 - row, pair].detach()) == pytest.approx(float(error.square().mean()), rel=1e-9)


def test_ratios_of_fpo() -> None:
    before, now = torch.tensor([[0.2, 5.0]]), torch.tensor([[0.5, 1.0]])
    assert float(FPO().ratio(before, now)) == pytest.approx(torch.tensor(1.85).exp())
    assert float(FPO(each=True).ratio(before, now)) == pytest.approx(float((torch.tensor([-0.3, 3.0])).exp().mean()))


def test_any_sampler_will_do_for_fpo() -> None:
    learner = ToyLearner(size=2).disturb()
    for sampler in ("dpmpp-2m", "heun"):
        found = gradients(
            FPO(inner_steps=1, pairs=3), context(learner, near(1.0), 4, Sampling(sampler, "trailing", 5, "none"))
        )
        assert largest(found) > 0
    with pytest.raises(UsageError, match="single Gaussian"):
        gradients(DDPO(), context(learner, near(1.0), 4, Sampling("dpmpp-2m", "trailing", 5, "none")))
    with pytest.raises(UsageError, match="takes no noise"):
        gradients(DDPO(), context(learner, near(1.0), 4, PLAIN))


# -- groups ------------------------------------------------------------------------------------------------------------


def visited(method: FlowGRPO, steps: int = 6) -> tuple[dict[int, list[int]], Any]:
    """Which rows are trained on at which step, and the record."""
    import pilotage.finetune.methods.flow_grpo as module

    found: list[Any] = []
    genuine = module.record

    def spied(*arguments: Any, **settings: Any) -> Any:
        found.append(genuine(*arguments, **settings))
        return found[-1]

    module.record = spied  # type: ignore[assignment]
    try:
        learner = ToyLearner(size=3)
        ctx = context(learner, near(1.0), 3, replace(NOISY, steps=steps))
        list(method.update(ctx))
    finally:
        module.record = genuine
    pieces = method._pieces(ctx, found[0], list(range(len(found[0]))), 0)
    return {piece.step: piece.rows for piece in pieces}, found[0]


def test_dance_grpo_shares_starts_and_trains_on_some_steps() -> None:
    rows, run = visited(DanceGRPO(group=4), steps=11)
    starts = run.x[0].reshape(3, 4, -1)
    assert torch.equal(starts, starts[:, :1].expand_as(starts)) and not torch.equal(starts[0], starts[1])
    assert float((run.x[1].reshape(3, 4, -1)[:, 1:] - run.x[1].reshape(3, 4, -1)[:, :1]).abs().amin()) > 1e-6
    counts = [sum(row in of_step for of_step in rows.values()) for row in range(12)]
    assert counts == [6] * 12 and len({len(of_step) for of_step in rows.values()}) > 1  # each picture its own draw
    assert max(rows) == 9  # the last step, 10, takes no noise


def test_flow_grpo_starts_apart_and_trains_on_all_steps() -> None:
    rows, run = visited(FlowGRPO(group=4))
    assert rows == {step: list(range(12)) for step in range(5)}
    assert len({tuple(x.flatten().tolist()) for x in run.x[0]}) == 12
    assert FlowGRPO(group=4).pictures(3) == 12
    with pytest.raises(UsageError, match="group"):
        FlowGRPO(group=1)


def test_groups_with_equal_rewards_are_left_out() -> None:
    """Of two groups one varies; the loss is the mean over its decisions alone."""
    numbers, log = logged()
    learner = ToyLearner(size=3).disturb()
    method = FlowGRPO(inner_steps=1, group=3, kl=0.0, spread="group")
    half = of(lambda x: x[:, 0])
    genuine = half.scores
    half = replace(half, scores=lambda pictures, prompts: genuine(pictures, prompts) * torch.tensor(
        [prompt == "two squares" for prompt in prompts]))  # fmt: skip
    both = gradients(method, context(learner, half, 2, SHORT, log=log))
    assert numbers["kept"] == 0.5
    ctx = context(learner, half, 2, SHORT)
    equal(both, gradients(method, replace(ctx, prompts=ctx.prompts[1:], seeds=ctx.seeds[1:])))


def test_seeds_of_a_group() -> None:
    assert members("17", 3)[0] == "17" and len(set(members("17", 3) + members("18", 3))) == 6
    assert members("17", 2) == members("17", 3)[:2]


# -- pictures needed ---------------------------------------------------------------------------------------------------


def needed(method: Method, sampling: Sampling, most: int = 20_000) -> float:
    """Pictures until the shortfall of -mean (x - 1.5)^2 in 16 dimensions is a fifth of what it was; 64 an update."""
    learner, rewards = ToyLearner(VP, size=16, width=32), []
    optimiser, state = torch.optim.Adam(learner.parameters, lr=0.01), {}

    def log(**told: float) -> None:
        rewards.extend([told["reward"]] if "reward" in told else [])

    for update in range(most // 64):
        for part in method.update(context(learner, near(1.5), 64, sampling, update=update, state=state, log=log)):
            part.loss.backward()
            if part.steps:
                optimiser.step()
                optimiser.zero_grad()
        if rewards[-1] >= 0.2 * rewards[0]:
            return 64.0 * (update + 1)
    return float("inf")


def test_pictures_that_ddpo_and_alignprop_need() -> None:
    """A step with hardly any noise ruins DDPO: its log-density weighs (1 / std)^2 and drowns the others. With one down
    to sigma = 0.01 it needs many times AlignProp's pictures; without it, up to twice as many."""
    ddpo, rival = DDPO(clip=0.2, reduction="sum", inner_steps=1), AlignProp(truncation=1)
    levels = ToyLearner().levels("trailing", 10)
    fine = replace(NOISY, grid=(*levels[:-1], VP.level(0.001), levels[-1]))  # type: ignore[arg-type]
    assert needed(ddpo, NOISY) < 3 * needed(rival, NOISY)
    assert needed(ddpo, fine) > 8 * needed(rival, fine)
