"""Weights from a discriminator's logits: the pipeline by hand, its invariants, several processes, a ratio that is
learnt; heads and their losses."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from pilotage.distill.divergences import DIVERGENCES, make_divergence
from pilotage.distill.head import Head, generator_loss, head_loss, r1
from pilotage.distill.ratio import RatioWeights
from pilotage.distill.times import Group
from pilotage.errors import UsageError
from pilotage.samplers.schedule import LinearVP, RectifiedFlow, VarianceExploding


def alone(rows: Tensor) -> Tensor:
    return rows


def random_rows(count: int, seed: int = 0, spread: float = 2.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return spread * torch.randn(count, generator=generator), torch.rand(count, generator=generator)


def by_hand(logits: Tensor, shares: Tensor, h: Any, bins: int = 10) -> Tensor:
    """The formulas with loops, in float64."""
    ratio = [min(max(math.exp(min(max(logit, -10), 10)), 0.1), 20) for logit in logits.tolist()]
    bin_of = [min(int(share * bins), bins - 1) for share in shares.tolist()]
    means = {}
    for bin in set(bin_of):
        inside = [r for r, b in zip(ratio, bin_of) if b == bin]
        means[bin] = sum(inside) / len(inside)
    weights = [h(r / means[b]) for r, b in zip(ratio, bin_of)]
    return torch.tensor(weights, dtype=torch.float64) / (sum(weights) / len(weights))


@pytest.mark.parametrize(
    ("name", "h"), [("forward-kl", lambda r: r), ("js", lambda r: r / (1 + r)), ("neyman", lambda r: 2 / r)]
)
def test_pipeline_by_hand(name: str, h: Any) -> None:
    logits, shares = random_rows(64)
    found, _ = RatioWeights().weights(logits, shares, make_divergence(name), {}, alone)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), by_hand(logits, shares, h), rtol=2e-6, atol=0)


def test_several_heads_are_averaged() -> None:
    logits, shares = random_rows(32)
    off = torch.randn(32, generator=torch.Generator().manual_seed(5))
    one, _ = RatioWeights().weights(logits, shares, make_divergence("js"), {}, alone)
    two, _ = RatioWeights().weights(torch.stack([logits - off, logits + off], 1), shares, make_divergence("js"), {}, alone)  # fmt: skip # noqa: E501
    torch.testing.assert_close(one, two)


@pytest.mark.parametrize("name", [name for name in DIVERGENCES if name != "reverse-kl"])
@pytest.mark.parametrize("logits", ["extreme", "alike", "random", "infinite"])
def test_weights_are_finite_and_have_mean_one(name: str, logits: str) -> None:
    rows, shares = random_rows(50, spread=3)
    given = {
        "extreme": torch.where(rows > 0, 1e4, -1e4),
        "alike": torch.full_like(rows, 1e4),
        "random": rows,
        "infinite": torch.where(rows > 0, math.inf, -math.inf),
    }[logits]
    for settings in ({}, {"by_bin": False}, {"clip": (0.0, 1e9)}):
        h, numbers = RatioWeights(**settings).weights(given, shares, make_divergence(name), {}, alone)
        assert h.isfinite().all() and (h >= 0).all() and not h.requires_grad
        assert h.mean().item() == pytest.approx(1, abs=1e-5)
        assert 1 / 50 - 1e-6 <= numbers["effective"] <= 1 + 1e-6


@pytest.mark.parametrize("line", ["reverse-kl", "rkl", "power:exponent=-2"])
def test_reverse_kl_is_one_bit_for_bit_and_asks_nobody(line: str) -> None:
    def nobody(rows: Tensor) -> Tensor:
        raise AssertionError("no process has anything to tell")

    state: dict[str, Any] = {}
    for logits in (random_rows(7)[0], torch.full((7,), math.nan), torch.full((7, 3), 1e4)):
        h, numbers = RatioWeights().weights(logits, torch.rand(7), make_divergence(line), state, nobody)
        assert torch.equal(h, torch.ones(7)) and numbers == {"effective": 1.0}
    assert not state


def test_the_sign_of_the_logit_exchanges_jensen_shannon_and_softened() -> None:
    """Without the bins' normalisation, which is of r and not of 1/r, and with clips that are alike on both sides."""
    logits, shares = random_rows(40)
    even = RatioWeights(clip=(0.05, 20), by_bin=False)
    js, softened = make_divergence("js"), make_divergence("softened")
    turned, _ = even.weights(-logits, shares, js, {}, alone)
    torch.testing.assert_close(turned, even.weights(logits, shares, softened, {}, alone)[0])
    assert even.weights(torch.tensor([-2.0, 2.0]), shares[:2], js, {}, alone)[0].diff() > 0


# -- bins --------------------------------------------------------------------------------------------------------------


def test_bins_keep_what_empty_ones_had() -> None:
    """Two bins, ema 0.5: the first batch fills one, the second the other, the third both."""
    settings, kl = RatioWeights(bins=2, ema=0.5, clip=(1e-3, 1e3)), make_divergence("kl")
    state: dict[str, Any] = {}
    low, high = torch.tensor([0.1, 0.2]), torch.tensor([0.7, 0.9])
    settings.weights(torch.tensor([1.0, 3.0]).log(), low, kl, state, alone)
    assert state["ratio_bins"].tolist() == pytest.approx([2, 0])
    h, _ = settings.weights(torch.tensor([6.0, 6.0]).log(), high, kl, state, alone)
    assert state["ratio_bins"].tolist() == pytest.approx([2, 6]) and h.tolist() == [1, 1]
    both = torch.tensor([4.0, 10.0]).log()
    h, _ = settings.weights(both, torch.tensor([0.1, 1.0]), kl, state, alone)
    assert state["ratio_bins"].tolist() == pytest.approx([3, 8])
    torch.testing.assert_close(h, torch.tensor([4 / 3, 10 / 8]) / ((4 / 3 + 10 / 8) / 2))


def test_a_row_alone_in_its_bin_needs_an_average() -> None:
    """One row a bin and no average: every ratio is 1. With one, h = r over the mean so far."""
    logits, shares, kl = torch.linspace(-2, 2, 10), torch.arange(10) / 10 + 0.05, make_divergence("kl")
    h, _ = RatioWeights().weights(logits, shares, kl, {}, alone)
    torch.testing.assert_close(h, torch.ones(10))
    state: dict[str, Any] = {}
    kept = RatioWeights(ema=0.999)
    kept.weights(torch.zeros(10), shares, kl, state, alone)
    h, _ = kept.weights(logits, shares, kl, state, alone)
    torch.testing.assert_close(h, logits.exp() / logits.exp().mean(), rtol=0.01, atol=0)


def test_a_run_that_goes_on_has_the_same_weights() -> None:
    settings, js = RatioWeights(ema=0.5), make_divergence("js")
    state: dict[str, Any] = {}
    for step in range(3):
        settings.weights(*random_rows(16, step), js, state, alone)
    kept = {name: value.clone() for name, value in state.items()}
    first = settings.weights(*random_rows(16, 3), js, state, alone)
    second = settings.weights(*random_rows(16, 3), js, kept, alone)
    assert torch.equal(first[0], second[0]) and first[1] == second[1]
    assert torch.equal(state["ratio_bins"], kept["ratio_bins"]) and state["ratio_bins"].device.type == "cpu"


def test_two_processes_are_as_one() -> None:
    logits, shares = random_rows(48)
    settings, kl = RatioWeights(ema=0.5), make_divergence("forward-kl")
    whole: dict[str, Any] = {}
    parts: list[dict[str, Any]] = [{}, {}]
    for turn in range(3):
        one, numbers = settings.weights(logits + turn, shares, kl, whole, alone)
        everyone = torch.stack([logits + turn, shares], 1)
        found = []
        for half, state in zip((slice(0, 20), slice(20, 48)), parts):
            h, told = settings.weights(logits[half] + turn, shares[half], kl, state, lambda _, rows=everyone: rows)
            found.append(h)
            assert told == numbers and torch.equal(state["ratio_bins"], whole["ratio_bins"])
        assert torch.equal(torch.cat(found), one)


def test_what_is_gathered_is_asked_for_once() -> None:
    asked = []

    def counting(rows: Tensor) -> Tensor:
        asked.append(rows.shape)
        return rows

    RatioWeights().weights(*random_rows(6), make_divergence("js"), {}, counting)
    assert asked == [(6, 2)]


def test_equal_probability_or_equal_width() -> None:
    for schedule in (LinearVP(), RectifiedFlow(), VarianceExploding()):
        group = Group(range(2), schedule.level(0.25 * schedule.T), 0.8)
        assert RatioWeights().share(group, schedule) == 0.8
        assert RatioWeights(equal_width=True).share(group, schedule) == pytest.approx(0.25, abs=1e-6)


def test_numbers_tell_what_was_clipped() -> None:
    ratio = torch.tensor([0.01, 0.5, 1.0, 100.0])
    settings = RatioWeights(by_bin=False)
    _, numbers = settings.weights(ratio.log(), torch.tensor([0.1, 0.1, 0.9, 0.9]), make_divergence("kl"), {}, alone)
    clipped = torch.tensor([0.1, 0.5, 1.0, 20.0])
    assert numbers["clipped"] == 0.5 and numbers["ratio"] == pytest.approx(float(ratio.mean()), rel=1e-5)
    assert (numbers["ratio_low"], numbers["ratio_high"]) == pytest.approx((0.255, 50.5), rel=1e-5)
    assert numbers["effective"] == pytest.approx(float(clipped.sum() ** 2 / (4 * (clipped**2).sum())), rel=1e-5)


@pytest.mark.parametrize("bad", [{"clip": (20, 0.1)}, {"clip": (-1, 1)}, {"bins": 0}, {"ema": 1.0}, {"logit": 0}])
def test_bad_settings(bad: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="ratios need"):
        RatioWeights(**bad)


# -- heads -------------------------------------------------------------------------------------------------------------

SHAPES = [(8, 1, 1), (8, 2, 2), (96, 4, 4), (7, 8, 8), (40, 5, 9), (1, 16, 16), (6, 16, 2), (33, 3, 3), (64,), (1,)]


@pytest.mark.parametrize("shape", SHAPES)
def test_a_head_gives_one_logit_a_row(shape: tuple[int, ...]) -> None:
    before = torch.get_rng_state()
    head, same, other = Head(shape, 3), Head(shape, 3), Head(shape, 4)
    assert torch.equal(torch.get_rng_state(), before), "the global generator is left alone"
    for a, b in zip(head.parameters(), same.parameters()):
        assert torch.equal(a, b) and a.dtype == torch.float32 and a.isfinite().all()
    assert any(not torch.equal(a, b) for a, b in zip(head.parameters(), other.parameters()))
    x = torch.randn(5, *shape, generator=torch.Generator().manual_seed(0))
    assert torch.equal(head(x), torch.zeros(5)), "ratio 1 before it has learnt"
    awake(head)
    logits = head(x)
    assert logits.shape == (5,) and logits.std() > 1e-4, "rows differ"
    torch.testing.assert_close(logits[2:3], head(x[2:3]), rtol=1e-5, atol=1e-6)  # no row sees another


def awake(head: Head) -> None:
    """A last layer that is not 0."""
    torch.nn.init.normal_(head.layers[-1].weight, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("shape", [(8, 1, 1), (8, 4, 4), (8, 8, 8), (64,)])
def test_every_weight_of_a_head_learns(shape: tuple[int, ...]) -> None:
    head = Head(shape)
    awake(head)
    x = torch.randn(4, *shape, generator=torch.Generator().manual_seed(0))
    head_loss(head(x), head(x + 1)).backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in head.parameters())


def test_a_head_computes_in_single_precision() -> None:
    head = Head((8, 4, 4))
    awake(head)
    x = torch.randn(3, 8, 4, 4, generator=torch.Generator().manual_seed(0)).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = head(x)
    assert logits.dtype == torch.float32 and torch.equal(logits, head(x.float()))


@pytest.mark.parametrize("shape", [(), (4, 16), (3, 0, 4)])
def test_features_without_a_head(shape: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match=r"\(C, H, W\) or \(C,\)"):
        Head(shape)
    with pytest.raises(UsageError, match="takes features"):
        Head((3, 4, 4))(torch.zeros(2, 3, 4, 5))


def test_losses_of_the_head() -> None:
    fake, real = torch.tensor([-1.0, 0.5]), torch.tensor([2.0, 0.0])
    cross_entropy = torch.nn.functional.binary_cross_entropy_with_logits
    told_apart = cross_entropy(fake, torch.zeros(2)) + cross_entropy(real, torch.ones(2))
    torch.testing.assert_close(head_loss(fake, real), told_apart)
    torch.testing.assert_close(generator_loss(fake), cross_entropy(fake, torch.ones(2)))
    assert torch.autograd.functional.jacobian(generator_loss, fake).lt(0).all(), "up, to pass for real"


def test_r1_is_the_squared_slope_times_the_noise() -> None:
    """D(x) = w x in 4096 rows: E (D(x) - D(x + s n))^2 = s^2 |w|^2."""
    generator = torch.Generator().manual_seed(0)
    x, w = torch.randn(4096, 5, generator=generator), torch.tensor([1.0, -2.0, 0.0, 0.5, 1.0])
    noised = x + 0.1 * torch.randn(x.shape, generator=generator)
    assert r1(x @ w, noised @ w).item() == pytest.approx(0.01 * float(w @ w), rel=0.05)


# -- a ratio that is learnt --------------------------------------------------------------------------------------------


def parts(x: Tensor, weights: list[float], means: list[float], deviation: float) -> Tensor:
    """log density of a mixture"""
    each = [math.log(w) - (x - m) ** 2 / (2 * deviation**2) for w, m in zip(weights, means)]
    return torch.stack(each).logsumexp(0) - math.log(deviation * math.sqrt(2 * math.pi))


def drawn(count: int, weights: list[float], means: list[float], deviation: float, generator: torch.Generator) -> Tensor:
    which = torch.multinomial(torch.tensor(weights), count, replacement=True, generator=generator)
    return torch.tensor(means)[which] + deviation * torch.randn(count, generator=generator)


def test_a_head_learns_the_ratio_of_two_mixtures() -> None:
    """p = .35 N(-1.5, .49) + .65 N(1.5, .49), q = .7 N(-1, 1) + .3 N(1, 1): the logit against log p/q, E_q[r] = 1."""
    p, q = ([0.35, 0.65], [-1.5, 1.5], 0.7), ([0.7, 0.3], [-1.0, 1.0], 1.0)
    generator = torch.Generator().manual_seed(0)
    head = Head((1,), seed=0)
    optimiser = torch.optim.Adam(head.parameters(), 3e-3)
    decay = torch.optim.lr_scheduler.LinearLR(optimiser, 1, 0.02, 800)
    for _ in range(800):
        real, fake = drawn(1024, *p, generator), drawn(1024, *q, generator)
        optimiser.zero_grad()
        head_loss(head(fake[:, None]), head(real[:, None])).backward()
        optimiser.step()
        decay.step()
    fake = drawn(8192, *q, generator)
    with torch.no_grad():
        logits = head(fake[:, None])
    exact = parts(fake, *p) - parts(fake, *q)
    assert exact.exp().mean().item() == pytest.approx(1, abs=0.03)  # what samples can say of it
    _, numbers = RatioWeights().weights(logits, torch.rand(8192, generator=generator), make_divergence("kl"), {}, alone)
    assert numbers["ratio"] == pytest.approx(1, abs=0.05)
    assert torch.corrcoef(torch.stack([logits, exact]))[0, 1] > 0.99
    inner = fake.abs() < 2.5
    assert (logits - exact)[inner].square().mean().sqrt() < 0.12
