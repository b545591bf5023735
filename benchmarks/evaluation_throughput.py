"""Pictures a second of one pass over a folder of PNGs, and what the time of it goes into.

    python benchmarks/evaluation_throughput.py               # 32 and 256 pixels; three networks; one thread: 5 minutes
    python benchmarks/evaluation_throughput.py --sizes 256 --networks random

Each row is `collect` (what `score` does with a set before it measures) against its parts alone on the same pictures:
decoding the files, preparing pictures for the network, the network on tensors that are ready, colour statistics, the
judge. "rest" is what remains: batching, copies, keeping. Seconds are of the processor, one thread; whole and parts
take turns, and the best of each counts. "inception" is the network of FID with random weights.
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from evaluation_prdc import THREADS

NETWORKS = ("embedded", "random", "inception")
PARTS = ("decoding", "preparing", "network", "colour", "judge")


def make(folder: Path, count: int, size: int) -> Path:
    """PNGs of the embedded world with their captions, and noise of 3 levels, without which they compress to nothing."""
    import numpy as np
    from PIL import Image

    from pilotage.evaluation.sources.embedded import EmbeddedSource

    folder.mkdir()
    rng, captions = np.random.default_rng(0), [("file", "caption")]
    for i, picture in enumerate(EmbeddedSource("test", count, size)):
        pixels = picture.pixels + rng.integers(-3, 4, picture.pixels.shape)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{i:06d}.png")
        captions.append((f"{i:06d}.png", str(picture.text)))
    with (folder / "captions.csv").open("w", newline="") as file:
        csv.writer(file).writerows(captions)
    return folder


def network(name: str) -> Any:
    """An extractor by name; Inception with weights drawn here, so that no file is needed."""
    import torch

    from pilotage.evaluation import Extractor, open_features
    from pilotage.evaluation.features.inception import SIDE, Inception, prepared
    from pilotage.evaluation.features.resize import PRESETS

    if name != "inception":
        return open_features(name)
    torch.manual_seed(0)
    drawn = Inception().eval().requires_grad_(False)
    resize = partial(prepared, resize=PRESETS["clean"], mapping="(x - 128) / 128", dtype=torch.float32)
    return Extractor("inception-random", drawn, "random", side=SIDE, prepare=resize)


def contestants(folder: Path, extractor: Any) -> dict[str, Callable[[], object]]:
    """The pass and its parts, to be timed."""
    import numpy as np
    import torch

    from pilotage.evaluation import colour_statistics, open_source
    from pilotage.evaluation.arrays import full_precision
    from pilotage.evaluation.collect import collect
    from pilotage.evaluation.features import ROWS
    from pilotage.evaluation.judges import open_judge

    judge = open_judge("embedded")
    read = list(open_source(folder))
    batches = torch.from_numpy(np.stack([p.pixels for p in read])).permute(0, 3, 1, 2).contiguous().split(ROWS)
    ready = [extractor.ready(batch) for batch in batches]

    def prepare() -> None:
        with full_precision(extractor.device):
            for batch in batches:
                extractor.ready(batch)

    def run() -> None:
        with full_precision(extractor.device):
            for batch in ready:
                extractor.of_ready(batch)

    def judged() -> None:
        for batch in batches:
            judge.predict(batch)
        for picture in read:
            judge.parse(str(picture.text))

    return {
        "whole": lambda: collect(open_source(folder), extractors=[extractor], judge=judge),
        "decoding": lambda: sum(1 for _ in open_source(folder)),
        "preparing": prepare,
        "network": run,
        "colour": lambda: [colour_statistics(batch) for batch in batches],
        "judge": judged,
    }


def best_of(works: dict[str, Callable[[], object]], runs: int) -> dict[str, float]:
    """Processor seconds of each, the least of several turns; the first turn of several warms up."""
    best = dict.fromkeys(works, float("inf"))
    for turn in range(runs + 1):
        for name, work in works.items():
            began = time.process_time()
            work()
            if turn:
                best[name] = min(best[name], time.process_time() - began)
    return best


def report(size: int, name: str, count: int, best: dict[str, float]) -> None:
    """One line: pictures a second of the whole, of decoding and of the network alone, and shares."""
    whole = best["whole"]
    shares = {part: best[part] / whole for part in PARTS}
    shares["rest"] = 1 - sum(shares.values())
    rates = f"{count / whole:8.0f} /s, decoding alone {count / best['decoding']:7.0f}, network alone "
    print(f"{size:4} px  {name:10}{rates}{count / best['network']:7.0f}", end="   ")
    print("  ".join(f"{part} {100 * share:.1f} %" for part, share in shares.items()), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[32, 256])
    parser.add_argument("--networks", nargs="+", default=NETWORKS, choices=NETWORKS)
    parser.add_argument("--count", type=int, default=512, help="pictures; of Inception an eighth")
    parser.add_argument("--runs", type=int, default=3)
    args = parser.parse_args()
    if os.environ.get(THREADS[0]) != "1":  # thread pools read it when they are imported
        os.environ.update(dict.fromkeys(THREADS, "1"))
        os.execv(sys.executable, [sys.executable, *sys.argv])
    print(f"{args.count} PNGs, one thread, best of {args.runs} in seconds of processor time")
    with tempfile.TemporaryDirectory() as place:
        for size in args.sizes:
            for name in args.networks:
                count = args.count // 8 if name == "inception" else args.count
                folder = Path(place) / f"{size}-{count}"
                works = contestants(folder if folder.exists() else make(folder, count, size), network(name))
                report(size, name, count, best_of(works, args.runs))


if __name__ == "__main__":
    main()
