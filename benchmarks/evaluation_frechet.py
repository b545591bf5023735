"""Frechet distances against the routes of other tools, interleaved: seconds of processor time, and who is right.

    python benchmarks/evaluation_frechet.py                   # 2048 features, one thread, best of 3: four minutes

Two cases: 10,000 rows a set, of which only mean and covariance are given, and 1,000 rows a set, from the rows. The
contestants take turns and the best of each counts. "sqrtm" is the distance by `scipy.linalg.sqrtm` of the product of
the covariances, as pytorch-fid and clean-fid take it; "torchmetrics" is its function of means and covariances, by
eigenvalues of that product. The reference is in nobody's time and shares no step with any of them: singular values
by another LAPACK driver, of products of rows in 80-bit floats where the covariances are singular.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

from evaluation_prdc import THREADS, sets

Case = tuple[dict[str, Callable[[], float]], Callable[[], float]]  # contestants, reference


def statistics_of(rows: Any) -> tuple[Any, Any]:
    """Mean (D,) and covariance (D, D), float64, as anybody takes them."""
    import numpy as np

    rows = rows.astype(np.float64)
    return rows.mean(0), np.cov(rows, rowvar=False)


def by_sqrtm(real: tuple[Any, Any], generated: tuple[Any, Any]) -> float:
    """(mean, covariance) of each. What is imaginary in the root is rounding, and is dropped."""
    import scipy.linalg

    (mean_r, cov_r), (mean_g, cov_g) = real, generated
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the matrix is singular
        root = scipy.linalg.sqrtm(cov_r @ cov_g)
    return float(((mean_r - mean_g) ** 2).sum() + cov_r.trace() + cov_g.trace() - 2 * root.trace().real)


def by_torchmetrics(real: tuple[Any, Any], generated: tuple[Any, Any]) -> float:
    import torch
    from torchmetrics.image.fid import _compute_fid

    return float(_compute_fid(*(torch.from_numpy(each) for each in (*real, *generated))))


def full_rank(rows: int, features: int) -> Case:
    """From mean and covariance alone."""
    import numpy as np
    import scipy.linalg

    from pilotage.evaluation import Moments, frechet_from_moments

    x, y = sets(rows, features)
    given = statistics_of(x), statistics_of(y)
    kept = Moments.of(x), Moments.of(y)

    def reference() -> float:
        (mean_x, cov_x), (mean_y, cov_y) = given
        lower_x, lower_y = np.linalg.cholesky(cov_x), np.linalg.cholesky(cov_y)
        roots = scipy.linalg.svdvals(lower_x.T @ lower_y)
        return float(((mean_x - mean_y) ** 2).sum() + cov_x.trace() + cov_y.trace() - 2 * roots.sum())

    return {
        "pilotage": lambda: frechet_from_moments(real=kept[0], generated=kept[1]).value,
        "sqrtm": lambda: by_sqrtm(*given),
        "torchmetrics": lambda: by_torchmetrics(*given),
    }, reference


def few_rows(rows: int, features: int) -> Case:
    """From the rows, fewer than features."""
    import numpy as np
    import scipy.linalg

    from pilotage.evaluation import frechet_distance

    x, y = sets(rows, features)

    def reference() -> float:
        wide_x, wide_y = x.astype(np.longdouble), y.astype(np.longdouble)
        mean_x, mean_y = wide_x.mean(0), wide_y.mean(0)
        a, b = ((w - m) / np.sqrt(np.longdouble(rows - 1)) for w, m in ((wide_x, mean_x), (wide_y, mean_y)))
        products = np.concatenate([part @ b.T for part in np.array_split(a, 20)])
        roots = scipy.linalg.svd(products.astype(np.float64), compute_uv=False, lapack_driver="gesvd")
        traces = (a * a).sum() + (b * b).sum()
        return float(((mean_x - mean_y) ** 2).sum() + traces - 2 * np.longdouble(roots).sum())

    return {
        "pilotage": lambda: frechet_distance(real=x, generated=y),
        "sqrtm": lambda: by_sqrtm(statistics_of(x), statistics_of(y)),
        "torchmetrics": lambda: by_torchmetrics(statistics_of(x), statistics_of(y)),
    }, reference


def compare(title: str, case: Case, runs: int) -> None:
    """Print the best processor seconds of each contestant, ratios, and how far its value is from the reference."""
    contestants, reference = case
    best, values = dict.fromkeys(contestants, float("inf")), dict.fromkeys(contestants, 0.0)
    for _ in range(runs):
        for name, work in contestants.items():
            began = time.process_time()
            values[name] = work()
            best[name] = min(best[name], time.process_time() - began)
    exact = reference()
    print(f"{title}; reference {exact:.10f}")
    for name, seconds in best.items():
        ratio, error = seconds / best["pilotage"], values[name] - exact
        print(f"  {name:14} {seconds:6.2f} s, {ratio:5.1f} of ours   {values[name]:.10f}, off by {error:+.1e}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000, help="of the case from moments")
    parser.add_argument("--few", type=int, default=1000, help="rows of the case from rows")
    parser.add_argument("--features", type=int, default=2048)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    if os.environ.get(THREADS[0]) != str(args.threads):  # thread pools read it when they are imported
        os.environ.update(dict.fromkeys(THREADS, str(args.threads)))
        os.execv(sys.executable, [sys.executable, *sys.argv])
    if not args.few <= args.features < args.rows:
        parser.error("--few must be at most --features, and that less than --rows")
    print(f"{args.features} features, {args.threads} thread(s), best of {args.runs} in seconds of processor time")
    compare("warm-up", few_rows(16, 32), 1)
    compare(f"{args.rows} rows a set, from moments", full_rank(args.rows, args.features), args.runs)
    compare(f"{args.few} rows a set, from rows", few_rows(args.few, args.features), args.runs)


if __name__ == "__main__":
    main()
