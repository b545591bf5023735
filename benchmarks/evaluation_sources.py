"""How fast pictures are read: folder, zip, tar and npz with 1 and 2 threads, against a bare loop over Pillow.

    python benchmarks/evaluation_sources.py                        # 400 PNGs of 256 x 256
    python benchmarks/evaluation_sources.py --size 32 --count 4000 --kind JPEG

Contestants take turns and the best of each counts. The bare loop opens each file of the folder, decodes it to RGB and
makes an array of it, without sorting, checks, notes or captions; arrays are compared with reading all of them at once.
Ratios are of processor time, which other work on the machine disturbs little; what threads gain is in pictures a second
of the wall, and only where cores are free. What opening costs (listing the folder, the directory of the zip) is in it,
and stands beside it.
"""

from __future__ import annotations

import argparse
import io
import os
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from pilotage.evaluation import open_source


def make(folder: Path, count: int, size: int, kind: str) -> dict[str, Path]:
    """The same pictures in every form: coarse blocks with a little noise, as pictures compress."""
    rng = np.random.default_rng(0)
    shape = (count, size // 8, size // 8, 3)
    coarse = rng.integers(0, 256, shape).repeat(8, 1).repeat(8, 2)
    pictures = (coarse + rng.integers(-9, 10, coarse.shape)).clip(0, 255).astype(np.uint8)
    (folder / "folder").mkdir()
    with zipfile.ZipFile(folder / "x.zip", "w") as packed, tarfile.open(folder / "x.tar", "w") as tar:
        for i, picture in enumerate(pictures):
            name, held = f"{i:06d}.{kind.lower()}", io.BytesIO()
            Image.fromarray(picture).save(held, kind)
            (folder / "folder" / name).write_bytes(held.getvalue())
            packed.writestr(name, held.getvalue())
            info = tarfile.TarInfo(name)
            info.size = len(held.getvalue())
            tar.addfile(info, io.BytesIO(held.getvalue()))
    np.savez(folder / "x.npz", pictures)
    return {"folder": folder / "folder", "zip": folder / "x.zip", "tar": folder / "x.tar", "npz": folder / "x.npz"}


def bare(folder: Path) -> int:
    """What anybody would write."""
    count = 0
    for file in folder.iterdir():
        with Image.open(file) as image:
            count += np.array(image.convert("RGB")).ndim == 3
    return count


def bare_npz(file: Path) -> int:
    return len([np.array(picture) for picture in np.load(file)["arr_0"]])


def ours(path: Path, workers: int) -> int:
    return sum(1 for _ in open_source(path, workers=workers))


def seconds(work: Callable[[], object]) -> tuple[float, float]:
    """(of the wall, of the processor)."""
    began, begun = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - began, time.process_time() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=400)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--kind", default="PNG", choices=("PNG", "JPEG", "WEBP", "BMP"))
    parser.add_argument("--runs", type=int, default=3)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        paths = make(Path(place), given.count, given.size, given.kind)
        contestants: dict[str, Callable[[], object]] = {
            "bare loop": lambda: bare(paths["folder"]),
            "bare npz": lambda: bare_npz(paths["npz"]),
        }
        for name, path in paths.items():
            for workers in (1, 2) if name != "npz" else (1,):
                contestants[f"{name}, {workers}"] = lambda path=path, workers=workers: ours(path, workers)  # type: ignore
        best = dict.fromkeys(contestants, (float("inf"), float("inf")))
        for _ in range(given.runs + 1):  # the first warms up caches as well
            for name, work in contestants.items():
                wall, processor = seconds(work)
                best[name] = min(best[name][0], wall), min(best[name][1], processor)
        opening = {
            name: min(seconds(lambda path=path: open_source(path))[1] for _ in range(3))  # type: ignore[misc]
            for name, path in paths.items()
        }
    load, cores = os.getloadavg()[0], os.cpu_count()
    print(f"{given.count} {given.kind}s of {given.size} x {given.size}, load {load:.1f} on {cores} cores")
    for name, (wall, processor) in best.items():
        base = best["bare npz" if "npz" in name else "bare loop"][1]
        opened = opening.get(name.split(",")[0])
        note = "" if opened is None else f", of which opening {1e6 * opened / given.count:.1f}"
        used = f"{1e6 * processor / given.count:6.0f} us of the processor a picture{note}"
        print(f"{name:10s} {given.count / wall:9.0f} pictures/s   {processor / base:5.2f} of the bare loop   {used}")


if __name__ == "__main__":
    main()
