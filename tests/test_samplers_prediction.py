"""What a network says, in every parameterization: exact both ways, finite at both ends."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from stock_schedulers import STOCK
from torch import Tensor

from pilotage.errors import UsageError
from pilotage.samplers.prediction import (
    EPSILON,
    FLOW_PREDICTION,
    PARAMETERIZATIONS,
    SAMPLE,
    SCORE,
    V_PREDICTION,
    Parameterization,
    Prediction,
    edm,
    parameterization,
    predicted_by,
)
from pilotage.samplers.schedule import Level

# On which path (alpha^2 + sigma^2 = 1, alpha + sigma = 1, alpha = 1) each parameterization lives.
HOME = {"flow_prediction": "flow", "flow_to_data": "flow", "edm": "ve", "edm_v": "ve", "edm_consistency": "ve"}


def level_at(name: str, rho: float) -> Level:
    path = HOME.get(name, "vp")
    alpha = {"vp": 1 / math.hypot(1, rho), "flow": 1 / (1 + rho), "ve": 1.0}[path]
    return Level(0.0, alpha, {"vp": rho / math.hypot(1, rho), "flow": rho / (1 + rho), "ve": rho}[path])


def raw(name: str, x0: Tensor, noise: Tensor, l: Level, sd: float = 0.5, smallest: float = 0.002) -> Tensor:
    """The network's output by its definition, written out from table A.3 and independent of the coefficients."""
    x, root = l.alpha * x0 + l.sigma * noise, math.hypot(l.sigma, sd)
    skip = sd**2 / ((l.sigma - smallest) ** 2 + sd**2)
    return {
        "epsilon": lambda: noise,
        "sample": lambda: x0,
        "v_prediction": lambda: l.alpha * noise - l.sigma * x0,
        "flow_prediction": lambda: noise - x0,
        "flow_to_data": lambda: x0 - noise,
        "score": lambda: -noise / l.sigma,
        "edm": lambda: (x0 - sd**2 / root**2 * x) / (l.sigma * sd / root),
        "edm_v": lambda: -(x0 - sd**2 / root**2 * x) / (l.sigma * sd / root),
        "edm_consistency": lambda: (x0 - skip * x) / ((l.sigma - smallest) * sd / root),
    }[name]()


def truth() -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(3)
    return tuple(torch.randn(2, 3, 4, dtype=torch.float64, generator=g) for _ in range(2))  # type: ignore[return-value]


def prediction(name: str, rho: float, dtype: torch.dtype = torch.float64) -> tuple[Prediction, Tensor, Tensor]:
    x0, noise = truth()
    l = level_at(name, rho)
    x = l.alpha * x0 + l.sigma * noise
    made = Prediction(x.to(dtype), l, raw(name, x0, noise, l).to(dtype), PARAMETERIZATIONS[name])
    return made, x0, noise


def far(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).abs().max())


@pytest.mark.parametrize("name", PARAMETERIZATIONS)
@given(log_rho=st.floats(-3, 3))
def test_denoised_and_noise_are_the_truth(name: str, log_rho: float) -> None:
    p, x0, noise = prediction(name, math.exp(log_rho))
    assert far(p.denoised, x0) < 1e-12 * math.exp(abs(log_rho))
    assert far(p.noise, noise) < 1e-12 * math.exp(abs(log_rho))
    assert far(p.level.alpha * p.denoised + p.level.sigma * p.noise, p.x) < 1e-12


@pytest.mark.parametrize("level", [Level(0.0, 1.0, 2.0), Level(0.0, 0.3, 0.7)], ids=["exploding", "flow"])
def test_v_and_epsilon_where_signal_and_noise_are_not_normalised(level: Level) -> None:
    x0, noise = truth()
    x = level.alpha * x0 + level.sigma * noise
    for kind in (V_PREDICTION, EPSILON, SAMPLE, SCORE):
        p = Prediction(x, level, raw(kind.name, x0, noise, level), kind)
        assert far(p.denoised, x0) < 1e-14 and far(p.noise, noise) < 1e-14, kind.name


@pytest.mark.parametrize("name", PARAMETERIZATIONS)
@given(log_rho=st.floats(-3, 3))
def test_with_denoised_and_with_noise(name: str, log_rho: float) -> None:
    p, x0, _ = prediction(name, math.exp(log_rho))
    wanted = x0.flip(0) * 1.7 - 0.3
    scale = math.exp(2 * abs(log_rho))
    for changed in (p.with_denoised(wanted), p.with_noise((p.x - p.level.alpha * wanted) / p.level.sigma)):
        assert changed.level is p.level and changed.x is p.x and changed.base is None
        assert far(changed.denoised, wanted) < 1e-11 * scale
        assert far(p.level.alpha * changed.denoised + p.level.sigma * changed.noise, p.x) < 1e-11 * scale
        fresh = Prediction(changed.x, changed.level, changed.native, changed.kind)  # no remembered value
        assert far(fresh.denoised, wanted) < 1e-11 * scale
    assert torch.equal(p.with_denoised(wanted).denoised, wanted)  # remembered exactly
    assert far(p.with_denoised(p.denoised).native, p.native) < 1e-11 * scale
    assert far(p.with_noise(p.noise).native, p.native) < 1e-11 * scale


@pytest.mark.parametrize("name", [n for n in PARAMETERIZATIONS if n not in ("sample", "edm_consistency")])
def test_noise_is_accurate_where_sigma_is_small(name: str) -> None:
    p, _, noise = prediction(name, 1e-6, torch.float32)
    # (x - alpha x_0) / sigma would be off by 1e-7 / 1e-6 = 0.1
    assert far(p.noise, noise) < 2e-6


@pytest.mark.parametrize("name", ["sample", "v_prediction", "flow_prediction", "flow_to_data"])
def test_denoised_is_accurate_where_alpha_is_small(name: str) -> None:
    p, x0, _ = prediction(name, 1e6, torch.float32)
    assert far(p.denoised, x0) < 2e-6


@pytest.mark.parametrize("name", ["v_prediction", "flow_prediction", "flow_to_data", "sample"])
def test_pure_noise_is_an_ordinary_level(name: str) -> None:
    p, x0, noise = prediction(name, 1.0)
    top = Level(0.0, 0.0, 1.0)
    native = {"v_prediction": -x0, "flow_prediction": noise - x0, "flow_to_data": x0 - noise, "sample": x0}[name]
    p = Prediction(noise, top, native, PARAMETERIZATIONS[name])
    assert far(p.denoised, x0) < 1e-14 and far(p.noise, noise) < 1e-14
    assert far(p.with_denoised(2 * x0).denoised, 2 * x0) < 1e-14


def test_clean_data_is_an_ordinary_level() -> None:
    x0, noise = truth()
    end = Level(0.0, 1.0, 0.0)
    for kind in (EPSILON, V_PREDICTION, FLOW_PREDICTION, SCORE):
        native = {"epsilon": noise, "v_prediction": noise, "flow_prediction": noise - x0, "score": noise}[kind.name]
        assert far(Prediction(x0, end, native, kind).denoised, x0) < 1e-15


@pytest.mark.parametrize("kind", [EPSILON, SCORE], ids=lambda k: k.name)
def test_epsilon_at_pure_noise_is_refused(kind: Parameterization) -> None:
    p = Prediction(torch.ones(1, 2), Level(999.0, 0.0, 1.0), torch.ones(1, 2), kind)
    with pytest.raises(UsageError, match="zero terminal SNR"):
        p.denoised
    with pytest.raises(UsageError, match="sigma = 0"):
        Prediction(torch.ones(1, 2), Level(0.0, 1.0, 0.0), torch.ones(1, 2), SAMPLE).noise


def test_where_picks_rows_of_everything() -> None:
    a, _, _ = prediction("v_prediction", 0.8)
    b = a.like(a.native * 2 + 1)
    rows = torch.tensor([True, False])
    mixed = a.where(rows, b)
    assert torch.equal(mixed.native, torch.stack([a.native[0], b.native[1]]))
    assert mixed.base is None and mixed.x is a.x

    moved = Prediction(a.x + 1, a.level, b.native, a.kind)
    assert torch.equal(a.where(rows, moved).x, torch.stack([a.x[0], moved.x[1]]))

    shifted = b.renoised_with(a)
    mixed = shifted.where(rows, a)
    assert mixed.base is not None
    assert torch.equal(mixed.denoised, torch.stack([b.denoised[0], a.denoised[1]]))
    assert torch.equal(mixed.base.denoised, a.denoised)  # row 1 is consistent: its base is itself

    with pytest.raises(AssertionError, match="cannot be mixed"):
        a.where(rows, Prediction(a.x, a.level, a.native, EPSILON))


def test_renoised_with_takes_the_consistent_part_of_its_base() -> None:
    a, _, _ = prediction("epsilon", 0.8)
    b, c = a.like(a.native + 1), a.like(a.native - 1)
    assert a.step_on is a
    assert b.renoised_with(a).step_on is a
    assert c.renoised_with(b.renoised_with(a)).step_on is a
    assert torch.equal(b.renoised_with(a).denoised, b.denoised)


def test_like_is_for_weights_that_sum_to_one() -> None:
    for name in PARAMETERIZATIONS:
        a, _, _ = prediction(name, 0.8)
        b = a.like(a.native.flip(1))
        mixed = a.like(a.native + 3 * (b.native - a.native))
        assert far(mixed.denoised, a.denoised + 3 * (b.denoised - a.denoised)) < 1e-12, name
        assert far(mixed.noise, a.noise + 3 * (b.noise - a.noise)) < 1e-12, name


def test_names() -> None:
    assert parameterization("v_prediction") is V_PREDICTION
    assert parameterization(SCORE) is SCORE
    with pytest.raises(UsageError, match=r"unknown prediction type 'v_predicton': did you mean v_prediction"):
        parameterization("v_predicton")


@pytest.mark.parametrize(
    ("name", "kind"),
    {
        "ddim": "epsilon",
        "ddim-v": "v_prediction",
        "ddim-sample": "sample",
        "flow-euler": "flow_prediction",
        "flow-euler-inverted": "flow_to_data",
        "flow-unipc": "flow_prediction",
        "edm-euler": "edm",
        "cosine-dpm": "edm_v",
        "consistency": "edm_consistency",
        "score-sde-ve": "score",
        "scm": "v_prediction",
    }.items(),
)
def test_what_the_network_behind_a_scheduler_predicts(name: str, kind: str) -> None:
    assert predicted_by(STOCK[name]()).name == kind


@pytest.mark.parametrize("name", ["edm-euler", "edm-dpm-multistep", "cosine-dpm"])
def test_edm_preconditioning_is_that_of_diffusers(name: str) -> None:
    scheduler = STOCK[name]()
    x, native = torch.randn(2, 1, 3), torch.randn(2, 1, 3)
    for sigma in (0.01, 1.0, 70.0):
        stock = scheduler.precondition_outputs(x, native, torch.tensor(sigma))
        ours = Prediction(x, Level(0.0, 1.0, sigma), native, predicted_by(scheduler)).denoised
        assert torch.allclose(ours, stock, rtol=1e-5, atol=1e-6)
    assert edm(1.0).denoised(Level(0.0, 1.0, 0.0))[0] == 1
