"""Nearest neighbours: equal to a float64 loop and to scikit-learn, with ties, copies and any block."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from pilotage.errors import UsageError
from pilotage.evaluation.metrics import clouds
from pilotage.evaluation.metrics.clouds import Cloud, bfloat16_is_fast, squared_distances
from pilotage.evaluation.metrics.nearest import nearest
from pilotage.evaluation.metrics.neighbours import close_pairs, squared_radii


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape)).float()


def whole(high: int, *shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, high, shape)).float()


def squares(a: Tensor, b: Tensor) -> Tensor:
    return torch.stack([(row - b.double()).square().sum(1) for row in a.double()])


@pytest.fixture(params=["bfloat16", "float32"])
def _products(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways, whatever this machine is quicker at."""
    monkeypatch.setattr(clouds, "bfloat16_is_fast", lambda device: request.param == "bfloat16")


@pytest.mark.usefixtures("_products")
@pytest.mark.parametrize("k", [1, 4])
@pytest.mark.parametrize("itself", [False, True])
def test_equals_scikit_learn(k: int, itself: bool) -> None:
    neighbors = pytest.importorskip("sklearn.neighbors")
    rows = normal(900, 40)
    queries = rows if itself else normal(300, 40, seed=1)
    theirs = neighbors.NearestNeighbors(n_neighbors=k, algorithm="brute").fit(rows.double().numpy())
    distances, indices = theirs.kneighbors(None if itself else queries.double().numpy())
    ours = nearest(queries=queries, among=rows, k=k, exclude_self=itself, block=256)
    assert ours.distances.dtype == torch.float64
    assert np.allclose(ours.distances.numpy(), distances, rtol=1e-7, atol=0)  # theirs are less exact
    assert (ours.indices.numpy() == indices).all()


SETS = {
    "few values": whole(3, 500, 6),
    "copies": normal(30, 8)[whole(30, 400).long()],
    "all equal": torch.ones(200, 4),
    "equal distances": torch.eye(300),
    "a far tight cluster": torch.cat([normal(300, 16), 1e4 + normal(200, 16, seed=1) / 100]),
    "tiny": normal(300, 6) * 1e-22,
    "huge": normal(300, 6) * 1e16,
    "halves": normal(300, 12).half(),
    "float64 with an offset": normal(300, 5).double() * 1e-3 + 1e6,
    "long rows": normal(200, 4100),
}


@pytest.mark.usefixtures("_products")
@pytest.mark.parametrize("k", [1, 3, 20])
@pytest.mark.parametrize("name", SETS)
def test_equals_a_loop(name: str, k: int) -> None:
    rows = SETS[name]
    queries = torch.cat([rows[::7], (rows[:40] + rows[40:80]) / 2])
    exact = squares(queries, rows)
    found = nearest(queries=queries, among=rows, k=k, block=128)
    expected = exact.sqrt().sort(1).values[:, :k]
    assert torch.allclose(found.distances, expected, rtol=1e-14, atol=0)
    assert torch.allclose(exact.gather(1, found.indices).sqrt(), expected, rtol=1e-14, atol=0)
    assert all(len(set(row.tolist())) == k for row in found.indices)
    own = squares(rows, rows).fill_diagonal_(float("inf"))
    others = nearest(queries=rows, among=rows, k=k, exclude_self=True, block=128)
    expected = own.sqrt().sort(1).values[:, :k]
    assert torch.allclose(others.distances, expected, rtol=1e-14, atol=0)
    assert torch.allclose(own.gather(1, others.indices).sqrt(), expected, rtol=1e-14, atol=0)
    assert torch.allclose(squared_radii(Cloud(rows), k, 128), own.sort(1).values[:, k - 1], rtol=1e-14, atol=0)


def test_of_equal_distances_the_first_row_comes_first() -> None:
    rows = torch.tensor([[5.0], [1.0], [-1.0], [1.0], [3.0]])
    assert nearest(queries=torch.zeros(1, 1), among=rows, k=4).indices.tolist() == [[1, 3, 2, 4]]
    assert nearest(queries=rows, among=rows, exclude_self=True).indices[:, 0].tolist() == [4, 3, 1, 1, 0]
    assert nearest(queries=torch.zeros(1, 300), among=torch.eye(300), k=3, block=64).indices.tolist() == [[0, 1, 2]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1e-15, 1.0, 1e15])
@pytest.mark.parametrize("spread", [1.0, 1e-3])
def test_bounds_hold_the_distance_and_nothing_near_is_left_out(dtype: torch.dtype, scale: float, spread: float) -> None:
    generator = np.random.default_rng(3)
    rows = torch.from_numpy(generator.standard_normal((160, 300)) * np.exp(generator.standard_normal((160, 1)))).float()
    others = (rows[:120] + spread * normal(120, 300, seed=4)) * scale
    x = Cloud(rows * scale)
    y = Cloud(others, x.centre)
    x.types = y.types = (dtype,)
    exact = squares(x.rows, y.rows)
    limits = exact.sort(1).values[:, 5], exact.sort(0).values[3]
    found = close_pairs(x, y, (0, 0), limits, expected=float("inf"))
    true = exact[found.i, found.j]
    assert bool((found.low <= true).all()) and bool((true <= found.high).all())
    near = (exact <= limits[0][:, None]) | (exact <= limits[1])
    kept = torch.zeros_like(near).index_put_((found.i, found.j), torch.tensor(True))
    assert not bool((near & ~kept).any())
    tight = 0.2 if dtype == torch.bfloat16 else 1e-3
    wide = (found.high - found.low) / true.clamp(min=1e-30 * scale**2)
    assert spread != 1.0 or float(wide.median()) < tight  # and they say something


def test_a_tight_cluster_is_bounded_in_a_finer_type() -> None:
    x = Cloud(torch.cat([normal(500, 64), 300 + normal(500, 64, seed=1) / 10]))
    x.types = (torch.bfloat16, torch.float32, torch.float64)
    radii = squared_radii(x, 3, 256)
    assert torch.float32 in x._rounded
    assert torch.allclose(radii, squares(x.rows, x.rows).fill_diagonal_(float("inf")).sort(1).values[:, 2], rtol=1e-14)


def test_distances_do_not_depend_on_how_many_are_asked_for() -> None:
    a, b = Cloud(normal(80, 2048)), Cloud(normal(80, 2048, seed=1))
    i, j = torch.arange(80), torch.arange(80).flip(0)
    together = squared_distances(a, b, i, j)
    assert torch.equal(together, torch.cat([squared_distances(a, b, p, q) for p, q in zip(i.split(1), j.split(1))]))
    assert torch.equal(together, squared_distances(b, a, j, i))


def test_rows_that_agree_in_a_few_columns_only_are_no_copies() -> None:
    rows = normal(400, 200)
    rows[:40, ::7] = 0  # the columns that are looked at first
    rows[200:210] = rows[100:110]
    cloud = Cloud(rows)
    assert len(cloud) == 390
    assert torch.equal(cloud.groups[200:210], torch.arange(100, 110)) and int((cloud.counts == 2).sum()) == 10
    assert torch.equal(rows[cloud.first][cloud.point_of], rows)


def test_the_question_of_speed_has_an_answer() -> None:
    assert bfloat16_is_fast("cpu") in (True, False) and not bfloat16_is_fast("cuda")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"queries": torch.ones(3, 2), "among": torch.ones(4, 3)}, "one extractor"),
        ({"queries": torch.ones(3, 2), "among": torch.ones(4, 2), "k": 5}, "smaller k"),
        ({"queries": torch.ones(4, 2), "among": torch.ones(4, 2), "k": 4, "exclude_self": True}, "k=4 of 3 rows"),
        ({"queries": torch.ones(3, 2), "among": torch.ones(4, 2), "exclude_self": True}, "same rows twice"),
    ],
)
def test_bad_input_is_refused_in_one_line(arguments: dict, says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        nearest(**arguments)
    assert "\n" not in str(caught.value)
