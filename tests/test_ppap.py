"""PPAP: experts for ranges of noise, taught by an ordinary classifier on the model's own samples."""

from __future__ import annotations

import copy
from functools import cache

import guidance_toys as toys
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from pilotage import guidance, samplers
from pilotage.errors import UsageError
from pilotage.guidance import PPAP, train_experts
from pilotage.guidance.gradient import ppap
from pilotage.guidance.gradient.classifier import ClassifierGuidance
from pilotage.guidance.gradient.ppap import Experts, adapted, divergence, merged
from pilotage.samplers.denoiser import ExactDenoiser
from pilotage.samplers.schedule import Level, LinearVP
from pilotage.zoo.toy import g3

VP = LinearVP()


def conv_net() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(4, 6, 3, 1, 1, bias=False), nn.BatchNorm2d(6), nn.SiLU(), nn.Conv2d(6, 5, 3, 2, 1),
        nn.GroupNorm(1, 5), nn.Flatten(), nn.Linear(5 * 16, 8), nn.SiLU(), nn.Linear(8, 3),
    )  # fmt: skip
    with torch.no_grad():
        net[1].running_mean.normal_()
        net[1].running_var.uniform_(0.5, 2)
    return net.eval()


def clean_samples(count: int, seed: int) -> Tensor:
    """Data of the model itself: its own unguided runs."""
    x = toys.normal(count, 2, seed=seed) * float(VP.sigma(VP.T))
    return samplers.sample(ExactDenoiser(g3(), VP), x, sampler="dpmpp-2m", grid="karras", steps=12).float()


@cache
def off_the_shelf() -> nn.Module:
    """A classifier of clean data: it has never seen noise."""
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(2, 48), nn.SiLU(), nn.Linear(48, 48), nn.SiLU(), nn.Linear(48, 3))
    x = g3().sample(600, torch.Generator().manual_seed(2))
    truth = g3().class_probability(x, 1.0, 1e-3).float()
    method = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(200):
        method.zero_grad()
        nn.functional.cross_entropy(net(x.float()), truth).backward()
        method.step()
    return net.eval()


@cache
def taught() -> Experts:
    # g3's own classes overlap little, so the answers are used as they are
    settings = {"experts": 4, "rank": 8, "steps": 200, "batch": 128, "rate": 1e-2, "temperature": 1.0}
    return train_experts(off_the_shelf(), clean_samples(1500, 5), VP, **settings)


# -- the low-rank change ----------------------------------------------------------------------------------------------


def test_an_expert_begins_as_the_network_and_learns_little_of_it() -> None:
    net = conv_net()
    x = toys.normal(3, 4, 8, 8, seed=1, dtype=torch.float32)
    made = adapted(net, rank=2)
    assert torch.equal(made(x), net(x))
    assert all(p.requires_grad for p in net.parameters()), "the network is left as it was"
    learning = {name for name, p in made.named_parameters() if p.requires_grad}
    ups = {f"{i}.parametrizations.weight.0.{part}" for i in (0, 3, 6) for part in ("up", "down")}
    assert learning == ups | {"1.weight", "1.bias", "3.bias", "4.weight", "4.bias", "6.bias"}  # not the last layer's
    low = made[3].parametrizations.weight[0]
    assert low.down.shape == (2 * 3, 6 * 3) and low.up.shape == (5 * 3, 2 * 3)


def test_the_change_has_its_rank_and_merges() -> None:
    net = conv_net()
    made = adapted(net, rank=1, alpha=3.0)
    for module in (made[0], made[3], made[6]):
        nn.init.normal_(module.parametrizations.weight[0].up)
    x = toys.normal(3, 4, 8, 8, seed=1, dtype=torch.float32)
    before = made(x)
    low = made[3].parametrizations.weight[0]
    change = (made[3].weight - net[3].weight).detach()
    assert torch.linalg.matrix_rank(change.reshape(5 * 3, 6 * 3), atol=1e-5) == 3  # rank times kernel
    assert torch.allclose(change, 3.0 * (low.up @ low.down).view(5, 6, 3, 3), atol=1e-6)
    dense = merged(copy.deepcopy(made))
    assert torch.equal(dense(x), before) and not any(parametrize.is_parametrized(m) for m in dense.modules())
    assert set(dense.state_dict()) == set(net.state_dict()) and not any(p.requires_grad for p in dense.parameters())
    with pytest.raises(UsageError, match="could learn"):
        adapted(nn.SiLU())


def test_where_a_change_starts_is_drawn_from_its_seed_alone() -> None:
    def start(seed: int) -> Tensor:
        return adapted(conv_net(), rank=2, seed=seed)[3].parametrizations.weight[0].down.detach()

    net = off_the_shelf()
    before = torch.random.get_rng_state()
    made = adapted(net, rank=2)
    assert torch.equal(torch.random.get_rng_state(), before), "the global generator is nobody's to touch"
    assert torch.equal(start(1), start(1)) and not torch.equal(start(1), start(2))
    downs = [m.parametrizations.weight[0].down for m in made if parametrize.is_parametrized(m)]
    bounds = [1 / down.shape[1] ** 0.5 for down in downs]  # Kaiming's with a = sqrt(5)
    assert len(downs) == 2 and all(0 < d.abs().max() <= bound for d, bound in zip(downs, bounds, strict=True))


# -- which expert -----------------------------------------------------------------------------------------------------


def test_ranges_are_equal_and_a_boundary_belongs_to_the_lower() -> None:
    made = Experts(tuple(nn.Identity() for _ in range(5)), 1000.0)

    def at(time: float) -> int:
        return made.index(Level(time, 0.5, 0.5))

    assert [at(t) for t in (0, 1, 200, 200.01, 400, 999, 1000, 1200)] == [0, 0, 0, 1, 1, 4, 4, 4]
    found = [at(float(t)) for t in range(1001)]
    assert found == sorted(found) and [found.count(e) for e in range(5)] == [201, 200, 200, 200, 200]
    spoken = Experts(tuple(nn.Linear(1, 2) for _ in range(2)), float(VP.model_time(VP.T)))
    x = torch.ones(3, 1)
    assert torch.equal(spoken(x, VP.level(0.2)), spoken.networks[0](x))
    assert torch.equal(spoken(x, VP.level(0.8)), spoken.networks[1](x))
    with pytest.raises(UsageError, match="at least one network"):
        Experts((), 1.0)


def test_one_untrained_expert_is_classifier_guidance_by_the_network() -> None:
    net = off_the_shelf()
    x = toys.normal(4, 2, seed=3)
    made = train_experts(net, clean_samples(8, 1), VP, experts=1, steps=0)
    ends = []
    for rule in (PPAP(made, (0, 1, 2, 0), 1.5), ClassifierGuidance(lambda x, level: net(x.float()), (0, 1, 2, 0), 1.5)):
        denoiser = guidance.Guided(ExactDenoiser(g3(), VP), rule)
        ends.append(samplers.sample(denoiser, x, sampler="ddim", grid="karras", steps=5))
    assert torch.equal(*ends)
    assert PPAP(made).weight == 7.5
    off = guidance.Guided(ExactDenoiser(g3(), VP), PPAP(made, 0, 0.0))
    plain = samplers.sample(ExactDenoiser(g3(), VP), x, sampler="ddim", grid="karras", steps=5)
    assert torch.equal(samplers.sample(off, x, sampler="ddim", grid="karras", steps=5), plain)


@pytest.mark.parametrize("weight", [0.05, (0.05, 0.0, 0.2, 0.05)])
def test_matched_to_the_mean_of_the_step(weight: float | tuple[float, ...]) -> None:
    """x' moves by weight |mean| G / |G|, row by row, with the mean of DDPM's posterior; the size of G has no effect."""
    start, goal = VP.level(0.5), VP.level(0.4)
    x = toys.normal(4, 2, seed=3)
    denoised = ExactDenoiser(g3(), VP)(x, start).denoised
    a, b = start.alpha**2, goal.alpha**2
    mean = (b**0.5 * (1 - a / b) * denoised + (a / b) ** 0.5 * (1 - b) * x) / (1 - a)  # DDPM (2006.11239), eq. 7
    slope = toys.normal(4, 2, seed=8)
    wanted = mean.norm(dim=1, keepdim=True) * slope / slope.norm(dim=1, keepdim=True)
    wanted = wanted * torch.as_tensor(weight, dtype=x.dtype).reshape(-1, 1)
    ends = []
    for size in (1.0, 1e3):
        rule = PPAP(lambda z, level, size=size: (size * slope * z).sum(1), 0, weight, "matched")
        for made in (rule, guidance.Unguided()):
            run = samplers.iterate(guidance.Guided(ExactDenoiser(g3(), VP), made), x, sampler="ddim",
                                   grid=(start, goal, VP.clean))  # fmt: skip
            ends.append(next(iter(run)).x)
    assert (ends[0] - ends[1] - wanted).abs().max() < 1e-9 and torch.allclose(ends[0], ends[2], atol=1e-9)
    with pytest.raises(UsageError, match="matched"):
        PPAP(form="matching")


# -- what is learned from what ----------------------------------------------------------------------------------------


def test_the_teacher_sees_clean_samples_and_the_student_noisy_ones_of_its_range() -> None:
    seen: list[Tensor] = []

    class Watched(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            if not parametrize.is_parametrized(self):
                seen.append(x)
            return super().forward(x)

    clean = toys.normal(30, 2, seed=4, dtype=torch.float32)
    train_experts(nn.Sequential(Watched(2, 2), nn.Linear(2, 3)), clean, VP, experts=2, steps=2, batch=20)
    assert torch.equal(torch.cat(seen), clean)

    large = torch.full((5, 20_000), 1e4)
    draws = ppap._noisy(large, {"": torch.eye(5)}, VP, (0.4, 0.6), 64, torch.Generator().manual_seed(0))
    x, wanted = next(draws)
    signal, low, high = x.mean(1) / 1e4, float(VP.alpha(0.6)), float(VP.alpha(0.4))
    assert (signal > low - 1e-4).all() and (signal < high + 1e-4).all()
    assert signal.min() < low + 0.1 * (high - low) and signal.max() > high - 0.1 * (high - low), "the whole range"
    assert (x.std(1) / (1 - signal**2).sqrt() - 1).abs().max() < 0.03
    assert (wanted[""].sum(1) == 1).all()


def test_the_target_is_sharpened_and_the_loss_is_the_divergence() -> None:
    logits = torch.tensor([[1.0, 0.0, -1.0], [0.2, 0.3, 0.1]])
    wanted = ppap._answers(nn.Identity(), logits, 1, 0.25)[""]
    assert torch.allclose(wanted, (4 * logits).softmax(1))
    assert float(divergence({"": wanted.log()}, {"": wanted})) == pytest.approx(0, abs=1e-6)
    byhand = (wanted * (wanted.log() - logits.log_softmax(1))).sum(1).mean()
    assert torch.allclose(divergence({"": logits, "b": logits}, {"": wanted, "b": wanted}), 2 * byhand)


def test_experts_come_to_the_exact_posterior_without_data() -> None:
    """KL from the exact p(class | x_t) of the world: the classifier of clean data is far off in noise, its experts,
    which saw nothing but the model's samples and its answers, are near."""
    clean = g3().sample(2000, torch.Generator().manual_seed(9))
    for time, factor in ((0.1, 1.0), (0.45, 0.3), (0.65, 0.05), (0.95, 0.01)):
        level = VP.level(time)
        x = level.alpha * clean + level.sigma * toys.normal(2000, 2, seed=10)
        truth = g3().class_probability(x, level.alpha, level.sigma).float()
        with torch.no_grad():
            raw = divergence({"": off_the_shelf()(x.float())}, {"": truth})
        expert = divergence({"": taught()(x.float(), level)}, {"": truth})
        assert float(expert) < factor * float(raw) + 0.005, (time, float(expert), float(raw))


def test_experts_guide_where_the_classifier_of_clean_data_does_not() -> None:
    x = toys.normal(600, 2, seed=11) * float(VP.sigma(VP.T))
    far = {}
    for name, rule in (
        ("experts", PPAP(taught(), 2, 1.0)),
        ("raw", PPAP(Experts((off_the_shelf(),), 1.0), 2, 1.0)),
        ("exact", ClassifierGuidance(exact_log_probability, weight=1.0)),
    ):
        denoiser = guidance.Guided(ExactDenoiser(g3(), VP), rule)
        far[name] = samplers.sample(denoiser, x, sampler="dpmpp-2m", grid="karras", steps=20)
    true = g3().sample(4000, torch.Generator().manual_seed(3), condition=2)
    share = {name: share_of(z) - share_of(true) for name, z in far.items()}
    assert abs(share["exact"]) < 0.02 and abs(share["experts"]) < 0.06, share
    apart = {name: distance(z, true) for name, z in far.items()}
    assert apart["exact"] < 0.1 and apart["experts"] < 0.3 and apart["raw"] > 2 * apart["experts"], apart


def distance(z: Tensor, true: Tensor) -> float:
    """Of means and deviations."""
    return float((z.mean(0) - true.mean(0)).norm() + (z.std(0) - true.std(0)).norm())


def share_of(z: Tensor) -> float:
    """Mean probability of class 2."""
    return float(g3().class_probability(z, 1.0, 0.01)[:, 2].mean())


def exact_log_probability(x: Tensor, level: Level) -> Tensor:
    return g3().class_probability(x, level.alpha, level.sigma)[:, 2].log()


def test_heads_in_a_mapping_and_the_same_bits_again() -> None:
    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(3)
            self.body = nn.Linear(2, 6)
            self.last = nn.Linear(6, 5)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            a, b = self.last(self.body(x).tanh()).split([2, 3], dim=1)
            return {"a": a, "b": b}

    clean, heard = toys.normal(40, 2, seed=6, dtype=torch.float32), []
    before = torch.random.get_rng_state()
    settings = {"experts": 2, "steps": 6, "batch": 16, "rate": 1e-2, "rank": 2}
    one = train_experts(Heads(), clean, VP, **settings, told=lambda e, i, loss: heard.append((e, i)))
    torch.manual_seed(77)
    two = train_experts(Heads(), clean, VP, **settings)
    torch.random.set_rng_state(before)
    assert heard == [(e, i) for e in range(2) for i in range(6)]
    x = toys.normal(3, 2, seed=7, dtype=torch.float32)
    for time in (0.3, 0.9):
        first, second = one(x, VP.level(time)), two(x, VP.level(time))
        assert set(first) == {"a", "b"} and all(torch.equal(first[k], second[k]) for k in first)
    assert not torch.equal(one(x, VP.level(0.3))["a"], one(x, VP.level(0.9))["a"])


def test_what_is_refused() -> None:
    net, clean = off_the_shelf(), torch.zeros(2, 2)
    for bad, words in (
        (lambda: train_experts(net, clean, VP, experts=0), "experts of at least 1"),
        (lambda: train_experts(net, clean, VP, rank=0), "rank of at least 1"),
        (lambda: train_experts(net, clean[:0], VP), "at least one clean sample"),
        (lambda: train_experts(net, clean, VP, temperature=0.0), "temperature above 0"),
    ):
        with pytest.raises(UsageError, match=words):
            bad()
