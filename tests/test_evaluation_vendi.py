"""Vendi score: both sides of the spectrum, closed forms at every order, classes, and mergeable sums."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from pilotage.errors import UsageError
from pilotage.evaluation.metrics.vendi import Directions, vendi, vendi_by_class

ORDERS = (0.0, 0.5, 1.0, 2.0, 7.5, math.inf)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def by_kernel(x: Tensor, order: float) -> float:
    """From the n x n kernel, as printed; order 1 as the limit on both sides of it."""
    rows = x.numpy() / np.linalg.norm(x.numpy(), axis=1, keepdims=True)
    values = np.linalg.eigvalsh(rows @ rows.T / len(rows)).clip(0)
    if math.isinf(order):
        return 1 / values.max()
    if order == 1:
        return (by_kernel(x, 1 - 1e-5) + by_kernel(x, 1 + 1e-5)) / 2
    return float((values[values > 1e-13] ** order).sum() ** (1 / (1 - order)))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("n", "width"), [(60, 8), (8, 60), (20, 20), (21, 20)])
def test_both_sides_give_the_score_of_the_kernel(n: int, width: int, order: float) -> None:
    x = normal(n, width) + 0.5
    found = vendi(x, order)
    assert found.value == pytest.approx(by_kernel(x, order), rel=1e-8)
    assert vendi(Directions.of(x), order).value == pytest.approx(found.value, rel=1e-9)
    assert (found.n, found.bound) == (n, min(n, width))


@pytest.mark.parametrize("order", ORDERS)
def test_copies_count_once_and_orthogonal_rows_each(order: float) -> None:
    assert vendi(normal(1, 12).repeat(30, 1), order).value == pytest.approx(1, rel=1e-12)
    axes = torch.linalg.qr(normal(12, 12)).Q * normal(12, 1, seed=1).exp()  # of any length
    assert vendi(axes, order).value == pytest.approx(12, rel=1e-10)
    assert vendi(axes.repeat(5, 1), order).value == pytest.approx(12, rel=1e-10)
    assert vendi(-axes[:1], order).value == 1


def test_unequal_shares_have_a_closed_form() -> None:
    """Three axes with shares 1/2, 1/3, 1/6."""
    x = torch.eye(5, dtype=torch.float64)[[0, 0, 0, 1, 1, 2]]
    shares = np.array([1 / 2, 1 / 3, 1 / 6])
    assert vendi(x).value == pytest.approx(math.exp(-(shares * np.log(shares)).sum()), rel=1e-12)
    assert vendi(x, 2).value == pytest.approx(1 / (shares**2).sum(), rel=1e-12)
    assert vendi(x, math.inf).value == pytest.approx(2, rel=1e-12)
    assert vendi(x, 0).value == 3


def test_larger_orders_give_no_larger_scores_and_cost_no_second_spectrum() -> None:
    found = vendi(normal(50, 10) + 1)
    values = [found.of_order(order).value for order in ORDERS]
    assert values == sorted(values, reverse=True)
    assert values == [vendi(normal(50, 10) + 1, order).value for order in ORDERS]
    assert found.of_order(1.0 + 1e-7).value == pytest.approx(found.value, rel=1e-6)  # continuous at 1
    assert float(found.eigenvalues.sum()) == pytest.approx(1, abs=1e-14)


def test_classes_are_scored_apart() -> None:
    x = torch.cat([normal(1, 6).repeat(10, 1), torch.eye(6, dtype=torch.float64)[:4]])
    labels = ["copies"] * 10 + ["axes"] * 4
    order = np.random.default_rng(0).permutation(14)
    found = vendi_by_class(x[torch.from_numpy(order)], [labels[i] for i in order])
    assert list(found.classes) == ["axes", "copies"]
    assert found.classes["axes"].value == pytest.approx(4) and found.classes["copies"].value == pytest.approx(1)
    assert found.value == pytest.approx(2.5) and found.classes["copies"].n == 10
    assert vendi_by_class(x, np.arange(14) // 10, 2.0).classes[0].order == 2.0


def test_shards_merge_to_one_pass_in_any_order() -> None:
    x = (normal(90, 7) + 0.3).float()
    whole, score = Directions.of(x, batch=1000), vendi(x).value
    shards = [Directions.of(part) for part in x.split(11)]
    for order in (shards, shards[::-1], shards[4:] + shards[:4]):
        merged = Directions.empty(7)
        for shard in order:
            merged = merged.merge(shard)
        assert merged.n == 90 and torch.allclose(merged.outer, whole.outer, rtol=1e-12, atol=1e-13)
        assert vendi(merged).value == pytest.approx(score, rel=1e-12)
    assert shards[0].n == 11  # merging changes neither
    streamed = Directions.empty(7)
    for part in x.split(8):
        assert streamed.update(part) is streamed
    assert vendi(streamed).value == pytest.approx(score, rel=1e-12)


def test_length_of_rows_does_not_matter() -> None:
    x = normal(30, 8)
    assert vendi(x * normal(30, 1, seed=1).exp() * 1e-160).value == pytest.approx(vendi(x).value, rel=1e-10)


def test_low_precision_features_are_summed_in_float64() -> None:
    x = normal(60, 8).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        assert vendi(x).value == vendi(x.double()).value


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: vendi(torch.zeros(3, 3)), "rows of zeros"),
        (lambda: vendi(torch.ones(3, 3), -1.0), "order"),
        (lambda: vendi(torch.ones(3, 3), math.nan), "order"),
        (lambda: vendi(Directions.empty(3)), "give more pictures"),
        (lambda: vendi_by_class(torch.ones(3, 3), [1, 2]), "one a row"),
        (lambda: Directions.empty(3).update(torch.ones(2, 4)), "one extractor"),
    ],
)
def test_bad_input_is_refused_in_one_line(call, says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        call()
    assert "\n" not in str(caught.value)
