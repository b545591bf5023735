"""What holds a model near its base: divergences by hand and in closed form, the anchor, and what they do to a run."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from finetune_toys import FLOW, NOISY, PLAIN, VP, ToyLearner, context, gradients, near, of, train
from torch import Tensor
from torch.distributions import MultivariateNormal, kl_divergence

from pilotage import samplers
from pilotage.errors import UsageError
from pilotage.finetune.method import Sampling, UpdateContext
from pilotage.finetune.methods.alignprop import AlignProp
from pilotage.finetune.methods.batch import Batch
from pilotage.finetune.methods.draft import DRaFTK
from pilotage.finetune.regularise import (
    POOL,
    POOL_SIZE,
    Regulariser,
    base_latents,
    denoising_loss,
    divergence,
    give_pictures,
    kl_of_step,
    noise_distance,
)
from pilotage.samplers import SeededNoise
from pilotage.samplers.loop import iterate
from pilotage.samplers.sampler import State


def batch_of(ctx: UpdateContext) -> Batch:
    return Batch(ctx.learner, ctx.prompts, ctx.seeds, ctx.sampling)


def states_of(batch: Batch) -> list[State]:
    """Before each step of the learner's run."""
    chain, states = batch.chain(), []
    state = chain.begin(batch.start())
    with torch.no_grad():
        while not chain.done(state):
            states.append(state)
            state = chain.step(state)
    return states


def of_run(ctx: UpdateContext, form: str, count: int = 0, seed: int = 0) -> Tensor:
    """(B,)"""
    batch = batch_of(ctx)
    terms = list(divergence(batch, states_of(batch), form, seed, count))
    assert len(terms) == (count or ctx.sampling.steps)
    return torch.stack(terms).sum(0)


# -- divergence -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["noise", "step"])
def test_an_untrained_model_is_its_base(form: str) -> None:
    """Zero, and with a slope of zero."""
    learner = ToyLearner()
    found = of_run(context(learner, sampling=NOISY), form)
    assert not found.detach().any()
    assert not any(g.any() for g in torch.autograd.grad(found.sum(), learner.parameters))


@pytest.mark.parametrize("schedule", [VP, FLOW], ids=["vp", "flow"])
def test_noise_form_by_hand(schedule: samplers.NoiseSchedule) -> None:
    """mean_t |eps_theta - eps_base|^2 at the run's own states; the network says it on VP, alpha V on a flow."""
    learner = ToyLearner(schedule).disturb()
    ctx = context(learner, sampling=PLAIN)
    states, denoiser = states_of(batch_of(ctx)), learner.denoiser(ctx.prompts)
    told = denoiser.conditions["cond"]["told"]
    wanted = torch.zeros(4, dtype=torch.float64)
    for state in states:
        time = state.level.time if schedule is FLOW else state.level.time / 1000
        weight = state.level.alpha if schedule is FLOW else 1.0
        wanted += (weight * learner.residual(state.x.flatten(1), time, told)).square().sum(1) / len(states)
    found = of_run(ctx, "noise")
    assert torch.allclose(found, wanted, rtol=1e-10)
    grads = [torch.autograd.grad(t.sum(), learner.parameters, retain_graph=True) for t in (found, wanted)]
    assert all(torch.allclose(a, b, rtol=1e-9, atol=1e-12) for a, b in zip(*grads, strict=True))


@pytest.mark.parametrize("sampler", ["ddim:eta=1", "ddim:eta=0.4", "ddpm:variance=large"])
def test_step_form_is_the_kl_of_the_two_gaussians(sampler: str) -> None:
    learner = ToyLearner().disturb()
    ctx = context(learner, sampling=Sampling(sampler, "trailing", 6, "cfg:scale=2"))
    batch = batch_of(ctx)
    for state in states_of(batch):
        learned, base = batch.step(state), batch.base_step(state)
        found = kl_of_step(learned, base)
        own, least = state.leg.weights[2], min(leg.weights[2] for leg in state.legs[:-1])
        noise = own * batch.noise.draw("step", state.step, state.x)
        assert bool(own) == (state.goal.sigma > 0)  # the last step counts with the least noise of the others
        wide = torch.eye(2, dtype=torch.float64) * (own or least) ** 2
        means = [(step.x - noise).flatten(1) for step in (learned, base)]
        wanted = kl_divergence(*(MultivariateNormal(mean, wide) for mean in means))
        assert torch.allclose(found, wanted, rtol=1e-9) and bool((found > 0).all())


def test_the_step_form_is_the_kl_of_whole_paths() -> None:
    """E[log p_theta(path) - log p_base(path)] over the learner's own paths, within Monte-Carlo error; of the steps with
    noise, and the last one aside."""
    learner, count = ToyLearner().disturb(0.2), 4000
    ctx = context(learner, count=count, sampling=Sampling("ddim:eta=1", "trailing", 5, "none"))
    batch = batch_of(ctx)
    ratio, found = torch.zeros(count, dtype=torch.float64), torch.zeros(count, dtype=torch.float64)
    with torch.no_grad():
        for state in states_of(batch)[:-1]:
            learned, base, sd = batch.step(state), batch.base_step(state), state.leg.weights[2]
            noise = batch.noise.draw("step", state.step, state.x)
            apart = ((learned.x - base.x) / sd + noise).flatten(1)
            ratio += (apart.square() - noise.flatten(1).square()).sum(1) / 2
            found += kl_of_step(learned, base)
    error = float((ratio - found).std()) / math.sqrt(count)
    assert float(found.mean()) > 20 * error
    assert abs(float(ratio.mean() - found.mean())) < 4 * error


@pytest.mark.parametrize("form", ["noise", "step"])
def test_some_steps_estimate_all(form: str) -> None:
    """Without bias: over all that can be drawn, the mean is the whole."""
    ctx = context(ToyLearner().disturb(), count=2, sampling=Sampling("ddim:eta=1", "trailing", 4, "none"))
    whole = of_run(ctx, form).detach()
    drawn = {tuple(of_run(ctx, form, 1, seed).tolist()) for seed in range(40)}
    assert len(drawn) == 4
    assert torch.allclose(torch.tensor(sorted(drawn), dtype=torch.float64).mean(0), whole, rtol=1e-10)


def test_base_gives_no_gradient_and_stays_the_base() -> None:
    learner = ToyLearner().disturb()
    ctx = context(learner, sampling=NOISY)
    batch, before = batch_of(ctx), learner.residual.calls
    base = batch.base_step(states_of(batch)[3])
    assert not base.x.requires_grad and learner.trained
    assert learner.residual.calls - before == 4 * 10  # of the learner's run alone
    learned = batch.step(states_of(batch)[3])
    assert noise_distance(learned.prediction, base.prediction).requires_grad


def test_a_method_adds_it() -> None:
    """gradient = of the reward + kl times that of the divergence, at the steps that are drawn."""
    ctx = context(ToyLearner().disturb(), count=3, rows=2, sampling=NOISY)
    learner = ctx.learner
    reward = gradients(DRaFTK(truncation=2), ctx)
    both = gradients(DRaFTK(truncation=2, kl=0.7, divergence="step"), ctx)
    apart = of_run(ctx, "step", 4, ctx.seed("divergence"))
    wanted = torch.autograd.grad(apart.mean() * 0.7, learner.parameters)
    for found, a, b in zip(both, reward, wanted, strict=True):
        assert torch.allclose(found, a + b, rtol=1e-6, atol=1e-9)


def test_over_optimisation_is_held() -> None:
    """An unbounded reward, x_1: without a divergence the model runs away; reward and KL fall as its weight rises."""
    rewards, kls, excess = [], [], []
    sampling = Sampling("ddim:eta=1", "trailing", 10, "none")
    for kl in (0.0, 0.1, 1.0):
        learner = ToyLearner()
        method = DRaFTK(truncation=10, kl=kl, divergence="step")
        train(method, learner, 40, 0.03, reward=of(lambda x: x[:, 0]), count=32, sampling=sampling)
        ctx = context(learner, count=256, sampling=sampling, update=1000)
        batch = batch_of(ctx)
        with torch.no_grad():
            end = samplers.sample(
                batch.denoiser, batch.start(), sampler="ddim:eta=1", grid=batch.levels, noise=batch.noise
            ).flatten(1)
            kls.append(float(of_run(ctx, "step").mean()))
        rewards.append(float(end[:, 0].mean()))
        excess.append(float((end.square().sum(1) / (2 * 0.25) - 1).mean()))
    assert all(a > b for a, b in pairwise(rewards)), rewards
    assert all(a > b for a, b in pairwise(kls)), kls
    assert rewards[0] > 5 and kls[0] > 100 and excess[0] > 10
    assert 0.1 < rewards[-1] < 0.5 and kls[-1] < 0.5 and excess[-1] < 0.2, (rewards, kls, excess)


# -- anchor -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", [VP, FLOW], ids=["vp", "flow"])
def test_denoising_loss_by_hand(schedule: samplers.NoiseSchedule) -> None:
    """(eps_theta - eps)^2 on VP and (V_theta - (eps - x_0))^2 on a flow, means over the numbers of a row."""
    learner = ToyLearner(schedule).disturb()
    x_0, level = torch.tensor([[0.3, -0.2], [1.0, 0.5]]).double().reshape(2, 2, 1, 1), schedule.level(0.4)
    seeds, prompts = ["5", "6"], ["a", "bbb"]
    eps = SeededNoise(seeds).draw("denoising", 0, x_0)
    x = level.alpha * x_0 + level.sigma * eps
    native = learner.denoiser(prompts)(x, level).native
    wanted = (native - (eps - x_0 if schedule is FLOW else eps)).square().flatten(1).mean(1)
    assert torch.allclose(denoising_loss(learner, x_0, prompts, level, seeds), wanted, rtol=1e-10)
    alone = denoising_loss(learner, x_0[1:], prompts[1:], level, seeds[1:])
    assert torch.allclose(alone, wanted[1:], rtol=1e-10)


def test_the_base_is_where_the_anchor_pulls_to() -> None:
    """At the base its expected slope is zero: the mean over updates shrinks as their root, towards nothing."""
    learner = ToyLearner(spread=1.0)  # data N(0, I), which DDIM with eta = 1 samples in few steps
    sampling = Sampling("ddpm:variance=large", "trailing", 10, "none")
    state: dict[str, Any] = {}
    slopes = []
    for update in range(60):
        ctx = context(learner, count=64, sampling=sampling, update=update, state=state)
        loss = sum(Regulariser(anchor=1.0).of_anchor(ctx))
        assert isinstance(loss, Tensor)
        slopes.append(torch.autograd.grad(loss, learner.residual.bias)[0])
    found = torch.stack(slopes)
    error = found.std(0) / math.sqrt(60)
    assert bool((found.mean(0).abs() < 4 * error).all()), (found.mean(0), error)
    learner.disturb(0.5)
    ctx = context(learner, count=64, sampling=sampling, state=state)
    before = float(sum(t.detach() for t in Regulariser(anchor=1.0).of_anchor(ctx)))
    train(AlignProp(anchor=1.0, scale=0.0), learner, 60, 0.02, count=64, sampling=sampling, state=state)
    assert float(sum(t.detach() for t in Regulariser(anchor=1.0).of_anchor(ctx))) < before - 0.1
    with torch.no_grad():
        assert float(of_run(context(learner, count=64, sampling=sampling), "noise").mean()) < 0.3


def test_pictures_of_the_base_are_sampled_once() -> None:
    """The pool grows by an update's pictures until it is full, of the base whatever the learner has become."""
    learner = ToyLearner().disturb(2.0)
    state: dict[str, Any] = {}
    hold = Regulariser(anchor=1.0)
    for update in range(4):
        ctx = context(learner, count=100, sampling=NOISY, update=update, state=state)
        before = learner.residual.calls
        assert len(list(hold.of_anchor(ctx))) == 2  # 64 rows and 36
        assert learner.residual.calls - before == 100  # of the losses: the base's run has no residual
        assert len(state[POOL]["prompts"]) == len(state[POOL]["latents"]) == min(100 * (update + 1), 300)
    assert POOL_SIZE <= 300
    ctx = context(learner, count=100, sampling=NOISY)
    latents, prompts = base_latents(ctx)
    assert torch.equal(state[POOL]["latents"][:100], latents) and state[POOL]["prompts"][:100] == prompts
    assert float(latents.std()) < 0.6


def test_the_preferred_part_has_the_best_rewards() -> None:
    ctx = context(ToyLearner(), near(1.0, 0.0), count=20, rows=7, sampling=NOISY)
    list(Regulariser(anchor=1.0, preferred=0.25).of_anchor(ctx))
    latents, prompts = base_latents(ctx)
    rewards = ctx.reward(latents, prompts)
    found = ctx.reward(ctx.state[POOL]["latents"], ctx.state[POOL]["prompts"])
    assert torch.equal(found, rewards.sort(descending=True).values[:5])


def test_given_pictures_take_the_place_of_the_base() -> None:
    learner = ToyLearner()
    state: dict[str, Any] = {}
    give_pictures(state, torch.full((3, 2, 1, 1), 0.7, dtype=torch.float64), ["a red circle"] * 3)
    losses = [
        float(sum(t.detach() for t in Regulariser(anchor=1.0).of_anchor(context(learner, state=state, update=u))))
        for u in range(3)
    ]
    assert len(set(losses)) == 3 and learner.residual.calls == 3 * 4
    train(AlignProp(anchor=1.0, scale=0.0), learner, 150, 0.02, count=32, sampling=NOISY, state=state)
    assert torch.equal(state[POOL]["latents"], torch.full((3, 2, 1, 1), 0.7, dtype=torch.float64))
    batch = batch_of(context(learner, count=64, sampling=NOISY, update=500))
    with torch.no_grad():
        ends = samplers.sample(
            batch.denoiser, batch.start(), sampler="ddim:eta=1", grid=batch.levels, noise=batch.noise
        )
    assert float((ends - 0.7).abs().mean()) < 0.25
    with pytest.raises(UsageError, match="one prompt a picture"):
        give_pictures({}, torch.zeros(2, 2, 1, 1), ["a"])


def test_a_resumed_update_anchors_alike() -> None:
    """The pool is in the state; a copy of it gives the same losses to the bit."""
    learner = ToyLearner().disturb()
    state: dict[str, Any] = {}
    list(Regulariser(anchor=1.0).of_anchor(context(learner, sampling=NOISY, state=state)))
    copied = {POOL: {"latents": state[POOL]["latents"].clone(), "prompts": list(state[POOL]["prompts"])}}
    contexts = (context(learner, update=1, sampling=NOISY, state=given) for given in (state, copied))
    found = [[float(t.detach()) for t in Regulariser(anchor=1.0).of_anchor(ctx)] for ctx in contexts]
    assert found[0] == found[1]


# -- what does not go -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", ["ddim", "dpmpp-2m", "sde-dpmpp-2m"])
def test_steps_that_are_no_gaussians(sampler: str) -> None:
    ctx = context(ToyLearner(), sampling=Sampling(sampler, "trailing", 4, "none"))
    with pytest.raises(UsageError, match="ddim:eta=1"):
        gradients(AlignProp(kl=0.1, divergence="step"), ctx)
    gradients(AlignProp(kl=0.1), ctx)


def test_stock_denoiser_runs_are_the_batch_runs() -> None:
    """The states that are looked at are those of `samplers.iterate` with the same seeds."""
    ctx = context(ToyLearner().disturb(), sampling=NOISY)
    batch = batch_of(ctx)
    steps = list(iterate(batch.denoiser, batch.start(), sampler="ddim:eta=1", grid=batch.levels, noise=batch.noise))
    for state, step in zip(states_of(batch)[1:], steps):
        assert torch.equal(state.x, step.x)
