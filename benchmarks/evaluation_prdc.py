"""Precision, recall, density, coverage against the prdc package, interleaved: seconds of processor time and memory.

    python benchmarks/evaluation_prdc.py                       # N = M = 5000, 2048 features, k = 5, one thread
    python benchmarks/evaluation_prdc.py --rows 10000 --runs 3

    python benchmarks/evaluation_prdc.py --rows 50000 --features 256 --mapped     # memory beyond two mapped files

Contestants take turns and the best of each counts. Memory is how far that of a fresh process grows while it works,
mapped files left out. Both must give the same four numbers.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
NAMES = ("precision", "recall", "density", "coverage")


def sets(rows: int, features: int) -> tuple[Any, Any]:
    """Correlated, skewed, non-negative rows like those of a pooled layer: float32 (rows, features) twice."""
    import numpy as np

    rng = np.random.default_rng(0)
    mixing = rng.standard_normal((64, features)).astype(np.float32)

    def draw(shift: float) -> Any:
        x = rng.standard_normal((rows, 64), dtype=np.float32) @ mixing
        x += 4 * rng.standard_normal((rows, features), dtype=np.float32) + np.float32(shift)
        return np.maximum(x, 0, out=x)

    return draw(0.0), draw(0.3)


def on_disk(rows: int, features: int, folder: str) -> tuple[Any, Any]:
    """Plain normal rows of float32 in two files, mapped: what a run reads is not counted as memory that it needs."""
    import numpy as np
    import torch

    mapped = []
    for seed, name in enumerate(("real", "generated")):
        path = Path(folder) / f"{name}.npy"
        file = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(rows, features))
        rng = np.random.default_rng(seed)
        for start in range(0, rows, 1000):
            part = file[start : start + 1000]
            part[:] = rng.standard_normal(part.shape, dtype=np.float32)
        del file, part
        mapped.append(torch.from_numpy(np.load(path, mmap_mode="r+")))
    return mapped[0], mapped[1]


def ours(real: Any, generated: Any, k: int, kept: Any = None) -> tuple[float, ...]:
    from pilotage.evaluation import prdc

    found = prdc(real=real, generated=generated, k=k, real_radii=kept)
    return tuple(getattr(found, name) for name in NAMES)


def peer(real: Any, generated: Any, k: int) -> tuple[float, ...]:
    import prdc

    with contextlib.redirect_stdout(io.StringIO()):
        found = prdc.compute_prdc(real, generated, nearest_k=k)
    return tuple(float(found[name]) for name in NAMES)


def warm_up(k: int) -> None:
    """Import and start everything, so that it is counted for nobody."""
    real, generated = sets(200, 16)
    ours(real, generated, k)
    peer(real, generated, k)


def time_them(rows: int, features: int, k: int, runs: int) -> None:
    """Print the best processor seconds of each contestant and the ratios."""
    from pilotage.evaluation import radii

    warm_up(k)
    real, generated = sets(rows, features)
    kept = radii(real, k)
    contestants = {
        "pilotage": lambda: ours(real, generated, k),
        "pilotage, real radii kept": lambda: ours(real, generated, k, kept),
        "prdc": lambda: peer(real, generated, k),
    }
    best = dict.fromkeys(contestants, float("inf"))
    values: dict[str, tuple[float, ...]] = {}
    for _ in range(runs):
        for name, work in contestants.items():
            began = time.process_time()
            values[name] = work()
            best[name] = min(best[name], time.process_time() - began)
    for name, seconds in best.items():
        numbers = " ".join(f"{n} {v:.5f}" for n, v in zip(NAMES, values[name], strict=True))
        print(f"{name:26} {seconds:7.2f} s  prdc takes {best['prdc'] / seconds:4.1f} times as long   {numbers}")


def grow(contestant: str, rows: int, features: int, k: int, mapped: bool) -> None:
    """Print by how many MiB the peak of the memory that is not mapped from files grows during one run."""
    warm_up(k)
    with tempfile.TemporaryDirectory() as folder:
        real, generated = on_disk(rows, features, folder) if mapped else sets(rows, features)
        before, watch = anonymous(), Watch()
        watch.start()
        began = time.process_time()
        {"pilotage": ours, "prdc": peer}[contestant](real, generated, k)
        seconds = time.process_time() - began
        watch.stop()
    print(f"{(watch.peak - before) / 1024:.0f} MiB in {seconds:.1f} s")


class Watch(threading.Thread):
    """Looks at the memory of this process twenty times a second; peak in KiB."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak, self.done = 0, threading.Event()

    def run(self) -> None:
        while not self.done.wait(0.05):
            self.peak = max(self.peak, anonymous())

    def stop(self) -> None:
        """No more."""
        self.done.set()
        self.join()


def anonymous() -> int:
    """KiB of memory of this process that are not mapped from files; /proc/self/status lags behind by megabytes."""
    with open("/proc/self/smaps_rollup") as file:  # noqa: PTH123
        return next(int(line.split()[1]) for line in file if line.startswith("Anonymous:"))


def main() -> None:
    """Times in this process, memory in one fresh process for each contestant."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=5000, help="N = M")
    parser.add_argument("--features", type=int, default=2048)
    parser.add_argument("--k", type=int, default=5)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--mapped", action="store_true", help="only memory, and ours, with features mapped from files")
    parser.add_argument("--grow", choices=["pilotage", "prdc"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if os.environ.get(THREADS[0]) != str(args.threads):  # thread pools read it when they are imported
        os.environ.update(dict.fromkeys(THREADS, str(args.threads)))
        os.execv(sys.executable, [sys.executable, *sys.argv])
    if args.grow:
        grow(args.grow, args.rows, args.features, args.k, args.mapped)
        return
    print(f"N = M = {args.rows}, {args.features} features, k = {args.k}, {args.threads} thread(s), best of {args.runs}")
    if not args.mapped:
        time_them(args.rows, args.features, args.k, args.runs)
    if sys.platform == "linux":
        for name in ("pilotage",) if args.mapped else ("pilotage", "prdc"):
            done = subprocess.run(
                [sys.executable, *sys.argv, "--grow", name], capture_output=True, text=True, check=True
            )
            print(f"{name:26} peak grows by {done.stdout.strip()}")


if __name__ == "__main__":
    main()
