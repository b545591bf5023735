"""Precision, recall, density, coverage: exact to a float64 loop, and to the reference package away from ties."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pilotage.errors import UsageError
from pilotage.evaluation import expected_coverage, prdc, radii
from pilotage.evaluation.metrics.duplicates import duplicated_share, representatives
from pilotage.evaluation.metrics.prdc import PRDC, SETTINGS, smallest_k


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape)).float()


def whole(high: int, *shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, high, shape)).float()


def squares(a: Tensor, b: Tensor) -> Tensor:
    return torch.stack([(row - b.double()).square().sum(1) for row in a.double()])


def loop(x: Tensor, y: Tensor, k: int, closed: bool) -> tuple[float, ...]:
    """The definitions, by a float64 loop over rows."""

    def to_kth(rows: Tensor) -> Tensor:
        return squares(rows, rows).fill_diagonal_(float("inf")).kthvalue(k, 1).values

    distance, inside = squares(x, y), torch.le if closed else torch.lt
    of_real, of_made = inside(distance, to_kth(x)[:, None]), inside(distance, to_kth(y)[None])
    return (
        float(of_real.any(0).double().mean()),
        float(of_made.any(1).double().mean()),
        float(of_real.sum()) / k / len(y),
        float(of_real.any(1).double().mean()),
    )


def four(found: PRDC) -> tuple[float, ...]:
    return found.precision, found.recall, found.density, found.coverage


SETS: dict[str, Callable[[], tuple[Tensor, Tensor]]] = {
    "gaussians": lambda: (normal(700, 16), normal(1100, 16, seed=1) * 1.1),
    "ties": lambda: (whole(3, 800, 5), whole(4, 600, 5, seed=1)),
    "many ties": lambda: (whole(2, 700, 3), whole(2, 650, 3, seed=1)),
    "duplicates": lambda: (normal(20, 8)[whole(20, 500).long()], normal(20, 8)[whole(20, 400, seed=1).long()]),
    "constant": lambda: (torch.ones(300, 4), torch.ones(200, 4)),
    "offset": lambda: (normal(600, 6) + 1e4, normal(500, 6, seed=1) + 1e4),
    "far offset in float64": lambda: (normal(600, 6).double() + 1e9, normal(500, 6, seed=1).double() + 1e9),
    "tiny": lambda: (normal(300, 6) * 1e-22, normal(200, 6, seed=1) * 1e-22),
    "bfloat16": lambda: (normal(600, 6).bfloat16(), normal(500, 6, seed=1).bfloat16()),
    "far too wide": lambda: (normal(600, 6), normal(500, 6, seed=1) * 5),
    "far outliers": lambda: (
        torch.cat([normal(600, 32), torch.full((1, 32), 1e4)]),
        torch.cat([normal(400, 32, seed=1), 1e4 + normal(200, 32, seed=2) / 10]),
    ),
}


@pytest.mark.parametrize("closed", [False, True])
@pytest.mark.parametrize("k", [1, 5])
@pytest.mark.parametrize("name", SETS)
def test_equals_a_float64_loop(name: str, k: int, closed: bool) -> None:
    x, y = SETS[name]()
    found = prdc(real=x, generated=y, k=k, closed=closed, block=512)
    assert four(found) == pytest.approx(loop(x, y, k, closed), abs=1e-12)


@pytest.mark.parametrize("block", [64, 100, 1024])
def test_blocks_do_not_matter(block: int) -> None:
    x, y = normal(530, 24), normal(470, 24, seed=1)
    assert four(prdc(real=x, generated=y, block=block)) == pytest.approx(loop(x, y, 5, False), abs=1e-12)


def test_radii_are_exact_and_can_be_kept() -> None:
    x, y = normal(400, 12), normal(300, 12, seed=1)
    kept = radii(x, k=4)
    exact = squares(x, x).fill_diagonal_(float("inf")).kthvalue(4, 1).values
    assert torch.allclose(kept.squared, exact, rtol=1e-14, atol=0)
    assert torch.equal(kept.distances, kept.squared.sqrt())
    assert four(prdc(real=x, generated=y, k=4, real_radii=kept)) == four(prdc(real=x, generated=y, k=4))
    with pytest.raises(UsageError, match=r"radii\(real, k=5\)"):
        prdc(real=x, generated=y, k=5, real_radii=kept)


def test_without_recall_the_rest_is_the_same() -> None:
    x, y = normal(300, 12), normal(200, 12, seed=1)
    full, part = prdc(real=x, generated=y), prdc(real=x, generated=y, recall=False)
    assert np.isnan(part.recall) and (part.precision, part.density, part.coverage) == (
        full.precision,
        full.density,
        full.coverage,
    )


@pytest.mark.parametrize(("n", "m", "d"), [(600, 600, 32), (500, 800, 200)])
def test_agrees_with_the_prdc_package(n: int, m: int, d: int) -> None:
    peer = pytest.importorskip("prdc")
    x, y = normal(n, d), normal(m, d, seed=1) * 0.95
    with contextlib.redirect_stdout(io.StringIO()):
        theirs = peer.compute_prdc(x.double().numpy(), y.double().numpy(), nearest_k=5)
    ours = prdc(real=x, generated=y, k=5)
    for name, value in theirs.items():
        assert getattr(ours, name) == pytest.approx(float(value), abs=1e-12), name


def test_null_of_coverage_and_density() -> None:
    """The mean over draws lies within 4 standard errors of the exact value, at equal and at unequal numbers."""
    for n, m, d in [(200, 200, 2), (200, 200, 64), (150, 400, 16)]:
        found = [prdc(real=normal(n, d, seed=2 * s), generated=normal(m, d, seed=2 * s + 1)) for s in range(40)]
        coverage, density = (np.array([getattr(f, name) for f in found]) for name in ("coverage", "density"))
        for values, expected in ((coverage, expected_coverage(n, m, 5)), (density, 1.0)):
            assert abs(values.mean() - expected) < 4 * values.std(ddof=1) / len(values) ** 0.5
        assert found[0].expected_coverage == expected_coverage(n, m, 5) and found[0].expected_density == 1


def test_null_of_coverage_by_hand() -> None:
    assert expected_coverage(1000, 1000, 5) == pytest.approx(0.96898, abs=1e-5)
    assert expected_coverage(1000, 5000, 5) == pytest.approx(0.99987, abs=1e-5)
    assert expected_coverage(10**7, 10**7, 3) == pytest.approx(1 - 2**-3, abs=1e-6)


def test_the_smallest_k_reaches_the_null_coverage() -> None:
    assert smallest_k(10**5, 10**5) == smallest_k(1000, 1000) == 5 and smallest_k(1000, 1000, 0.9) == 4
    for n, m, wanted in [(1000, 1000, 0.95), (500, 2000, 0.95), (2000, 500, 0.95), (100, 100, 0.5)]:
        k = smallest_k(n, m, wanted)
        assert expected_coverage(n, m, k) >= wanted and (k == 1 or expected_coverage(n, m, k - 1) < wanted)
    x, y = normal(300, 6), normal(100, 6, seed=1)
    found = prdc(real=x, generated=y, k="auto")
    assert found.k == smallest_k(300, 100) == 11 and four(found) == four(prdc(real=x, generated=y, k=found.k))
    assert prdc(real=x, generated=y, k="auto", null_coverage=0.6).k < found.k
    with pytest.raises(UsageError, match=r"use 0\.95"):
        prdc(real=x, generated=y, k="auto", null_coverage=1.0)
    with pytest.raises(UsageError, match="k='auto'"):
        prdc(real=x, generated=y, k="all")  # type: ignore[arg-type]


def test_published_settings_fix_k_and_ties() -> None:
    assert {name: (s.k, s.closed) for name, s in SETTINGS.items()} == {
        "kynk-vgg": (3, True),
        "adm-inception": (3, True),
        "prdc": (5, False),
    }
    x, y = whole(3, 300, 4), whole(3, 300, 4, seed=1)
    values = {four(prdc(real=x, generated=y, k=s.k, closed=s.closed)) for s in SETTINGS.values()}
    assert len(values) == 2  # two of the three are one computation on other features


def test_rows_on_disk_are_read_where_they_lie(tmp_path: Path) -> None:
    """Nothing near the size of a mapped array is ever made in memory, rounded or not."""
    x, y = normal(1200, 3000), normal(1000, 3000, seed=1)
    for name, rows in (("x", x), ("y", y)):
        np.save(tmp_path / f"{name}.npy", rows.numpy())
    mapped = [torch.from_numpy(np.load(tmp_path / f"{name}.npy", mmap_mode="r+")) for name in "xy"]
    largest = 0

    class Watch(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            found = function(*args, **(kwargs or {}))
            if (
                isinstance(found, Tensor)
                and found.is_floating_point()
                and found.untyped_storage().data_ptr() not in (m.untyped_storage().data_ptr() for m in mapped)
            ):
                largest = max(largest, found.untyped_storage().nbytes())
            return found

    with Watch():
        found = prdc(real=mapped[0], generated=mapped[1], block=128)
    assert 0 < largest < x.nbytes / 2
    assert four(found) == four(prdc(real=x, generated=y))


def test_swap_collapse_and_outliers() -> None:
    x = torch.cat([normal(300, 8), normal(300, 8, seed=1) + 20])
    collapsed = normal(600, 8, seed=2) * 0.3  # inside one of two modes
    scattered = normal(600, 8, seed=3) * 200
    found = prdc(real=x, generated=collapsed)
    assert found.precision > 0.99 and found.recall < 0.05 and found.coverage < 0.55
    swapped = prdc(real=collapsed, generated=x)
    assert swapped.recall > 0.99 and swapped.precision < 0.05
    assert prdc(real=x, generated=scattered).precision < 0.01


def test_one_far_outlier_fools_precision_more_than_density() -> None:
    x = torch.cat([normal(999, 64), torch.full((1, 64), 3.0)])
    y = torch.cat([normal(700, 64, seed=1), torch.full((300, 64), 3.0) + normal(300, 64, seed=2)])
    found = prdc(real=x, generated=y)
    assert found.precision > 0.75 and found.density < found.precision


def test_copying_the_real_set() -> None:
    x = normal(300, 8)
    same = prdc(real=x, generated=x)
    assert same.precision == same.recall == same.coverage == same.density == 1  # each ball: its centre and k - 1 others
    assert same.duplicates_real == same.duplicates_generated == 0


def test_duplicates_are_found_and_counted() -> None:
    x = normal(50, 6)
    rows = torch.cat([x, x[:10], x[:5]])
    first = representatives(rows)
    assert torch.equal(first[50:60], torch.arange(10)) and torch.equal(first[60:], torch.arange(5))
    assert torch.equal(first[:50], torch.arange(50))
    assert duplicated_share(first) == pytest.approx(15 / 65)
    assert torch.equal(representatives(torch.tensor([[0.0, 1.0], [-0.0, 1.0]])), torch.tensor([0, 0]))
    found = prdc(real=rows, generated=x, k=2)
    assert found.duplicates_real == pytest.approx(15 / 65) and found.duplicates_generated == 0


def test_a_lowered_matrix_precision_is_overruled_and_restored() -> None:
    x, y = normal(600, 64), normal(600, 64, seed=1)
    expected = four(prdc(real=x, generated=y))
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", torch.bfloat16):
            assert four(prdc(real=x, generated=y)) == expected
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_arrays_are_taken_and_left_alone() -> None:
    x, y = normal(60, 4).numpy(), normal(50, 4, seed=1).numpy()
    before = x.copy()
    assert four(prdc(real=x, generated=y)) == four(prdc(real=torch.from_numpy(x), generated=torch.from_numpy(y)))
    assert (x == before).all()


@pytest.mark.parametrize(
    ("real", "generated", "k", "says"),
    [
        (torch.ones(5, 2), torch.ones(9, 2), 5, "real has 5 rows and at least 6"),
        (torch.ones(9, 2), torch.ones(5, 2), 5, "generated has 5 rows"),
        (torch.ones(9, 2), torch.ones(9, 3), 5, "one extractor"),
        (torch.ones(9, 2), torch.ones(9, 2), 0, "use k=5"),
        (torch.ones(9, 2) * 1e25, -torch.ones(9, 2) * 1e25, 5, "divide them"),
    ],
)
def test_bad_input_is_refused_in_one_line(real: Tensor, generated: Tensor, k: int, says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        prdc(real=real, generated=generated, k=k)
    assert "\n" not in str(caught.value)
