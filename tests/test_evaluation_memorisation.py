"""Memorisation: a planted copier is flagged, an honest model is cleared, and every number equals a plain loop."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from pilotage.errors import UsageError
from pilotage.evaluation.metrics.authenticity import authenticity
from pilotage.evaluation.metrics.copying_test import copying_test, mann_whitney_z
from pilotage.evaluation.metrics.frechet import frechet_distance
from pilotage.evaluation.metrics.halves_test import disjoint_halves_report
from pilotage.evaluation.metrics.kmeans import kmeans, nearest_centre
from pilotage.evaluation.metrics.memorisation_fid import cosine_distances, memorisation_fid
from pilotage.evaluation.metrics.prdc import radii
from pilotage.evaluation.metrics.suspects import suspects


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape)).float()


def distances(a: Tensor, b: Tensor) -> Tensor:
    return torch.stack([(row - b.double()).square().sum(1).sqrt() for row in a.double()])


class World(NamedTuple):
    """Sets of one distribution, and models that copy with a little noise, or half of the time."""

    train: Tensor
    test: Tensor
    honest: Tensor
    copier: Tensor
    half: Tensor  # the first 150 are copies


@pytest.fixture(scope="module")
def world() -> World:
    mixing = normal(6, 24, seed=9)

    def draw(count: int, seed: int) -> Tensor:
        return normal(count, 6, seed=seed) @ mixing + 0.3 * normal(count, 24, seed=seed + 50)

    train, test, honest = draw(400, 1), draw(350, 2), draw(300, 3)
    copier = train[:300] + 0.02 * normal(300, 24, seed=4)
    return World(train, test, honest, copier, torch.cat([copier[:150], honest[150:]]))


def test_authenticity_flags_the_copier_and_clears_the_honest(world: World) -> None:
    honest, copier = (authenticity(train=world.train, generated=g) for g in (world.honest, world.copier))
    null = authenticity(train=world.train, generated=world.test)
    assert copier.value < 5 < 40 < honest.value and abs(honest.value - null.value) < 12
    assert torch.equal(copier.nearest, torch.arange(300))
    half = authenticity(train=world.train, generated=world.half)
    assert not half.authentic[:150].any() and half.value == pytest.approx(honest.value / 2, abs=6)


def test_authenticity_is_the_definition_with_ties_and_copies() -> None:
    train = torch.from_numpy(np.random.default_rng(0).integers(0, 4, (200, 3))).float()
    made = torch.from_numpy(np.random.default_rng(1).integers(0, 8, (150, 3))).float() / 2
    own, cross = distances(train, train).fill_diagonal_(math.inf).amin(1), distances(made, train)
    found = authenticity(train=train, generated=made, block=64)
    assert torch.equal(found.authentic, own[cross.argmin(1)] < cross.amin(1))
    assert torch.equal(found.distances, cross.amin(1)) and found.value == 100 * float(found.authentic.double().mean())
    assert found.duplicates_train == pytest.approx(1 - len(train.unique(dim=0)) / 200)
    again = authenticity(train=train, generated=made, train_radii=radii(train, 1))
    assert torch.equal(again.authentic, found.authentic)
    with pytest.raises(UsageError, match=r"radii\(train, k=1\)"):
        authenticity(train=train, generated=made, train_radii=radii(train, 2))


def test_copying_test_flags_the_copier_and_clears_the_honest(world: World) -> None:
    honest, copier, half = (
        copying_test(train=world.train, test=world.test, generated=g, pca=6, cells=4)
        for g in (world.honest, world.copier, world.half)
    )
    assert copier.z < -15 and copier.value < -5 and copier.p_value < 1e-6
    assert abs(honest.z) < 3 and abs(honest.value) < 2.5 and honest.p_value > 0.001
    assert copier.z < half.z < -5
    far = copying_test(train=world.train, test=world.test, generated=3 * world.honest, pca=6, cells=1)
    assert far.z > 5 and far.p_value > 0.999


def test_copying_in_one_cell_shows_there() -> None:
    apart = torch.zeros(8)
    apart[0] = 60
    train, test = (torch.cat([normal(300, 8, seed=s), normal(300, 8, seed=s + 1) + apart]) for s in (0, 2))
    copies = train[:300] + 0.01 * normal(300, 8, seed=5)
    too_wide = 1.6 * normal(300, 8, seed=6) + apart
    found = copying_test(train=train, test=test, generated=torch.cat([copies, too_wide]), cells=2, pca=None)
    assert sorted(cell.z > 0 for cell in found.cells) == [False, True]
    assert found.weakest < -10 < found.z and found.weakest < found.z - 5 and found.judged == 1
    assert found.value == pytest.approx(sum(c.z * c.n_test for c in found.cells) / 600)
    few = copying_test(train=train, test=test, generated=copies, cells=2, pca=None)
    assert sum(math.isnan(cell.z) for cell in few.cells) == 1 and few.judged == 0.5


def test_null_of_the_copying_test_is_standard_normal() -> None:
    def draw(s: int) -> float:
        train, test, made = (normal(n, 5, seed=3 * s + part) for part, n in enumerate((120, 90, 80)))
        return copying_test(train=train, test=test, generated=made).z

    found = [draw(s) for s in range(60)]
    assert abs(np.mean(found)) < 4 / math.sqrt(60) and 0.7 < np.std(found) < 1.6  # they share the training set


@pytest.mark.parametrize("values", [5, 1000])
def test_z_is_that_of_scipy_with_ties(values: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    generator = np.random.default_rng(1)
    a, b = generator.integers(0, values, 70), generator.integers(0, values, 90) + 0.2 * values // 3
    theirs = stats.mannwhitneyu(a, b, alternative="less", method="asymptotic", use_continuity=False)
    z = mann_whitney_z(torch.tensor(a).double(), torch.tensor(b).double())
    assert math.erfc(-z / math.sqrt(2)) / 2 == pytest.approx(theirs.pvalue, rel=1e-9)
    u = (np.sign(a[:, None] - b) + 1).sum() / 2
    assert theirs.statistic == u
    assert mann_whitney_z(torch.ones(5), torch.ones(7)) == 0


def test_cells_are_seeded_and_found() -> None:
    centres = 20 * normal(4, 3, seed=8).double()
    points = (centres[:, None] + normal(4, 60, 3, seed=9)).reshape(-1, 3)
    found = kmeans(points, 4, seed=1)
    assert torch.equal(found, kmeans(points, 4, seed=1))
    cell = nearest_centre(points, found).view(4, 60)
    assert bool((cell == cell[:, :1]).all()) and len(set(cell[:, 0].tolist())) == 4
    assert torch.allclose(found[cell[:, 0]], points.view(4, 60, 3).mean(1))
    assert len(kmeans(torch.ones(10, 2).double(), 3)) == 3  # nothing to tell apart


def test_memorisation_fid_flags_the_copier_and_clears_the_honest(world: World) -> None:
    wide = {
        name: torch.cat([getattr(world, name), torch.ones(1).expand(len(getattr(world, name)), 1)], 1)
        for name in ("train", "honest", "copier")
    }
    honest, copier = (memorisation_fid(train=wide["train"], generated=wide[g]) for g in ("honest", "copier"))
    assert copier.penalised and 20 * copier.distance < honest.distance
    assert copier.value == copier.frechet / copier.distance
    assert (
        copier.frechet < honest.frechet
        and copier.value > 2 * memorisation_fid(train=wide["train"], generated=wide["honest"], threshold=0.001).value
    )
    assert not memorisation_fid(train=wide["train"], generated=wide["honest"], threshold=1e-6).penalised


def test_memorisation_fid_of_the_other_direction_is_that_of_torchmetrics() -> None:
    mifid = pytest.importorskip("torchmetrics.image.mifid")
    train, made = normal(150, 8).abs() + 1, normal(130, 8, seed=1).abs() + 1.1
    theirs = mifid._compute_cosine_distance(train.double(), made.double(), 0.1)
    ours = memorisation_fid(train=train, generated=made, direction="real")
    assert ours.penalised and ours.distance == pytest.approx(float(theirs), rel=1e-12)
    assert ours.frechet == frechet_distance(real=train, generated=made)

    def moments(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return rows.double().mean(0), torch.cov(rows.double().T), rows.double()

    assert ours.value == pytest.approx(float(mifid._mifid_compute(*moments(train), *moments(made))), rel=1e-6)
    other = memorisation_fid(train=train, generated=made)
    theirs = mifid._compute_cosine_distance(made.double(), train.double())
    assert other.distance == pytest.approx(float(theirs), rel=1e-12)
    assert other.distance != ours.distance


def test_cosines_are_those_of_a_loop() -> None:
    a, b = normal(70, 9), torch.cat([normal(300, 9, seed=1), -2 * normal(70, 9)[:20], torch.zeros(1, 9)])
    cosine = torch.nn.functional.cosine_similarity(a.double()[:, None], b.double(), dim=2).abs()
    assert torch.allclose(cosine_distances(a, b), 1 - cosine.amax(1), atol=1e-14)
    assert float(cosine_distances(a, b)[:20].max()) < 1e-14  # the sign of a feature vector does not matter
    assert torch.equal(cosine_distances(torch.zeros(2, 9), b), torch.ones(2).double())
    assert torch.allclose(cosine_distances(a * 1e-30, b.double() * 1e-200), 1 - cosine.amax(1), atol=1e-6)


def test_suspects_are_the_copies_with_what_they_copy(world: World) -> None:
    found = suspects(train=world.train, test=world.test, generated=world.half, count=150)
    assert set(found.indices.tolist()) == set(range(150)) and torch.equal(found.nearest_train, found.indices)
    assert bool((found.ratio.diff() >= 0).all()) and float(found.ratio[-1]) < 0.3
    to_train, to_test = distances(world.half, world.train).amin(1), distances(world.half, world.test).amin(1)
    assert torch.allclose(found.ratio, (to_train / to_test).sort().values[:150], rtol=1e-12)
    assert torch.equal(found.distance_train, to_train[found.indices])
    assert torch.equal(found.nearest_test, distances(world.half, world.test).argmin(1)[found.indices])
    honest = suspects(train=world.train, test=world.test, generated=world.honest, count=1000)
    assert len(honest.ratio) == 300 and 0.8 < float(honest.ratio.median()) < 1.2 and float(honest.ratio[0]) > 0.2
    both = suspects(train=world.train, test=world.train, generated=world.train, count=3)
    assert torch.equal(both.ratio, torch.ones(3).double())


def test_two_halves_tell_copying_from_learning() -> None:
    train_a, train_b = normal(40, 3, 4, 4), normal(40, 3, 4, 4, seed=1)

    def copies(train: Tensor):
        return lambda seed: train[seed % 40] + 0.01 * normal(3, 4, 4, seed=seed)

    def learned(seed: int) -> np.ndarray:
        return normal(1, 3, 4, 4, seed=1000 + seed).numpy()

    memory = disjoint_halves_report(copies(train_a), copies(train_b), train_a, train_b, range(12))
    assert memory.means["nearest"] > 0.99 and memory.means["agreement"] < 0.3 and memory.means["other"] < 0.7
    assert memory.rows_a.tolist() == memory.rows_b.tolist() == list(range(12))
    same = disjoint_halves_report(learned, learned, train_a, train_b, [3, 5])
    assert same.means["agreement"] == pytest.approx(1) and same.means["nearest"] < 0.7 and same.seeds == (3, 5)
    centre = torch.cat([train_a, train_b]).double().mean(0)
    one = (torch.from_numpy(learned(3))[0].double() - centre).flatten()
    cosine = torch.nn.functional.cosine_similarity(one[None], (train_a - centre).flatten(1), dim=1)
    assert float(same.nearest_a[0]) == pytest.approx(float(cosine.max()))
    assert torch.equal(same.nearest_a, same.other_b)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda x: authenticity(train=x, generated=x[:, :2]), "train has 3 features"),
        (lambda x: copying_test(train=x, test=x, generated=x, cells=9), "cells=9 of 6"),
        (lambda x: copying_test(train=x, test=x, generated=x, pca=0), "pca=64"),
        (lambda x: memorisation_fid(train=x, generated=x, direction="both"), "torchmetrics"),
        (lambda x: memorisation_fid(train=x, generated=x, threshold=0), "use 0.1"),
        (lambda x: suspects(train=x, test=x, generated=x, count=0), "count=16"),
        (lambda x: suspects(train=x, test=x[:, :1], generated=x), "test 1"),
        (lambda x: disjoint_halves_report(lambda s: x[0], lambda s: x[0], x, x, [1]), "6 pictures of train_b"),
        (lambda x: disjoint_halves_report(lambda s: x[0], lambda s: x[0], x, x + 1, []), "seeds=range"),
        (lambda x: disjoint_halves_report(lambda s: x, lambda s: x, x, x + 10, [1]), "a sampler made"),
        (lambda x: disjoint_halves_report(lambda s: x[0], lambda s: x[0], x, x[:, :2], [1]), "one size"),
    ],
)
def test_bad_input_is_refused_in_one_line(call, says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        call(torch.arange(18.0).view(6, 3).square())
    assert "\n" not in str(caught.value)
