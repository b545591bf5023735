"""Figures of many pictures: overhead of the records, two processes against one, resume of a large run, kills.

    python benchmarks/generation_scale.py resume --count 50000     # decides what is left: seconds, and where they go
    python benchmarks/generation_scale.py overhead --count 200     # records and files against making pictures alone
    python benchmarks/generation_scale.py processes --count 400    # two processes of one thread against one
    python benchmarks/generation_scale.py kills --count 400 --kills 20 -o runs/kills    # 10000 for the figure

All with the embedded model. `overhead` and `processes` are ratios of interleaved repetitions; `processes` means
something on an idle machine with two cores only, and says how busy it was. `kills` may itself be stopped and started
again: runs, count of kills and the undisturbed run stay in its folder.
"""

from __future__ import annotations

import argparse
import cProfile
import hashlib
import json
import os
import pstats
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import yaml

from pilotage.generation import RunSpec, folder, generate
from pilotage.generation.environment import environment
from pilotage.generation.manifest import MANIFEST, finished_items
from pilotage.generation.models import open_model
from pilotage.zoo import world

ROOT = Path(__file__).resolve().parent.parent


def spec_of(count: int, output: Path | str | None = None, **changes: Any) -> RunSpec:
    """So many captions of the embedded world, one picture each."""
    settings: dict[str, Any] = {"prompts": world.captions(range(count), "test"), "seeds": f"0-{count - 1}"}
    settings |= {"paired": True, "threads": 1, "batch_size": 16, "output": str(output) if output else None}
    return RunSpec(**settings | changes)


# -- resume --------------------------------------------------------------------------------------------------------


def resume(count: int, missing: int, profiled: bool) -> None:
    """A folder of tiny files and a manifest as `run` leaves them: how long until it is known what is left."""
    with tempfile.TemporaryDirectory() as place:
        spec = spec_of(count, Path(place) / "run")
        _fake(Path(place) / "run", spec, count)
        for index in range(0, count, count // missing):
            (Path(place) / "run" / f"{index:06d}.png").unlink()
        profile = cProfile.Profile()
        if profiled:
            profile.enable()
        begun, cpu = time.perf_counter(), time.process_time()
        known = folder.as_begun(Path(place) / "run", spec)
        folder.refuse_other_run(Path(place) / "run", known)
        items = folder.look_at(Path(place) / "run", count).items
        left = set(range(count)) - items.keys()
        seconds, cpu = time.perf_counter() - begun, time.process_time() - cpu
        profile.disable()
        assert known == spec and len(left) == -(-count // (count // missing))
        print(f"{count} items, {len(left)} left: known after {seconds:.2f} s, of which {cpu:.2f} s of this process")
        if profiled:
            pstats.Stats(profile).sort_stats("cumulative").print_stats(18)
        for path in (Path(place) / "run").glob("*.png"):
            os.utime(path)
        begun = time.perf_counter()
        finished_items(Path(place) / "run", count)
        print(f"when every file was touched, so that all are read and hashed: {time.perf_counter() - begun:.2f} s")


def _fake(where: Path, spec: RunSpec, count: int) -> None:
    where.mkdir()
    head = {"spec": spec.plain(), "revision": "x", "inputs": {}, **environment("cpu")}
    (where / folder.RUN).write_text(yaml.dump(head, Dumper=folder._Dumper, sort_keys=False))
    content = b"\x89PNG" + bytes(2500)
    sha = hashlib.sha256(content).hexdigest()
    with (where / MANIFEST).open("w") as lines:
        for index, (prompt, seed) in enumerate(spec.pictures()):
            path = where / f"{index:06d}.png"
            path.write_bytes(content)
            item = {"index": index, "file": path.name, "seed": seed, "prompt": prompt, "bytes": len(content)}
            item |= {"changed": path.stat().st_mtime_ns, "sha256": sha, "evaluations": {"cond": 25.0, "uncond": 25.0}}
            batch = {"pictures": 16, "rows_per_call": 32, "evaluations": {"cond": 400, "uncond": 400}}
            lines.write(json.dumps(item | {"batch": batch, "seconds": 0.1234}) + "\n")


# -- overhead ------------------------------------------------------------------------------------------------------


def overhead(count: int, repetitions: int) -> None:
    """Seconds of `run` beside those of the pictures in it, by the clock inside; interleaved with `generate` alone."""
    torch.set_num_threads(1)
    model = open_model(spec_of(1))
    list(generate(spec_of(32), model=model))
    shares, ratios = [], []
    with tempfile.TemporaryDirectory() as place:
        for repetition in range(repetitions):
            begun = time.perf_counter()
            for sample in generate(spec_of(count), model=model):
                _plain_png(sample.image, Path(place) / "plain.png")
            plain = time.perf_counter() - begun
            begun = time.perf_counter()
            done = folder.run(spec_of(count, Path(place) / str(repetition)), model=model)
            whole = time.perf_counter() - begun
            making = sum(item["seconds"] for item in done.items.values())
            shares.append((whole - making) / making)
            ratios.append(whole / plain)
            print(f"  {repetition}: pictures {making:.2f} s, run {whole:.2f} s; generate and save alone {plain:.2f} s")
    print(f"all beside the network calls: {100 * statistics.median(shares):.2f} % of their time")
    print(f"run against generate and plain PNGs: {statistics.median(ratios):.4f} (range {min(ratios):.4f} to "
          f"{max(ratios):.4f})")  # fmt: skip
    _parts(model, min(count, 64))


def _plain_png(image: Any, path: Path) -> None:
    image.save(path, format="PNG")


def _parts(model: Any, count: int) -> None:
    """Where the time beside the network goes, for each picture."""
    samples = list(generate(spec_of(count), model=model))
    spec, now = spec_of(50_000), {"revision": model.revision, "inputs": {}, **environment("cpu")}
    with tempfile.TemporaryDirectory() as place:
        begun = time.perf_counter()
        cpu = time.process_time()
        for start in range(0, count, 16):
            folder.save(Path(place), 0, samples[start : start + 16], spec, now)
        seconds, cpu = time.perf_counter() - begun, time.process_time() - cpu
    print(f"a picture of a run of 50000, in batches of 16: {1e3 * seconds / count:.2f} ms to the disk, of which "
          f"{1e3 * cpu / count:.2f} ms of this process")  # fmt: skip


# -- processes -----------------------------------------------------------------------------------------------------


def processes(count: int, repetitions: int) -> None:
    """Pictures a second of one process of one thread, and of two, between the first line of the log and the last: the
    start of Python and the loading of the model are not in it, and are said."""
    rates: dict[int, list[float]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as place:
        captions = Path(place) / "captions.csv"
        captions.write_text("prompt,seed\n" + "".join(
            f'"{prompt}",{seed}\n' for prompt, seed in spec_of(count).pictures()))  # fmt: skip
        for repetition in range(repetitions):
            for world_size in (1, 2):
                out = Path(place) / f"{repetition}-{world_size}"
                begun = time.perf_counter()
                _launch(world_size, captions, out)
                log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
                rates[world_size].append(count / log[-1]["seconds"])
                seconds = time.perf_counter() - begun
                print(f"  processes {world_size}: {rates[world_size][-1]:.2f} pictures a second; {seconds:.1f} s with "
                      "start and loading")  # fmt: skip
        same = all(
            path.read_bytes() == (Path(place) / "0-2" / path.name).read_bytes()
            for path in (Path(place) / "0-1").glob("*.png")
        )
    ratio = statistics.median(two / one for one, two in zip(rates[1], rates[2], strict=True))
    print(f"two processes against one: {ratio:.2f}; the same bytes: {same}")
    print(f"load of the machine now: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores; this figure needs an idle one")


def _launch(world_size: int, captions: Path, out: Path) -> None:
    flags = ["-m", "pilotage", "generate", "--prompts", str(captions), "--batch-size", "16", "--threads", "1"]
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(world_size)] if world_size > 1 else []
    subprocess.run(
        [sys.executable, *launcher, *flags, "-o", str(out)],
        cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=True, capture_output=True,
    )  # fmt: skip


# -- kills ---------------------------------------------------------------------------------------------------------


def kills(count: int, wanted: int, out: Path, seed: int = 0) -> None:
    """A run killed so many times at random moments, the same command each time; then an undisturbed one: the same
    bytes, no duplicate, no gap, nothing half. The moments are spread over the work that is left."""
    out.mkdir(parents=True, exist_ok=True)
    tally = out / "kills.json"
    done: list[int] = json.loads(tally.read_text()) if tally.is_file() else []
    torch.set_num_threads(1)
    model = open_model(spec_of(1))
    spec, chance = spec_of(count, out / "killed"), random.Random(seed + len(done))
    while len(done) < wanted:
        there = len(finished_items(out / "killed", count)) if (out / "killed").is_dir() else 0
        more = chance.uniform(0, 2 * (count - there) / (wanted - len(done) + 1))
        child = _forked(spec, model)
        if _killed_after(child, out / "killed" / MANIFEST, there + more, chance.uniform(0, 0.5)):
            done.append(len(finished_items(out / "killed", count)))
            tally.write_text(json.dumps(done))
            print(f"  kill {len(done)} at {done[-1]} pictures", flush=True)
        else:
            break
    assert os.waitstatus_to_exitcode(os.waitpid(_forked(spec, model), 0)[1]) == 0
    folder.run(spec_of(count, out / "calm"), model=model)
    calm, killed = ({p.name: p.read_bytes() for p in sorted((out / name).glob("*.png"))} for name in ("calm", "killed"))
    named = [json.loads(line)["index"] for line in (out / "killed" / MANIFEST).read_text().splitlines()]
    halves = [path.name for path in (out / "killed").iterdir() if path.suffix == ".part"]
    print(f"{count} pictures, {len(done)} kills: identical {calm == killed}, {len(killed)} files, manifest names "
          f"{len(set(named))} of {len(named)} lines, half files {len(halves)}")  # fmt: skip


def _forked(spec: RunSpec, model: Any) -> int:
    """A process that continues the run. It shares the model that is loaded already."""
    child = os.fork()
    if child:
        return child
    try:
        folder.run(spec, model=model)
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        os._exit(1)
    os._exit(0)


def _killed_after(child: int, manifest: Path, lines: float, later: float) -> bool:
    """Kill it when the manifest has so many lines, and a moment later; False when it was done before."""
    while not os.waitpid(child, os.WNOHANG)[0]:
        if manifest.is_file() and manifest.read_bytes().count(b"\n") >= lines:
            time.sleep(later)
            os.kill(child, signal.SIGKILL)
            return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0
        time.sleep(0.02)
    return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["resume", "overhead", "processes", "kills"])
    parser.add_argument("--count", type=int, default=None, help="pictures")
    parser.add_argument("--missing", type=int, default=100, help="of a resume")
    parser.add_argument("--profile", action="store_true", help="of a resume")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("-o", "--output", type=Path, default=ROOT / "runs" / "kills")
    given = parser.parse_args()
    if given.what == "resume":
        resume(given.count or 50_000, given.missing, given.profile)
    elif given.what == "overhead":
        overhead(given.count or 96, given.repetitions)
    elif given.what == "processes":
        processes(given.count or 96, given.repetitions)
    else:
        kills(given.count or 200, given.kills, given.output)


if __name__ == "__main__":
    main()
